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
from pathlib import Path

import nbformat
import pytest

from local_endpoints.weights import cache_dir
from tests.notebooks.guards import check

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))

# What pip says when no package index can be reached at all.
OFFLINE = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")

pytestmark = pytest.mark.slow


def run(*command: str | Path, **more: object) -> None:
    """Run a command; when it fails, fail the test with what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        **more,  # type: ignore[call-overload]
    )
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
    venv.create(folder / "venv", with_pip=True)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    constraints = REPOSITORY / "constraints.txt"
    install = ["-m", "pip", "install", "--quiet", "-c", constraints, f"{wheel}[notebooks]"]
    try:
        run(scripts / "python", *install)
    except AssertionError as error:
        if any(words in str(error) for words in OFFLINE):
            pytest.skip("needs a network, to install the wheel's dependencies")
        raise
    return scripts


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_alone(notebook: Path, environment: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "weights").symlink_to(cache_dir() / "weights")
    desk = tmp_path / "desk"
    desk.mkdir()
    shutil.copy(notebook, desk)
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COOKBOOK_", "NIM_", "NVIDIA_", "PYTHONPATH", "COVERAGE_"))
    }
    clean["COOKBOOK_CACHE_DIR"] = str(cache)
    run(environment / "jupyter", "execute", "--inplace", notebook.name, cwd=desk, env=clean)
    executed = nbformat.read(desk / notebook.name, as_version=4)
    assert check(notebook.stem[:2], executed) == []
    assert [path.name for path in desk.iterdir()] == [notebook.name], "the notebook left files"
    assert not list((cache / "run").glob("*.json")), "the notebook left servers running"
