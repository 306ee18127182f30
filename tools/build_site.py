"""Build the static site: the recipes with their stored outputs, and the Markdown pages.

Run it as `make site`. It writes a copy of the sources below `build/site/source`, with a header for
each recipe, and Sphinx makes `build/site/html` of it. Nothing is executed and nothing is fetched.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from sphinx.cmd.build import main as sphinx
from stamp import address, in_colab
from tables import parts

from nim_cookbook.display import diagram
from nim_cookbook.wording import MEASURE_MIME

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = address()
OWNER, NAME = REPOSITORY.removeprefix("https://github.com/").split("/")
SITE = f"https://{OWNER}.github.io/{NAME}/"
# The pages beside the recipes, in the order of the navigation. Pages of docs/ that are not named
# come with "Background".
USE = ["install", "platforms", "settings", "ask", "sweep", "servers", "protocol", "services"]
WORK = ["architecture", "testing"]
OTHERS = {
    "Use": [
        "WORKSHOP.md",
        "deploy/README.md",
        "deploy/helm/nim-rag-cookbook/README.md",
        "deploy/helm/opensearch.md",
    ],
    "Background": ["MODELS.md"],
    "Development": ["CONTRIBUTING.md", "CHANGELOG.md"],
}


def pages() -> dict[str, list[str]]:
    """Return the Markdown pages of each chapter, as paths in the repository."""
    docs = {path.stem: f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))}
    chosen = {"Use": USE, "Development": WORK}
    chosen["Background"] = sorted(docs.keys() - set(USE) - set(WORK))
    found = {
        chapter: [docs[name] for name in chosen[chapter] if name in docs] + others
        for chapter, others in OTHERS.items()
    }
    data = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("data/*/README.md"))
    return found | {"Data": data}


def linked(text: str, page: str, copied: set[str]) -> str:
    """Return Markdown whose links to files that the site lacks lead to the repository."""

    def target(match: re.Match[str]) -> str:
        path, mark, anchor = match[1].partition("#")
        if ":" in path or not path:
            # Jupyter's anchors have the heading's capitals, Sphinx's have none.
            return match[0] if path else f"](#{anchor.lower()})"
        name = os.path.normpath(os.path.join(os.path.dirname(page), path))
        if name == "README.md":
            return f"]({os.path.relpath('index.md', os.path.dirname(page) or '.')})"
        if name in copied or not (ROOT / name).exists():  # of a missing file, Sphinx complains
            return match[0]
        kind = "tree" if (ROOT / name).is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{name}{mark}{anchor})"

    return re.sub(r"\]\(([^()\s]+)\)", target, text)


def drawn(text: str, page: Path) -> str:
    """Return Markdown with its Mermaid diagrams as pictures, which `accDescr` describes."""

    def picture(match: re.Match[str]) -> str:
        described = re.search(r"^\s*accDescr: (.+)$", match[1], re.MULTILINE)
        if described is None:
            sys.exit(
                f"A diagram in {page.name} has no accDescr, its text for those who do not see it."
            )
        made = diagram(match[1], described[1])
        file = page.with_name(f"{page.stem}-{match.start()}.png")
        file.write_bytes(made.png)
        return f'<img src="{file.name}" width="{made.width}" alt="{escape(made.alt)}">'

    return re.sub(r"^```mermaid\n(.*?)^```$", picture, text, flags=re.MULTILINE | re.DOTALL)


def last_commit(path: str) -> str:
    """Return the day of a file's last commit, or nothing outside of a clone."""
    command = ["git", "log", "-1", "--format=%cs", "--", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def facts(recipe: dict[str, Any], ran: dict[str, str]) -> str:
    """Return a recipe's header: for whom it is, what it takes, what ran and when."""
    path = f"notebooks/{recipe['file']}"
    weights = [f"{role}: {ran[role]}" for role in recipe["endpoints"]]
    lines = {
        "Level": recipe["level"],
        "Minutes": str(recipe["minutes"]),
        "Packages": " ".join(f"<code>{escape(name)}</code>" for name in recipe["packages"]),
        "Last verified": last_commit(path) or "unknown",
        "Weights": "<br>".join(map(escape, weights)) or "none; it calls no model",
        "Run it": f'<a href="{in_colab(REPOSITORY, recipe["file"])}">in Colab</a>, '
        f'<a href="{REPOSITORY}/blob/main/{path}">from GitHub</a>',
    }
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in lines.items())
    return f'<dl class="facts">{rows}</dl>'


def recipe_page(recipe: dict[str, Any], copied: set[str]) -> str:
    """Return a recipe's notebook with its header from the index."""
    path = f"notebooks/{recipe['file']}"
    notebook = json.loads((ROOT / path).read_text("utf-8"))
    header = facts(recipe, notebook["metadata"]["nim_cookbook"]["weights"])
    own = r"^(- \*\*(Level|Minutes|Packages):\*\*.*|\[!\[Open in Colab\].*)\n?"
    first = re.sub(own, "", "".join(notebook["cells"][0]["source"]), flags=re.MULTILINE)
    notebook["cells"][0]["source"] = f"{first.rstrip()}\n\n{header}\n"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = linked("".join(cell["source"]), path, copied)
        else:
            # What is for programs shows nothing.
            shown = [o for o in cell["outputs"] if MEASURE_MIME not in o.get("data", {})]
            cell["outputs"] = shown
            if "setup" in cell["metadata"].get("tags", []):
                cell["metadata"]["tags"].append("hide-input")
    return json.dumps(notebook)


