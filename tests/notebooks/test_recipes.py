"""Every recipe runs from its first cell to its last, and keeps its floors in `recipes.toml`.

So do the answers to its exercises, as cells before the last one, which cleans up.

Against the local servers, or, with COOKBOOK_ENDPOINTS set to hosted or self-hosted and the keys
and URLs that go with it, against the real thing.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell
from nbmake.nb_run import NotebookRun

from cookbook_cli import recipes as index
from cookbook_cli.execute import read_notebook
from cookbook_cli.floors import missed
from cookbook_cli.recipes import Recipe
from tests.notebooks.rules import answers
from tests.support import Servers

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "notebooks"
TIMEOUT = 600  # seconds for a cell: a training on a slow machine

RECIPES = [
    pytest.param(recipe, id=recipe.number, marks=[pytest.mark.alone] if recipe.alone else [])
    for recipe in index.load(FOLDER)
]


@pytest.mark.timeout(3 * TIMEOUT)  # for whole recipes on a busy machine
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe: Recipe, servers: Servers, tmp_path: Path) -> None:
    notebook = read_notebook(index.notebook_path(FOLDER, recipe))
    exercises = [new_code_cell(code, id=f"answer-{n}") for n, code in enumerate(answers(notebook))]
    *_, clean_up = (n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells[clean_up:clean_up] = exercises
    nbformat.write(notebook, tmp_path / recipe.file)
    result = NotebookRun(tmp_path / recipe.file, default_timeout=TIMEOUT).execute()
    assert result.error is None, f"{result.error.summary}\n{result.error.trace}"
    assert missed(recipe.floor, result.nb) == []
    shown = {cell.id for cell in result.nb.cells if cell.get("outputs")}
    assert {cell.id for cell in exercises} <= shown, "an answer shows nothing"


def test_the_canary_fails(servers: Servers) -> None:
    """If this notebook passed, no other notebook's passing would mean anything."""
    result = NotebookRun(HERE / "canary_must_fail.ipynb", default_timeout=TIMEOUT).execute()
    assert result.error is not None
    assert "AssertionError" in result.error.trace
