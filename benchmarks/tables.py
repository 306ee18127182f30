"""Recipe 18's questions, all of them, answered by the chat model: plain extraction and layout.

    python benchmarks/tables.py [--out data/tables/answers.json]

Runs the recipe's own cells up to its function `answer`, and asks each of the 48 test questions with
the chunks of either way, in an order drawn by a seed: about ten minutes on two cores at 2.5 GHz.
What was answered is kept in the file after each question, and the recipe judges it; a run that was
stopped goes on where it ended. Delete the file to ask anew.
"""

from __future__ import annotations

import argparse
import json
import random
from datetime import UTC, datetime
from pathlib import Path

from cells import names_of

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Ask what was not asked yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "tables" / "answers.json")
    out: Path = parser.parse_args().out
    names = names_of("18_tables_and_scans.ipynb", "answer", "setup", "measured")
    stored = json.loads(out.read_text("utf-8")) if out.exists() else {"answers": {}}
    stored |= {"weights": names["nim"].chat.weights, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    test = list(enumerate(names["test"]))
    for number, query in random.Random(18).sample(test, len(test)):
        if query.id not in stored["answers"]:
            stored["answers"][query.id] = {
                way: names["answer"](query, lists[number])
                for way, lists in names["nearest"].items()
            }
            out.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(query.id, query.answers[0], stored["answers"][query.id], sep=" | ", flush=True)
    names["nim"].close()


if __name__ == "__main__":
    main()
