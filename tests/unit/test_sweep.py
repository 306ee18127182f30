"""A sweep: nothing is computed twice, what changes is computed anew, and the winner is served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from haystack import Document
from haystack.document_stores.in_memory import InMemoryDocumentStore

from nim_cookbook import answering, designs
from nim_cookbook.data import Evidence, Query
from nim_cookbook.designs import DEFAULT, Design, Grid, Knobs, Race, load_grid
from nim_cookbook.errors import DataError
from nim_cookbook.folders import folder_files
from nim_cookbook.plots import pareto_plot
from nim_cookbook.questions import load_questions, with_test
from nim_cookbook.sweep import Sweep, front
from rag_service import pipelines, query
from tests.unit.fake_models import ANSWER, KEY, KEY_VARIABLE, FakeModels, serving

FACTS = {
    "kettle.md": "The kettle of the tea kitchen is descaled on the first Monday of March.",
    "owl.md": "The owl in the warehouse is called Bernard and eats at nine.",
    "raft.md": "The raft lies at the third buoy and carries two lanterns.",
    "lamp.md": "The lamp on the north pier burns green from October to May.",
}
SHORT = "# The dog\n\nThe dog is Rex.\n"  # one chunk, however it is split
ASKED = {
    "kettle.md": ("When is the kettle descaled?", "first Monday of March"),
    "owl.md": ("What is the owl called?", "Bernard"),
    "raft.md": ("Where does the raft lie?", "at the third buoy"),
    "lamp.md": ("What colour is the lamp on the pier?", "green"),
}
GRID = Grid(
    Knobs(
        split=("20 words", "9 words"),
        title=(True, False),
        search=("vectors", "keywords", "hybrid"),
        fusion=(60, 1),
        depth=(3, 2, 0),
        top_k=(2, 1),
    ),
    Race(first_stages=4, rungs=(0.5, 1.0), finalists=3, answers=2),
)


def queries() -> list[Query]:
    return [
        Query(f"{split}-{name}", asked, (answer,), "lookup", (Evidence(name, FACTS[name]),), split)
        for name, (asked, answer) in ASKED.items()
        for split in (("dev", "test") if name == "owl.md" else ("dev",))
    ]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModels]:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with serving() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "papers"
    place.mkdir()
    for name, fact in FACTS.items():
        title = name.removesuffix(".md")
        (place / name).write_text(f"# The {title}\n\n{'Nothing else. ' * 4}{fact}\n")
    (place / "dog.md").write_text(SHORT)
    return place


def swept(models: FakeModels, folder: Path, grid: Grid = GRID, **more: Any) -> Sweep:
    return Sweep(
        models.endpoints(), folder_files(folder), queries(), grid,
        folder=folder.parent / "cache", **more,
    )  # fmt: skip


def all_of(run: Sweep) -> tuple[Any, ...]:
    raced = run.race()
    answered = run.answers(raced)
    winner = answered[0].design
    confirmed = run.confirm(winner)
    knobs = (run.knobs(winner), run.answer_knobs(winner))
    return [m.design for m in raced], winner, knobs, [a.f1.tolist() for a in answered], confirmed[2]


def calls(models: FakeModels) -> tuple[int, int, int]:
    pairs = sum(len(request["passages"]) for request in models.ranked)
    return len(models.embedded), pairs, len(models.chats)


# --- the grid -------------------------------------------------------------------------------


def test_the_packaged_grid_has_fifty_designs_and_begins_with_the_recipes_pipeline():
    grid = load_grid()
    assert len(grid.designs()) >= 50
    assert grid.baseline == Design()
    assert grid.prompts["brief"] == answering.SYSTEM
    assert grid.baseline in grid.designs()


def test_a_knob_that_is_not_used_makes_no_design():
    both = [d for d in GRID.designs() if d.search == "keywords"]
    assert {d.fusion for d in both} == {60}
    assert len(GRID.designs()) == 2 * 2 * 4 * 3
    winner = GRID.plain(replace(GRID.baseline, search="hybrid", fusion=1))
    others = dict(GRID.neighbours(winner, ["fusion", "search"]))
    assert others["search hybrid → keywords"].fusion == 60
    assert len(others) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[knobs", "is no TOML"),
        ("[knobs]\ntitle = [true]", "knobs.split': Field required"),
        ('[knobs]\nsplit = ["100 sentences"]', "knobs.split.0"),
        ("[knobs]\nsplit = []", "knobs.split is empty"),
        ('[knobs]\nsplit = ["9 words"]\nsearch = ["bm25"]', "not 'bm25'"),
        ('[knobs]\nsplit = ["9 words"]\ndepth = [-1]', "depth"),
        ('[knobs]\nsplit = ["9 words"]\nprompt = ["rude"]', "no prompt 'rude'"),
        ('[knobs]\nsplit = ["9 words"]\n[race]\nrungs = [2.0]', "race.rungs.0"),
    ],
)
def test_a_grid_that_cannot_be_used_is_one_sentence(tmp_path: Path, text: str, says: str):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"^mine\.toml") as raised:
        load_grid(path)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


# --- questions ------------------------------------------------------------------------------


def test_documents_are_named_with_or_without_their_ending(tmp_path: Path):
    path = tmp_path / "q.jsonl"
    lines = [
        {"question": "Who?", "relevant": ["owl"], "answer": "Bernard"},
        {"question": "Why?", "evidence": [{"document": "a/b.md", "quote": "so"}], "id": "x"},
        {"question": "What?", "kind": "unanswerable"},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    one, two, three = load_questions(path, ["owl.md", "a/b.md"], "dev")
    assert (one.id, one.answers, one.split) == ("q-1", ("Bernard",), "dev")
    assert one.evidence == (Evidence("owl.md"),)
    assert two.evidence == (Evidence("a/b.md", "so"),)
    assert three.evidence == ()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "Line 2 of q.jsonl is no JSON object"),
        ('{"question": "Who?"}', "Line 2 of q.jsonl: the question has no relevant documents"),
        ('{"question": " ", "relevant": ["owl.md"]}', "question"),
        ('{"question": "Who?", "relevant": "owl.md"}', "relevant is no list"),
        ('{"question": "Who?", "relevant": ["cat.md"]}', "no document is called 'cat.md'"),
        ('{"question": "Who?", "relevant": ["owl"]}', "several documents are called 'owl'"),
        ('{"question": "Who?", "relevant": ["owl.md"], "id": "q-1"}', "a second time"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, says: str):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "Who?", "relevant": ["owl.md"]}\n' + line)
    with pytest.raises(DataError, match=r"Line 2 of q\.jsonl") as raised:
        load_questions(path, ["owl.md", "owl.txt"])
    assert says in str(raised.value)


def test_some_questions_are_kept_for_the_test_unless_the_file_says_which():
    plain = [Query(str(n), f"Question {n}?") for n in range(300)]
    parted = with_test(plain)
    kept = {q.id for q in parted if q.split == "test"}
    assert 70 < len(kept) < 130
    assert {
        q.id for q in with_test(plain[:50]) if q.split == "test"
    } <= kept  # a new one moves none
    assert with_test(queries()) == queries()


# --- nothing twice --------------------------------------------------------------------------


def test_a_second_run_asks_the_models_nothing_and_finds_the_same(models, folder):
    first = all_of(run := swept(models, folder))
    embedded, pairs, chats = calls(models)
    assert embedded and pairs and chats
    # Each text, each pair of a question and a chunk, and each prompt went out once.
    assert len(set(models.embedded)) == embedded
    ranked = [(r["query"]["text"], p["text"]) for r in models.ranked for p in r["passages"]]
    assert len(set(ranked)) == len(ranked)
    assert len({json.dumps(chat) for chat in models.chats}) == chats
    assert run.computed["chunk"] == embedded
    assert run.computed["pair"] == pairs
    assert run.computed["answer"] == chats
    again = swept(models, folder)
    assert all_of(again) == first
    assert calls(models) == (embedded, pairs, chats)
    assert not again.computed


@pytest.mark.parametrize("after", [1, 7, 15, 22])
def test_an_interrupted_sweep_goes_on(models, folder, after):
    ticks = 0

    def interrupt(what: str, left: float) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        all_of(swept(models, folder, progress=interrupt))
    before = calls(models)
    assert before[0]
    all_of(swept(models, folder))
    embedded, pairs, chats = calls(models)
    assert len(set(models.embedded)) == embedded  # what was computed before was not again
    ranked = [(r["query"]["text"], p["text"]) for r in models.ranked for p in r["passages"]]
    assert len(set(ranked)) == pairs
    assert len({json.dumps(chat) for chat in models.chats}) == chats


def test_a_changed_document_changes_only_its_own_part(models, folder):
    all_of(swept(models, folder))
    models.embedded.clear()
    path = folder / "lamp.md"
    path.write_text(path.read_text() + "\nIt was painted last year.\n")
    again = swept(models, folder)
    all_of(again)
    assert models.embedded
    assert all("painted" in text or "lamp" in text.lower() for text in models.embedded)


def test_other_weights_share_nothing(models, folder):
    swept(models, folder).race()
    embedded = len(models.embedded)
    other = Sweep(
        models.endpoints(weights="others"), folder_files(folder), queries(), GRID,
        folder=folder.parent / "cache",
    )  # fmt: skip
    other.race()
    assert len(models.embedded) == 2 * embedded


def test_a_damaged_cache_is_one_sentence(models, folder):
    cache = folder.parent / "cache"
    cache.mkdir()
    (cache / "sweep.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(DataError, match="delete it"):
        swept(models, folder)


# --- the race -------------------------------------------------------------------------------


def test_all_searches_run_without_the_reranker_and_the_best_go_on(models, folder):
    raced = swept(models, folder).race()
    of_all = {m.design for m in raced if len(m.quality) == 4}
    assert {d for d in GRID.designs() if not d.depth} <= of_all
    assert len([d for d in of_all if d.depth]) == GRID.race.finalists
    reranked = {m.design.first_stage for m in raced if m.design.depth}
    assert len(reranked) == GRID.race.first_stages


def test_with_one_rung_all_reranked_designs_of_the_best_searches_are_measured(models, folder):
    grid = replace(GRID, race=replace(GRID.race, rungs=(1.0,)))
    raced = swept(models, folder, grid).race()
    reranked = {m.design for m in raced if m.design.depth}
    kept = {design.first_stage for design in reranked}
    assert len(kept) == grid.race.first_stages
    assert reranked == {d for d in grid.designs() if d.depth and d.first_stage in kept}


def test_the_time_left_counts_the_vectors_of_every_embedder(models, folder):
    knobs = Knobs(split=("9 words",), depth=(0,), embedder=(DEFAULT, "fake/other"))
    left: list[float] = []

    def report(what: str, seconds: float) -> None:
        if what.endswith("chunks"):
            left.append(seconds)

    swept(models, folder, replace(GRID, knobs=knobs), progress=report).race()
    assert len(left) > 1
    assert all(left[:-1]) and not left[-1]


def test_a_quote_that_no_chunk_holds_is_an_error(models, folder):
    wrong = Query("w", "Who?", ("x",), "", (Evidence("owl.md", "the cat sat on the mat"),), "dev")
    run = Sweep(models.endpoints(), folder_files(folder), [wrong], GRID, folder=folder.parent / "c")
    with pytest.raises(DataError, match=r"No chunk of 'owl\.md' holds the quote .* question 'w'"):
        run.race()


def test_the_front_holds_what_nothing_beats(models, folder):
    raced = swept(models, folder).race()
    best = front(raced)
    assert best[-1].quality.mean() == max(m.quality.mean() for m in raced)
    for m in raced:
        beaten = [
            b for b in best if b.seconds <= m.seconds and b.quality.mean() >= m.quality.mean()
        ]
        assert m in best or beaten


def test_test_questions_that_confirmed_two_winners_say_so(models, folder):
    run = swept(models, folder)
    assert run.confirm(GRID.baseline)[2] == 1
    assert run.confirm(GRID.baseline)[2] == 1
    assert run.confirm(replace(GRID.baseline, depth=2))[2] == 2
    assert all(q.split == "test" for m in run.confirm(GRID.baseline)[0] for q in m.scores.queries)


# --- what is measured is what is served -----------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth": 0},
        {"search": "keywords", "depth": 0},
        {"search": "keywords", "title": False},
        {"search": "hybrid", "fusion": 1, "depth": 0},
        {"search": "hybrid", "fusion": 60, "depth": 3, "split": "9 words"},
    ],
)
def test_the_winner_as_yaml_is_asked_through_the_query_service(models, folder, tmp_path, changes):
    """Its sources are the chunks that were measured."""
    design = replace(GRID.baseline, **changes)
    api, files = models.endpoints(), folder_files(folder)
    place = tmp_path / "winner"
    designs.save(design, GRID, api, place)
    assert KEY not in "".join(path.read_text() for path in place.iterdir())
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    sources = {"sources": [f.path for f in files], "meta": [
        {"document": f.document, **f.meta} for f in files]}  # fmt: skip
    pipelines.load("indexing", api, store, place).run({"router": sources})
    service = query.Service(api, store, lambda *_: None)
    run = swept(models, folder)
    asked = queries()[0]
    run.measure([design], [asked])
    chunks = run.index(design).chunks
    wanted = [chunks[n].content for n in run.ranking(design, asked)]
    ask: Any = query.Ask()
    ask.service, ask.pipeline = service, pipelines.load("ask", api, store, place)
    reply = asyncio.run(ask.run_api_async(asked.question))
    assert reply.answer == ANSWER
    assert [source.text for source in reply.sources] == wanted[: design.top_k]
    search: Any = query.Search()
    search.pipeline = pipelines.load("search", api, store, place)
    found = asyncio.run(search.run_api_async(asked.question, top_k=1))
    assert [source.text for source in found.sources] == wanted[:1]


def test_the_fusion_is_haystacks_at_its_constant():
    from haystack.components.joiners import DocumentJoiner

    lists = [[Document(id=str(n), content="") for n in order] for order in ((3, 1, 2), (2, 4, 3))]
    theirs = DocumentJoiner(join_mode="reciprocal_rank_fusion").run(lists)["documents"]
    ours = designs.RankFusion(60, 10).run(*lists)["documents"]
    assert [d.id for d in ours] == [d.id for d in theirs]


def test_vectors_alone_in_qdrant_search_by_no_keywords(models):
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

    from nim_cookbook.errors import ConfigurationError
    from rag_service.stores import keyword_retriever

    with pytest.raises(ConfigurationError, match="holds vectors alone"):
        keyword_retriever(QdrantDocumentStore(":memory:"))


def test_the_plot_says_in_words_what_is_on_the_front(models, folder):
    raced = swept(models, folder).race()
    points = {str(m.design): (m.seconds, m.scores.interval("ndcg@10")) for m in raced}
    best = [str(m.design) for m in front(raced)]
    alt = pareto_plot(points, best, title="Quality against latency").alt
    assert f"{len(points)} designs by time and nDCG@10" in alt
    assert all(name in alt for name in best)
