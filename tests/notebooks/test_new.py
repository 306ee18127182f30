"""`nim-cookbook new`: what it makes keeps the rules, runs, and holds its floor."""

from __future__ import annotations

import shutil
from pathlib import Path

from nbmake.nb_run import NotebookRun

from cookbook_cli import recipes as index
from cookbook_cli.__main__ import main
from cookbook_cli.execute import read_notebook
from cookbook_cli.floors import missed
from tests.notebooks import test_lint
from tests.notebooks.rules import RULES
from tests.support import Servers


def test_a_new_recipe_keeps_the_rules_and_runs(tmp_path: Path, servers: Servers) -> None:
    folder = shutil.copytree(test_lint.FOLDER, tmp_path / "notebooks")
    assert main(["new", 'Ask a "table": rows & sums', f"--notebooks={folder}"]) == 0
    *known, recipe = index.load(folder)
    assert known == test_lint.RECIPES
    test_lint.test_entry(recipe)
    path = index.notebook_path(folder, recipe)
    assert [problem for rule in RULES for problem in rule(read_notebook(path), recipe)] == []
    result = NotebookRun(path, default_timeout=120).execute()
    assert result.error is None, f"{result.error.summary}\n{result.error.trace}"
    assert missed(recipe.floor, result.nb) == []
