"""tools/stamp.py: the repository's address stands in one place, and all notebooks have it."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from cookbook_cli import recipes, stored
from cookbook_cli.execute import read_notebook

ROOT = Path(__file__).resolve().parents[2]
FORK = "https://github.com/somebody/a-fork"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stamp_under_test", ROOT / "tools" / "stamp.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_recipe_is_stamped(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--check"]) == 0, capsys.readouterr().out


def test_a_fork_changes_badge_and_set_up_cell_and_nothing_else(tool: ModuleType) -> None:
    (recipe,) = recipes.select(recipes.load(tool.FOLDER), ["13"])
    before = read_notebook(recipes.notebook_path(tool.FOLDER, recipe))
    assert not stored.is_stale(before)
    after = tool.stamp(copy.deepcopy(before), recipe, FORK)
    changed = [n for n, cell in enumerate(after.cells) if cell != before.cells[n]]
    assert [after.cells[n].id for n in changed] == ["title", "setup"]
    assert f"/github/somebody/a-fork/blob/main/notebooks/{recipe.file})" in after.cells[0].source
    assert f'[serve,kubernetes] @ git+{FORK}"' in after.cells[changed[1]].source
    assert not stored.is_stale(after)


def test_stale_outputs_stay_stale(tool: ModuleType) -> None:
    (recipe,) = recipes.select(recipes.load(tool.FOLDER), ["00"])
    notebook = read_notebook(recipes.notebook_path(tool.FOLDER, recipe))
    notebook.cells[-1].source += "\n1 + 1"
    assert stored.is_stale(tool.stamp(notebook, recipe, FORK))


def test_the_address_stands_nowhere_else(tool: ModuleType) -> None:
    address = re.compile(re.escape(tool.address().removeprefix("https://")), re.IGNORECASE)
    kinds = ("*.py", "*.md", "*.toml", "*.yml", "*.yaml", "*.txt", "Makefile", "Dockerfile")
    folders = ("utils", "tools", "docs", "deploy", "benchmarks", ".github", ".ci", "data")
    files = [path for kind in kinds for path in ROOT.glob(kind)]
    files += [path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(kind)]
    found = [path.name for path in files if address.search(path.read_text(encoding="utf-8"))]
    assert found == ["pyproject.toml"]
