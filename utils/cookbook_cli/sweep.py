"""`nim-cookbook sweep`: which design suits a reader's own files and questions."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TextColumn, TimeElapsedColumn
from rich.table import Table

from cookbook_cli.connection import Mode, caption, connected, explained, quiet, shown
from cookbook_cli.progress import LoggedProgress
from nim_cookbook import designs
from nim_cookbook.data import Query
from nim_cookbook.errors import DataError
from nim_cookbook.evaluation import Interval, bootstrap, paired_bootstrap
from nim_cookbook.folders import read_folder
from nim_cookbook.models import ROLES
from nim_cookbook.questions import load_questions, with_test
from nim_cookbook.sweep import Answered, Measured, Sweep, front

FEWEST = 10  # questions with relevant documents; with fewer every design looks alike


def sweep(
    console: Console,
    place: Path,
    questions: Path,
    *,
    test: Path | None = None,
    grid_file: Path | None = None,
    top: int = 10,
    answers: int | None = None,
    output: Path = Path("winner"),
    as_json: bool = False,
    mode: Mode | None = None,
) -> int:
    """Race the designs of a grid, confirm the winner once, and write it as YAML.

    Returns:
        0.

    Raises:
        CookbookError: A user mistake, or an endpoint that fails.
    """
    grid = designs.load_grid(grid_file)
    if answers is not None:
        grid = replace(grid, race=replace(grid.race, answers=answers))
    folder = read_folder(place)
    if not folder.files:
        raise DataError(f"{folder.path} holds no file that can be read: name another folder.")
    queries = _queries(questions, test, [file.document for file in folder.files])
    result = sys.stdout
    with contextlib.ExitStack() as stack:
        if as_json:
            console = Console(stderr=True)
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(quiet())
        api = stack.enter_context(connected(mode))
        stack.enter_context(explained())
        bars = stack.enter_context(_Bars(console))
        run = Sweep(api, folder.files, queries, grid, progress=bars.show)
        stack.callback(run.cache.close)
        try:
            record = _run(run, bars, top, console)
        except KeyboardInterrupt:
            print(
                "What was computed is kept: the same command goes on from there.", file=sys.stderr
            )
            raise
        designs.save(_winner(record), grid, api, output)
        weights = {str(role): what for role, what in api.weights.items()}
        bars.stop()
        if as_json:
            print(json.dumps({**record, "answered_by": weights}, default=str), file=result)
        _say(console, f"The winner is in {shown(output)}: indexing.yaml, ask.yaml, search.yaml.")
        _say(console, caption(weights, ROLES), "dim")
    return 0


def _queries(questions: Path, test: Path | None, documents: Iterable[str]) -> list[Query]:
    """Read the questions, and keep some for the test.

    Raises:
        DataError: A line cannot be used, or there are too few questions.
    """
    names = list(documents)
    queries = load_questions(questions, names, "dev" if test else "")
    queries = [*queries, *load_questions(test, names, "test")] if test else with_test(queries)
    judged = [query for query in queries if query.evidence]
    kept = sum(query.split == "test" for query in judged)
    if len(judged) < FEWEST or not 0 < kept < len(judged):
        raise DataError(
            f"{questions.name} has {len(judged) - kept} questions with relevant documents to "
            f"choose by and {kept} for the test: write {FEWEST} or more, some of them for each."
        )
    return queries


class _Bars(LoggedProgress):
    """One line: what is being computed, and the time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            console, TextColumn("{task.description}"), TimeElapsedColumn(), transient=True
        )
        self._task = self.add_task("Reading the files")
        self.phase = ""

    def show(self, what: str, left: float) -> None:
        """Say what is being computed, and about how many seconds are left of this part."""
        text = f"{self.phase}: {what}" + (f", about {left:.0f} s left" if left >= 1 else "")
        self.update(self._task, description=text)
        self.line(text, now=False)


