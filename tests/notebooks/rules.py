"""The rules for notebooks, one small function each.

A rule takes a notebook and its entry in the index, and returns what is wrong, in sentences; an
empty list means that the notebook keeps the rule. `test_lint.py` applies them to the recipes, and
`test_rules.py` shows each of them a notebook that breaks it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from typing import TypeGuard

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from cookbook_cli import stored
from cookbook_cli.recipes import Recipe
from nim_cookbook.models import ROLES, load_registry

Rule = Callable[[NotebookNode, Recipe], list[str]]

MOST_LINES = 15
MOST_LINES_TO_COPY = 31  # complete, with its imports
MOST_CODE_CELLS = 20
MOST_WORDS = 1200
HEADER_LINES = ("level", "minutes", "packages")
OURS = ("nim_cookbook", "rag_service", "capacity")
COPYABLE = ("01", "02", "05", "11")  # these have a complete cell to paste into another project
# A part of this project is their subject: the update, the service, the queue, the plan, the chart,
# the sweep.
ABOUT_OURS = ("04", "11", "12", "13", "14", "15")
BADGE = re.compile(
    r"\[!\[[^\]]+\]\(https://colab\.research\.google\.com/assets/colab-badge\.svg\)\]"
    r"\(https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/[\w./-]+/notebooks/([\w.-]+)\)"
)
FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
DETAILS = re.compile(r"<details>.*?</details>", re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
HEADING_1 = re.compile(r"^# (.+)$", re.MULTILINE)
MARKDOWN_IMAGE = re.compile(r"!\[([^\]]*)\]\(")
HTML_IMAGE = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
HTML_ALT = re.compile(r"""\balt\s*=\s*(["'])\s*\S.*?\1""", re.IGNORECASE | re.DOTALL)
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.~/])(/(?:home|Users|root|tmp|var/folders)/[\w.-]+|[A-Z]:\\\\?Users)"
)
CATALOGUE_PUBLISHERS = ("nvidia", "meta", "mistralai", "microsoft", "google", "deepseek-ai", "qwen")
TIME_STAMPS = ("execution", "ExecuteTime")


def code_cells(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode]]:
    """The code cells, numbered from 1 as `nim-cookbook run` numbers them."""
    return enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1)


def prose(notebook: NotebookNode) -> str:
    """All Markdown, without fenced code."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    return "\n\n".join(FENCE.sub("", source) for source in cells)


def answers(notebook: NotebookNode) -> list[str]:
    """The Python of the exercises' answers, in their order."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    collapsed = [text for source in cells for text in DETAILS.findall(source)]
    return [code for text in collapsed for code in PYTHON.findall(text)]


def python_of(cell: NotebookNode) -> str:
    """A cell's code with IPython's magics turned into plain Python."""
    return TransformerManager().transform_cell(cell.source)


def trees(notebook: NotebookNode) -> Iterator[tuple[int, ast.Module]]:
    """The syntax trees of all code cells that parse; `code_parses` tells of the others."""
    for number, cell in code_cells(notebook):
        try:
            yield number, ast.parse(python_of(cell))
        except SyntaxError:
            continue


def tagged(notebook: NotebookNode, tag: str) -> list[int]:
    """Numbers of the code cells with a tag."""
    return [n for n, cell in code_cells(notebook) if tag in cell.metadata.get("tags", [])]


# --- the rules --------------------------------------------------------------------------------


