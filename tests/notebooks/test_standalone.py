"""Each notebook, copied alone into an empty folder, with only the built wheel installed.

That is how it runs on Colab: no clone, no data folder, no servers running. The wheel carries the
data, and the notebook starts the servers itself.
"""

from __future__ import annotations

import os
import shutil
import sys
import venv
from pathlib import Path

import nbformat
import pytest

from cookbook_cli import recipes as index
from cookbook_cli.floors import missed
from tests.notebooks.alone import REPOSITORY, Desk, build_wheel, install

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))

# These need packages of an extra, which this environment leaves out: recipe, and what it says.
STOPS = {
    "05": ("llama_index is not installed", "restart the kernel", "llamaindex"),
    "07": ("ranx is not installed", "restart the kernel", "measure"),
    "08": ("matplotlib is not installed", "restart the kernel", "measure"),
    "09": ("Notion pages need", "pip install", "finetune"),
    "10": ("torch is not installed", "restart the kernel", "finetune"),
    "11": ("hayhooks is not installed", "restart the kernel", "serve"),
    "12": ("pydantic_settings is not installed", "restart the kernel", "serve"),
    "13": ("pydantic_settings is not installed", "restart the kernel", "serve"),
    "14": ("Helm", "pip install", "kubernetes"),
}

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
