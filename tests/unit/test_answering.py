"""The query pipeline: what it sends, when it refuses, how it cites; without any model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import yaml
from haystack import Document, Pipeline
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from nim_cookbook.answering import (
    MAX_TOKENS,
    REFUSAL,
    Answer,
    ask,
    citation,
    no_answer,
    query_pipeline,
)
from nim_cookbook.endpoints import Endpoints, thinking_fields
from nim_cookbook.evaluation import Query, evaluate_answers
from nim_cookbook.scoring import refuses
from tests.unit.fake_models import ANSWER, KEY, KEY_VARIABLE, FakeModels, serving

QUESTION = "When does the blue heron sleep?"
PASSAGES = {
    "heron.pdf": ("The blue heron does sleep at noon, when it rains.", {"page_number": 2}),
    "bird.md": ("When does a blue bird sing?", {"kind": "note"}),
    "kettle.md": ("The kettle is in the kitchen.", {"kind": "note"}),
}


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModels]:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with serving() as running:
        yield running


@pytest.fixture
def api(models: FakeModels) -> Endpoints:
    return models.endpoints()


@pytest.fixture
def store(models: FakeModels) -> QdrantDocumentStore:
    memory = QdrantDocumentStore(":memory:", embedding_dim=models.width, progress_bar=False)
    documents = []
    for name, (text, meta) in PASSAGES.items():
        vector = models.answer("/embeddings", {"input": text, "input_type": "passage"})
        known = {"file_path": name, "document": name, "page_number": 1} | meta
        documents.append(
            Document(content=text, embedding=vector["data"][0]["embedding"], meta=known)
        )
    memory.write_documents(documents)
    return memory


def files(answer: Answer) -> list[str]:
    return [source.meta["file_path"] for source in answer.sources]


def test_an_answer_comes_with_the_chunks_that_the_model_was_shown(models, api, store):
    answer = ask(query_pipeline(api, store, top_k=2), QUESTION)
    assert answer.question == QUESTION
    assert answer.text == ANSWER
    assert not answer.refused
    assert files(answer) == ["heron.pdf", "bird.md"]
    assert [source.score for source in answer.sources] == [6.0, 3.0]
    assert answer.score == 6.0
    (prompt,) = models.prompts
    shown = [PASSAGES["heron.pdf"][0], PASSAGES["bird.md"][0], f"Question: {QUESTION}"]
    assert prompt == "\n\n".join(shown)


def test_the_vectors_choose_the_candidates(models, api, store):
    answer = ask(query_pipeline(api, store, candidates=1, top_k=3), QUESTION)
    assert files(answer) == ["heron.pdf"]
    assert len(models.ranked[0]["passages"]) == 1


@pytest.mark.parametrize(("threshold", "refused"), [(5.9, False), (6.0, False), (6.1, True)])
def test_below_the_threshold_the_model_is_not_asked(models, api, store, threshold, refused):
    answer = ask(query_pipeline(api, store, threshold=threshold), QUESTION)
    assert answer.refused is refused
    assert len(models.prompts) == (0 if refused else 1)
    assert answer.score == 6.0
    if refused:
        assert answer.text == REFUSAL
        assert answer.sources == ()


def test_filters_are_given_with_the_question(api, store):
    pipeline = query_pipeline(api, store, top_k=3)
    notes = {"field": "meta.kind", "operator": "==", "value": "note"}
    assert files(ask(pipeline, QUESTION, notes)) == ["bird.md", "kettle.md"]
    assert len(files(ask(pipeline, QUESTION))) == 3  # and they do not last


def test_nothing_found_is_a_refusal_whatever_the_threshold(models, api, store):
    nothing = {"field": "meta.kind", "operator": "==", "value": "letter"}
    answer = ask(query_pipeline(api, store), QUESTION, nothing)
    assert (answer.refused, answer.text, answer.sources, answer.score) == (True, REFUSAL, (), None)
    assert models.prompts == []


@pytest.mark.parametrize("said", ["", "  ", "It is"])
def test_an_empty_or_cut_off_answer_is_none_and_no_refusal(models, api, store, said):
    models.said, models.finish_reason = said, "length"
    answer = ask(query_pipeline(api, store), QUESTION)
    assert (answer.text, answer.refused, answer.finish_reason) == ("", False, "length")
    assert not refuses(answer.text)
    (judged,) = evaluate_answers([Query("q", QUESTION, (), "unanswerable", ())], [answer.text]).rows
    assert not judged.right
    assert "COOKBOOK_THINKING" in no_answer("some/model", answer.finish_reason)


@pytest.mark.parametrize("budget", [0, 500])
def test_thinking_is_limited_and_the_answer_has_its_own_tokens(models, api, store, budget):
    fields = thinking_fields(budget)
    chat = replace(api.chat, thinking=budget, extra_body=fields)
    both = {"embedding": api.embedding, "reranking": api.reranking}
    answer = ask(query_pipeline(Endpoints("hosted", {**both, "chat": chat}), store), QUESTION)
    assert answer.text == ANSWER, "and not what the model thought"
    (sent,) = models.chats
    assert {name: sent.get(name) for name in fields} == fields
    assert sent["max_tokens"] == MAX_TOKENS + budget


def test_the_refusal_counts_as_one():
    assert refuses(REFUSAL)


def test_the_pipeline_is_saved_without_the_key_and_read_again(api, store):
    saved = query_pipeline(api, store, top_k=2, threshold=-0.5).dumps()
    assert KEY not in saved
    assert KEY_VARIABLE in saved
    again = Pipeline.loads(saved)
    assert yaml.safe_load(again.dumps())["components"] == yaml.safe_load(saved)["components"]
    router = again.get_component("router")
    documents = [Document(content="x", score=-0.6)]
    assert router.run(documents=documents) == {"refusal": REFUSAL}


def test_a_chunk_without_spaces_does_not_fill_the_prompt(api):
    memory = QdrantDocumentStore(":memory:", embedding_dim=2, progress_bar=False)
    builder = query_pipeline(api, memory).get_component("prompt_builder")
    long = Document(content="x" * 100_000, meta={"file_path": "dump.txt"})
    text = builder.run(question="Why?", documents=[long])["prompt"][-1].text
    assert len(text) < 3000
    assert "Why?" in text


@pytest.mark.parametrize(
    ("meta", "shown"),
    [
        ({"file_path": "report-2026-q1.pdf", "page_number": 2}, "report-2026-q1.pdf, p. 2"),
        ({"file_path": "Report.PDF", "page_number": 10}, "Report.PDF, p. 10"),
        ({"file_path": "report.pdf"}, "report.pdf"),
        ({"file_path": "note.md", "page_number": 1}, "note.md"),
        ({"file_path": "note.md", "document": "note"}, "note.md"),
        ({"file_path": "b.pdf", "document": "a/b.pdf", "page_number": 3}, "a/b.pdf, p. 3"),
        ({"file_path": "b.pdf", "document": "ab.pdf", "page_number": 3}, "b.pdf, p. 3"),
        ({"document": "note"}, "note"),
    ],
)
def test_a_citation_names_file_and_page(meta, shown):
    assert citation(Document(content="text", meta=meta)) == shown