def schema_is_valid(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    identifiers = [cell.get("id") for cell in notebook.cells]
    if len(set(identifiers)) < len(identifiers):  # validate() would quietly mend it
        return ["two cells have the same id"]
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [f"not a valid notebook: {str(error).splitlines()[0]}"]
    return []


def one_h1(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    found = HEADING_1.findall(prose(notebook))
    if len(found) != 1:
        return [f"{len(found)} H1 headings, one is wanted"]
    if recipe.title.lower() not in found[0].lower():
        return [f"the H1 is {found[0]!r}, recipes.toml says {recipe.title!r}"]
    first = notebook.cells[0]
    return [] if HEADING_1.search(first.source) else ["the H1 is not in the first cell"]


def header_block(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    head = "\n".join(cell.source for cell in notebook.cells[:3] if cell.cell_type == "markdown")
    lines = [line.strip(" *-|>_").lower() for line in head.splitlines()]
    return [f"no line for {w!r} below the title" for w in HEADER_LINES if not _begins(lines, w)]


def _begins(lines: list[str], word: str) -> bool:
    return any(re.match(rf"{word}\b", line) for line in lines)


def colab_badge(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    head = "\n".join(cell.source for cell in notebook.cells[:3] if cell.cell_type == "markdown")
    found = BADGE.search(head)
    if found is None:
        return ["no Colab badge in the first cells"]
    return [] if found[1] == recipe.file else [f"the Colab badge opens {found[1]}"]


def code_parses(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    problems = []
    for number, cell in code_cells(notebook):
        try:
            compile(python_of(cell), "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError as error:
            problems.append(f"cell {number} is no Python: {error.msg}")
    return problems


def no_star_import(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    return [
        f"cell {number} has `from {node.module} import *`"
        for number, tree in trees(notebook)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(name.name == "*" for name in node.names)
    ]


def few_cells(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    cells = sum(1 for _ in code_cells(notebook))
    return [] if cells <= MOST_CODE_CELLS else [f"{cells} code cells, {MOST_CODE_CELLS} may be"]


def few_words(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    words = len(prose(notebook).split())
    return [] if words <= MOST_WORDS else [f"{words} words of prose, {MOST_WORDS} may be"]


def lesson_first(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    text = " ".join(HEADING_1.sub("", notebook.cells[0].source).replace("`", "").split())
    if text.startswith(recipe.lesson.replace("`", "")):
        return []
    return ["the first sentence below the title is not the lesson of recipes.toml"]


def helpers_are_few(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    """At most a third of the code cells use a name of this project's packages."""
    if recipe.number in ABOUT_OURS:
        return []
    touching, all_cells = helper_cells(notebook)
    if 3 * len(touching) <= all_cells:
        return []
    return [f"{len(touching)} of {all_cells} code cells use our helpers: {touching}"]


def helper_cells(notebook: NotebookNode) -> tuple[list[int], int]:
    """The code cells that use our packages, the connection left out, and how many there are."""
    ours: set[str] = set()
    touching = []
    for number, tree in trees(notebook):
        imported = [
            (node.module or "", alias.asname or alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        ours |= {name for module, name in imported if module.split(".")[0] in OURS}
        ours -= {"endpoints", "services"}
        unseen = {id(n.value) for n in ast.walk(tree) if _is_measured(n)}
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in unseen}
        if used & ours:
            touching.append(number)
    return touching, sum(1 for _ in code_cells(notebook))


def _is_measured(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """`display.measured`, which the reader's code does not need."""
    return isinstance(node, ast.Attribute) and node.attr == "measured"


def copyable_cell(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    """One cell is complete without this project: its ids are the registry's, its key NVIDIA's."""
    found = tagged(notebook, "copy")
    if recipe.number not in COPYABLE:
        return [f"cell {number} has the tag `copy`" for number in found]
    if len(found) != 1:
        return ["one cell must have the tag `copy`"]
    tree = dict(trees(notebook))[found[0]]
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    defaults = {load_registry().default(role).id for role in ROLES}
    problems = [
        f"the copyable cell has the id {text!r}, which is no default of the registry"
        for text in sorted(texts)
        if _looks_like_id(text) and text not in defaults
    ]
    if not texts & defaults:
        problems.append("the copyable cell spells no model id")
    if not any("NVIDIA_API_KEY" in text for text in texts):
        problems.append("the copyable cell does not name NVIDIA_API_KEY")
    roots = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    return problems + [f"the copyable cell imports {name}" for name in sorted(roots & {*OURS})]


def short_cells(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    lengths = [(number, _lines_of_code(cell.source)) for number, cell in code_cells(notebook)]
    copyable = tagged(notebook, "copy")
    return [
        f"cell {number} has {lines} lines of code, {MOST_LINES} are allowed"
        for number, lines in lengths
        if lines > (MOST_LINES_TO_COPY if number in copyable else MOST_LINES)
    ]


def _lines_of_code(source: str) -> int:
    lines = [line.strip() for line in source.splitlines()]
    return sum(1 for line in lines if line and not line.startswith("#"))


def setup_cell(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    found = tagged(notebook, "setup")
    return [] if found == [1] else ["one cell, the first with code, must have the tag `setup`"]


def cleanup_cell(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    last = sum(1 for _ in code_cells(notebook))
    found = tagged(notebook, "cleanup")
    return [] if found == [last] else ["one cell, the last with code, must have the tag `cleanup`"]


def exercises(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    text = prose(notebook)
    problems = []
    if not re.search(r"^#{2,} .*what next", text, re.IGNORECASE | re.MULTILINE):
        problems.append("no heading `What next`")
    if not re.search(r"^#{2,} .*exercise", text, re.IGNORECASE | re.MULTILINE):
        problems.append("no heading `Exercises`")
    opened, closed = text.count("<details"), text.count("</details>")
    if not opened or opened != closed or text.count("<summary>") != opened:
        problems.append("no exercise whose answer is collapsed (<details> with <summary>)")
    if not answers(notebook):
        problems.append("no answer holds a block of Python, which the tests run")
    if re.search(r"<details[^>]*\bopen\b", text):
        problems.append("a <details> is open: the answer shows")
    return problems


def no_mode_switch(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    """A notebook does not know where its endpoints are."""
    return [
        f"cell {number} asks for the mode: `{ast.unparse(node)}`"
        for number, tree in trees(notebook)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Compare) and any(map(_is_mode, [node.left, *node.comparators])))
        or (isinstance(node, ast.Match) and _is_mode(node.subject))
    ]


def _is_mode(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "mode") or (
        isinstance(node, ast.Attribute) and node.attr == "mode"
    )


def no_model_ids(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    """Ids of the catalogue are spelt in models.toml, in prose, and in the copyable cell."""
    known = {model.id for role in ROLES for model in load_registry().models(role)}
    copyable = tagged(notebook, "copy")
    return [
        f"cell {number} spells the model id {node.value!r}: take it from the endpoints"
        for number, tree in trees(notebook)
        if number not in copyable
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and (node.value in known or _looks_like_id(node.value))
    ]


def _looks_like_id(text: str) -> bool:
    publisher, slash, name = text.partition("/")
    return (
        bool(slash) and publisher in CATALOGUE_PUBLISHERS and bool(re.fullmatch(r"[\w.-]+", name))
    )


def no_keys(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    found = set(stored.KEY_PATTERN.findall(json.dumps(notebook))) - set(stored.FAKE_KEYS)
    return [f"a key: {key[:10]}..." for key in sorted(found)]


def no_absolute_paths(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    texts = [(f"cell {n}", cell.source) for n, cell in code_cells(notebook)]
    texts += [(f"the output of cell {n}", text) for n, text in _output_texts(notebook)]
    return [
        f"{where} names {match[0]!r}"
        for where, text in texts
        for match in ABSOLUTE_PATH.finditer(text)
    ]


def _output_texts(notebook: NotebookNode) -> Iterator[tuple[int, str]]:
    for number, cell in code_cells(notebook):
        for output in cell.outputs:
            yield number, "".join(output.get("text", ""))
            yield number, "\n".join(output.get("traceback", []))
            for mime, data in output.get("data", {}).items():
                if not mime.startswith("image/"):
                    yield number, data if isinstance(data, str) else json.dumps(data)


def no_widget_metadata(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    problems = (
        ["metadata.widgets breaks the page on GitHub"] if "widgets" in notebook.metadata else []
    )
    for number, cell in code_cells(notebook):
        mimes = [mime for output in cell.outputs for mime in output.get("data", {})]
        if any(mime.startswith("application/vnd.jupyter.widget") for mime in mimes):
            problems.append(f"cell {number} shows a widget, which is lost when it is stored")
    return problems


def no_time_stamps(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    return [
        f"cell {number} has the metadata {name!r}"
        for number, cell in code_cells(notebook)
        for name in TIME_STAMPS
        if name in cell.metadata
    ]


def no_errors(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    return [
        f"the stored output of cell {number} is an error: {output.ename}"
        for number, cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", [])
    ]


def small_images(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    problems = [
        f"the {kind} image of cell {number} has {size:,} bytes"
        for number, cell in code_cells(notebook)
        for kind, size in stored.image_sizes(cell)
        if size > stored.LARGEST_IMAGE
    ]
    attached = [cell for cell in notebook.cells if cell.get("attachments")]
    return problems + [
        "an image is attached to a Markdown cell: put it into a file" for _ in attached
    ]


def alt_text(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    problems = [
        "a Markdown image has no alt text"
        for match in MARKDOWN_IMAGE.finditer(prose(notebook))
        if not match[1].strip()
    ]
    html = [("the prose", prose(notebook))]
    for number, cell in code_cells(notebook):
        for output in cell.outputs:
            html.append((f"cell {number}", "".join(output.get("data", {}).get("text/html", ""))))
            problems += [
                f"the {mime} of cell {number} has no alt text"
                for mime in output.get("data", {})
                if mime.startswith("image/")
                and not output.metadata.get(mime, {}).get("alt", "").strip()
            ]
    for where, text in html:
        images = [tag for tag in HTML_IMAGE.findall(text) if not HTML_ALT.search(tag)]
        problems += [f"an <img> in {where} has no alt text" for _ in images]
    return problems


def fresh_outputs(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    if stored.is_stale(notebook):
        return ["the stored outputs are not those of today's code: run `make notebooks`"]
    return []


def weights_are_named(notebook: NotebookNode, recipe: Recipe) -> list[str]:
    named = notebook.metadata.get(stored.METADATA, {}).get("weights", {})
    missing = [role for role in recipe.endpoints if not named.get(role)]
    return [f"the metadata does not name the {role} weights that answered" for role in missing]


RULES: tuple[Rule, ...] = (
    schema_is_valid,
    one_h1,
    header_block,
    colab_badge,
    code_parses,
    few_cells,
    few_words,
    lesson_first,
    helpers_are_few,
    copyable_cell,
    no_star_import,
    short_cells,
    setup_cell,
    cleanup_cell,
    exercises,
    no_mode_switch,
    no_model_ids,
    no_keys,
    no_absolute_paths,
    no_widget_metadata,
    no_time_stamps,
    no_errors,
    small_images,
    alt_text,
    fresh_outputs,
    weights_are_named,
)
