"""Write the repository's address into the recipes: the Colab badge and the set-up cell.

The address stands in pyproject.toml (`[project.urls]`), a recipe's extras in recipes.toml. After a
change of either run `make stamp` and commit the notebooks. `--check` writes nothing and tells which
notebooks differ. Stored outputs stay as fresh as they were: where the cookbook is installed, and it
is where outputs are stored, the set-up cell does nothing.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nbformat import NotebookNode

from cookbook_cli import recipes, stored
from cookbook_cli.execute import as_text, read_notebook
from cookbook_cli.recipes import Recipe
from cookbook_cli.results import write_atomically

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
#: What `nim-cookbook new` begins with.
TEMPLATE = ROOT / "utils" / "cookbook_cli" / "recipe_template.ipynb"
BADGE = re.compile(r"\(https://colab\.research\.google\.com/github/[^)]*\)")
SETUP = """import importlib.util

if importlib.util.find_spec("nim_cookbook") is None:
    %pip install --quiet "nim-rag-cookbook{extras} @ git+{address}\""""


def address() -> str:
    """Return the repository's address."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return str(project["urls"]["Repository"]).rstrip("/")


def in_colab(address: str, file: str) -> str:
    """Return where Colab opens a recipe's file."""
    name = address.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{name}/blob/main/notebooks/{file}"


def stamp(notebook: NotebookNode, recipe: Recipe, address: str) -> NotebookNode:
    """Put the address into a notebook, in place."""
    fresh = not stored.is_stale(notebook)
    badge = f"({in_colab(address, recipe.file)})"
    notebook.cells[0].source = BADGE.sub(badge, notebook.cells[0].source)
    extras = f"[{','.join(recipe.extras)}]" if recipe.extras else ""
    for cell in notebook.cells:
        if "setup" in cell.metadata.get("tags", ()):
            cell.source = SETUP.format(extras=extras, address=address)
    if fresh:
        notebook.metadata[stored.METADATA]["source_sha256"] = stored.source_hash(notebook)
    return notebook


def main(arguments: Sequence[str]) -> int:
    """Write the notebooks, or compare them; return 1 when one differs."""
    differ = []
    index = recipes.load(FOLDER)
    blank = replace(index[0], file="{file}", extras=())
    files = {recipes.notebook_path(FOLDER, recipe): recipe for recipe in index}
    for path, recipe in {**files, TEMPLATE: blank}.items():
        new = as_text(stamp(read_notebook(path), recipe, address()))
        if new != path.read_text("utf-8"):
            differ.append(path.name)
            if "--check" not in arguments:
                write_atomically(path, new)
    if differ and "--check" in arguments:
        print(f"Not stamped with {address()}: {', '.join(differ)}. Run `make stamp`.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
