"""Tables and pictures for notebooks: plain HTML, text and PNG, no widgets, nothing online.

Whatever shows a model's output takes `weights`, the name of what really answered, and shows it.
Every object also has a plain-text form, for terminals and for people who do not see pictures.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nim_cookbook.errors import DataError
from nim_cookbook.scoring import AnswerScores

if TYPE_CHECKING:
    from haystack import Pipeline

# `nim-cookbook run` collects outputs of this type into its table.
MEASURE_MIME = "application/vnd.nim-cookbook.measure+json"
# Stored notebooks carry no picture over 200 kB; base64 makes four bytes out of three.
MAX_PNG_BYTES = 140_000
_COLOURS = 64
_BAR = "#4c9a2a"


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
            [str(name), *(_cut(_text(cell), 78) for cell in self.frame[name])]
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


class Picture:
    """A PNG picture with alt text, which is also its plain-text form.

    Attributes:
        png: The file's bytes.
        alt: What the picture shows, in words.
        width: Width in CSS pixels, or None for the picture's own.
        svg: The same picture as SVG, where there is one.
    """

    def __init__(
        self, png: bytes, alt: str, width: int | None = None, svg: str | None = None
    ) -> None:
        """Take a finished picture."""
        self.png = png
        self.alt = alt
        self.width = width
        self.svg = svg

    def save(self, path: str | Path) -> None:
        """Write the picture, as SVG if the name ends so and there is one, else as PNG."""
        target = Path(path)
        if target.suffix == ".svg" and self.svg is not None:
            target.write_text(self.svg, encoding="utf-8")
        else:
            target.write_bytes(self.png)

    def __repr__(self) -> str:
        """Return the alt text."""
        return self.alt

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        # As HTML: of a plain PNG output neither JupyterLab nor nbconvert's page shows the alt text.
        width = "" if self.width is None else f' width="{self.width}"'
        source = f"data:image/png;base64,{base64.b64encode(self.png).decode()}"
        image = f'<img alt="{escape(self.alt)}"{width} src="{source}">'
        return {"text/html": image, "text/plain": self.alt}


def documents_table(
    documents: Iterable[Any], *, weights: str, caption: str = "Documents", max_chars: int = 200
) -> Table:
    """Show Haystack documents: content, meta and score.

    Args:
        documents: Anything with `content`, `meta` and `score`.
        weights: What made the vectors and scores, such as `nim.embedding.weights`.
        caption: What these documents are.
        max_chars: Longer contents are cut.
    """
    rows = (
        {
            "content": _cut(document.content or "", max_chars),
            "meta": ", ".join(f"{k}: {v}" for k, v in (document.meta or {}).items()),
            "score": None if document.score is None else round(float(document.score), 4),
        }
        for document in documents
    )
    return Table(rows, f"{caption} (vectors and scores: {weights})")


def usage_table(usage: Mapping[str, Mapping[str, Any]], *, weights: Mapping[str, str]) -> Table:
    """Show token counts.

    Args:
        usage: The `usage` object of each call, by a name such as `"chat"`; nested details are
            left out.
        weights: What answered each call, by the same names.

    Raises:
        DataError: A call has no weights.
    """
    rows = []
    for name, counts in usage.items():
        if name not in weights:
            raise DataError(f"usage_table() needs the weights that answered {name!r}: name them.")
        rows.append(
            {
                "call": name,
                "prompt tokens": counts.get("prompt_tokens"),
                "completion tokens": counts.get("completion_tokens"),
                "total tokens": counts.get("total_tokens"),
                "weights": weights[name],
            }
        )
    return Table(rows, "Tokens used")


def answers_table(
    answers: Iterable[tuple[str, str, Iterable[Any]]], *, weights: str, max_chars: int = 400
) -> Table:
    """Show answers with the documents that they were made from.

    Args:
        answers: Question, answer, and the Haystack documents that the model was given.
        weights: What answered, such as `nim.chat.weights`.
        max_chars: Longer answers and documents are cut.
    """
    rows = (
        {
            "question": question,
            "answer": _cut(answer.strip(), max_chars),
            "sources": " | ".join(_cut(d.content or "", max_chars) for d in documents) or "none",
        }
        for question, answer, documents in answers
    )
    return Table(rows, f"Answers by {weights}")


def scores_table(scores: AnswerScores, *, weights: str) -> Table:
    """Show the answers with their verdicts; the caption sums them up.

    Args:
        scores: What `score_answers` returned.
        weights: What answered.
    """
    rows = (
        {
            "question": row.question.question,
            "expected": " / ".join(row.question.answers) or "(not in the documents)",
            "answer": _cut(row.answer.strip(), 200),
            "correct": "yes" if row.correct else "no",
        }
        for row in scores.rows
    )
    right = sum(row.correct for row in scores.rows)
    return Table(rows, f"Answers by {weights}: {right} of {len(scores.rows)} correct")


def diff_pipelines(
    before: Pipeline | Mapping[str, Any],
    after: Pipeline | Mapping[str, Any],
    *,
    names: tuple[str, str] = ("before", "after"),
) -> Table:
    """Compare two pipelines and show only the lines in which they differ.

    The serialised forms are compared value by value, not as text: the order of connections means
    nothing.

    Args:
        before: A pipeline, or what its `to_dict()` returned.
        after: The other one.
        names: Column headings.
    """
    left, right = _flat(_serialised(before)), _flat(_serialised(after))
    rows = [
        {"line": key, names[0]: left.get(key, "(absent)"), names[1]: right.get(key, "(absent)")}
        for key in [*left, *(key for key in right if key not in left)]
        if left.get(key) != right.get(key)
    ]
    same = len(left.keys() | right.keys()) - len(rows)
    return Table(rows, f"Lines that differ: {len(rows)} (and {same} are the same)")


def timing_chart(
    seconds: Mapping[str, float], *, weights: str, title: str = "Time per step"
) -> Picture:
    """Draw how long steps took, as horizontal bars.

    Args:
        seconds: Duration of each step, by its name, in the order from top to bottom.
        weights: What answered.
        title: What was timed.

    Raises:
        DataError: There is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not seconds:
        raise DataError("timing_chart() was given no steps: give at least one name and duration.")
    # A Figure of its own, not pyplot: no global state, and nothing is shown twice.
    figure = Figure(figsize=(7, 1.2 + 0.42 * len(seconds)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bars = axes.barh(list(seconds), list(seconds.values()), color=_BAR)
    axes.bar_label(bars, labels=[_duration(s) for s in seconds.values()], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("seconds")
    axes.set_title(f"{title}\n{weights}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    steps = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items())
    return Picture(_small_png(buffer.getvalue()), f"Bar chart. {title} ({weights}): {steps}.")


def similarity_chart(
    similarity: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    weights: str,
    title: str = "Cosine similarity",
) -> Picture:
    """Draw how similar texts are to one another, as a grid of numbers and colours.

    Args:
        similarity: Symmetric matrix of shape (n, n); a NumPy array will do.
        labels: The n texts.
        weights: What made the vectors.
        title: What is compared.

    Raises:
        DataError: The matrix does not have as many rows and columns as there are labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = len(labels)
    if not size or [len(row) for row in similarity] != [size] * size:
        raise DataError("similarity_chart() needs a square matrix and a label for each row.")
    letters = [chr(ord("A") + number) for number in range(size)]
    figure = Figure(figsize=(4 + 0.7 * size, 1 + 0.65 * size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(similarity, cmap="Greens", vmin=0, vmax=1.4)  # never too dark for black figures
    axes.set_xticks(range(size), letters)
    axes.set_yticks(range(size), [f"{a}: {b}" for a, b in zip(letters, labels, strict=True)])
    for row, values in enumerate(similarity):
        for column, value in enumerate(values):
            axes.text(column, row, _two_digits(value), ha="center", va="center")
    axes.set_title(f"{title}\n{weights}", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    pairs = [
        f"{letters[a]} and {letters[b]} {_two_digits(similarity[a][b])}"
        for a in range(size)
        for b in range(a + 1, size)
    ]
    alt = f"Grid. {title} ({weights}): {', '.join(pairs)}."
    png = _small_png(buffer.getvalue())
    return Picture(png, alt, width=_png_width(png) * 2 // 3)


def measured(name: str, value: float | str, unit: str = "", weights: str = "") -> None:
    """Show a measured value, and leave it in the notebook for `nim-cookbook run` to collect.

    Args:
        name: What was measured.
        value: The number, or a short text.
        unit: Its unit, or an empty string for counts and ratios.
        weights: The weights that the number is about; empty if no model is involved.
    """
    from IPython.display import display  # only notebooks have it

    shown = f"{value:.3g}" if isinstance(value, float) else str(value)
    about = f" ({weights})" if weights else ""
    line = f"Measured: {name}: {shown}{' ' if unit else ''}{unit}{about}"
    record = {"name": name, "value": value, "unit": unit, "weights": weights}
    display({"text/plain": line, MEASURE_MIME: record}, raw=True)  # type: ignore[no-untyped-call]


def draw_pipeline(pipeline: Pipeline, *, title: str = "Pipeline") -> Picture:
    """Draw a Haystack pipeline, offline.

    Only what has to be passed in, and what comes out, is drawn beside the connections.

    Args:
        pipeline: The pipeline.
        title: What it is, for the alt text.
    """
    import mermaidx

    diagram = mermaidx.render(pipeline_mermaid(pipeline))
    svg: str = diagram.svg()
    for scale in (2.0, 1.5, 1.0, 0.5):
        png = _small_png(diagram.png(scale=scale, background="#ffffff"))
        if len(png) <= MAX_PNG_BYTES:
            break
    width = int(_png_width(png) / scale)
    return Picture(png, f"{title}: {_pipeline_in_words(pipeline)}.", width=width, svg=svg)


def pipeline_mermaid(pipeline: Pipeline) -> str:
    """Return a pipeline as Mermaid text, made from Haystack's public description of it."""
    ids = {name: f"c{number}" for number, (name, _) in enumerate(pipeline.walk())}
    lines = ['%%{init: {"theme": "neutral"}}%%', "flowchart TD"]
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
        (name, None, socket) for name, sockets in pipeline.outputs().items() for socket in sockets
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


def _small_png(png: bytes) -> bytes:
    """Reduce a picture's colours: line drawings look the same at a quarter of the size."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(_COLOURS).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _png_width(png: bytes) -> int:
    return int.from_bytes(png[16:20], "big")  # the header's first field


def _serialised(pipeline: Pipeline | Mapping[str, Any]) -> Mapping[str, Any]:
    return pipeline if isinstance(pipeline, Mapping) else pipeline.to_dict()


def _flat(value: object, path: str = "") -> dict[str, str]:
    """Turn nested values into one line a leaf, by its path."""
    if isinstance(value, Mapping) and value:
        pairs: Iterable[tuple[str, object]] = ((str(k), v) for k, v in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        items = list(value)
        if path == "connections":
            items.sort(key=lambda item: json.dumps(item, sort_keys=True, default=str))
        pairs = ((str(number), item) for number, item in enumerate(items))
    else:
        return {path: value if isinstance(value, str) else json.dumps(value, default=str)}
    return {
        key: leaf
        for name, item in pairs
        for key, leaf in _flat(item, f"{path}.{name}" if path else name).items()
    }


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


def _cut(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _two_digits(value: float) -> str:
    return f"{round(float(value), 2) + 0:.2f}"  # + 0: no minus before a zero


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s"
