"""`nim-cookbook new`: a recipe from the template, which keeps the rules and runs as it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import nbformat
import tomlkit
from rich.console import Console

from cookbook_cli import recipes as index
from cookbook_cli import stored
from cookbook_cli.connection import shown
from cookbook_cli.execute import as_text
from cookbook_cli.recipes import Floor, Recipe
from cookbook_cli.results import write_atomically
from nim_cookbook.data import read_text
from nim_cookbook.errors import ConfigurationError

TEMPLATE = "recipe_template.ipynb"
LESSON = "Say in one sentence what the reader learns."
#: What the template's notebook measures.
FLOOR = Floor(measure="margin of the text that answers", min=0.05)
STEPS = """\
Five steps follow; CONTRIBUTING.md explains them:
  1. Write the lesson, level, minutes and packages: in the first cell and in recipes.toml;
     there also the endpoints that it calls and the extras that it imports.
  2. Replace the template's step by yours: `make lab`.
  3. Measure what your step changed, and set floors in recipes.toml.
  4. Sort its imports: `.venv/bin/ruff check --fix notebooks`. Execute it and store its outputs:
     `make notebooks RECIPES={number}`. Then read them in prose.
  5. Write its set-up cell and its row in the README, and check the recipe:
     make stamp tables
     make lint test-code test-recipes PYTEST_ARGS="-k {number}"
"""


def new(console: Console, title: str, notebooks: Path | None = None) -> int:
    """Write the notebook of a new recipe and its entry in the index: both, or neither.

    Returns:
        0.

    Raises:
        ConfigurationError: The title is taken or makes no file name, or the folder is read-only.
    """
    folder = index.find_notebooks(notebooks)
    recipe = _recipe(" ".join(title.split()), index.load(folder))
    notebook, entries = folder / recipe.file, folder / index.INDEX
    text = read_text(entries).rstrip("\n") + "\n\n" + _entry(recipe)
    try:
        write_atomically(notebook, _notebook(recipe))
        try:
            write_atomically(entries, text)
        except BaseException:
            notebook.unlink()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"The recipe cannot be written to {folder} ({error.strerror}): make room, or make the "
            "folder writable."
        ) from error
    console.print(f"Written: {shown(notebook)}, and its entry in {shown(entries)}", soft_wrap=True)
    console.print(
        STEPS.format(number=recipe.number), end="", markup=False, highlight=False, soft_wrap=True
    )
    return 0


def _recipe(title: str, known: Sequence[Recipe]) -> Recipe:
    """Return the entry: the next free number, and a file name made of the title."""
    taken = [recipe for recipe in known if recipe.title.casefold() == title.casefold()]
    if taken:
        raise ConfigurationError(
            f"Recipe {taken[0].number} is called {taken[0].title!r} already: choose another title."
        )
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    if not name:
        raise ConfigurationError(f"The title {title!r} makes no file name: use letters and digits.")
    number = f"{1 + max((int(recipe.number) for recipe in known), default=-1):02d}"
    return Recipe(
        number=number,
        file=f"{number}_{name}.ipynb",
        title=title,
        level="beginner",
        minutes=10,
        packages=("haystack-ai", "nvidia-haystack"),
        endpoints=("embedding",),
        lesson=LESSON,
        floor=(FLOOR,),
    )


def _entry(recipe: Recipe) -> str:
    """Return the entry as recipes.toml has it."""
    values = {name: value for name, value in asdict(recipe).items() if value not in (0, False)}
    floors = [{k: v for k, v in floor.items() if v not in ("", None)} for floor in values["floor"]]
    return tomlkit.dumps({"recipe": [values | {"floor": floors}]})


def _notebook(recipe: Recipe) -> str:
    """Return the template with the recipe's title block, as text."""
    source = resources.files("cookbook_cli").joinpath(TEMPLATE).read_text("utf-8")
    notebook = nbformat.reads(source, as_version=4)  # type: ignore[no-untyped-call]
    packages = ", ".join(f"`{package}`" for package in recipe.packages)
    title = notebook.cells[0]
    title.source = title.source.format(**asdict(recipe) | {"packages": packages})
    # It has no outputs that could be stale, and no weights have answered.
    weights = dict.fromkeys(recipe.endpoints, "none: not executed yet")
    notebook.metadata[stored.METADATA] = {
        "source_sha256": stored.source_hash(notebook),
        "weights": weights,
    }
    return as_text(notebook)
