"""The helper's pipelines are those that recipe 03 builds in front of the reader."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from haystack import Document, Pipeline

from nim_cookbook import answering, indexing
from tests.support import Servers

RECIPE = next((Path(__file__).resolve().parents[2] / "notebooks").glob("03_*.ipynb"))
PREPARATION = ("papers", "pdf", "converters", "connect-converters", "splitter")
QUERY = ("embedders", "store", "update", "query-models", "router", "prompt", "rag", "rag-connect")
THRESHOLD = -1.5

pytestmark = pytest.mark.xdist_group("same_pipelines")  # one store


@pytest.fixture(scope="module")
def recipe(servers: Servers) -> dict[str, Any]:
    """What the recipe's cells define, without their long work."""
    cells = {cell.id: cell.source for cell in nbformat.read(RECIPE, as_version=4).cells}
    names: dict[str, Any] = {
        "chosen": SimpleNamespace(threshold=THRESHOLD),
        "Document": Document,
    }
    exec(cells["first-search"].partition("\n\n")[0], names)  # an import
    for name in ("connect", *PREPARATION, *QUERY):
        source = cells[name]
        if name == "update":
            source = source[: source.index("start =")]  # the store, and not the indexing
        exec(source, names)
    yield names
    names["store"].close()


def shape(pipeline: Pipeline) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the types of a pipeline's components and its connections."""
    written = pipeline.to_dict()
    types = {name: component["type"] for name, component in written["components"].items()}
    wires = sorted((c["sender"], c["receiver"]) for c in written["connections"])
    return types, wires


def test_from_files_to_passages(recipe: dict[str, Any]) -> None:
    ours, shown = indexing.preparation(), recipe["preparation"]
    assert shape(ours) == shape(shown)
    assert ours.to_dict()["components"] == shown.to_dict()["components"]


def test_from_a_question_to_an_answer(recipe: dict[str, Any]) -> None:
    ours = answering.query_pipeline(recipe["api"], recipe["store"], threshold=THRESHOLD)
    shown = recipe["rag"]
    assert shape(ours) == shape(shown)
    for name in ("retriever", "ranker", "prompt_builder", "generator"):
        settings = [p.to_dict()["components"][name]["init_parameters"] for p in (ours, shown)]
        assert settings[0] == settings[1], name


def test_both_routers_refuse_alike(recipe: dict[str, Any]) -> None:
    ours = answering.query_pipeline(recipe["api"], recipe["store"], threshold=THRESHOLD)
    for score in (THRESHOLD - 0.1, THRESHOLD + 0.1):
        documents = [Document(content="x", score=score)]
        outputs = [
            p.get_component("router").run(documents=documents) for p in (ours, recipe["rag"])
        ]
        assert outputs[0] == outputs[1]
    assert recipe["router"].run(documents=[])["refusal"] == answering.REFUSAL
