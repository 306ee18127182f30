"""Recipes in an environment like Colab's: their own set-up cells install into what is there.

Colab's Python, and its versions of all packages that the cookbook needs, are listed in colab.txt.
PyTorch is a package of that name and version and nothing in it: the real one is several gigabytes,
and what counts is that pip leaves it as it is. So the recipes that train are not run here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from cookbook_cli import recipes as index
from cookbook_cli.floors import missed
from cookbook_cli.recipes import Recipe
from tests.notebooks.alone import REPOSITORY, Desk, build_wheel, install, run

PYTHON = (3, 12)
PRELOADED = {"numpy": "2.0.2", "pandas": "2.2.2", "torch": "2.10.0+cu128"}
ALL = index.load(REPOSITORY / "notebooks")
RUN = [recipe for recipe in ALL if "finetune" not in recipe.extras]

pytestmark = [
    pytest.mark.xdist_group("colab"),  # one environment
    pytest.mark.network,
    pytest.mark.long,
    pytest.mark.timeout(1800),
]


def pythons() -> Iterator[str]:
    """Yield commands that may be the Python that Colab has."""
    yield sys.executable
    yield "python{}.{}".format(*PYTHON)
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, root.glob("versions/{}.{}.*/bin/python".format(*PYTHON)))


def colabs_python() -> str:
    for command in pythons():
        path = shutil.which(command)
        asked = [path or command, "-c", "import sys, venv; print(*sys.version_info[:2])"]
        done = path and subprocess.run(asked, capture_output=True, text=True, check=False)
        if done and done.stdout.split() == [*map(str, PYTHON)]:
            return str(path)
    pytest.skip("needs Python {}.{}, which Colab has".format(*PYTHON))


def put_torch(folder: Path) -> Path:
    """Make a wheel of PyTorch's name and version with nothing in it."""
    name = f"torch-{PRELOADED['torch']}"
    wheel = folder / f"{name}-py3-none-any.whl"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {PRELOADED['torch']}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, text in files.items():
            archive.writestr(f"{name}.dist-info/{file}", text)
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with Colab's packages and none of ours."""
    folder = tmp_path_factory.mktemp("colab")
    run(colabs_python(), "-m", "venv", folder / "venv")
    scripts = folder / "venv" / "bin"
    pip = [scripts / "python", "-m", "pip", "install", "--quiet", "--no-compile"]
    install(*pip, "pip==24.1.2")
    install(*pip, "--no-deps", put_torch(folder))
    # Without Colab's own dependencies: those that are missing are not the cookbook's.
    install(*pip, "-r", REPOSITORY / "tests" / "notebooks" / "colab.txt")
    assert versions(scripts) == PRELOADED
    return scripts


def versions(scripts: Path) -> dict[str, str]:
    listed = json.loads(run(scripts / "python", "-m", "pip", "list", "--format", "json"))
    return {one["name"]: one["version"] for one in listed if one["name"] in PRELOADED}


@pytest.mark.parametrize("recipe", RUN, ids=lambda recipe: recipe.number)
def test_a_recipe_installs_itself_and_runs(
    recipe: Recipe, colab: Path, wheel: Path, tmp_path: Path
) -> None:
    run(colab / "python", "-m", "pip", "uninstall", "--yes", "--quiet", "nim-rag-cookbook")
    notebook = nbformat.read(REPOSITORY / "notebooks" / recipe.file, as_version=4)
    (setup,) = [cell for cell in notebook.cells if "setup" in cell.metadata.get("tags", [])]
    before, _, _ = setup.source.partition("git+")
    setup.source = f'{before}{wheel.as_uri()}"'  # the one change: the wheel for the repository
    desk = Desk.at(tmp_path)
    nbformat.write(notebook, desk.folder / recipe.file)
    done = desk.execute(colab)
    assert done.returncode == 0, done.stdout[-4000:]
    assert missed(recipe.floor, nbformat.read(desk.folder / recipe.file, as_version=4)) == []
    assert versions(colab) == PRELOADED


def test_no_extra_replaces_what_colab_has(colab: Path, wheel: Path, tmp_path: Path) -> None:
    extras = sorted({extra for recipe in ALL for extra in recipe.extras})
    report = tmp_path / "report.json"
    pip = [colab / "python", "-m", "pip", "install", "--quiet", "--dry-run", "--report", report]
    install(*pip, f"{wheel}[{','.join(extras)}]")
    planned = {one["metadata"]["name"] for one in json.loads(report.read_text())["install"]}
    assert "gradient-haystack" in planned  # of an extra that no recipe above has installed
    assert not planned & set(PRELOADED)
