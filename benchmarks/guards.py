"""What each defence of recipe 19 stops, and what it costs on honest questions.

    python benchmarks/guards.py [--questions N] [--seconds S] [--split test]

The code that is measured is the code that is read: the cells of notebooks/19_guard_it.ipynb up to
`respond` are executed, and `respond` is called for each defence with all attacks of the split
(data/attacks) and with N of the company's answerable questions of it, drawn by a seed.

Answers are kept in data/attacks/answers-SPLIT.json as they come: a run that is stopped, or that
ends after S seconds, is completed by the next. Where a defence leaves prompt and tools as they
were, the model is not asked again, and the time of its first answer counts. The recipe computes
its figures from that file. After a change of the recipe's code, delete it and run anew.

Where the upload does not reach the prompt, because the filter kept it out or another chunk is
better, the model is not asked: it cannot obey what it does not read. That answer is empty.

On dev only the bare pipeline is asked, and only honest questions. The place of the sentence that
holds each answer is kept (`support` in the recipe), to choose among how many it may stand.

The servers are started if they do not run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from cells import names_of

from nim_cookbook import corpus, data
from nim_cookbook.errors import CookbookError

#: Questions that are asked with one defence before the next: prompts with the same beginning are
#: read faster one after the other.
TOGETHER = 20
#: In this order, because the prompts of the first four are often the same.
DEFENCES: dict[str, tuple[str, ...]] = {
    "none": (),
    "filter": ("filter",),
    "support check": ("support check",),
    "plain text": ("plain text",),
    "delimiters": ("delimiters",),
    "rule": ("rule",),
    "no tools": ("no tools",),
    "all": ("delimiters", "rule", "filter", "support check", "no tools", "plain text"),
}


def remembered(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Return a function that keeps its results; each call adds what the first one took."""
    known: dict[str, tuple[Any, float]] = {}

    def call(*arguments: object) -> object:
        key = repr(arguments)
        if key not in known:
            start = time.perf_counter()
            result = function(*arguments)
            known[key] = result, time.perf_counter() - start
        seconds.append(known[key][1])
        return known[key][0]

    return call


def asked(split: str, most: int, names: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return what is asked: an id, the question, and the upload that is planted, if any."""
    attacks = names["attacks"]
    mine = attacks[attacks.split == split]
    honest = [q for q in corpus.load_company().split(split) if q.answerable]
    random.Random(19).shuffle(honest)
    planted = [(name, question, name) for name, question in mine.question.items()]
    return (planted if split == "test" else []) + [(q.id, q.question, "") for q in honest[:most]]


def measure(split: str, most: int, seconds: float, path: Path) -> bool:
    """Ask what has not been asked yet; tell whether all of it is done."""
    end = time.monotonic() + seconds
    known: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    names = names_of("19_guard_it.ipynb", "respond", "setup", "first")
    took: list[float] = []
    for function in ("search", "answer", "support"):
        names[function] = remembered(names[function], took)
    known["weights"] = names["nim"].weights
    answers, times = known.setdefault("answers", {}), known.setdefault("seconds", {})
    everything = asked(split, most, names)
    defences = DEFENCES if split == "test" else {"none": ()}
    for some in (everything[n : n + TOGETHER] for n in range(0, len(everything), TOGETHER)):
        for defence, (item, question, planted) in product(defences, some):
            if item in answers.get(defence, {}):
                continue
            if time.monotonic() > end:
                return False
            took.clear()
            store = "filtered" if "filter" in defences[defence] else "as uploaded"
            shown = names["search"](question, planted, store).meta.get("attack") or ""
            said = (
                names["respond"](question, planted, defences[defence]) if shown == planted else ""
            )
            answers.setdefault(defence, {})[item] = said
            times.setdefault(defence, {})[item] = round(sum(took), 2)
            write(path, known)
    if split == "dev":
        known["place"] = {
            item: names["support"](question, answers["none"][item], names["search"](question))
            for item, question, planted in everything
            if not planted
        }
        write(path, known)
    names["nim"].close()
    return True


def write(path: Path, known: dict[str, Any]) -> None:
    """Write the file, an answer a line."""
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> int:
    """Measure, and print how far it is and the median seconds of an answer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--questions", type=int, default=60, help="honest questions (60)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    options = parser.parse_args()
    path = data.data_path("attacks") / f"answers-{options.split}.json"
    try:
        done = measure(options.split, options.questions, options.seconds, path)
    except CookbookError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for defence, times in json.loads(path.read_text("utf-8"))["seconds"].items():
        middle = statistics.median(times.values())
        print(f"{defence}: {len(times)} answers, median {middle:.2f} s")
    print("complete" if done else "not complete: run it again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
