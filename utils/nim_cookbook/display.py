"""What notebooks show: tables, measures, progress and drawn pipelines.

Plain HTML, text and PNG, no widgets, nothing online. Every object also has a plain-text form, for
terminals and for people who do not see pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from nim_cookbook.pictures import MAX_PNG_BYTES, Picture, png_width, small_png
from nim_cookbook.wording import MEASURE_MIME, cut

if TYPE_CHECKING:
    from haystack import Pipeline


class Table:
    """A table with a caption, as HTML in a notebook and as text elsewhere.

    Attributes:
        frame: The cells, for whoever wants to go on with them.
        caption: What the table shows, and which weights answered.
    """

    def __init__(self, rows: Iterable[Mapping[str, object]], caption: str = "") -> None:
        """Make a table of rows that all have the same keys."""
        self.frame = pd.DataFrame([dict(row) for row in rows], dtype=object)
        self.caption = caption

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.frame)

    def __repr__(self) -> str:
        """Show the caption and the cells as text; long cells are cut."""
        columns = [
            [str(name), *(cut(_text(cell), 78) for cell in self.frame[name])]
            for name in self.frame.columns
        ]
        padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
        lines = ("  ".join(line).rstrip() for line in zip(*padded, strict=True))
        body = "\n".join(lines) if len(self) else "(no rows)"
        return f"{self.caption}\n{body}" if self.caption else body

    def _repr_html_(self) -> str:
        # Aligned cell by cell: notebooks' own style sets all cells flush right, also sentences.
        align = [
            "right" if _is_numeric(self.frame[name]) else "left" for name in self.frame.columns
        ]
        rows = self.frame.map(_text).itertuples(index=False, name=None)
        lines = [
            '<table class="dataframe">',
            f"<caption>{escape(self.caption, quote=False)}</caption>" if self.caption else "",
            f"<thead>{_html_row('th', map(str, self.frame.columns), align)}</thead>",
            "<tbody>",
            *(_html_row("td", row, align) for row in rows),
            "</tbody>",
            "</table>",
        ]
        return "\n".join(line for line in lines if line)


class Check(Table):
    """What `Endpoints.check()` found: one row a role."""

    def __init__(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Make the table; a row's `ready` is `yes` or the reason why not."""
        super().__init__(rows, "Which weights answer, and how fast")

    @property
    def ok(self) -> bool:
        """Whether every endpoint answered."""
        return bool(len(self)) and all(self.frame["ready"] == "yes")


def measured(name: str, value: float | str, unit: str = "", weights: str = "") -> None:
    """Leave a measured value in the notebook, unseen, for `nim-cookbook run` to collect.

    Args:
        name: What was measured.
        value: The number, or a short text.
        unit: Its unit, or an empty string for counts and ratios.
        weights: The weights that the number is about; empty if no model is involved.
    """
    from IPython.display import display  # only notebooks have it

    record = {"name": name, "value": value, "unit": unit, "weights": weights}
    display({"text/plain": "", MEASURE_MIME: record}, raw=True)  # type: ignore[no-untyped-call]


def progress(what: str) -> Callable[[int, int], None]:
    """Show how far long work is, in one line that is replaced as it goes on.

    Returns:
        A function to be called with the number done and the number of all.
    """
    from IPython.display import display  # only notebooks have it

    handle = display({"text/plain": f"0 {what}"}, raw=True, display_id=True)  # type: ignore[no-untyped-call]
    last = 0.0

    def show(done: int, total: int) -> None:
        nonlocal last
        if done < total and time.monotonic() - last < 0.2:
            return
        last = time.monotonic()
        if handle:  # None outside a notebook
            handle.update({"text/plain": f"{done} of {total} {what}"}, raw=True)

    return show


def draw_pipeline(pipeline: Pipeline, *, title: str = "Pipeline") -> Picture:
    """Draw a Haystack pipeline, offline.

    Only what has to be passed in, and what comes out, is drawn beside the connections.
    """
    return diagram(pipeline_mermaid(pipeline), f"{title}: {_pipeline_in_words(pipeline)}.")


def diagram(mermaid: str, alt: str) -> Picture:
    """Draw a Mermaid diagram, offline.

    Args:
        mermaid: The diagram as Mermaid text, such as `flowchart LR; a --> b`.
        alt: What it shows, for people who do not see it.
    """
    import mermaidx

    drawn = mermaidx.render('%%{init: {"theme": "neutral"}}%%\n' + mermaid)
    for scale in (2.0, 1.5, 1.0, 0.5):
        png = small_png(drawn.png(scale=scale, background="#ffffff"))
        if len(png) <= MAX_PNG_BYTES:
            break
    return Picture(png, alt, width=int(png_width(png) / scale))


def pipeline_mermaid(pipeline: Pipeline) -> str:
    """Return a pipeline as Mermaid text, made from Haystack's public description of it."""
    ids = {name: f"c{number}" for number, (name, _) in enumerate(pipeline.walk())}
    lines = ["flowchart LR"]
    for name, component in pipeline.walk():
        label = f"<b>{_label(name)}</b><br/>{_label(type(component).__name__)}"
        lines.append(f'    {ids[name]}["{label}"]')
    links = _links(pipeline)
    if any(sender is None for sender, _, _ in links):
        lines.append("    i([input])")
    if any(receiver is None for _, receiver, _ in links):
        lines.append("    o([output])")
    for sender, receiver, text in links:
        start = "i" if sender is None else ids[sender]
        end = "o" if receiver is None else ids[receiver]
        lines.append(f'    {start} -- "{_label(text)}" --> {end}')
    return "\n".join(lines)


def _links(pipeline: Pipeline) -> list[tuple[str | None, str | None, str]]:
    """Return from, to and label of every arrow; None stands for the outside."""
    inner: list[tuple[str | None, str | None, str]]
    inner = [
        (a, b, _arrow(data["from_socket"].name, data["to_socket"].name))
        for a, b, data in pipeline.graph.edges(data=True)
    ]
    needed = [
        (None, name, socket)
        for name, sockets in pipeline.inputs().items()
        for socket, facts in sockets.items()
        if facts["is_mandatory"]
    ]
    given = [
        (name, None, socket)
        for name, sockets in pipeline.outputs().items()
        for socket in sockets
        if socket != "meta"  # token counts, which nothing reads
    ]
    # This order keeps arrows from crossing in the usual pipelines.
    return [*inner, *needed, *given]


def _arrow(sender: str, receiver: str) -> str:
    return sender if sender == receiver else f"{sender} → {receiver}"


def _pipeline_in_words(pipeline: Pipeline) -> str:
    parts = [f"{name} ({type(component).__name__})" for name, component in pipeline.walk()]
    links = [f"{a or 'input'} to {b or 'output'} ({text})" for a, b, text in _links(pipeline)]
    return f"components {', '.join(parts)}; connections {', '.join(links)}"


def _label(text: str) -> str:
    return escape(text, quote=False).replace('"', "#quot;")


def _is_numeric(cells: Iterable[object]) -> bool:
    return all(isinstance(cell, int | float) for cell in cells if _text(cell))


def _html_row(tag: str, cells: Iterable[str], align: Sequence[str]) -> str:
    inner = "".join(
        f'<{tag} style="text-align: {side}">{escape(cell, quote=False)}</{tag}>'
        for cell, side in zip(cells, align, strict=True)
    )
    return f"<tr>{inner}</tr>"


def _text(cell: object) -> str:
    return "" if cell is None or cell is pd.NA or cell != cell else str(cell)
