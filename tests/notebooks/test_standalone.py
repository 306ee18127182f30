"""Each notebook, copied alone into an empty folder, with only the built wheel installed.

That is how it runs on Colab: no clone, no data folder, no servers running. The wheel carries the
data, and the notebook starts the servers itself.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import venv
from pathlib import Path

import nbformat
import pytest

from cookbook_cli import recipes as index
from cookbook_cli.floors import missed
from cookbook_cli.recipes import Recipe
from tests.notebooks.alone import REPOSITORY, Desk, build_wheel, install

RECIPES = index.load(REPOSITORY / "notebooks")

pytestmark = [
    pytest.mark.xdist_group("standalone"),  # one environment
    pytest.mark.network,
    pytest.mark.timeout(1800),  # with the installation
]
EVERY_COMMIT = "01"  # the others on the long run


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment's bin folder: the wheel and what it declares, nothing else."""
    folder = tmp_path_factory.mktemp("standalone")
    wheel = build_wheel(folder)
    venv.create(folder / "venv")  # our own pip installs into it
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    constraints = REPOSITORY / "constraints.txt"
    # Uncompiled: Python does that for what is imported, which is a small part.
    pip = ["-m", "pip", "--python", scripts / "python", "install", "--quiet", "--no-compile"]
    install(sys.executable, *pip, "-c", constraints, f"{wheel}[notebooks]")
    return scripts


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk.at(tmp_path)


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(
            recipe,
            id=recipe.number,
            marks=[pytest.mark.long] if recipe.number != EVERY_COMMIT else [],
        )
        for recipe in RECIPES
        if not recipe.extras
    ],
)
def test_runs_alone(recipe: Recipe, environment: Path, desk: Desk):
    shutil.copy(REPOSITORY / "notebooks" / recipe.file, desk.folder)
    done = desk.execute(environment)
    assert done.returncode == 0, done.stdout[-4000:]
    executed = nbformat.read(desk.folder / recipe.file, as_version=4)
    assert missed(recipe.floor, executed) == []


@pytest.mark.long
@pytest.mark.parametrize(
    "recipe", [pytest.param(recipe, id=recipe.number) for recipe in RECIPES if recipe.extras]
)
def test_without_its_packages_a_recipe_says_what_to_install(
    recipe: Recipe, environment: Path, desk: Desk
):
    shutil.copy(REPOSITORY / "notebooks" / recipe.file, desk.folder)
    desk.environ["PATH"] = os.defpath  # no program of this environment
    done = desk.execute(environment)
    assert done.returncode != 0
    says = r'^\w*Error: .*`pip install "nim-rag-cookbook\[(\w+)\]"`'
    found = set(re.findall(says, done.stdout, re.MULTILINE))
    assert found, done.stdout[-4000:]
    assert found <= {*recipe.extras, "measure"}  # its scipy is in other extras too
