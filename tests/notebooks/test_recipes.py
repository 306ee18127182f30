"""Every recipe runs from its first cell to its last, and keeps its floors in `recipes.toml`.

Against the local servers, or, with COOKBOOK_ENDPOINTS set to hosted or self-hosted and the keys
and URLs that go with it, against the real thing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from nbmake.nb_run import NotebookRun

from cookbook_cli import recipes as index
from cookbook_cli.floors import missed
from cookbook_cli.recipes import Recipe
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
def test_recipe(recipe: Recipe, servers: Servers) -> None:
    path = index.notebook_path(FOLDER, recipe)
    result = NotebookRun(path, default_timeout=TIMEOUT).execute()
    assert result.error is None, f"{result.error.summary}\n{result.error.trace}"
    assert missed(recipe.floor, result.nb) == []


def test_the_canary_fails(servers: Servers) -> None:
    """If this notebook passed, no other notebook's passing would mean anything."""
    result = NotebookRun(HERE / "canary_must_fail.ipynb", default_timeout=TIMEOUT).execute()
    assert result.error is not None
    assert "AssertionError" in result.error.trace
