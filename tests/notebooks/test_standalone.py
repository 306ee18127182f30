"""Each notebook, copied alone into an empty folder, with only the built wheel installed.

That is how it runs on Colab: no clone, no data folder, no servers running. The wheel carries the
data, and the notebook starts the servers itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from cookbook_cli import recipes as index
from cookbook_cli.floors import missed
from nim_cookbook.local import cache_dir

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))

# These need packages of an extra, which this environment leaves out: recipe, and what it says.
STOPS = {
    "09": ("Training needs torch", "this server lacks", "finetune"),
    "10": ("torch is not installed", "restart the kernel", "finetune"),
    "11": ("hayhooks is not installed", "restart the kernel", "serve"),
    "12": ("pydantic_settings is not installed", "restart the kernel", "serve"),
    "13": ("pydantic_settings is not installed", "restart the kernel", "serve"),
    "14": ("Helm", "pip install", "kubernetes"),
}

# What pip says when no package index can be reached at all.
OFFLINE = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")

pytestmark = [pytest.mark.xdist_group("standalone"), pytest.mark.network]  # one environment
EVERY_COMMIT = "01"  # the others on the long run


def attempt(*command: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    """Run a command; return how it ended and what it printed."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
        **more,
    )


def run(*command: str | Path, **more: object) -> None:
    """Run a command; when it fails, fail the test with what it printed."""
    done = attempt(*command, **more)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment's bin folder: the wheel and what it declares, nothing else."""
    folder = tmp_path_factory.mktemp("standalone")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "dist", "executed")
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    build = ["-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    run(sys.executable, *build, cwd=source)
    wheel = next(folder.glob("*.whl"))
    venv.create(folder / "venv")  # our own pip installs into it
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    constraints = REPOSITORY / "constraints.txt"
    # Uncompiled: Python does that for what is imported, which is a small part.
    pip = ["-m", "pip", "--python", scripts / "python", "install", "--quiet", "--no-compile"]
    install = [*pip, "-c", constraints, f"{wheel}[notebooks]"]
    try:
        run(sys.executable, *install)
    except AssertionError as error:
        if any(words in str(error) for words in OFFLINE):
            pytest.skip("needs a network, to install the wheel's dependencies")
        raise
    return scripts


@dataclass
class Desk:
    """An empty folder with one notebook in it, and an empty cache but for the weights.

    Attributes:
        folder: The folder.
        environ: Environment variables: none that says where servers are.
    """

    folder: Path
    environ: dict[str, str]

    def execute(self, environment: Path) -> subprocess.CompletedProcess[str]:
        (notebook,) = self.folder.iterdir()
        command = (environment / "jupyter", "execute", "--inplace", notebook.name)
        done = attempt(*command, cwd=self.folder, env=self.environ)
        assert list(self.folder.iterdir()) == [notebook], "the notebook left files"
        servers = Path(self.environ["COOKBOOK_CACHE_DIR"]) / "run"
        assert not list(servers.glob("*.json")), "the notebook left servers running"
        return done


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "weights").symlink_to(cache_dir() / "weights")
    folder = tmp_path / "desk"
    folder.mkdir()
    ours = ("COOKBOOK_", "NIM_", "NVIDIA_", "PYTHONPATH", "PYTHONDONTWRITE", "COVERAGE_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return Desk(folder, {**environ, "COOKBOOK_CACHE_DIR": str(cache)})


@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.long] if path.stem[:2] != EVERY_COMMIT else [],
        )
        for path in NOTEBOOKS
        if path.stem[:2] not in STOPS
    ],
)
def test_runs_alone(notebook: Path, environment: Path, desk: Desk):
    shutil.copy(notebook, desk.folder)
    done = desk.execute(environment)
    assert done.returncode == 0, done.stdout[-4000:]
    (recipe,) = index.select(index.load(notebook.parent), [notebook.stem])
    executed = nbformat.read(desk.folder / notebook.name, as_version=4)
    assert missed(recipe.floor, executed) == []


@pytest.mark.long
@pytest.mark.parametrize("number", STOPS)
def test_without_its_packages_a_recipe_says_what_to_install(
    number: str, environment: Path, desk: Desk
):
    says, also, extra = STOPS[number]
    (notebook,) = [path for path in NOTEBOOKS if path.stem[:2] == number]
    shutil.copy(notebook, desk.folder)
    desk.environ["PATH"] = os.defpath  # no program of this environment
    done = desk.execute(environment)
    assert done.returncode != 0
    (sentence,) = {line for line in done.stdout.splitlines() if says in line and also in line}
    assert f'pip install "nim-rag-cookbook[{extra}]"' in sentence
