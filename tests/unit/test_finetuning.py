"""Samples for fine-tuning, and following adapters."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import httpx
import pytest
from haystack import Document

from nim_cookbook import adapters, corpus, finetuning
from nim_cookbook.corpus import Evidence, Query
from nim_cookbook.endpoints import Endpoint
from nim_cookbook.errors import ConfigurationError, DataError, EndpointUnreachable
from nim_cookbook.services import GradientService

PASSAGES = [
    Document(content="Salaries are paid on the 26th of each month.", meta={"document": "pay"}),
    Document(content="The canteen opens at noon and sells soup.", meta={"document": "canteen"}),
    Document(content="A dog may come to the office on Fridays.", meta={"document": "dogs"}),
]


def query(name: str, question: str, answer: str | None, document: str = "", quote: str = ""):
    evidence = (Evidence(document, quote),) if document else ()
    return Query(name, question, (answer,) if answer else (), "lookup", evidence, "train")


PAY = query("1", "When are salaries paid?", "the 26th", "pay", "paid on the 26th")
SOUP = query("2", "What does the canteen sell?", "soup", "canteen", "sells soup")
NONE = query("3", "What does the office dog eat?", None)


def cases() -> list[finetuning.Case]:
    return finetuning.cases([PAY, SOUP], PASSAGES)


def test_a_case_holds_the_chunk_with_the_evidence():
    (pay, soup) = cases()
    assert [p.meta["document"] for p in (*pay.chunks, *soup.chunks)] == ["pay", "canteen"]


def test_an_unanswerable_question_gets_the_closest_chunk():
    (case,) = finetuning.cases([NONE], PASSAGES)
    assert case.chunks[0].meta["document"] == "dogs"


def test_a_question_whose_evidence_was_cut_apart_is_left_out():
    assert finetuning.cases([PAY], PASSAGES[1:]) == []


def test_every_company_question_has_its_chunk():
    company = corpus.load_company()
    chunks = [Document(content=s.text, meta={"document": s.id}) for s in company.sources]
    made = finetuning.cases(company.split("train"), chunks)
    assert len(made) == len(company.split("train"))


def test_only_the_answer_is_learnt():
    for sample in finetuning.samples(cases()):
        read, learnt = sample["inputs"]
        assert read["trainable"] is False and learnt["trainable"] is True
        assert read["value"].endswith("<|im_start|>assistant\n")
        assert learnt["value"] in ("the 26th<|im_end|>", "soup<|im_end|>")


def test_the_prompt_is_what_the_chat_messages_become():
    text = finetuning.prompt("Why?", PASSAGES[:1])
    assert text == (
        f"<|im_start|>system\n{finetuning.SYSTEM}<|im_end|>\n<|im_start|>user\n"
        f"{PASSAGES[0].content}\n\nQuestion: Why?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_seed_decides_the_order():
    many = cases() * 4
    orders = [finetuning.samples(many, seed=seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_a_case_without_reference():
    with pytest.raises(DataError, match="Question 3 has no reference"):
        finetuning.samples(finetuning.cases([NONE], PASSAGES))


def test_the_fingerprint_changes_with_samples_order_and_settings():
    one, two = finetuning.samples(cases())
    prints = {
        finetuning.fingerprint([[one, two]], rank=8),
        finetuning.fingerprint([[two, one]], rank=8),
        finetuning.fingerprint([[one], [two]], rank=8),
        finetuning.fingerprint([[one, two]], rank=16),
    }
    assert len(prints) == 4
    assert finetuning.fingerprint([[one, two]], rank=8) in prints


# --- adapters ---------------------------------------------------------------------------------

GRADIENT = GradientService("http://127.0.0.1:9/api", "FAKE_TOKEN", "FAKE_WORKSPACE", {})
CHAT = Endpoint("chat", "http://127.0.0.1:9/v1", "base", "FAKE_TOKEN", "weights")


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], httpx.Response]) -> None:
    def get(url: str, **_: object) -> httpx.Response:
        response = answer()
        response.request = httpx.Request("GET", url)
        return response

    monkeypatch.setattr(adapters.httpx, "get", get)


def test_find_takes_the_newest_of_a_name():
    models = [SimpleNamespace(name=n, id=i) for i, n in enumerate(["a", "b", "a"])]
    client = SimpleNamespace(list_models=lambda only_base: [SimpleNamespace(), *models])
    assert adapters.find(client, "a").id == 2  # type: ignore[arg-type, union-attr]
    assert adapters.find(client, "c") is None  # type: ignore[arg-type]


def test_history_and_folder_are_read_from_the_local_server(monkeypatch: pytest.MonkeyPatch):
    steps = [{"tokens": 4, "sumLoss": 6.0, "seconds": 1.5}]
    fields = {"localStandIn": {"history": steps, "folder": "somewhere"}}
    answering(monkeypatch, lambda: httpx.Response(200, json=fields))
    assert adapters.history(GRADIENT, "x") == [adapters.Step(4, 1.5, 1.5)]
    assert adapters.folder(GRADIENT, "x").name == "somewhere"


def test_another_gradient_server_is_told_apart(monkeypatch: pytest.MonkeyPatch):
    answering(monkeypatch, lambda: httpx.Response(200, json={"id": "x"}))
    with pytest.raises(ConfigurationError, match="is not the local Gradient server"):
        adapters.history(GRADIENT, "x")


def test_a_deleted_adapter_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    answering(monkeypatch, lambda: httpx.Response(404, json={}))
    with pytest.raises(EndpointUnreachable, match="adapter x"):
        adapters.folder(GRADIENT, "x")


def test_waiting_for_adapters(monkeypatch: pytest.MonkeyPatch):
    base = {"id": "base", "parent": None}
    listings = [[base], [base], [base, {"id": "mine", "parent": "base"}]]
    answering(monkeypatch, lambda: httpx.Response(200, json={"data": listings.pop(0)}))
    monkeypatch.setattr(adapters, "POLL_SECONDS", 0)
    assert adapters.wait_until_served(CHAT, ["mine"]) == [
        {"model": "base", "base": ""},
        {"model": "mine", "base": "base"},
    ]


def test_an_adapter_that_never_comes(monkeypatch: pytest.MonkeyPatch):
    answering(monkeypatch, lambda: httpx.Response(200, json={"data": []}))
    with pytest.raises(EndpointUnreachable, match="does not serve mine after 0 s"):
        adapters.wait_until_served(CHAT, ["mine"], seconds=0)
