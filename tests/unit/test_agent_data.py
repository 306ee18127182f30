"""The questions and tool calls to measure an agent by."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from nim_cookbook import corpus
from nim_cookbook.data import data_path, read_jsonl
from tests.support import recipe_cells

QUESTIONS = read_jsonl(data_path("agent/questions.jsonl"))
CALLS = read_jsonl(data_path("agent/calls.jsonl"))
RESULTS = json.loads(data_path("agent/results.json").read_text("utf-8"))
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


def test_every_test_question_has_a_stored_result() -> None:
    """Who measures again and stops half-way would otherwise store a share of the easy ones."""
    for part, rows in (("calls", CALLS), ("answers", QUESTIONS)):
        assert RESULTS[part].keys() == {row["id"] for row in rows if row["split"] == "test"}
    lookups = {row["id"] for row in QUESTIONS if row["kind"] == "lookup"}
    assert RESULTS["forms"].keys() == lookups & RESULTS["answers"].keys()


@pytest.fixture(scope="module")
def calculate() -> Any:
    """The recipe's calculator."""
    cells = recipe_cells("17")
    names: dict[str, Any] = {}
    exec(cells["period"], names)
    exec(cells["calculate"], names)
    return names["calculate"].function


@pytest.mark.parametrize(
    "row", [row for row in QUESTIONS + CALLS if "expression" in row], ids=lambda row: row["id"]
)
def test_the_reference_of_a_calculation_is_its_value(calculate: Any, row: dict[str, Any]) -> None:
    assert calculate(row["expression"]) in [answer.replace(",", "") for answer in row["answers"]]


@pytest.mark.parametrize(
    ("expression", "result"),
    [("4 * 3760", "15040"), ("(640 + 210) * 3", "2550"), ("1 / 8", "0.125"), ("2 - 5", "-3")],
)
def test_the_calculator_calculates(calculate: Any, expression: str, result: str) -> None:
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "1 / 0",
        "2 ** 9",
        "x + 1",
        "open('x')",
        "__import__('os').getpid()",
        "'a' * 9",
        "[1] + [2]",
    ],
)
def test_the_calculator_runs_nothing_else(calculate: Any, expression: str) -> None:
    assert calculate(expression).startswith("Not calculated: ")
