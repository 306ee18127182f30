"""`nim-cookbook new`: the next number, a name of the title, and both files or neither."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cookbook_cli import new, recipes
from cookbook_cli.__main__ import main

INDEX = Path(__file__).resolve().parents[2] / "notebooks" / "recipes.toml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipes.toml").write_bytes(INDEX.read_bytes())
    return tmp_path


def begin(folder: Path, title: str) -> int:
    return main(["new", title, f"--notebooks={folder}"])


def test_it_appends_the_next_recipe_and_says_what_follows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = f"{1 + int(recipes.load(folder)[-1].number):02d}"
    assert begin(folder, "  Über  tables ") == 0
    assert (folder / "recipes.toml").read_bytes().startswith(INDEX.read_bytes())
    recipe = recipes.load(folder)[-1]
    assert (recipe.number, recipe.title) == (number, "Über tables")
    assert recipe.file == f"{number}_uber_tables.ipynb"
    assert sorted(path.name for path in folder.iterdir()) == [recipe.file, "recipes.toml"]
    text = capsys.readouterr().out
    assert re.findall(r"^  (\d)\. ", text, re.MULTILINE) == ["1", "2", "3", "4", "5"]
    assert f"make notebooks RECIPES={number}" in text
    assert f'PYTEST_ARGS="-k {number}"' in text


@pytest.mark.parametrize(
    ("title", "says"), [("start HERE", "Recipe 00 is called"), ("!?", "makes no file name")]
)
def test_a_title_that_will_not_do_is_refused(
    folder: Path, title: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin(folder, title) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["recipes.toml"]
    assert (folder / "recipes.toml").read_bytes() == INDEX.read_bytes()


def test_a_failed_entry_leaves_no_notebook(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = new.write_atomically

    def full_disk(path: Path, text: str) -> None:
        if path.name == "recipes.toml":
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(new, "write_atomically", full_disk)
    assert begin(folder, "Ask a table") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["recipes.toml"]
