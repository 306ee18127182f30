"""Every rule for notebooks lets a good notebook pass and finds what breaks it."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
from collections.abc import Callable

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cookbook_cli import stored
from cookbook_cli.recipes import Recipe
from nim_cookbook.models import load_registry
from tests.notebooks import rules

RECIPE = Recipe(
    number="07",
    file="07_example.ipynb",
    title="An example",
    level="beginner",
    minutes=5,
    packages=("openai",),
    endpoints=("chat",),
    lesson="A lesson.",
)
HEAD = """# 07 An example

A lesson. And more about it.

**Level**: beginner
**Minutes**: 5
**Packages**: openai

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/someone/cookbook/blob/main/notebooks/07_example.ipynb)
"""
TAIL = """## What next

## Exercises

1. Change something.

<details><summary>Answer</summary>

```python
# no heading
```

</details>
"""
PNG = base64.b64encode(b"\x89PNG" + b"0" * 100).decode()


def picture(**metadata: str) -> NotebookNode:
    data = {"image/png": PNG, "text/plain": "A chart"}
    return new_output("display_data", data=data, metadata={"image/png": metadata})


def good() -> NotebookNode:
    notebook = new_notebook(
        cells=[
            new_markdown_cell(HEAD),
            new_code_cell("%pip install -q nim-rag-cookbook", metadata={"tags": ["setup"]}),
            new_markdown_cell("One step. ![a drawing](a.png)"),
            new_code_cell("answer = await ask(nim.chat.model)", outputs=[picture(alt="A chart")]),
            new_markdown_cell(TAIL),
            new_code_cell("nim.close()", metadata={"tags": ["cleanup"]}),
        ]
    )
    return stamped(notebook)


def stamped(notebook: NotebookNode) -> NotebookNode:
    weights = {"chat": "a small model"}
    mark = {"source_sha256": stored.source_hash(notebook), "weights": weights}
    notebook.metadata[stored.METADATA] = mark
    return notebook


Break = Callable[[NotebookNode], object]


def source(index: int, text: str) -> Break:
    return lambda notebook: notebook.cells[index].__setitem__("source", text)


def replaced(index: int, old: str, new: str) -> Break:
    def change(notebook: NotebookNode) -> None:
        assert old in notebook.cells[index].source
        notebook.cells[index].source = notebook.cells[index].source.replace(old, new)

    return change


def everywhere(code: str) -> Break:
    def change(notebook: NotebookNode) -> None:
        for cell in notebook.cells:
            cell.source = code if cell.cell_type == "code" else cell.source

    return change


def output(made: NotebookNode) -> Break:
    return lambda notebook: notebook.cells[3].outputs.append(made)


def printed(text: str) -> Break:
    return output(new_output("stream", name="stdout", text=text))


def cell_metadata(index: int, **values: object) -> Break:
    return lambda notebook: notebook.cells[index].metadata.update(values)


LARGE = base64.b64encode(b"0" * 200_001).decode()
LARGE_PNG = new_output(
    "display_data", data={"image/png": LARGE}, metadata={"image/png": {"alt": "x"}}
)
HTML = {"text/html": '<p><img src="a.png" alt=""></p>'}
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}

BAD: list[tuple[rules.Rule, Break]] = [
    (rules.schema_is_valid, lambda notebook: notebook.cells[1].pop("outputs")),
    (rules.schema_is_valid, lambda n: n.cells[1].__setitem__("id", n.cells[0].id)),
    (rules.one_h1, replaced(4, "## What next", "# What next")),
    (rules.one_h1, replaced(0, "# 07 An example", "Hello")),
    (rules.one_h1, replaced(0, "# 07 An example", "# 07 Something else")),
    (rules.header_block, replaced(0, "**Level**: beginner", "")),
    (rules.colab_badge, replaced(0, "colab-badge.svg", "badge.svg")),
    (rules.colab_badge, replaced(0, "07_example.ipynb)", "06_example.ipynb)")),
    (rules.code_parses, source(3, "answer = = 1")),
    (rules.few_cells, lambda n: n.cells.extend(new_code_cell("1") for _ in range(18))),
    (rules.few_words, source(2, "word " * 1201)),
    (rules.lesson_first, replaced(0, "A lesson.", "Another lesson.")),
    (rules.helpers_are_few, everywhere("from capacity import plan\nplan.a")),
    (rules.copyable_cell, cell_metadata(3, tags=["copy"])),
    (rules.no_star_import, source(3, "from os.path import *")),
    (rules.short_cells, source(3, "a = 1\n" * 16)),
    (rules.setup_cell, cell_metadata(1, tags=[])),
    (rules.setup_cell, cell_metadata(3, tags=["setup"])),
    (rules.cleanup_cell, cell_metadata(5, tags=["clean"])),
    (rules.cleanup_cell, lambda notebook: notebook.cells.append(new_code_cell("1"))),
    (rules.exercises, replaced(4, "## What next", "## The end")),
    (rules.exercises, replaced(4, "## Exercises", "## Homework")),
    (rules.exercises, replaced(4, "<details>", "")),
    (rules.exercises, replaced(4, "<details>", "<details open>")),
    (rules.exercises, replaced(4, "```python", "```")),
    (rules.no_mode_switch, source(3, 'if nim.mode == "local":\n    pass')),
    (rules.no_mode_switch, source(3, 'url = a if mode != "hosted" else b')),
    (rules.no_mode_switch, source(3, 'ok = mode in ("local",)')),
    (rules.no_mode_switch, source(3, 'match nim.mode:\n    case "local":\n        pass')),
    (rules.no_model_ids, source(3, 'model = "meta/llama-3.1-8b-instruct"')),
    (rules.no_model_ids, source(3, 'model = "nvidia/some-new-model-1b"')),
    (rules.no_keys, source(3, 'key = "nvapi-' + "A1b2" * 6 + '"')),
    (rules.no_keys, printed("nvapi-local-" + "A1b2" * 6)),
    (rules.no_absolute_paths, printed("wrote /home/somebody/file.txt")),
    (rules.no_absolute_paths, printed("in /tmp/abc")),
    (rules.no_absolute_paths, source(3, 'open("/Users/me/a.txt")')),
    (rules.no_widget_metadata, lambda notebook: notebook.metadata.update(widgets={})),
    (rules.no_widget_metadata, output(new_output("display_data", data=WIDGET))),
    (rules.no_time_stamps, cell_metadata(3, execution={"iopub.execute_input": "2026"})),
    (rules.no_errors, output(new_output("error", ename="ValueError", evalue="no"))),
    (rules.small_images, output(LARGE_PNG)),
    (rules.small_images, lambda n: n.cells[2].update(attachments={"a.png": {"image/png": PNG}})),
    (rules.alt_text, output(picture())),
    (rules.alt_text, output(picture(alt=" "))),
    (rules.alt_text, replaced(2, "![a drawing]", "![]")),
    (rules.alt_text, source(2, '<img src="a.png">')),
    (rules.alt_text, output(new_output("display_data", data=HTML))),
    (rules.fresh_outputs, source(3, "answer = 2")),
    (rules.fresh_outputs, lambda notebook: notebook.metadata.pop(stored.METADATA)),
    (rules.weights_are_named, lambda n: n.metadata[stored.METADATA].pop("weights")),
]


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_good_notebook_passes(rule: rules.Rule) -> None:
    assert rule(good(), RECIPE) == []


@pytest.mark.parametrize(
    ("rule", "spoil"), BAD, ids=[f"{rule.__name__}-{n}" for n, (rule, _) in enumerate(BAD)]
)
def test_bad_notebook_is_found(rule: rules.Rule, spoil: Break) -> None:
    notebook = copy.deepcopy(good())
    spoil(notebook)
    problems = rule(notebook, RECIPE)
    assert problems
    assert all(isinstance(problem, str) and problem for problem in problems)


def test_every_rule_has_a_bad_example() -> None:
    assert {rule for rule, _ in BAD} == set(rules.RULES)


@pytest.mark.parametrize(
    "text",
    [
        "docker run -v $HOME/.cache/nim:/opt/nim/.cache",
        "see https://example.com/home/page and ./tmp/file",
        "~/.cache/nim-cookbook",
    ],
)
def test_paths_that_are_fine(text: str) -> None:
    notebook = good()
    printed(text)(notebook)
    assert rules.no_absolute_paths(notebook, RECIPE) == []


def test_prose_may_name_models_and_fake_keys() -> None:
    notebook = good()
    source(2, "`meta/llama-3.1-8b-instruct` and nvapi-fake-key-for-tests")(notebook)
    assert rules.no_model_ids(notebook, RECIPE) == []
    assert rules.no_keys(notebook, RECIPE) == []


COPY = """import os
from openai import OpenAI
client = OpenAI(api_key=os.environ["NVIDIA_API_KEY"])
client.embeddings.create(model={model!r}, input="a")"""


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (COPY, ""),
        (COPY.replace("NVIDIA_API_KEY", "KEY"), "NVIDIA_API_KEY"),
        (COPY.replace("{model!r}", "'nvidia/another-model'"), "no default of the registry"),
        (COPY + "\nfrom nim_cookbook import data", "imports nim_cookbook"),
    ],
)
def test_the_copyable_cell(code: str, problem: str) -> None:
    notebook = good()
    notebook.cells[3].source = code.replace(
        "{model!r}", repr(load_registry().default("embedding").id)
    )
    cell_metadata(3, tags=["copy"])(notebook)
    recipe = dataclasses.replace(RECIPE, number="01")
    problems = rules.copyable_cell(notebook, recipe)
    assert problem in " ".join(problems) if problem else problems == []
    assert rules.no_model_ids(notebook, recipe) == []
    notebook.cells[3].metadata.tags = []
    assert rules.copyable_cell(notebook, recipe) == ["one cell must have the tag `copy`"]


def test_changed_prose_does_not_make_outputs_stale() -> None:
    notebook = good()
    source(2, "Other words.")(notebook)
    assert rules.fresh_outputs(notebook, RECIPE) == []


def test_notebook_survives_json() -> None:
    assert json.loads(json.dumps(good()))["nbformat"] == 4
