"""Designs of a RAG pipeline as data: a grid of knobs, and the two pipelines that a design means.

A design names what can be chosen between a file and an answer. `indexing_pipeline` and
`query_pipeline` build it from Haystack's and NVIDIA's components, so that it can be saved as YAML
and served; `nim_cookbook.sweep` measures many designs without building each.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from haystack import Document, Pipeline, component
from haystack.components.retrievers.in_memory import (
    InMemoryBM25Retriever,
    InMemoryEmbeddingRetriever,
)
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DocumentStore, DuplicatePolicy
from pydantic import Field

from nim_cookbook import answering, indexing
from nim_cookbook.data import Text, data_path, read_text, validated
from nim_cookbook.endpoints import Endpoint, Endpoints
from nim_cookbook.errors import DataError

#: A model id that stands for what the endpoint serves by default.
DEFAULT = "default"
#: Chunks that each search gives to the fusion.
LIST = 50
#: The knobs that change the answer and not what is found, and the others.
ANSWER_KNOBS = ("top_k", "prompt", "chat")
RETRIEVAL_KNOBS = ("split", "overlap", "title", "embedder", "search", "fusion", "depth")

Split = Annotated[str, Field(pattern=r"^[1-9]\d* (word|line|passage|page)s?$")]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, slots=True)
class Design:
    """One value of each knob; `data/sweep/grid.toml` says what they mean."""

    split: Split = f"{indexing.SPLIT_LENGTH} words"
    overlap: Annotated[int, Field(ge=0, lt=100)] = 20  # per cent of the chunk
    title: bool = True
    embedder: Text = DEFAULT
    search: Literal["vectors", "keywords", "hybrid"] = "vectors"
    fusion: Annotated[int, Field(ge=0)] = 60
    depth: Annotated[int, Field(ge=0, le=LIST)] = answering.CANDIDATES
    top_k: Annotated[int, Field(ge=1, le=20)] = answering.TOP_K
    prompt: Text = "brief"
    chat: Text = DEFAULT

    def __str__(self) -> str:
        """Name what the design finds with, in a few words."""
        fused = f" k={self.fusion}" if self.search == "hybrid" else ""
        lap = f"/{self.overlap}%" if self.overlap else ""
        title = "title" if self.title else "no title"
        reranked = f"rerank {self.depth}" if self.depth else "no reranker"
        other = "" if self.embedder == DEFAULT else f", {self.embedder}"
        return f"{self.split}{lap}, {title}, {self.search}{fused}, {reranked}{other}"

    @property
    def splitting(self) -> tuple[int, int, indexing.Unit]:
        """The length of a chunk, its overlap, and the unit of both."""
        length, unit = self.split.split()
        lap = int(length) * self.overlap // 100
        return int(length), lap, cast(indexing.Unit, unit.rstrip("s"))

    @property
    def searches(self) -> tuple[str, ...]:
        """What its search is made of."""
        return ("vectors", "keywords") if self.search == "hybrid" else (self.search,)

    @property
    def first_stage(self) -> Design:
        """The same search without the reranker."""
        return replace(self, depth=0)


@dataclass(frozen=True, slots=True)
class Knobs:
    """The values to try of each knob, the baseline first."""

    split: tuple[Split, ...]
    overlap: tuple[int, ...] = (20,)
    title: tuple[bool, ...] = (True,)
    embedder: tuple[Text, ...] = (DEFAULT,)
    search: tuple[Literal["vectors", "keywords", "hybrid"], ...] = ("vectors",)
    fusion: tuple[int, ...] = (60,)
    depth: tuple[int, ...] = (answering.CANDIDATES,)
    top_k: tuple[int, ...] = (answering.TOP_K,)
    prompt: tuple[Text, ...] = ("brief",)
    chat: tuple[Text, ...] = (DEFAULT,)


@dataclass(frozen=True, slots=True)
class Race:
    """How many go how far; see `data/sweep/grid.toml`."""

    first_stages: Count = 6
    rungs: tuple[Share, ...] = (0.25, 0.5, 1.0)
    finalists: Count = 5
    answers: Annotated[int, Field(ge=0)] = 40
    test: Count = 50


@dataclass(frozen=True, slots=True)
class Grid:
    """What a sweep tries."""

    knobs: Knobs
    race: Race = Race()
    prompts: Mapping[str, Text] = field(default_factory=lambda: {"brief": answering.SYSTEM})

    @property
    def baseline(self) -> Design:
        """The first value of each knob."""
        return Design(**{f.name: getattr(self.knobs, f.name)[0] for f in fields(Knobs)})

    def designs(self) -> list[Design]:
        """Return all combinations that find differently, with the baseline's way to answer."""
        values = itertools.product(*(getattr(self.knobs, name) for name in RETRIEVAL_KNOBS))
        rows = (dict(zip(RETRIEVAL_KNOBS, row, strict=True)) for row in values)
        return list(dict.fromkeys(self.plain(replace(self.baseline, **row)) for row in rows))

    def neighbours(self, design: Design, names: Iterable[str]) -> list[tuple[str, Design]]:
        """Return the designs that differ from one in a single knob, each with what differs."""
        found = []
        for name in names:
            for value in getattr(self.knobs, name):
                other = self.plain(replace(design, **{name: value}))
                if other != design:
                    found.append((f"{name} {getattr(design, name)} \u2192 {value}", other))
        return found

    def plain(self, design: Design) -> Design:
        """Return a design whose unused knobs have the baseline's values: equal is what acts so."""
        if design.search != "hybrid":
            design = replace(design, fusion=self.knobs.fusion[0])
        if design.search == "keywords":
            design = replace(design, embedder=self.knobs.embedder[0])
        return design


