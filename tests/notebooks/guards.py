"""What must be true of an executed recipe, kept out of the reader's sight.

One function a recipe takes the executed notebook and returns what is wrong, in sentences; an empty
list means that the recipe did what its text says. Cells are found by their tags. The demands hold
for any honest set of models; what a certain model says word for word is not among them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser

from nbformat import NotebookNode

from cookbook_cli.results import measures

MOST_SIMILAR = 0.5  # cosine of two sentences that say the same
RIGHT_WITH_RETRIEVAL = 0.8  # of the questions that the documents answer: 5 of 6
GAIN_BY_RETRIEVAL = 0.3
REFUSED_WITH_THRESHOLD = 0.3  # of the questions that they do not: 1 of 3
NAMED = re.compile(r"\((?:local stand-in|self-hosted|hosted by NVIDIA)\)")
URL_LINE = re.compile(r"\.(?:api_url|api_base_url)$")
# Between NVIDIA's hosts and containers of one's own, these may differ too.
CONFIGURED_LINE = re.compile(r"\.(?:api_url|api_base_url|model|api_key\.env_vars(?:\.\d+)?)$")

Guard = Callable[[NotebookNode], Iterator[str]]
Rows = list[dict[str, str]]


def check(number: str, notebook: NotebookNode) -> list[str]:
    """Return what is wrong with an executed recipe.

    Args:
        number: The recipe's two digits.
        notebook: As executed; a missing cell or output is a finding, not an error.
    """
    findings = [f"cell {name} failed: {error}" for name, error in _errors(notebook)]
    try:
        findings += GUARDS[number](notebook)
    except (LookupError, ValueError) as error:
        findings.append(f"an output is missing or has another form: {error}")
    return findings


def start_here(notebook: NotebookNode) -> Iterator[str]:
    """Recipe 00: everything answers, and what it answers makes sense."""
    if len(rows(notebook, "recipes")) < 3:
        yield "the table of recipes is short"
    if any(row["ready"] != "yes" for row in rows(notebook, "check")):
        yield "an endpoint does not answer"
    if "paris" not in cell_of(rows(notebook, "answer"), "answer").lower():
        yield "the capital of France is not Paris"
    yield from _usage(notebook)
    pairs = text(notebook, "similarity").rpartition("): ")[2]
    cosines = [float(x) for x in re.findall(r"-?\d\.\d\d", pairs)]
    if cosines[0] < MOST_SIMILAR or cosines[0] <= max(cosines[1:]):
        yield f"the two sentences on cats are not the most similar pair: {cosines}"
    order = [row["content"] for row in rows(notebook, "ranking")]
    if [_first(("paper bag", "bakery", "printing"), line) for line in order] != [0, 1, 2]:
        yield f"the passages are in the wrong order: {order}"
    scores = [float(row["score"]) for row in rows(notebook, "ranking")]
    if scores != sorted(scores, reverse=True):
        yield f"the scores do not descend: {scores}"
    if len(measures(notebook)) != 3:
        yield "not every endpoint was measured"
    yield from _weights_named(notebook, "check", "answer", "usage", "similarity", "ranking")


def hosted_api_catalog(notebook: NotebookNode) -> Iterator[str]:
    """Recipe 01: the documents make the difference."""
    if len(rows(notebook, "store")) != 3 or int(rows(notebook, "store")[0]["numbers"]) < 2:
        yield "the store does not hold three documents with vectors"
    answer = cell_of(rows(notebook, "answer"), "answer")
    if "giorgio" not in answer.lower():
        yield f"the answer does not name Giorgio: {answer!r}"
    if "id: giorgio" not in rows(notebook, "retrieved")[0]["meta"]:
        yield "the retriever did not find Giorgio's document"
    yield from _usage(notebook)
    if cell_of(rows(notebook, "without"), "sources") != "none":
        yield "the answer without retrieval has sources"
    pieces = [piece for piece in text(notebook, "stream").split("|") if piece.strip()]
    if len(pieces) < 4 or "berlin" not in "".join(pieces).lower():
        yield f"the streamed answer is not in pieces, or wrong: {pieces}"
    together = [row["answer"].lower() for row in rows(notebook, "async")]
    right = [w in a for w, a in zip(("jean", "rome", "mark"), together, strict=True)]
    if sum(right) < 2:
        yield f"answers to questions asked at once are wrong: {together}"
    swap = rows(notebook, "swap")[0]
    if swap["asked for"] != swap["the reply says"] or "giorgio" not in swap["answer"].lower():
        yield f"the swapped model did not answer: {swap}"
    if not re.match(r"40[13] ", text(notebook, "wrong-key")):
        yield "a wrong key was not refused"
    yield from _measured_01(notebook)
    yield from _weights_named(
        notebook, "store", "answer", "retrieved", "usage", "without", "unanswerable", "stream",
        "async", "swap", "with-retrieval", "without-retrieval", "floor", "comparison",
    )  # fmt: skip


def _measured_01(notebook: NotebookNode) -> Iterator[str]:
    values = {m.name: float(m.value) for m in measures(notebook)}
    without, with_, gated = (
        values[f"right answers {run} (contains the name or place)"]
        for run in ("without retrieval", "with retrieval", "with retrieval and threshold")
    )
    if with_ < RIGHT_WITH_RETRIEVAL:
        yield f"only {with_:.0%} right answers with retrieval"
    if with_ - without < GAIN_BY_RETRIEVAL:
        yield f"retrieval helps too little: {without:.0%} without, {with_:.0%} with"
    if gated < RIGHT_WITH_RETRIEVAL:
        yield "the threshold costs right answers"
    refused = values["refusals with retrieval and threshold"]
    if refused < REFUSED_WITH_THRESHOLD:
        yield "the threshold refuses nothing"
    if refused < values["refusals with retrieval"]:
        yield "the threshold takes back refusals"


def self_hosted_nim(notebook: NotebookNode) -> Iterator[str]:
    """Recipe 02: only addresses change, and the NIMs answer."""
    if text(notebook, "ready").count(" is ready after ") != 2:
        yield "not both NIMs became ready"
    answer = cell_of(rows(notebook, "answer"), "answer")
    if "giorgio" not in answer.lower():
        yield f"the answer does not name Giorgio: {answer!r}"
    yield from _differences(notebook)
    bridge = cell_of(rows(notebook, "bridge-rag"), "answer")
    if not re.search(r"\b193[37]\b", bridge):
        yield f"the bridge was not built when the document says: {bridge!r}"
    if not cell_of(rows(notebook, "bridge"), "answer").strip():
        yield "the generator alone said nothing"
    if any(int(row["numbers"]) < 2 for row in rows(notebook, "widths")):
        yield "a side made no vector"
    if "Error: " not in text(notebook, "wrong-width"):
        yield "a vector of the wrong width was accepted"
    if "truncate=NONE: refused" not in text(notebook, "limits"):
        yield "a text that is too long was accepted"
    if "truncate=END: accepted" not in text(notebook, "limits"):
        yield "a text that may be cut was refused"
    if any(float(row["median, ms"]) <= 0 for row in rows(notebook, "timing")):
        yield "a step took no time"
    yield from _weights_named(
        notebook, "listed", "answer", "bridge", "bridge-rag", "widths", "timing", "timing-chart"
    )


def _differences(notebook: NotebookNode) -> Iterator[str]:
    local = all(row["mode"] == "local" for row in rows(notebook, "timing"))
    allowed = URL_LINE if local else CONFIGURED_LINE
    for tag, addresses in (("diff", 2), ("diff-indexing", 1)):
        lines = [row["line"] for row in rows(notebook, tag)]
        wrong = [line for line in lines if not allowed.search(line)]
        if wrong:
            yield f"{tag}: more than addresses differs: {wrong}"
        if sum(bool(URL_LINE.search(line)) for line in lines) != addresses:
            yield f"{tag}: {addresses} addresses should differ, and these lines do: {lines}"
    changed = text(notebook, "diff-text").strip().splitlines()
    if local and not all("http" in line for line in changed):
        yield f"diff-text: more than addresses differs: {changed}"
    if {m.name: m.value for m in measures(notebook)}["lines that differ"] != len(
        rows(notebook, "diff")
    ):
        yield "the measured number of lines is not that of the table"


GUARDS: dict[str, Guard] = {"00": start_here, "01": hosted_api_catalog, "02": self_hosted_nim}


def _usage(notebook: NotebookNode) -> Iterator[str]:
    for row in rows(notebook, "usage"):
        counts = [int(row[f"{kind} tokens"] or 0) for kind in ("prompt", "completion", "total")]
        if counts[0] < 1 or counts[0] + counts[1] != counts[2]:
            yield f"the usage does not add up: {row}"


def _weights_named(notebook: NotebookNode, *tags: str) -> Iterator[str]:
    for tag in tags:
        if not NAMED.search(text(notebook, tag) + html(notebook, tag)):
            yield f"the output of {tag!r} does not name the weights that answered"


def _first(words: tuple[str, ...], line: str) -> int:
    return next((number for number, word in enumerate(words) if word in line), -1)


def _errors(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield cell.id, f"{output.ename}: {output.evalue}"


# --- reading outputs --------------------------------------------------------------------------


def tagged(notebook: NotebookNode, tag: str) -> NotebookNode:
    """Return the one code cell with a tag.

    Raises:
        LookupError: There is none, or several.
    """
    found = [c for c in notebook.cells if tag in c.metadata.get("tags", [])]
    if len(found) != 1:
        raise LookupError(f"{len(found)} cells have the tag {tag!r}")
    return found[0]


def text(notebook: NotebookNode, tag: str) -> str:
    """Return all plain text that the cell with a tag put out."""
    outputs = tagged(notebook, tag).outputs
    printed = "".join(o.text for o in outputs if o.get("name") == "stdout")
    shown = ["".join(o.get("data", {}).get("text/plain", "")) for o in outputs]
    return "\n".join(part for part in (printed, *shown) if part)


def html(notebook: NotebookNode, tag: str) -> str:
    """Return all HTML that the cell with a tag put out."""
    outputs = tagged(notebook, tag).outputs
    return "\n".join("".join(o.get("data", {}).get("text/html", "")) for o in outputs)


def rows(notebook: NotebookNode, tag: str) -> Rows:
    """Return the table that the cell with a tag shows, one dictionary a row.

    Raises:
        LookupError: It shows none.
    """
    parser = _TableParser()
    parser.feed(html(notebook, tag))
    if not parser.lines:
        raise LookupError(f"the cell with the tag {tag!r} shows no table")
    head, *body = parser.lines
    return [dict(zip(head, line, strict=True)) for line in body]


def cell_of(table: Rows, column: str) -> str:
    """Return the only row's value in a column."""
    (row,) = table
    return row[column]


class _TableParser(HTMLParser):
    """Collects the cells of a table; `lines[0]` is its head."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[list[str]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.lines.append([])
        elif tag in ("td", "th"):
            self._inside = True
            self.lines[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.lines[-1][-1] += data
