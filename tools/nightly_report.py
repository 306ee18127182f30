"""Write the issue of the nightly run from the results that its jobs left, and say how it went.

    python tools/nightly_report.py results --run https://... --output body.md

`results` has a folder `nightly-PART` for each part, with `steps.json` (GitHub's steps and their
outcomes). Where recipes ran, it also has `run.json` (`nim-cookbook run --json`), `packages.json`
(`pip list --format json`) and `tests.log`. A part without results failed. Prints `passed` or
`failed`. Needs the standard library only, for GitHub's runner has nothing else.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("pinned", "newest", "main", "links")
#: What every environment has, and nobody pins.
NOT_PINNED = {"pip", "setuptools", "uv", "wheel", "nim-rag-cookbook"}
MOST_LINES = 20  # of tests and links, for each part
LONGEST = 60_000  # GitHub takes 65,536 characters
# pytest's summary with -rfE, and make's last word on a target.
TEST = re.compile(r"^(?:FAILED|ERROR) (?P<name>\S+::.*?|\S+)(?: - (?P<error>.*))?$")
TARGET = re.compile(r"^make.*\*\*\* \[.*: (?P<name>[\w-]+)\] Error")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def failed_steps(folder: Path) -> list[str]:
    """Return the ids of the steps that failed; what the part did not write down failed, too."""
    path = folder / "steps.json"
    if not path.is_file():
        return ["no result was kept"]
    steps = json.loads(path.read_text("utf-8"))
    return [name for name, step in steps.items() if step["outcome"] not in {"success", "skipped"}]


def part(folder: Path, name: str, pins: dict[str, str], failed: Sequence[str]) -> Iterator[str]:
    """Yield the lines on one part."""
    yield f"## {name}: {'failed' if failed else 'passed'}"
    yield ""
    if failed:
        yield f"Failed: {', '.join(failed)}."
        yield ""
    if (folder / "run.json").is_file():
        recipes = json.loads((folder / "run.json").read_text("utf-8"))["recipes"]
        rows = [(f"{r['number']} {r['title']}", result(r), first_error(r)) for r in recipes]
        yield from table(("Recipe", "Result", "First error"), rows)
    if (folder / "tests.log").is_file():
        found = list(failures((folder / "tests.log").read_text("utf-8", errors="replace")))
        yield from table(("Test", "First error"), found[:MOST_LINES])
        yield from left_out(len(found))
    if failed and (folder / "links.md").is_file():
        found = (folder / "links.md").read_text("utf-8").splitlines()
        broken = [(line.lstrip("*- "),) for line in found if line.startswith(("*", "-"))]
        yield from table(("Link",), broken[:MOST_LINES])
        yield from left_out(len(broken))
    if (folder / "packages.json").is_file():
        packages = json.loads((folder / "packages.json").read_text("utf-8"))
        yield from table(("Package", "Tested", "Tonight"), differences(pins, packages))


def result(recipe: dict[str, Any]) -> str:
    """Return how a recipe ended."""
    cell = recipe.get("failed_cell")
    return f"{recipe['result']} in cell {cell}" if cell else str(recipe["result"])


def first_error(recipe: dict[str, Any]) -> str:
    """Return the error of a recipe, or the first floor that it missed."""
    return str(recipe["error"] or next(iter(recipe["missed"]), ""))


def failures(log: str) -> Iterator[tuple[str, str]]:
    """Yield each failed test with its error, and each make target that failed."""
    for line in COLOURS.sub("", log).splitlines():
        if match := TEST.match(line):
            yield match["name"], match["error"] or ""
        elif match := TARGET.match(line):
            yield f"make {match['name']}", ""


def differences(
    pins: dict[str, str], packages: Sequence[dict[str, str]]
) -> list[tuple[str, str, str]]:
    """Return the packages whose version is not the tested one: name, tested, tonight."""
    found = []
    for package in packages:
        name = normal(package["name"])
        version = package["version"].partition("+")[0]  # a build of the same version, such as +cpu
        if name not in NOT_PINNED and pins.get(name) != version:
            found.append((name, pins.get(name, "not there"), version))
    return found


def tested(constraints: str) -> dict[str, str]:
    """Return the versions of constraints.txt by normalised name."""
    pins = (line.split("==") for line in constraints.splitlines() if "==" in line)
    return {normal(name): version.strip() for name, version in pins}


def normal(name: str) -> str:
    """Return a distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a Markdown table, or nothing without rows."""
    if not rows:
        return
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield "| " + " | ".join(map(code, row)) + " |"
    yield ""


def code(text: str) -> str:
    """Return text as code, so that nothing in it is a mention, a link or the end of a cell."""
    plain = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`" if plain else ""


def left_out(number: int) -> Iterator[str]:
    """Yield a line on what the table leaves out."""
    if number > MOST_LINES:
        yield f"{number - MOST_LINES} more are in the run."
        yield ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the summary and print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--run", required=True, help="address of the run")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    pins = tested((ROOT / "constraints.txt").read_text("utf-8"))
    folders = {name: options.results / f"nightly-{name}" for name in PARTS}
    failed = {name: failed_steps(folder) for name, folder in folders.items()}
    names = [name for name in PARTS if failed[name]]
    lines = [f"Failed: {', '.join(names)}." if names else "All is green.", "", options.run, ""]
    for name, folder in folders.items():
        lines += part(folder, name, pins, failed[name])
    options.output.write_text("\n".join(lines)[:LONGEST], "utf-8")
    print("failed" if names else "passed")


if __name__ == "__main__":
    main()
