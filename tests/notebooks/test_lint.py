"""The recipes keep the rules of `rules.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cookbook_cli import recipes as index
from cookbook_cli.execute import read_notebook
from cookbook_cli.recipes import Recipe
from tests.notebooks.rules import RULES, Rule

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
RECIPES = index.load(FOLDER)


def test_index_and_folder_agree() -> None:
    listed = [recipe.file for recipe in RECIPES]
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.ipynb"))
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.number)
def test_cell_ids_are_unique_on_disk(recipe: Recipe) -> None:
    raw = json.loads(index.notebook_path(FOLDER, recipe).read_text(encoding="utf-8"))
    identifiers = [cell["id"] for cell in raw["cells"]]
    assert len(set(identifiers)) == len(identifiers)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.number)
def test_entry(recipe: Recipe) -> None:
    assert recipe.file.startswith(f"{recipe.number}_")
    assert recipe.level in {"beginner", "intermediate", "advanced"}
    assert 0 < recipe.minutes <= 60
    assert recipe.packages
    assert recipe.lesson.endswith(".")
    assert recipe.floor
    assert set(recipe.endpoints) <= {"chat", "embedding", "reranking"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.number)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Rule, recipe: Recipe) -> None:
    problems = rule(read_notebook(index.notebook_path(FOLDER, recipe)), recipe)
    assert not problems, f"{recipe.file}: " + "; ".join(problems)
