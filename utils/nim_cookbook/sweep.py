"""Measure many designs of a pipeline, and compute nothing twice.

Chunks, vectors, rankings, logits and answers are kept in one SQLite file under hashes of what they
were made from: texts, settings and the models that answered. So a killed run goes on where it was,
a changed document changes only its own part, and designs share what they have in common.

The race saves the reranker, which is dear: all searches are measured without it, the best go on,
and of these fewer and fewer get more and more questions (successive halving: Jamieson and
Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016).
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from haystack import Document
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.components.rankers.nvidia import NvidiaRanker
from haystack_integrations.components.rankers.nvidia.truncate import RankerTruncateMode

from nim_cookbook import answering, designs, indexing, local
from nim_cookbook.bounded import BoundedPreparation
from nim_cookbook.corpus import relevant
from nim_cookbook.data import Query, brief
from nim_cookbook.designs import ANSWER_KNOBS, LIST, RETRIEVAL_KNOBS, Design, Grid, asked_for
from nim_cookbook.endpoints import Endpoint, Endpoints
from nim_cookbook.errors import DataError
from nim_cookbook.evaluation import (
    AnswerEvaluation,
    Chunk,
    Difference,
    RetrievalScores,
    evaluate_answers,
    paired_bootstrap,
    score_retrieval,
)
from nim_cookbook.indexing import Prepared, SourceFile
from nim_cookbook.kept import Cache, name_of

METRIC, RECALL = "ndcg@10", "recall@20"
BATCH = 32  # chunks in one request: what an interruption loses
#: Seconds that a thing takes on two cores, until this run has measured it.
USUAL = {"chunk": 0.03, "pair": 0.03, "answer": 1.0}

#: Called with what is being computed and the seconds that are left.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Index:
    """The chunks of one way of splitting."""

    chunks: tuple[Document, ...]

    @cached_property
    def name(self) -> str:
        """A hash of the chunks."""
        return name_of("index", [(c.meta["document"], c.content) for c in self.chunks])

    @cached_property
    def keywords(self) -> InMemoryBM25Retriever:
        """BM25 over the chunks."""
        store = InMemoryDocumentStore()
        store.write_documents(
            [Document(id=str(n), content=c.content) for n, c in enumerate(self.chunks)]
        )
        return InMemoryBM25Retriever(store, top_k=LIST)


@dataclass(frozen=True, slots=True)
class Measured:
    """A design on some questions."""

    design: Design
    scores: RetrievalScores  # by `METRIC` and `RECALL`
    # Seconds of one search, added up from measured parts: embedding the question, searching, and
    # the reranker's time for a pair times the depth. Medians, one request at a time.
    seconds: float

    @property
    def quality(self) -> npt.NDArray[np.float64]:
        """nDCG@10 of each question."""
        return self.scores.values[METRIC]


@dataclass(frozen=True, slots=True)
class Answered:
    """A design's answers."""

    design: Design
    answers: AnswerEvaluation
    seconds: float  # median of the chat model's time for one

    @property
    def f1(self) -> npt.NDArray[np.float64]:
        """Token F1 of each answer."""
        return np.array([row.f1 for row in self.answers.rows])


