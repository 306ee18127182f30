"""Which recipes there are (`notebooks/recipes.toml`), and which of them the user asked for."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nim_cookbook.data import read_text, validated
from nim_cookbook.errors import ConfigurationError, DataError

INDEX = "recipes.toml"


@dataclass(frozen=True, slots=True)
class Floor:
    """What must hold when a recipe was executed; `cookbook_cli.floors` checks it.

    About a measure, with `min`, `max` or `equals`; or about a cell, with `matches` or `lacks`.
    """

    measure: str = ""  # the measure's name
    cell: str = ""  # the cell's tag
    min: int | float | None = None  # the least that the measure may be
    max: int | float | None = None  # the most
    equals: int | float | str | None = None  # what it must be
    matches: str = ""  # a regular expression that the cell's text must match somewhere
    lacks: str = ""  # one that it must not match

    def __post_init__(self) -> None:
        """Refuse a floor that asks nothing, or of two things."""
        limits = (self.min, self.max, self.equals) != (None, None, None)
        words = bool(self.matches or self.lacks)
        if bool(self.measure) == bool(self.cell) or (limits, words) != (
            bool(self.measure),
            bool(self.cell),
        ):
            raise ValueError(
                "a floor has a measure with min, max or equals, or a cell with matches or lacks"
            )


@dataclass(frozen=True, slots=True)
class Recipe:
    """One entry of `recipes.toml`."""

    number: str  # two digits, as in the file's name
    file: str  # the notebook's file name
    title: str  # its heading
    level: str  # for whom it is: `beginner`, `intermediate` or `advanced`
    minutes: int  # reading and running, for somebody new to it
    packages: tuple[str, ...]  # what it teaches, by distribution name
    endpoints: tuple[str, ...]  # the roles that it calls
    lesson: str  # what it teaches, in one sentence
    extras: tuple[str, ...] = ()  # what it needs beside the core install
    seconds: int = 0  # executing it on two cores, as measured; 0 where nobody did
    alone: bool = False  # it measures time or load, or trains: nothing runs beside it
    floor: tuple[Floor, ...] = ()  # what must hold when it was executed


def find_notebooks(given: Path | None = None) -> Path:
    """Return the folder of the notebooks.

    Raises:
        ConfigurationError: There is none.
    """
    if given is not None:
        candidates = [given]
    else:
        here = Path.cwd()
        clone = Path(__file__).resolve().parents[2]
        candidates = [folder / "notebooks" for folder in (here, *here.parents, clone)]
    for folder in candidates:
        if (folder / INDEX).is_file():
            return folder
    if given is not None:
        raise ConfigurationError(f"There is no {INDEX} in {given}: name the folder that holds it.")
    raise ConfigurationError(
        "No notebooks folder was found here or above: run this inside a clone of the cookbook, "
        "or name the folder with --notebooks."
    )


def load(folder: Path) -> list[Recipe]:
    """Read the index of the recipes.

    Raises:
        DataError: It cannot be read, or an entry is incomplete.
    """
    path = folder / INDEX
    try:
        content = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} cannot be used ({error}): restore it from the clone.") from None
    return validated(list[Recipe], content.get("recipe"), INDEX)


def select(recipes: Sequence[Recipe], wanted: Sequence[str]) -> list[Recipe]:
    """Return the wanted recipes in the cookbook's order; all of them when none is named.

    Raises:
        ConfigurationError: One of them does not exist.
    """
    chosen = set()
    for name in wanted:
        number = name.zfill(2) if name.isdecimal() else name
        match = [r for r in recipes if number == r.number or Path(number).stem == Path(r.file).stem]
        if not match:
            known = ", ".join(recipe.number for recipe in recipes)
            raise ConfigurationError(f"There is no recipe {name!r}: choose among {known}.")
        chosen.add(match[0].number)
    return [recipe for recipe in recipes if not chosen or recipe.number in chosen]


def notebook_path(folder: Path, recipe: Recipe) -> Path:
    """Return where a recipe's notebook is.

    Raises:
        DataError: The file is missing.
    """
    path = folder / recipe.file
    if not path.is_file():
        raise DataError(f"Recipe {recipe.number} is listed but {path} is missing: restore it.")
    return path
