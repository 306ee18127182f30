"""What notebooks show: tables, measures, progress and drawn pipelines.

Plain HTML, text and PNG, no widgets, nothing online. Whatever shows a model's output takes
`weights`, the name of what really answered, and shows it. Every object also has a plain-text form,
for terminals and for people who do not see pictures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from nim_cookbook.evaluation import AnswerEvaluation, RetrievalScores, same_questions
from nim_cookbook.pictures import MAX_PNG_BYTES, Picture, png_width, small_png
from nim_cookbook.wording import MEASURE_MIME, count, cut

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
            "content": cut(document.content or "", max_chars),
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
    """
    rows = []
    for name, counts in usage.items():
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
            "answer": cut(answer.strip(), max_chars),
            "sources": " | ".join(cut(d.content or "", max_chars) for d in documents) or "none",
        }
        for question, answer, documents in answers
    )
    return Table(rows, f"Answers by {weights}")


def scores_table(scores: AnswerEvaluation, *, weights: str) -> Table:
    """Show the answers with their verdicts; the caption sums them up."""
    rows = (
        {
            "question": row.query.question,
            "expected": " / ".join(row.query.answers) or "(not in the documents)",
            "answer": cut(row.answer.strip(), 200),
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
    """
    names = same_questions(systems)
    rows = [
        {"retriever": name}
        | {metric: str(systems[name].interval(metric)) for metric in systems[name].values}
        | {"ms": round(milliseconds[name])}
        for name in names
    ]
    questions = count(len(systems[names[0]].queries), "question")
    return Table(rows, f"{caption}: {questions}, 95 % intervals, median time of one ({weights})")
