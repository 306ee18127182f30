"""The helper's pipelines have the parts that recipe 03 builds in front of the reader."""

from __future__ import annotations

from typing import Any

import pytest
from haystack import Document, Pipeline

from nim_cookbook import answering, indexing
from tests.support import Servers, recipe_cells

CELLS = (
    "connect",
    "pdf",
    "title-line",
    "preparation",
    "chunks",
    "index",
    "models",
    "prompt",
    "rag",
)

pytestmark = pytest.mark.xdist_group("same_pipelines")  # one store


@pytest.fixture(scope="module")
def recipe(servers: Servers) -> dict[str, Any]:
    """What the recipe's cells define, from two of its files."""
    cells = recipe_cells("03")
    names: dict[str, Any] = {}
    for name in CELLS:
        exec(cells[name], names)
        if name == "pdf":
            names["files"] = names["files"][:2]
    yield names
    names["store"].close()


def settings(pipeline: Pipeline, name: str) -> dict[str, Any]:
    component: dict[str, Any] = pipeline.to_dict()["components"][name]
    return component


@pytest.mark.parametrize("name", ["pdf", "cleaner", "splitter"])
def test_from_files_to_chunks(recipe: dict[str, Any], name: str) -> None:
    assert settings(indexing.preparation(), name) == settings(recipe["preparation"], name)


def test_the_title_line(recipe: dict[str, Any]) -> None:
    document = Document(content="a\fb", meta={"title": "T"})
    ours, shown = indexing.TitleLine(), recipe["TitleLine"]()
    assert ours.run([document]) == shown.run([document])


@pytest.mark.parametrize("name", ["ranker", "prompt_builder", "generator"])
def test_from_a_question_to_an_answer(recipe: dict[str, Any], name: str) -> None:
    ours = answering.query_pipeline(recipe["nim"], recipe["store"])
    assert settings(ours, name) == settings(recipe["rag"], name)