def contents() -> str:
    """Return the navigation, part by part."""
    entries = {
        part["title"]: [
            f"{recipe['number']} {recipe['title']} <notebooks/{Path(recipe['file']).stem}>"
            for recipe in part["recipes"]
        ]
        for part in parts()
    }
    for chapter, names in pages().items():
        entries[chapter] = [name.removesuffix(".md") for name in names]
    trees = (
        f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(lines) + "\n```\n"
        for caption, lines in entries.items()
    )
    return "\n".join(trees)


def write_sources(folder: Path) -> None:
    """Write what Sphinx reads."""
    names = [name for chapter in pages().values() for name in chapter]
    recipes = [recipe for part in parts() for recipe in part["recipes"]]
    copied = {*names, *(f"notebooks/{recipe['file']}" for recipe in recipes)}
    for name in names:
        page = folder / name
        page.parent.mkdir(parents=True, exist_ok=True)
        text = linked((ROOT / name).read_text("utf-8"), name, copied)
        page.write_text(drawn(text, page), "utf-8")
    (folder / "notebooks").mkdir()
    for recipe in recipes:
        text = recipe_page(recipe, copied)
        (folder / "notebooks" / recipe["file"]).write_text(text, "utf-8")
    shutil.copytree(ROOT / "docs" / "images", folder / "docs" / "images")
    home = linked((ROOT / "README.md").read_text("utf-8"), "README.md", copied)
    (folder / "index.md").write_text(f"{home}\n{contents()}", "utf-8")
    changes = folder / "CHANGELOG.md"
    title, rest = changes.read_text("utf-8").split("\n", 1)
    changes.write_text(
        f'{title}\n\n<a href="feed.xml">These changes as a feed (Atom)</a>\n{rest}', "utf-8"
    )


def feed() -> bytes:
    """Return the changelog as an Atom feed, an entry a version."""
    ElementTree.register_namespace("", atom := "http://www.w3.org/2005/Atom")
    day = last_commit("CHANGELOG.md") or "1970-01-01"
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    root = ElementTree.Element(f"{{{atom}}}feed")

    def add(parent: ElementTree.Element, name: str, text: str = "", **attributes: str) -> None:
        ElementTree.SubElement(parent, f"{{{atom}}}{name}", attributes).text = text or None

    def head(parent: ElementTree.Element, title: str, address: str, updated: str) -> None:
        add(parent, "title", title)
        add(parent, "id", address)
        add(parent, "link", href=address)
        add(parent, "updated", f"{updated}T00:00:00Z")

    head(root, "Changes of the NIM RAG Cookbook", f"{SITE}CHANGELOG.html", day)
    add(root, "link", rel="self", href=f"{SITE}feed.xml")
    author = ElementTree.SubElement(root, f"{{{atom}}}author")
    add(author, "name", "The NIM RAG Cookbook's contributors")
    for version, date, body in re.findall(
        r"^## \[([^\]]+)\](?: - (\S+))?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    ):
        entry = ElementTree.SubElement(root, f"{{{atom}}}entry")
        slug = version.lower().replace(".", "-")
        head(entry, version, f"{SITE}CHANGELOG.html#{slug}", date or day)
        add(entry, "content", MarkdownIt().render(body), type="html")
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def build(folder: Path) -> int:
    """Build the site below a folder; return Sphinx's status."""
    source, html = folder / "source", folder / "html"
    for old in (source, html):
        shutil.rmtree(old, ignore_errors=True)
    source.mkdir(parents=True)
    write_sources(source)
    configuration = str(ROOT / "tools" / "site")
    # -W: a link without a target fails the build.
    status = sphinx(
        [
            "-q",
            "-W",
            "--keep-going",
            "-E",
            "-c",
            configuration,
            "-D",
            f"html_baseurl={SITE}",
            "-D",
            f"html_theme_options.repository_url={REPOSITORY}",
            "-d",
            str(folder / "doctrees"),
            str(source),
            str(html),
        ]
    )
    if status == 0:
        (html / "feed.xml").write_bytes(feed())
    return status


def main() -> int:
    """Build, and say how large it became."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "site")
    folder = parser.parse_args().to.resolve()
    started = time.monotonic()
    status = build(folder)
    if status == 0:
        files = [path for path in (folder / "html").rglob("*") if path.is_file()]
        count = sum(path.suffix == ".html" for path in files)
        size = sum(path.stat().st_size for path in files) / 1e6
        seconds = time.monotonic() - started
        print(f"{folder / 'html' / 'index.html'}: {count} pages, {size:.1f} MB, {seconds:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
