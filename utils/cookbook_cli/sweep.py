"""`nim-cookbook sweep`: which design suits a reader's own files and questions."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TextColumn, TimeElapsedColumn
from rich.table import Table

from cookbook_cli.connection import Mode, asking, caption, say, shown
from cookbook_cli.progress import LoggedProgress
from nim_cookbook import designs
from nim_cookbook.bounded import BoundedPreparation
from nim_cookbook.data import Query
from nim_cookbook.errors import DataError
from nim_cookbook.evaluation import bootstrap, paired_bootstrap
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
    with (
        asking(console, mode, as_json=as_json) as (api, console),
        _Bars(console) as bars,
        contextlib.closing(BoundedPreparation()) as preparation,
    ):
        run = Sweep(api, folder.files, queries, grid, progress=bars.show, preparation=preparation)
        try:
            record = _run(run, bars, top, console)
        except KeyboardInterrupt:
            print(
                "What was computed is kept: the same command goes on from there.", file=sys.stderr
            )
            raise
        finally:
            run.cache.close()
        designs.save(record["winner"], grid, api, output)
        bars.stop()
        if as_json:  # `asdict`: of the designs and intervals in it
            print(json.dumps({**record, "answered_by": api.weights}, default=asdict), file=result)
        say(console, f"The winner is in {shown(output)}: indexing.yaml, ask.yaml, search.yaml.")
        say(console, caption(api.weights, ROLES), "dim")
    return 0


def _queries(questions: Path, test: Path | None, names: Sequence[str]) -> list[Query]:
    """Read the questions, and keep some for the test.

    Raises:
        DataError: A line cannot be used, or there are too few questions.
    """
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
    say(
        console,
        f"{total} designs; {len(run.dev)} questions to choose by, {len(run.test)} for the test.",
    )
    bars.phase = "By retrieval"
    raced = run.race()
    seconds = time.perf_counter() - start
    for name, note in run.notes.items():
        say(console, f"  {name}: {note}")
    _show(console, f"Designs by retrieval, {seconds:.0f} s", map(_measured_row, raced[:top]))
    bars.phase = "Answers of the best"
    answered = run.answers(raced)
    _show(console, "Answers of the best", map(_answered_row, answered))
    winner = answered[0].design if answered else raced[0].design
    bars.phase = "One knob at a time"
    knobs = {"nDCG@10": run.knobs(winner), "token F1": run.answer_knobs(winner)}
    rows = [
        {"knob": what, "changes": measure, "by": d}
        for measure, found in knobs.items()
        for what, d in found.items()
    ]
    _show(console, "Each knob, from the winner", rows)
    bars.phase = "The test"
    tested, test_answers, used = run.confirm(winner)
    kinds = tested[0].scores.rows()
    _show(console, "The winner on the test questions", kinds)
    _show(console, "Winner and baseline on the test questions", map(_measured_row, tested))
    _show(console, "Their answers", map(_answered_row, test_answers))
    if len(tested) == 2:
        difference = paired_bootstrap(*(m.quality for m in tested))
        say(console, f"Winner minus baseline, nDCG@10 on the test: {difference}.")
    if used > 1:
        say(
            console,
            f"These test questions have now confirmed {used} winners: they are no longer unseen, "
            "so write new ones.",
        )
    ahead = {m.design for m in front([m for m in raced if len(m.quality) == len(run.dev)])}
    return {
        "designs_raced": total,
        "retrieval_seconds": round(seconds, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "computed": dict(run.computed),
        "questions": [query.id for query in run.dev],
        "kinds": [query.kind for query in run.dev],
        "designs": [_record(m, m.design in ahead) for m in raced],
        "answers": [_answers(a) for a in answered],
        "winner": winner,
        "knobs": knobs,
        "test": {
            "winners_confirmed": used,
            "questions": [query.id for query in run.test],
            "retrieval": [_record(m, False) for m in tested],
            "answers": [_answers(a) for a in test_answers],
            "kinds": kinds,
        },
    }


def _measured_row(m: Measured) -> dict[str, object]:
    return {
        "design": m.design,
        "nDCG@10": bootstrap(m.quality),
        "questions": len(m.quality),
        "search": f"{m.seconds * 1000:.0f} ms",
    }


def _answered_row(a: Answered) -> dict[str, object]:
    return {
        "design": f"{a.design}, top {a.design.top_k}, {a.design.prompt}",
        "token F1": bootstrap(a.f1),
        "right": a.answers.right,
        "questions": len(a.f1),
        "answer": f"{a.seconds * 1000:.0f} ms",
    }


def _record(m: Measured, ahead: bool) -> dict[str, Any]:
    """Return a design with its scores, question by question in the order of `questions`."""
    return {
        "design": m.design,
        "name": str(m.design),
        "front": ahead,
        "seconds": round(m.seconds, 5),
        "ndcg": bootstrap(m.quality),
        "scores": [round(float(score), 4) for score in m.quality],
    }


def _answers(a: Answered) -> dict[str, Any]:
    return {
        "design": a.design,
        "name": str(a.design),
        "seconds": round(a.seconds, 4),
        "f1": bootstrap(a.f1),
        "right": a.answers.right,
        "scores": [round(float(score), 4) for score in a.f1],
    }


def _show(console: Console, title: str, rows: Iterable[Mapping[str, object]]) -> None:
    """Print rows that have the same keys as a table; nothing for none."""
    rows = list(rows)
    if not rows:
        return
    table = Table(title=title, title_justify="left", box=None)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table, markup=False, highlight=False)
