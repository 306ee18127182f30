"""The questions and tool calls to measure an agent by."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from nim_cookbook import corpus
from nim_cookbook.data import data_path, read_jsonl

QUESTIONS = read_jsonl(data_path("agent/questions.jsonl"))
CALLS = read_jsonl(data_path("agent/calls.jsonl"))
COMPANY = corpus.load_company()
IN_FORCE = {source.id for source in COMPANY.in_force()}


@pytest.mark.parametrize("row", QUESTIONS, ids=lambda row: row["id"])
def test_a_question_has_its_answer_in_a_paper_in_force(row: dict[str, Any]) -> None:
    for evidence in row["evidence"]:
        source = COMPANY.source(evidence["document"])
        assert corpus.overlap(source.text, evidence["quote"]) == 1
        assert source.id in IN_FORCE
        assert row["split"] == "dev" or source.split == "test"
        if row["kind"] == "date":
            assert f"{date.fromisoformat(source.date):%B %Y}" in row["question"]


def test_there_are_enough_of_each_and_none_twice() -> None:
    test_calls = [row for row in CALLS if row["split"] == "test"]
    for tool in ("search", "search_period", "calculate", ""):
        assert sum(row["tool"] == tool for row in test_calls) == 12
    test_questions = [row for row in QUESTIONS if row["split"] == "test"]
    for kind in ("lookup", "calculation", "date"):
        assert sum(row["kind"] == kind for row in test_questions) == 12
    for rows in (CALLS, QUESTIONS):
        assert len({row["id"] for row in rows}) == len({row["question"] for row in rows})
