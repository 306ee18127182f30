"""Each notebook, copied alone into an empty folder, with only the built wheel installed.

That is how it runs on Colab: no clone, no data folder, no servers running. The wheel carries the
data, and the notebook starts the servers itself.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from local_endpoints.weights import cache_dir
from tests.notebooks.guards import check
from tests.notebooks.rules import python_of

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))

# The long recipes are executed whole by test_recipes.py. Here, where the question is whether the
# wheel brings all they need, they run up to the cell with this tag, and then import the rest.
ENOUGH = {"03": "first-index", "04": "index"}

# These need packages of an extra, which this environment leaves out: recipe, the cell at which it
# stops, and what it says there.
STOPS = {
    "05": ("adapter", "Training needs", "torch, peft, transformers", "finetune"),
    "06": ("connect", "There is no nats-server", "did not start", "serve"),
    "07": ("connect", "There is no nats-server", "did not start", "serve"),
}

# What pip says when no package index can be reached at all.
OFFLINE = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")

pytestmark = pytest.mark.xdist_group("standalone")  # one environment
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


def shortened(path: Path, tag: str | None) -> nbformat.NotebookNode:
    """Return a notebook, whole or up to the cell with a tag and with the later cells' imports."""
    notebook = nbformat.read(path, as_version=4)
    if tag is None:
        return notebook
    end = next(n for n, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", ()))
    later = [python_of(cell) for cell in notebook.cells[end + 1 :] if cell.cell_type == "code"]
    imports = [
        ast.unparse(node)
        for node in ast.walk(ast.parse("\n".join(later)))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert imports
    closing = "from nim_cookbook import endpoints\nendpoints.connect().close()"
    notebook.cells = notebook.cells[: end + 1]
    notebook.cells += [nbformat.v4.new_code_cell("\n".join([*imports, closing]))]
    return notebook


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
    number = notebook.stem[:2]
    nbformat.write(shortened(notebook, ENOUGH.get(number)), desk.folder / notebook.name)
    done = desk.execute(environment)
    assert done.returncode == 0, done.stdout[-4000:]
    if number not in ENOUGH:  # the cells that the others are judged by did not run
        executed = nbformat.read(desk.folder / notebook.name, as_version=4)
        assert check(number, executed) == []


@pytest.mark.long
@pytest.mark.parametrize("number", STOPS)
def test_without_its_packages_a_recipe_says_what_to_install(
    number: str, environment: Path, desk: Desk
):
    tag, says, also, extra = STOPS[number]
    (notebook,) = [path for path in NOTEBOOKS if path.stem[:2] == number]
    content = nbformat.read(notebook, as_version=4)
    end = next(n for n, cell in enumerate(content.cells) if tag in cell.metadata.get("tags", ()))
    content.cells = content.cells[: end + 1]
    nbformat.write(content, desk.folder / notebook.name)
    desk.environ["PATH"] = os.defpath  # no program of this environment
    done = desk.execute(environment)
    assert done.returncode != 0
    (sentence,) = {line for line in done.stdout.splitlines() if says in line and also in line}
    assert f'pip install "nim-rag-cookbook[{extra}]"' in sentence
    after = done.stdout.split(content.cells[end].source)
    assert len(after) > 1, "it stopped at another cell"
    assert "Traceback" not in after[-1]