def load_grid(path: Path | None = None) -> Grid:
    """Read a grid.

    Args:
        path: A TOML file; None for the packaged one.

    Raises:
        DataError: It cannot be read, or a value cannot be used; the message names it.
    """
    path = path or data_path("sweep/grid.toml")
    try:
        record = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path.name} is no TOML: {error}.") from None
    grid = validated(Grid, record, path.name)
    for knob in fields(Knobs):
        if not getattr(grid.knobs, knob.name):
            raise DataError(f"{path.name}: knobs.{knob.name} is empty: give at least one value.")
    if unknown := [name for name in grid.knobs.prompt if name not in grid.prompts]:
        raise DataError(f"{path.name}: there is no prompt {unknown[0]!r} below [prompts].")
    for name in ("overlap", "fusion", "depth", "top_k"):  # the knobs' ranges are the design's
        for value in getattr(grid.knobs, name):
            validated(Design, {name: value}, f"{path.name}: knobs")
    return grid


@component
class RankFusion:
    """Fuse ranked lists: the sum of 1 / (k + rank) over the lists, ranks from 1.

    Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank
    Learning Methods", SIGIR 2009. Haystack's `DocumentJoiner` has the constant fixed at 60.
    """

    def __init__(self, k: int = 60, top_k: int = 10) -> None:
        """Take the constant, and how many documents to return."""
        self.k, self.top_k = k, top_k

    @component.output_types(documents=list[Document])
    def run(self, vectors: list[Document], keywords: list[Document]) -> dict[str, list[Document]]:
        """Return the best documents of two ranked lists, best first."""
        held = {document.id: document for document in (*keywords, *vectors)}
        scores = fused([[d.id for d in ranking] for ranking in (vectors, keywords)], self.k)
        best = itertools.islice(scores.items(), self.top_k)
        return {"documents": [replace(held[name], score=score) for name, score in best]}