class Sweep:
    """Measures designs over some files and questions.

    Args:
        api: Where the models are.
        files: What is searched.
        queries: The questions; those of the split `test` are kept for `confirm`.
        grid: What is tried.
        folder: Where the cache is; None for the cache folder.
        progress: Called as work goes on.
        preparation: Reads the files in a process of its own; None for this one.

    Attributes:
        computed: How many chunks and questions were embedded, pairs reranked and answers given by
            this object, and not taken from the cache.
    """

    def __init__(
        self,
        api: Endpoints,
        files: Sequence[SourceFile],
        queries: Sequence[Query],
        grid: Grid,
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
        preparation: BoundedPreparation | None = None,
    ) -> None:
        self._preparation = preparation
        self._api, self._files, self.grid = api, files, grid
        self.cache = Cache(folder or local.cache_dir() / "sweeps")
        self._report = progress or (lambda what, left: None)
        judged = [query for query in queries if query.evidence]
        self.test = [query for query in judged if query.split == "test"]
        self.dev = [query for query in judged if query.split != "test"]
        for some in (self.test, self.dev):  # the first part of them is a sample
            random.Random(0).shuffle(some)
        self.test = self.test[: grid.race.test]
        if not self.dev:
            raise DataError(
                "No question with evidence is left to choose by: all are kept for test."
            )
        self.computed: Counter[str] = Counter()
        self.notes: dict[str, str] = {}  # what was left out of the files, and why
        self._indexes: dict[tuple[object, ...], Index] = {}
        self._vectors: dict[tuple[str, str], npt.NDArray[np.float32]] = {}
        self._todo: Counter[str] = Counter()  # how much is left, as far as is known
        self._spent: dict[str, float] = defaultdict(float)

    # -------------------------------------------------------------------------------- the parts

    def index(self, design: Design) -> Index:
        """Return the chunks of a design.

        Raises:
            DataError: None of the files gave any text.
        """
        known = (design.split, design.overlap, design.title)
        if known not in self._indexes:
            pipeline = indexing.preparation(*design.splitting)
            settings = name_of(pipeline.dumps(), version("haystack-ai"))
            prepare: Callable[..., Prepared] = (
                partial(self._preparation.prepare, splitting=design.splitting)
                if self._preparation
                else partial(indexing.prepare, pipeline=pipeline)
            )
            chunks = [c for file in self._files for c in self._chunks(file, prepare, settings)]
            if not design.title:
                chunks = [replace(c, content=indexing.own_text(c)) for c in chunks]
            if not chunks:
                raise DataError("None of the files gave any text: name another folder.")
            self._indexes[known] = Index(tuple(chunks))
        return self._indexes[known]

    def _chunks(
        self, file: SourceFile, prepare: Callable[..., Prepared], settings: str
    ) -> list[Document]:
        try:
            fingerprint = indexing.fingerprint(file, settings)
        except OSError as error:
            self.notes[file.document] = f"it cannot be read ({error.strerror})"
            return []
        name = name_of("chunks", file.document, fingerprint)
        if (kept := self.cache.get(name)) is None:
            try:
                made = prepare(file, fingerprint=fingerprint)
            except DataError as error:  # it takes too much to read
                self.notes[file.document] = str(error).rstrip(".")
                return []
            kept = {"note": made.note, "chunks": [c.to_dict(flatten=False) for c in made.chunks]}
            self.cache.put({name: kept})
        if kept["note"]:
            self.notes[file.document] = kept["note"]
        return [Document.from_dict(record) for record in kept["chunks"]]

    def vectors(self, design: Design) -> npt.NDArray[np.float32]:
        """Return the unit vectors of a design's chunks, shape (chunks, width)."""
        index = self.index(design)
        known = (index.name, design.embedder)
        if known not in self._vectors:
            model = self._model(self._api.embedding, design.embedder)
            names = [name_of("vector", model, c.content) for c in index.chunks]
            texts = {name: c.content for name, c in zip(names, index.chunks, strict=True)}
            held = {name: self.cache.get(name) for name in texts}
            missing = [name for name, vector in held.items() if vector is None]
            embedder = indexing.document_embedder(asked_for(self._api.embedding, design.embedder))
            for first in range(0, len(missing), BATCH):
                some = missing[first : first + BATCH]
                start = time.perf_counter()
                done: Any = embedder.run([Document(content=texts[name]) for name in some])
                new = {n: d.embedding for n, d in zip(some, done["documents"], strict=True)}
                self._keep("chunk", len(some), time.perf_counter() - start, new)
                held |= new
            self._vectors[known] = _unit([held[name] for name in names])
        return self._vectors[known]

    def _question(self, design: Design, query: Query) -> tuple[float, npt.NDArray[np.float32]]:
        """Return the seconds that a question's embedding took, and its unit vector."""
        model = self._model(self._api.embedding, design.embedder)
        name = name_of("question", model, query.question)
        if (kept := self.cache.get(name)) is None:
            embedder = answering.text_embedder(asked_for(self._api.embedding, design.embedder))
            start = time.perf_counter()
            embedding = embedder.run(query.question)["embedding"]
            kept = [time.perf_counter() - start, embedding]
            self._keep("question", 1, kept[0], {name: kept})
        return kept[0], _unit([kept[1]])[0]

    def _search(self, design: Design, query: Query, how: str) -> tuple[float, list[int]]:
        """Return the seconds of one search, and the places of the chunks found, best first."""
        index = self.index(design)
        model = "" if how == "keywords" else self._model(self._api.embedding, design.embedder)
        name = name_of("ranking", index.name, how, model, query.question)
        if (kept := self.cache.get(name)) is None:
            asked = None if how == "keywords" else self._question(design, query)[1]
            start = time.perf_counter()
            if asked is None:
                found = [int(d.id) for d in index.keywords.run(query.question)["documents"]]
            else:
                order = np.argsort(-(self.vectors(design) @ asked), kind="stable")
                found = [int(n) for n in order[:LIST]]
            kept = [time.perf_counter() - start, found]
            self.cache.put({name: kept})
        return kept[0], kept[1]

    def _first_stage(self, design: Design, query: Query) -> tuple[list[float], list[int]]:
        """Return the seconds of each search, and the places found before the reranker."""
        found = [self._search(design, query, how) for how in design.searches]
        places = designs.fused((order for _, order in found), design.fusion)
        return [seconds for seconds, _ in found], list(places)

    def _reranked(
        self, design: Design, query: Query, order: Sequence[int]
    ) -> tuple[list[float], list[int]]:
        """Return the seconds of each pair that the reranker reads, and the places, best first."""
        pairs = {n: self.cache.get(self._pair(design, query, n)) for n in order[: design.depth]}
        places = sorted(pairs, key=lambda n: -pairs[n][0])
        return [seconds for _, seconds in pairs.values()], [*places, *order[design.depth :]]

    def ranking(self, design: Design, query: Query) -> list[int]:
        """Return the places of the chunks that a design finds, best first."""
        return self._reranked(design, query, self._first_stage(design, query)[1])[1]

    def _pair(self, design: Design, query: Query, place: int) -> str:
        text = self.index(design).chunks[place].content
        return name_of("logit", self._model(self._api.reranking), query.question, text)

    def rerank(self, some: Iterable[Design], queries: Sequence[Query]) -> None:
        """Score what the designs show to the reranker, each pair of question and chunk once.

        One call holds a question and chunks of one splitting, whose pairs take about as long.
        """
        missing: dict[tuple[str, Query], dict[str, str]] = defaultdict(dict)
        seen = set()
        for design in some:
            index = self.index(design)
            for query in queries if design.depth else ():
                for place in self._first_stage(design, query)[1][: design.depth]:
                    name = self._pair(design, query, place)
                    if name not in seen and self.cache.get(name) is None:
                        seen.add(name)
                        text = index.chunks[place].content or ""
                        missing[index.name, query][name] = text
        self._todo["pair"] = max(self._todo["pair"], sum(map(len, missing.values())))
        for (_, query), pairs in missing.items():
            texts = [Document(id=name, content=text) for name, text in pairs.items()]
            start = time.perf_counter()
            ranked = self._ranker.run(query.question, texts, top_k=len(texts))["documents"]
            seconds = time.perf_counter() - start
            new = {d.id: [d.score, seconds / len(pairs)] for d in ranked}
            self._keep("pair", len(pairs), seconds, new)

    @cached_property
    def _ranker(self) -> NvidiaRanker:
        ranker = answering.ranker(self._api.reranking, LIST)
        ranker.truncate = RankerTruncateMode.END
        return ranker

    # ------------------------------------------------------------------------------ the measures

    def measure(self, some: Sequence[Design], queries: Sequence[Query]) -> list[Measured]:
        """Return how well and how fast designs find, in their order."""
        for design in some:
            if "vectors" in design.searches:
                self.vectors(design)
        self.rerank(some, queries)
        return [self._measured(design, queries) for design in some]

    def _measured(self, design: Design, queries: Sequence[Query]) -> Measured:
        self._report(str(design), self._left())
        chunks = self.index(design).chunks
        run = {}
        times: dict[str, list[float]] = {"question": [], "search": [], "pair": []}
        for query in queries:
            searches, order = self._first_stage(design, query)
            pairs, places = self._reranked(design, query, order)
            run[query.id] = [
                Chunk(chunks[n].meta["document"], chunks[n].content or "") for n in places[:20]
            ]
            if "vectors" in design.searches:
                times["question"].append(self._question(design, query)[0])
            times["search"] += searches
            times["pair"] += pairs
        question, search, pair = (median(values or [0.0]) for values in times.values())
        seconds = question + len(design.searches) * search + design.depth * pair
        return Measured(design, score_retrieval(run, queries, metrics=(METRIC, RECALL)), seconds)

    def answer(self, design: Design, queries: Sequence[Query]) -> Answered:
        """Let the chat model answer questions from what a design finds."""
        self.measure([design], queries)
        builder = answering.prompt_builder(self.grid.prompts[design.prompt])
        chat = asked_for(self._api.chat, design.chat)
        model = self._model(self._api.chat, design.chat)
        chunks = self.index(design).chunks
        texts, shown, times = [], [], []
        for query in queries:
            self._report(f"answers of {design}", self._left())
            documents = [chunks[n] for n in self.ranking(design, query)[: design.top_k]]
            prompt = builder.run(documents=documents, question=query.question)["prompt"]
            generator = answering.chat_generator(chat, answering.MAX_TOKENS)
            said = [message.text for message in prompt]
            name = name_of("answer", model, generator.generation_kwargs, said)
            if (kept := self.cache.get(name)) is None:
                start = time.perf_counter()
                reply = generator.run(prompt)["replies"][0]
                kept = [time.perf_counter() - start, answering.answer_text(reply)]
                self._keep("answer", 1, kept[0], {name: kept})
            else:
                self._todo["answer"] -= 1
            times.append(kept[0])
            texts.append(kept[1])
            shown.append([document.content or "" for document in documents])
        return Answered(design, evaluate_answers(queries, texts, shown), median(times))

    # --------------------------------------------------------------------------------- the sweep

    def race(self, queries: Sequence[Query] | None = None) -> list[Measured]:
        """Measure all designs of the grid on the dev questions, the reranked ones by halving.

        Args:
            queries: The questions; None for all of dev.

        Returns:
            The designs, those with the most questions first, then by nDCG@10. A design that was
            dropped has fewer questions; one whose search was dropped is not among them.

        Raises:
            DataError: No chunk holds a judged quote.
        """
        race, all_designs = self.grid.race, self.grid.designs()
        queries = list(self.dev if queries is None else queries)
        stages = list(dict.fromkeys(design.first_stage for design in all_designs))
        self._expect(stages, len(queries))
        self._check()
        found = self.measure(stages, queries)
        best = sorted(found, key=lambda m: -m.scores.values[RECALL].mean())
        kept = {m.design for m in best[: race.first_stages]}
        running = [d for d in all_designs if d.depth and d.first_stage in kept]
        results = {m.design: m for m in found if m.design in all_designs}
        sizes = _rungs(len(running), race.finalists, len(race.rungs))
        for share, size in zip(race.rungs, sizes, strict=False):
            some = queries[: max(1, round(share * len(queries)))]
            running = running[:size]
            results |= {m.design: m for m in self.measure(running, some)}
            running.sort(key=lambda d: -results[d].quality.mean())
        self._todo.clear()
        return sorted(results.values(), key=lambda m: (-len(m.quality), -m.quality.mean()))

    def answers(self, finalists: Sequence[Measured]) -> list[Answered]:
        """Let the finalists answer dev questions; the best first, by token F1.

        Where no question has a reference there is nothing to compare, and the list is empty.
        """
        some = self._asked(self.dev)
        finalists = finalists[: self.grid.race.finalists] if some else []
        self._todo["answer"] = len(some) * len(finalists)
        answered = [self.answer(m.design, some) for m in finalists]
        return sorted(answered, key=lambda a: -a.f1.mean())

    def knobs(self, winner: Design) -> dict[str, Difference]:
        """Return what each other value of a knob changes in nDCG@10: other minus winner, paired."""
        others = dict(self.grid.neighbours(winner, RETRIEVAL_KNOBS))
        own, *found = self.measure([winner, *others.values()], self.dev)
        return {
            what: paired_bootstrap(m.quality, own.quality)
            for what, m in zip(others, found, strict=True)
        }

    def answer_knobs(self, winner: Design) -> dict[str, Difference]:
        """Return the same for the knobs of the answer, in token F1."""
        some = self._asked(self.dev)
        if not some:
            return {}
        own = self.answer(winner, some)
        others = self.grid.neighbours(winner, ANSWER_KNOBS)
        self._todo["answer"] = len(some) * len(others)
        return {
            what: paired_bootstrap(self.answer(other, some).f1, own.f1) for what, other in others
        }

    def confirm(self, winner: Design) -> tuple[list[Measured], list[Answered], int]:
        """Measure the winner and the baseline on the test questions, which nothing else has seen.

        Returns:
            Both by retrieval, both by answers (of as many questions as on dev), and how many
            different winners these test questions have confirmed so far: more than one says that
            they are no longer unseen.

        Raises:
            DataError: There are no test questions.
        """
        if not self.test:
            raise DataError("No question with evidence is kept for the test.")
        name = name_of("tested", [query.id for query in self.test])
        used = [*dict.fromkeys([*(self.cache.get(name) or []), str(asdict(winner))])]
        self.cache.put({name: used})
        both = list(dict.fromkeys([winner, self.grid.baseline]))
        some = self._asked(self.test)
        self._todo["answer"] = len(some) * len(both)
        answered = [self.answer(design, some) for design in both] if some else []
        return self.measure(both, self.test), answered, len(used)

    # ---------------------------------------------------------------------------------- the rest

    def _asked(self, queries: Sequence[Query]) -> list[Query]:
        return [query for query in queries if query.answers][: self.grid.race.answers]

    def _check(self) -> None:
        """Look whether each quote can be found at all."""
        held: dict[str, list[str]] = {}
        for index in self._indexes.values():
            for chunk in index.chunks:
                held.setdefault(chunk.meta["document"], []).append(chunk.content or "")
        for query in (*self.dev, *self.test):
            for entry in query.evidence:
                texts = held.get(entry.document, ())
                if not any(relevant(text, entry, entry.document) for text in texts):
                    raise DataError(
                        f"No chunk of {brief(entry.document)} holds the quote "
                        f"{brief(entry.quote)} of question {brief(query.id)}: correct it."
                    )

    def _model(self, endpoint: Endpoint, name: str = designs.DEFAULT) -> str:
        return f"{endpoint.weights}, {asked_for(endpoint, name).model}"

    def _expect(self, stages: Sequence[Design], questions: int) -> None:
        """Estimate what will have to be computed, for the time that is left."""
        race, depth = self.grid.race, max(self.grid.knobs.depth)
        names = {
            name_of("vector", self._model(self._api.embedding, d.embedder), c.content)
            for d in stages
            for c in self.index(d).chunks
            if "vectors" in d.searches
        }
        self._todo["chunk"] = sum(self.cache.get(name) is None for name in names)
        splits = min(len(self._indexes), race.first_stages)
        self._todo["pair"] = int(questions * (splits + 1) / 2 * depth)

    def _keep(self, what: str, number: int, seconds: float, values: Mapping[str, object]) -> None:
        """Keep what a call of an endpoint gave, count it, and report."""
        self.cache.put(values)
        self.computed[what] += number
        self._spent[what] += seconds
        self._todo[what] -= number
        self._report(f"{self.computed[what]} {what}s", self._left())

    def _left(self) -> float:
        """Return the seconds that are left, as far as is known."""
        return sum(
            number * (self._spent[what] / done if (done := self.computed[what]) else USUAL[what])
            for what, number in (+self._todo).items()
        )


def _rungs(first: int, last: int, number: int) -> list[int]:
    """Return how many designs each rung measures: from all of them down to the finalists."""
    if not first:
        return []
    return [round(size) for size in np.geomspace(first, min(last, first), number)]


def _unit(rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float32]:
    found = np.asarray(rows, dtype=np.float32)
    unit: npt.NDArray[np.float32] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit


def front(measured: Sequence[Measured]) -> list[Measured]:
    """Return the designs that no other one beats in both quality and time, the fastest first."""
    kept: list[Measured] = []
    for m in sorted(measured, key=lambda m: (m.seconds, -m.quality.mean())):
        if not kept or m.quality.mean() > kept[-1].quality.mean():
            kept.append(m)
    return kept
