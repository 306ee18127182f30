"""Tables and pictures for notebooks: plain HTML, text and PNG, no widgets, nothing online.

Whatever shows a model's output takes `weights`, the name of what really answered, and shows it.
Every object also has a plain-text form, for terminals and for people who do not see pictures.
"""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import pandas as pd

from nim_cookbook.errors import DataError
from nim_cookbook.scoring import AnswerScores

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from haystack import Pipeline
    from matplotlib.figure import Figure

    from nim_cookbook.evaluation import RetrievalScores
    from nim_cookbook.refusal import RefusalPoint, RefusalRates

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
    if not seconds:
        raise DataError("timing_chart() was given no steps: give at least one name and duration.")
    figure, axes = _figure((7, 1.2 + 0.42 * len(seconds)))
    bars = axes.barh(list(seconds), list(seconds.values()), color=_BAR)
    axes.bar_label(bars, labels=[_duration(s) for s in seconds.values()], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("seconds")
    axes.set_title(f"{title}\n{weights}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    steps = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items())
    return Picture(_png(figure), f"Bar chart. {title} ({weights}): {steps}.")


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
    size = len(labels)
    if not size or [len(row) for row in similarity] != [size] * size:
        raise DataError("similarity_chart() needs a square matrix and a label for each row.")
    letters = [chr(ord("A") + number) for number in range(size)]
    figure, axes = _figure((4 + 0.7 * size, 1 + 0.65 * size))
    axes.imshow(similarity, cmap="Greens", vmin=0, vmax=1.4)  # never too dark for black figures
    axes.set_xticks(range(size), letters)
    axes.set_yticks(range(size), [f"{a}: {b}" for a, b in zip(letters, labels, strict=True)])
    for row, values in enumerate(similarity):
        for column, value in enumerate(values):
            axes.text(column, row, _two_digits(value), ha="center", va="center")
    axes.set_title(f"{title}\n{weights}", fontsize=10)
    pairs = [
        f"{letters[a]} and {letters[b]} {_two_digits(similarity[a][b])}"
        for a in range(size)
        for b in range(a + 1, size)
    ]
    alt = f"Grid. {title} ({weights}): {', '.join(pairs)}."
    png = _png(figure)
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


def progress(what: str) -> Callable[[int, int], None]:
    """Show how far long work is, in one line that is replaced as it goes on.

    Args:
        what: What is counted, in the plural.

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


# Colours that people with any colour vision tell apart: Okabe and Ito, "Color Universal Design"
# (https://jfly.uni-koeln.de/color/); markers and words say the same as they do.
_BLUE, _ORANGE, _GREEN, _PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_SKY, _GOLD, _GREY = "#56B4E9", "#E69F00", "#B8B8B8"
_KIND_STYLES = [
    (_BLUE, "o"), (_GOLD, "s"), (_GREEN, "^"), (_PINK, "D"), (_SKY, "v"), ("#5E4C5F", "P"),
    (_ORANGE, "X"), ("#999999", "<"),
]  # fmt: skip


def split_picture(
    text: str,
    splits: Sequence[tuple[int, int]],
    quote: str,
    *,
    title: str = "One document, split in several ways",
) -> Picture:
    """Draw what a document's passages are under several settings, and what becomes of a quote.

    Each setting is a row and each passage a bar along the document's words. Bars lie alternately
    higher and lower, so that the words that two passages share are seen. No model is involved.

    Args:
        text: The document's text, as the splitter gets it.
        splits: Words of a passage, and how many of them it shares with the one before.
        quote: Words of the text, which a passage should hold as a whole; their case, marks and
            line breaks do not matter.
        title: Which document it is.

    Raises:
        DataError: The text does not hold the quote, or there are no settings.
    """
    if not splits:
        raise DataError("split_picture() was given no settings: give at least one.")
    start, end = _quote_place(text, quote)
    rows = [_word_spans(text, length, overlap) for length, overlap in splits]
    figure, axes = _figure((8, 1.6 + 0.75 * len(splits)))
    axes.axvspan(start, end, color=_GOLD, alpha=0.45, lw=0)
    words, said = [], []
    for row, (spans, (length, overlap)) in enumerate(zip(rows, splits, strict=True)):
        parts = [max(0, min(b, end) - max(a, start)) / (end - start) for a, b in spans]
        for number, ((a, b), part) in enumerate(zip(spans, parts, strict=True)):
            colour = _BLUE if part == 1 else _ORANGE if part > 0 else _GREY
            place = (row - 0.3 + 0.32 * (number % 2), b - a)
            axes.barh(
                place[0], place[1], 0.28, a, align="edge", color=colour, edgecolor="white",
                hatch="///" if 0 < part < 1 else None,
            )  # fmt: skip
        whole = sum(part == 1 for part in parts)
        verdict = "whole" if whole == 1 else f"whole, {whole} times" if whole else "cut"
        words.append(f"{length} words,\n{overlap} shared")
        axes.text(max(b for _, b in spans) * 1.01, row, verdict, va="center")
        parted = "" if whole else f" (at most {max(parts):.0%} of it in one passage)"
        said.append(
            f"{length} words with {overlap} shared: {_count(len(spans), 'passage')}, "
            f"quote {verdict}{parted}"
        )
    axes.set_yticks(range(len(splits)), words)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("words of the document (shaded: the quote)")
    axes.set_title(
        f"{title}\nblue: holds the whole quote; orange, hatched: a part of it; grey: none",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    return _finished(figure, f"Bars. {title}. {'; '.join(said)}.")


def passage_map(
    vectors: Sequence[Sequence[float]],
    kinds: Sequence[str],
    query: Sequence[float],
    *,
    weights: str,
    nearest: int = 5,
    title: str = "Passages and a question",
) -> Picture:
    """Draw vectors as points of a plane, and lines from a query to the passages nearest to it.

    The plane is the one that keeps most of the passages' variance (principal component analysis);
    which passages are nearest is decided by the cosine of the whole vectors, not on the plane. The
    title says what share of the variance is kept.

    Args:
        vectors: One for each passage, shape (n, dimensions), at least three.
        kinds: What each passage is; eight kinds at most.
        query: The question's vector, shape (dimensions,).
        weights: What made the vectors.
        nearest: How many lines to draw.
        title: What is on the map.

    Raises:
        DataError: The shapes do not fit one another, or there are too few passages or too many
            kinds.
    """
    import numpy as np

    points, asked = np.asarray(vectors, dtype=float), np.asarray(query, dtype=float)
    names = sorted(set(kinds))
    if points.ndim != 2 or len(points) < 3 or len(points) != len(kinds):
        raise DataError("passage_map() needs three vectors or more, and a kind for each.")
    if asked.shape != points.shape[1:]:
        raise DataError(f"The query has shape {asked.shape}, the passages {points.shape[1:]}.")
    if len(names) > len(_KIND_STYLES):
        raise DataError(f"passage_map() tells at most {len(_KIND_STYLES)} kinds apart.")
    plane, place, kept = _plane(points, asked)
    lengths = np.linalg.norm(points, axis=1) * np.linalg.norm(asked)
    closest = np.argsort(-(points @ asked) / np.where(lengths > 0, lengths, 1), kind="stable")
    closest = closest[:nearest]
    on_map = np.argsort(np.linalg.norm(plane - place, axis=1), kind="stable")[:nearest]
    both = len(set(closest.tolist()) & set(on_map.tolist()))
    figure, axes = _figure((8, 5.4))
    for name, (colour, marker) in zip(names, _KIND_STYLES, strict=False):
        own = [n for n, kind in enumerate(kinds) if kind == name]
        axes.scatter(*plane[own].T, c=colour, marker=marker, s=22, alpha=0.65, lw=0, label=name)
    for n in closest:
        axes.plot(*zip(place, plane[n], strict=True), color="black", lw=0.9)
    axes.scatter(
        *plane[closest].T, s=75, facecolors="none", edgecolors="black", label="nearest passages"
    )
    axes.scatter(*place, c="black", marker="*", s=220, edgecolors="white", label="the question")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    remark = f"the plane keeps {kept:.0%} of the variance"
    axes.set_title(f"{fill(title, 80)}\n{weights}; {remark}", fontsize=10)
    found = ", ".join(kinds[n] for n in closest)
    alt = (
        f"Map. {title} ({weights}): {_count(len(points), 'passage')} of the kinds "
        f"{', '.join(names)}; {remark}. Kinds of the passages nearest to the question: {found}. "
        f"Of these {len(closest)}, {both} are also among the {len(closest)} nearest on the map."
    )
    return _finished(figure, alt)


def memory_plot(
    passages: int,
    dimensions: Sequence[int],
    *,
    weights: str,
    limit: float = 16e9,
    title: str = "Memory for vectors and their graph",
) -> Picture:
    """Draw how much memory vectors need against how many there are, by `sizing.memory`.

    Computed, not measured: one panel a width, one line an encoding, and a thin one for Qdrant's
    rule of thumb (vectors and half as much again).

    Args:
        passages: How many the reader's collection has.
        dimensions: Widths of vectors; the first is that of the collection.
        weights: What makes the collection's vectors.
        limit: Bytes of memory to draw a line at; the usual one is a laptop's 16 GB.
        title: What is drawn.

    Raises:
        DataError: There are no passages or no dimensions.
    """
    from nim_cookbook.sizing import ENCODINGS, RULE_OF_THUMB, bytes_per_vector, memory

    if passages < 1 or not dimensions:
        raise DataError("memory_plot() needs one passage or more, and one width or more.")
    figure, axes = _figure((9, 4.1), panels=len(dimensions))
    counts = [10**power for power in range(2, 9)]
    styles = zip(ENCODINGS, (_BLUE, _SKY, _GREEN, _ORANGE), ("-", "--", "-.", ":"), strict=True)
    for encoding, colour, line in styles:
        for panel, width in zip(axes, dimensions, strict=True):
            sizes = [memory(n, width, encoding) for n in counts]
            panel.plot(counts, sizes, line, color=colour, lw=2, label=encoding)
    for panel, width in zip(axes, dimensions, strict=True):
        thumb = [RULE_OF_THUMB * bytes_per_vector(width) * n for n in counts]
        panel.plot(counts, thumb, color=_GREY, lw=1, label="float32, rule of thumb")
        panel.axhline(limit, color="black", lw=0.8)
        panel.text(1e2, limit * 1.2, f"{_bytes(limit)}, a laptop", fontsize=8)
        panel.set(xscale="log", yscale="log", xlabel="passages", title=f"{width} numbers a vector")
        panel.title.set_fontsize(10)
        panel.grid(alpha=0.3)
    axes[0].scatter(
        passages, memory(passages, dimensions[0]), marker="*", s=160, c="black", zorder=3,
        label="your collection, float32",
    )  # fmt: skip
    ticks = [10.0**power for power in (5, 6, 7, 8, 9, 10, 11, 12)]
    axes[0].set_yticks(ticks, [_bytes(tick) for tick in ticks])
    axes[0].set_ylabel("memory")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"{title}, computed\nyour collection: {weights}", fontsize=10)
    fits = "; ".join(
        f"{width} numbers: "
        + ", ".join(f"{e} {int(limit / memory(1, width, e)):,}" for e in ENCODINGS)
        for width in dimensions
    )
    alt = (
        f"Lines, both axes logarithmic. {title}, computed. Your collection ({weights}): "
        f"{_count(passages, 'passage')}, {_bytes(memory(passages, dimensions[0]))}. "
        f"Passages that fit into {_bytes(limit)}, by width and encoding: {fits}."
    )
    return _finished(figure, alt)


def _figure(size: tuple[float, float], panels: int = 0) -> tuple[Any, Any]:
    """Return a figure and its axes; with panels, a row of them.

    A figure of its own, not pyplot's: no global state, and nothing is shown twice.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    if not panels:
        return figure, figure.add_subplot()
    return figure, list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return _small_png(buffer.getvalue())


def _finished(figure: Figure, alt: str) -> Picture:
    png = _png(figure)
    return Picture(png, alt, width=_png_width(png) * 3 // 4)


def _quote_place(text: str, quote: str) -> tuple[int, int]:
    """Return the first word of a quote in a text and the one after its last; spaces part words."""
    pattern = r"[\W_]+".join(map(re.escape, re.findall(r"[^\W_]+", quote)))
    found = re.search(pattern, text, re.IGNORECASE) if pattern else None
    if found is None:
        raise DataError(f"The text does not hold the quote {_cut(quote, 60)!r}.")
    return text.count(" ", 0, found.start()), text.count(" ", 0, found.end()) + 1


def _word_spans(text: str, length: int, overlap: int) -> list[tuple[int, int]]:
    """Return the first word of each passage and the one after its last."""
    from haystack import Document
    from haystack.components.preprocessors import DocumentSplitter

    splitter = DocumentSplitter(split_by="word", split_length=length, split_overlap=overlap)
    spans = []
    for passage in splitter.run([Document(content=text)])["documents"]:
        first = text.count(" ", 0, passage.meta["split_idx_start"])
        spans.append((first, first + len((passage.content or "").rstrip(" ").split(" "))))
    return spans


def _plane(
    points: npt.NDArray[np.float64], query: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """Return points and a query on the plane of most variance, and the share that it keeps."""
    import numpy as np

    middle = points.mean(axis=0)
    _, spread, axes = np.linalg.svd(points - middle, full_matrices=False)
    first = axes[:2]
    # The sign of an axis is arbitrary: its largest part counts upwards, on every machine.
    largest = np.abs(first).argmax(axis=1)
    first = first * np.where(first[range(len(first)), largest] < 0, -1, 1)[:, None]
    total = float((spread**2).sum())
    kept = float((spread[:2] ** 2).sum()) / total if total else 1.0
    return (points - middle) @ first.T, (query - middle) @ first.T, kept


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def retrieval_table(
    systems: Mapping[str, RetrievalScores],
    milliseconds: Mapping[str, float],
    *,
    weights: str,
    caption: str = "Retrieval",
) -> Table:
    """Show the scores of several retrievers, with their intervals, and how long a question takes.

    Args:
        systems: Scores on the same questions, by the retriever's name.
        milliseconds: Time of one question, by the same names.
        weights: What made the vectors and logits.
        caption: What was searched.

    Raises:
        DataError: There is nothing to show, or a retriever has no time.
    """
    names = _same_questions(systems)
    if missing := [name for name in names if name not in milliseconds]:
        raise DataError(f"retrieval_table() has no time for {', '.join(missing)}: give one.")
    rows = [
        {"retriever": name}
        | {metric: str(systems[name].interval(metric)) for metric in systems[name].values}
        | {"ms": round(milliseconds[name])}
        for name in names
    ]
    count = _count(len(systems[names[0]].queries), "question")
    return Table(rows, f"{caption}: {count}, 95 % intervals, median time of one ({weights})")


def retrieval_plot(
    systems: Mapping[str, RetrievalScores],
    metric: str = "ndcg@10",
    *,
    weights: str,
    title: str = "Retrieval by kind of question",
) -> Picture:
    """Draw the mean score of several retrievers with its interval, for each kind of question.

    Args:
        systems: Scores on the same questions, by the retriever's name; six at most.
        metric: Which of the scores.
        weights: What made the vectors and logits.
        title: What was searched.

    Raises:
        DataError: There are no retrievers or more than six, they were scored on different
            questions, or one lacks the metric.
    """
    names = _same_questions(systems)
    if len(names) > 6:
        raise DataError(f"retrieval_plot() tells six retrievers apart, not {len(names)}.")
    if lacking := [name for name in names if metric not in systems[name].values]:
        raise DataError(f"{', '.join(lacking)} has no {metric}: name it in score_retrieval().")
    queries = systems[names[0]].queries
    kinds = sorted({query.kind for query in queries} - {""})
    figure, axes = _figure((8, 1.6 + 0.22 * (len(kinds) + 1) * (len(names) + 1)))
    labels, said = [], []
    for row, kind in enumerate(["all", *kinds]):
        parts = {n: systems[n] if kind == "all" else systems[n].of_kind(kind) for n in names}
        count = len(parts[names[0]].queries)
        means = {name: part.interval(metric) for name, part in parts.items()}
        for place, (name, mean) in enumerate(means.items()):
            colour, marker = _KIND_STYLES[place]
            axes.errorbar(
                mean.mean, row + 0.8 * ((place + 0.5) / len(names) - 0.5), fmt=marker,
                xerr=[[mean.mean - mean.low], [mean.high - mean.mean]], color=colour, capsize=2,
                label=name if row == 0 else None,
            )  # fmt: skip
        labels.append(f"{kind} ({count})")
        listed = ", ".join(f"{name} {mean}" for name, mean in means.items())
        said.append(f"{kind}, {_count(count, 'question')}: {listed}")
        if row:
            axes.axhline(row - 0.5, color=_GREY, lw=0.6)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel=f"{metric}, mean and 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    axes.set_title(_wrapped(title, weights, width=80), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return _finished(
        figure, f"Dots with intervals. {title}, {metric} ({weights}): {'; '.join(said)}."
    )


def refusal_plot(
    curves: Mapping[str, Sequence[RefusalPoint]],
    chosen: Mapping[str, RefusalRates],
    *,
    weights: str,
    title: str = "Right against wrong refusals",
) -> Picture:
    """Draw what every threshold refuses rightly against what it refuses wrongly.

    Args:
        curves: By what the unanswerable questions are, the points of `refusal.refusal_curve`;
            four at most.
        chosen: By the same names, what the chosen threshold does, from `refusal.refusal_rates`;
            marked with its intervals.
        weights: What made the scores.
        title: Which questions these are.

    Raises:
        DataError: There are no curves or more than four, one is empty, or the names differ.
    """
    if not 1 <= len(curves) <= 4 or not all(curves.values()) or set(curves) != set(chosen):
        raise DataError(
            "refusal_plot() needs one to four curves, none of them empty, and the rates of the "
            "chosen threshold by the same names."
        )
    figure, axes = _figure((6.4, 5))
    said = []
    lines = zip(curves.items(), _KIND_STYLES, ("-", "--", "-.", ":"), strict=False)
    for (name, curve), (colour, marker), line in lines:
        across, up = ([getattr(point, side) for point in curve] for side in ("wrong", "right"))
        right, wrong = chosen[name].right, chosen[name].wrong
        axes.plot(across, up, line, color=colour, lw=2, label=name)
        axes.errorbar(
            wrong.mean, right.mean, fmt=marker, color=colour, markersize=9, capsize=3, zorder=3,
            xerr=[[wrong.mean - wrong.low], [wrong.high - wrong.mean]],
            yerr=[[right.mean - right.low], [right.high - right.mean]],
        )  # fmt: skip
        most = max(p.right for p in curve if p.wrong <= 0.15 or p is curve[0])
        said.append(
            f"{name}: the chosen threshold refuses {right} rightly and {wrong} wrongly; any "
            f"threshold with at most 15 % wrong refusals, at most {most:.3f} rightly"
        )
    axes.plot([0, 1], [0, 1], color="black", lw=0.8, alpha=0.5)
    axes.text(0.72, 0.68, "a coin", fontsize=8)
    axes.axvline(0.15, color="black", lw=0.8, ls=":")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xlabel("wrong refusals: share of the answerable questions")
    axes.set_ylabel("right refusals: share of the unanswerable ones")
    marked = "marked: the chosen threshold"
    axes.set_title(_wrapped(f"{title}; {marked}", weights, width=70), fontsize=10)
    axes.legend(loc="center right", frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return _finished(figure, f"Curves. {title} ({weights}). {'. '.join(said)}.")


def _wrapped(*lines: str, width: int) -> str:
    return "\n".join(fill(line, width) for line in lines)


def _same_questions(systems: Mapping[str, RetrievalScores]) -> list[str]:
    """Return the systems' names, if all were scored on the same questions."""
    if not systems:
        raise DataError("There are no retrievers to show: give at least one with its scores.")
    if len({tuple(query.id for query in scores.queries) for scores in systems.values()}) > 1:
        raise DataError("The retrievers were scored on different questions: use the same for all.")
    return list(systems)
