"""Write the parts of Markdown pages that are made from data: tables, and the README's figure.

Run it as `make tables` after a change to `models.toml`, `recipes.toml` or recipe 07's stored
outputs, and commit both. `--check` writes nothing and tells which pages differ.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

from nim_cookbook.models import ROLES, load_registry

ROOT = Path(__file__).resolve().parent.parent
FIGURE = Path("docs/images/measure-retrieval.png")
FIGURE_OF = Path("notebooks/07_measure_retrieval.ipynb")


def registry() -> str:
    """Return what the registry knows of each hosted model, with its date; defaults are bold."""
    known = load_registry()
    lines = ["| Model | Role | Last known | From |", "|---|---|---|---|"]
    for role in ROLES:
        for model in known.models(role):
            mark = "**" if model == known.default(role) else ""
            lines.append(f"| {mark}`{model.id}`{mark} | {role} | {model.standing} | {model.how} |")
    return "\n".join(lines) + "\n"


def parts() -> list[dict[str, Any]]:
    """Return the parts of the cookbook, each with its `title` and the entries of its `recipes`."""
    index = tomllib.loads((ROOT / "notebooks" / "recipes.toml").read_text("utf-8"))
    found: list[dict[str, Any]] = [{**part, "recipes": []} for part in index["part"]]
    for recipe in index["recipe"]:
        begun = [part for part in found if part["first"] <= recipe["number"]]
        begun[-1]["recipes"].append(recipe)
    return found


def recipes() -> str:
    """Return a line a recipe, below a line for each part."""
    lines = ["| | Recipe | You learn | Minutes |", "|---|---|---|---|"]
    for part in parts():
        lines.append(f"| | **{part['title']}** | | |")
        row = "| {number} | [{title}](notebooks/{file}) | {lesson} | {minutes} |"
        lines += [row.format(**recipe) for recipe in part["recipes"]]
    return "\n".join(lines) + "\n"


def stored_figure() -> tuple[bytes, str, str]:
    """Return the first picture that recipe 07 has stored, its alt text, and what ran."""
    notebook = json.loads((ROOT / FIGURE_OF).read_text("utf-8"))
    weights = notebook["metadata"]["nim_cookbook"]["weights"]
    ran = f"{weights['embedding']}; {weights['reranking']}"
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            page = "".join(output.get("data", {}).get("text/html", ""))
            found = re.search(r'<img alt="([^"]*)".* src="data:image/png;base64,([^"]*)"', page)
            if found:
                return base64.b64decode(found[2]), unescape(found[1]), ran
    sys.exit(f"{FIGURE_OF} has no stored picture: run `make notebooks RECIPES=07`.")


def figure() -> str:
    """Return the figure, its caption below it."""
    _, alt, ran = stored_figure()
    image = f'<img src="{FIGURE}" width="560" alt="{escape(alt)}">'
    return (
        f"{image}\n\n*Which search is better? [Recipe 07]({FIGURE_OF}) measures it. Ran: {ran}.*\n"
    )


PARTS: list[tuple[str, str, Callable[[], str]]] = [
    ("docs/hosted-catalog.md", "registry", registry),
    ("README.md", "recipes", recipes),
    ("README.md", "figure", figure),
]


def written(text: str, name: str, part: str) -> str:
    """Return a page with what is between its marks replaced."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, rest = text.split(begin)
    return before + begin + part + end + rest.split(end)[1]


def pages() -> dict[Path, bytes]:
    """Return each file's content as it should be."""
    content = {FIGURE: stored_figure()[0]}
    for name, mark, make in PARTS:
        path = Path(name)
        text = content.get(path, (ROOT / path).read_bytes()).decode("utf-8")
        content[path] = written(text, mark, make()).encode("utf-8")
    return content


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or compare them; return 1 when one differs."""
    differ = False
    for path, content in pages().items():
        target = ROOT / path
        if target.is_file() and target.read_bytes() == content:
            continue
        differ = True
        if "--check" in arguments:
            print(f"{path} is not what the data give: run `make tables`.")
        else:
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
    return int(differ and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
