"""Count an agent's tool calls and answers against the plain pipeline's; recipe 17 shows the result.

    python benchmarks/agent.py [calls] [answers] [forms] [--json data/agent/results.json]

Runs the recipe's own cells, so that what is measured is what a reader sees, on all test questions
of `data/agent`. Parts; all of them if none is named:

calls     the first tool call to each question of `calls.jsonl`
answers   each question of `questions.jsonl` by the plain pipeline and by the agent, in turns
forms     the look-ups of them, answered as JSON, with and without `response_format`

What is in the file already is not asked again, unless other weights answered it: a run that was
stopped goes on. The file holds what was answered, no verdicts; the recipe judges it.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import nbformat
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "17_an_agent_that_searches.ipynb"
DATA = ROOT / "data" / "agent"
#: Tags of the cells that define what is measured.
CELLS = (
    *("connect", "hybrid", "plain", "search", "period", "calculate"),
    *("agent", "calls", "forms"),
)
PARTS = ("calls", "answers", "forms")

Json = dict[str, Any]
console = Console(stderr=True)


def recipe() -> Json:
    """Run the recipe's cells and return what they define."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    tagged = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    names: Json = {}
    for tag in CELLS:
        cell = ast.parse(tagged[tag].source)
        cell.body = [node for node in cell.body if not shows(node)]
        exec(compile(cell, f"recipe 17, {tag}", "exec"), names)
    return names


def shows(node: ast.stmt) -> bool:
    """Tell whether a line is an example, which asks the models: a loop, or a call of `print`."""
    return isinstance(node, ast.For) or ast.unparse(node).startswith("print(")


def questions(name: str) -> list[Json]:
    """Return the test questions of a file."""
    lines = (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == "test"]


def work(parts: Sequence[str]) -> list[tuple[str, Json]]:
    """Return what is asked, in order: a question's form after its answers, which read the same.

    The kinds alternate, so that a run which was stopped has some of each.
    """
    asked: list[tuple[str, Json]] = []
    for row in sorted(questions("questions"), key=lambda row: row["id"][-2:]):
        asked += [("answers", row)] + [("forms", row)] * (row["kind"] == "lookup")
    asked += [("calls", row) for row in questions("calls")]
    return [(part, row) for part, row in asked if part in parts]


def timed(answer: Callable[[str], Json], question: str) -> Json:
    """Return what was answered, and the seconds that it took."""
    began = time.perf_counter()
    return {**answer(question), "seconds": round(time.perf_counter() - began, 2)}


def ask(names: Json, part: str, question: str) -> Json:
    """Return the record of one question."""
    if part == "calls":
        return timed(names["first_call"], question)
    if part == "forms":
        return {
            "with": names["form"](question),
            "without": names["form"](question, response_format=None),
        }
    return {
        "plain": timed(lambda asked: {"answer": names["plain"](asked), "calls": 1}, question),
        "agent": timed(names["by_agent"], question),
    }


def main() -> int:
    """Measure what is not in the file yet, and write it after each question."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, default=DATA / "results.json")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: name {', '.join(PARTS)}")
    names = recipe()
    weights = names["nim"].weights
    known: Json = json.loads(options.json.read_text("utf-8")) if options.json.is_file() else {}
    if known.get("weights") != weights:
        known = {"weights": weights}
    for part, row in each(work(options.parts or PARTS), "questions"):
        done = known.setdefault(part, {})
        if row["id"] not in done:
            done[row["id"]] = ask(names, part, row["question"])
            text = json.dumps(known, indent=1, ensure_ascii=False)
            options.json.write_text(text + "\n", encoding="utf-8")
    names["nim"].close()
    return 0


def each(rows: list[tuple[str, Json]], what: str) -> Iterable[tuple[str, Json]]:
    """Go through questions with a progress bar."""
    return track(rows, what, console=console, disable=not console.is_terminal)


if __name__ == "__main__":
    sys.exit(main())
