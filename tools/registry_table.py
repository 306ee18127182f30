"""Write what the registry knows of each hosted model, with its date, into docs/hosted-catalog.md.

Run it as `make registry-table` after a change to `models.toml`, and commit both. `--check` writes
nothing and tells whether they differ.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nim_cookbook.models import ROLES, load_registry

PAGE = Path(__file__).resolve().parent.parent / "docs" / "hosted-catalog.md"
BEGIN, END = "<!-- registry -->\n", "<!-- /registry -->\n"


def table() -> str:
    """Return the table, a line a model; the default of each role is bold."""
    registry = load_registry()
    lines = ["| Model | Role | Last known | From |", "|---|---|---|---|"]
    for role in ROLES:
        for model in registry.models(role):
            mark = "**" if model == registry.default(role) else ""
            lines.append(f"| {mark}`{model.id}`{mark} | {role} | {model.standing} | {model.how} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or compare it; return 1 when it differs."""
    old = PAGE.read_text("utf-8")
    before, rest = old.split(BEGIN)
    new = before + BEGIN + table() + END + rest.split(END)[1]
    if "--check" not in arguments:
        PAGE.write_text(new, "utf-8")
    elif new != old:
        print(f"{PAGE.name} is not that of the registry: run `make registry-table`.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
