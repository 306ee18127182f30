"""The reranking NIM, over HTTP."""

from __future__ import annotations

import pytest

from nim_cookbook.models import load_registry

MODEL = load_registry().default("reranking").id
PASSAGES = ["Bread is baked in an oven.", "Rome is the capital of Italy.", "Cats sleep a lot."]


@pytest.fixture(scope="module")
def http(servers):
    with servers.client("reranking") as client:
        yield client


def rank(http, passages=PASSAGES, query="What is the capital of Italy?", **more):
    body = {
        "model": MODEL,
        "query": {"text": query},
        "passages": [{"text": text} for text in passages],
        **more,
    }
    return http.post("/ranking", json=body)


def test_every_index_once_by_descending_logit(http):
    rankings = rank(http).json()["rankings"]
    assert sorted(entry["index"] for entry in rankings) == [0, 1, 2]
    logits = [entry["logit"] for entry in rankings]
    assert logits == sorted(logits, reverse=True)
    assert all(isinstance(logit, float) for logit in logits)
    assert rankings[0]["index"] == 1


def test_order_does_not_depend_on_the_order_given(http):
    first = [PASSAGES[entry["index"]] for entry in rank(http).json()["rankings"]]
    turned = PASSAGES[::-1]
    second = [turned[entry["index"]] for entry in rank(http, turned).json()["rankings"]]
    assert first == second


def test_a_passage_scores_the_same_alone_and_in_company(http):
    logits = {entry["index"]: entry["logit"] for entry in rank(http).json()["rankings"]}
    alone = rank(http, PASSAGES[1:2]).json()["rankings"][0]["logit"]
    assert alone == pytest.approx(logits[1], abs=1e-3)


def test_equal_passages_stay_in_the_order_given(http):
    rankings = rank(http, [*PASSAGES, PASSAGES[1], PASSAGES[0], PASSAGES[1]]).json()["rankings"]
    places = [entry["index"] for entry in rankings]
    assert places[:3] == [1, 3, 5]
    assert places.index(0) < places.index(4)
    assert len({entry["logit"] for entry in rankings[:3]}) == 1


def test_a_logit_compares_across_requests(http):
    """A threshold on it tells an answered question from one that no passage answers."""
    answered = max(entry["logit"] for entry in rank(http).json()["rankings"])
    other = rank(http, query="How many valves does a trumpet have?").json()["rankings"]
    assert answered > max(entry["logit"] for entry in other) + 2


def test_model_may_be_null(http):
    assert rank(http, model=None).status_code == 200


def test_too_long(http):
    answer = rank(http, ["word " * 900, "short"])
    assert answer.status_code == 400
    assert "exceeds maximum allowed token size" in answer.json()["detail"]
    assert rank(http, ["word " * 900, "short"], truncate="END").status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"truncate": "START"}, 422),
        ({"passages": []}, 422),
        ({"passages": ["text"]}, 422),
        ({"query": "text"}, 422),
        ({"model": "something-obviously-wrong"}, 404),
        ({"top_n": 3}, 400),
    ],
)
def test_what_cannot_be_done_is_refused(http, body, status):
    request = {"model": MODEL, "query": {"text": "q"}, "passages": [{"text": "p"}], **body}
    answer = http.post("/ranking", json=request)
    assert answer.status_code == status, answer.text