def _run(run: Sweep, bars: _Bars, top: int, console: Console) -> dict[str, Any]:
    """Run all parts, show each, and return the record of them."""
    start = time.perf_counter()
    total = len(run.grid.designs())
    _say(
        console,
        f"{total} designs; {len(run.dev)} questions to choose by, {len(run.test)} for the test.",
    )
    bars.phase = "By retrieval"
    raced = run.race()
    seconds = time.perf_counter() - start
    for name, note in run.notes.items():
        _say(console, f"  {name}: {note}")
    _show(console, f"Designs by retrieval, {seconds:.0f} s", map(_measured_row, raced[:top]))
    bars.phase = "Answers of the best"
    answered = run.answers(raced)
    _show(console, "Answers of the best", map(_answered_row, answered))
    winner = answered[0].design if answered else raced[0].design
    bars.phase = "One knob at a time"
    knobs = {"nDCG@10": run.knobs(winner), "token F1": run.answer_knobs(winner)}
    rows = [
        {"knob": what, "changes": measure, "by": str(d)}
        for measure, found in knobs.items()
        for what, d in found.items()
    ]
    _show(console, "Each knob, from the winner", rows)
    bars.phase = "The test"
    tested, test_answers, used = run.confirm(winner)
    kinds = tested[0].scores.rows()
    _show(
        console,
        "The winner on the test questions",
        [{k: str(v) for k, v in r.items()} for r in kinds],
    )
    both = [*map(_measured_row, tested), *map(_answered_row, test_answers)]
    _show(console, "Winner and baseline on the test questions", both[: len(tested)])
    _show(console, "Their answers", both[len(tested) :])
    if len(tested) == 2:
        difference = paired_bootstrap(*(m.quality for m in tested))
        _say(console, f"Winner minus baseline, nDCG@10 on the test: {difference}.")
    if used > 1:
        _say(
            console,
            f"These test questions have now confirmed {used} winners: they are no longer unseen, "
            "so write new ones.",
        )
    whole = [m for m in raced if len(m.quality) == len(run.dev)]
    return {
        "designs_raced": total,
        "retrieval_seconds": round(seconds, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "computed": dict(run.computed),
        "questions": [query.id for query in run.dev],
        "kinds": [query.kind for query in run.dev],
        "designs": [_record(m, {d.design for d in front(whole)}) for m in raced],
        "answers": [_answers(a) for a in answered],
        "winner": asdict(winner),
        "knobs": {measure: {w: asdict(d) for w, d in f.items()} for measure, f in knobs.items()},
        "test": {
            "winners_confirmed": used,
            "questions": [query.id for query in run.test],
            "retrieval": [_record(m, set()) for m in tested],
            "answers": [_answers(a) for a in test_answers],
            "kinds": [
                {k: asdict(v) if isinstance(v, Interval) else v for k, v in r.items()}
                for r in kinds
            ],
        },
    }


def _winner(record: Mapping[str, Any]) -> designs.Design:
    return designs.Design(**record["winner"])


def _measured_row(m: Measured) -> dict[str, str]:
    return {
        "design": str(m.design),
        "nDCG@10": str(bootstrap(m.quality)),
        "questions": str(len(m.quality)),
        "search": f"{m.seconds * 1000:.0f} ms",
    }


def _answered_row(a: Answered) -> dict[str, str]:
    return {
        "design": f"{a.design}, top {a.design.top_k}, {a.design.prompt}",
        "token F1": str(bootstrap(a.f1)),
        "right": str(a.answers.right),
        "questions": str(len(a.f1)),
        "answer": f"{a.seconds * 1000:.0f} ms",
    }


def _record(m: Measured, best: set[designs.Design]) -> dict[str, Any]:
    """Return a design with its scores, question by question in the order of `questions`."""
    return {
        "design": asdict(m.design),
        "name": str(m.design),
        "front": m.design in best,
        "seconds": round(m.seconds, 5),
        "ndcg": asdict(bootstrap(m.quality)),
        "scores": [round(float(score), 4) for score in m.quality],
    }


def _answers(a: Answered) -> dict[str, Any]:
    right = a.answers.right
    return {
        "design": asdict(a.design),
        "name": str(a.design),
        "seconds": round(a.seconds, 4),
        "f1": asdict(bootstrap(a.f1)),
        "right": asdict(right) if right else None,
        "scores": [round(float(score), 4) for score in a.f1],
    }


def _show(console: Console, title: str, rows: Iterable[Mapping[str, str]]) -> None:
    """Print rows that have the same keys as a table; nothing for none."""
    rows = list(rows)
    if not rows:
        return
    table = Table(title=title, title_justify="left", box=None)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console.print(table, markup=False, highlight=False)


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
