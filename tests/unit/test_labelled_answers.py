"""Labelled answers (recipe 21) and the stored day (recipe 20) belong to the company's questions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from nim_cookbook import corpus
from nim_cookbook.data import data_path, read_jsonl

ERRORS = {"off-question", "invented", "other-thing"}


def rows(name: str) -> list[dict[str, Any]]:
    return read_jsonl(data_path(name))


@pytest.fixture(scope="module")
def questions() -> dict[str, corpus.Query]:
    company = corpus.load_company()
    return {q.id: q for split in ("dev", "test") for q in company.split(split)}


def test_each_answer_belongs_to_its_question(questions: dict[str, corpus.Query]) -> None:
    answers = rows("faithfulness/answers.jsonl")
    assert len({row["id"] for row in answers}) == len(answers)
    for row in answers:
        query = questions[row["id"]]
        assert (row["question"], row["split"]) == (query.question, query.split)
        assert len(row["chunks"]) == {"03": 3, "08": 1}[row["recipe"]]
        assert row["weights"]


def test_each_answer_has_one_label() -> None:
    answers = [row["id"] for row in rows("faithfulness/answers.jsonl")]
    labels = rows("faithfulness/labels.jsonl")
    assert sorted(row["id"] for row in labels) == sorted(answers)
    again = rows("faithfulness/labels-again.jsonl")
    assert {row["id"] for row in again} <= set(answers)
    for row in labels + again:
        assert row["label"] in {"supported", "not-supported", "no-answer"}
        assert (row["error"] in ERRORS) == (row["label"] == "not-supported"), row


def test_there_are_enough_of_each_kind_to_measure() -> None:
    labels = {row["id"]: row["label"] for row in rows("faithfulness/labels.jsonl")}
    counts = Counter(
        (row["split"], labels[row["id"]]) for row in rows("faithfulness/answers.jsonl")
    )
    assert sum(counts.values()) >= 100
    for split in ("dev", "test"):
        assert min(counts[split, "supported"], counts[split, "not-supported"]) >= 10


def test_the_stored_day_has_every_answerable_test_question() -> None:
    wanted = {q.id for q in corpus.load_company().split("test") if q.answerable}
    stored = rows("drift/baseline.jsonl")
    assert {row["id"] for row in stored} == wanted
    assert len(stored) == len(wanted)
    for row in stored:
        assert 0 <= row["ndcg"] <= 1
        assert len(set(row["found"])) == 10
