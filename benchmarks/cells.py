"""What the cells of a recipe define, for benchmarks that measure the code that is read."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from cookbook_cli.execute import read_notebook

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def names_of(notebook: str, last: str, *left_out: str, examples: bool = True) -> dict[str, Any]:
    """Run a recipe's cells up to the one with the tag `last`; return the names they define.

    Args:
        notebook: The file's name.
        last: The tag of the last cell that is run.
        left_out: Tags of cells that are not run, because they only show something.
        examples: Run the lines that only show something, loops and calls of `print`, as well.
    """
    names: dict[str, Any] = {}
    for cell in read_notebook(NOTEBOOKS / notebook).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and not set(left_out) & set(tags):
            code = ast.parse(cell.source)
            code.body = [node for node in code.body if examples or not _shows(node)]
            exec(compile(code, f"cell {tags}", "exec"), names)
        if last in tags:
            break
    return names


def _shows(node: ast.stmt) -> bool:
    return isinstance(node, ast.For) or ast.unparse(node).startswith("print(")
