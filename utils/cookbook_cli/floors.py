"""What must hold in an executed recipe: its floors in `recipes.toml`, checked against its outputs.

A floor is about a measure (`measure`, with `min`, `max` or `equals`) or about what a cell shows
(`cell`, the cell's tag, with `matches` or `lacks`, regular expressions). Floors hold for any honest
set of models but `small`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import unescape
from itertools import groupby

from nbformat import NotebookNode

from cookbook_cli.recipes import Floor
from cookbook_cli.results import measures

_TAG = re.compile(r"<[^>]+>")


def missed(floors: Sequence[Floor], notebook: NotebookNode) -> list[str]:
    """Return what is wrong with an executed recipe, in sentences; an empty list when all holds.

    Args:
        floors: The recipe's floors.
        notebook: As executed; a missing measure or cell is a finding, not an error.
    """
    measured = {measure.name: measure.value for measure in measures(notebook)}
    return [
        finding
        for floor in floors
        for finding in (_measure(floor, measured) if floor.measure else _cell(floor, notebook))
    ]


def _measure(floor: Floor, measured: dict[str, float | int | str]) -> Iterator[str]:
    value = measured.get(floor.measure)
    if value is None:
        yield f"{floor.measure!r} was not measured"
    elif floor.equals is not None and value != floor.equals:
        yield f"{floor.measure} is {value}, it should be {floor.equals}"
    elif floor.min is not None and float(value) < floor.min:
        yield f"{floor.measure} is {value}, the least is {floor.min}"
    elif floor.max is not None and float(value) > floor.max:
        yield f"{floor.measure} is {value}, the most is {floor.max}"


def _cell(floor: Floor, notebook: NotebookNode) -> Iterator[str]:
    text = shown(notebook, floor.cell)
    if text is None:
        yield f"no cell has the tag {floor.cell!r}"
    elif floor.matches and not re.search(floor.matches, text):
        yield f"the cell {floor.cell!r} does not show {floor.matches!r}: {text[:300]!r}"
    elif floor.lacks and re.search(floor.lacks, text):
        yield f"the cell {floor.cell!r} shows {floor.lacks!r}: {text[:300]!r}"


def shown(notebook: NotebookNode, tag: str) -> str | None:
    """Return all text that the cell with a tag shows, tables without their markup; None if none."""
    for cell in notebook.cells:
        if tag in cell.metadata.get("tags", []):
            return "\n".join(_texts(cell))
    return None


def _texts(cell: NotebookNode) -> Iterator[str]:
    # What is printed in pieces is one text.
    for kind, outputs in groupby(cell.get("outputs", []), lambda output: output["output_type"]):
        texts = map(_text, outputs)
        yield from ["".join(texts)] if kind == "stream" else texts


def _text(output: NotebookNode) -> str:
    data = output.get("data", {})
    html = "".join(data.get("text/html", ""))
    if html and "<img" not in html:  # a picture's words are its plain text
        return " ".join(unescape(_TAG.sub(" ", html)).split())
    return "".join(output.get("text", data.get("text/plain", "")))
