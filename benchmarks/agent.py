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
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cells import names_of
from rich.console import Console
from rich.progress import track

from cookbook_cli.results import write_atomically
from nim_cookbook import data

DATA = data.data_path("agent")
#: Cells that read what this command stores.
LEFT_OUT = ("setup", "stored-calls", "kinds", "headline", "example")
PARTS = ("calls", "answers", "forms")

Json = dict[str, Any]


def work(parts: Sequence[str]) -> list[tuple[str, Json]]:
    """Return what is asked, in order: a question's form after its answers, which read the same.

    The kinds alternate, so that a run which was stopped has some of each.
    """
    asked: list[tuple[str, Json]] = []
    for row in sorted(data.read_jsonl(DATA / "questions.jsonl"), key=lambda row: row["id"][-2:]):
        asked += [("answers", row)] + [("forms", row)] * (row["kind"] == "lookup")
    asked += [("calls", row) for row in data.read_jsonl(DATA / "calls.jsonl")]
    return [(part, row) for part, row in asked if part in parts and row["split"] == "test"]


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
    names = names_of("17_an_agent_that_searches.ipynb", "forms", *LEFT_OUT, examples=False)
    weights = names["nim"].weights
    known: Json = json.loads(options.json.read_text("utf-8")) if options.json.is_file() else {}
    if known.get("weights") != weights:
        known = {"weights": weights}
    asked, console = work(options.parts or PARTS), Console(stderr=True)
    for part, row in track(asked, "questions", console=console, disable=not console.is_terminal):
        done = known.setdefault(part, {})
        if row["id"] not in done:
            done[row["id"]] = ask(names, part, row["question"])
            text = json.dumps(known, indent=1, ensure_ascii=False)
            write_atomically(options.json, text + "\n")
    names["nim"].close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