def fused(rankings: Iterable[Iterable[Any]], k: int) -> dict[Any, float]:
    """Return the items of ranked lists with their fused scores, best first; see `RankFusion`."""
    scores: dict[Any, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + 1 / (k + rank)
    return dict(sorted(scores.items(), key=lambda pair: -pair[1]))


# ------------------------------------------------------------------------------------- pipelines


def asked_for(endpoint: Endpoint, model: str) -> Endpoint:
    """Return an endpoint with the model that is asked for: an id, or `DEFAULT`."""
    return endpoint if model == DEFAULT else replace(endpoint, model=model)


def indexing_pipeline(design: Design, api: Endpoints, store: DocumentStore) -> Pipeline:
    """Return the pipeline from files to chunks with vectors in a store.

    Inputs `router.sources` and `router.meta`.
    """
    pipeline = indexing.preparation(*design.splitting)
    last = "title"
    if not design.title:
        pipeline.remove_component("title")
        last = "splitter"
    embedding = asked_for(api.embedding, design.embedder)
    pipeline.add_component("embedder", indexing.document_embedder(embedding))
    pipeline.add_component("writer", DocumentWriter(store, policy=DuplicatePolicy.OVERWRITE))
    pipeline.connect(f"{last}.documents", "embedder.documents")
    pipeline.connect("embedder.documents", "writer.documents")
    return pipeline


def query_pipeline(
    design: Design, grid: Grid, api: Endpoints, store: InMemoryDocumentStore
) -> Pipeline:
    """Return the pipeline from a question to an answer; `answering.ask` runs it.

    Its steps have the names of those that the query service knows: `text_embedder`, `retriever`,
    `keywords`, `joiner`, `ranker`, `router`, `prompt_builder` and `generator`.
    """
    pipeline = Pipeline()
    wanted = design.depth or design.top_k
    each = LIST if design.search == "hybrid" else wanted
    searches = []
    if design.search != "keywords":
        embedding = asked_for(api.embedding, design.embedder)
        pipeline.add_component("text_embedder", answering.text_embedder(embedding))
        pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=each))
        pipeline.connect("text_embedder.embedding", "retriever.query_embedding")
        searches.append("retriever")
    if design.search != "vectors":
        pipeline.add_component("keywords", InMemoryBM25Retriever(store, top_k=each))
        searches.append("keywords")
    last = searches[0]
    if design.search == "hybrid":
        pipeline.add_component("joiner", RankFusion(design.fusion, wanted))
        pipeline.connect("retriever.documents", "joiner.vectors")
        pipeline.connect("keywords.documents", "joiner.keywords")
        last = "joiner"
    if design.depth:
        pipeline.add_component("ranker", answering.ranker(api.reranking, design.top_k))
        pipeline.connect(f"{last}.documents", "ranker.documents")
        last = "ranker"
    pipeline.add_component("router", answering.router(None))
    builder = answering.prompt_builder(grid.prompts[design.prompt])
    pipeline.add_component("prompt_builder", builder)
    chat = asked_for(api.chat, design.chat)
    pipeline.add_component("generator", answering.chat_generator(chat, answering.MAX_TOKENS))
    pipeline.connect(f"{last}.documents", "router.documents")
    pipeline.connect("router.sources", "prompt_builder.documents")
    pipeline.connect("prompt_builder.prompt", "generator.messages")
    return pipeline


def save(design: Design, grid: Grid, api: Endpoints, folder: Path) -> None:
    """Write a design as the query service's files: indexing.yaml, ask.yaml and search.yaml.

    They hold no key and no chunks. `rag_service.pipelines.load` points them at the endpoints and
    the store of an installation; `COOKBOOK_PIPELINES` names the folder.
    """
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    ask = query_pipeline(design, grid, api, store)
    search = query_pipeline(design, grid, api, store)
    for step in ("generator", "prompt_builder", "router"):
        search.remove_component(step)
    made = {"indexing": indexing_pipeline(design, api, store), "ask": ask, "search": search}
    folder.mkdir(parents=True, exist_ok=True)
    for name, pipeline in made.items():
        text = f"# {design}, top_k {design.top_k}: the winner of a sweep.\n{pipeline.dumps()}"
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
