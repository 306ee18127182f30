"""Follow-up questions: what the packaged ones promise, and what is asked in their place."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from haystack.dataclasses import ChatMessage

from nim_cookbook import conversations
from nim_cookbook.corpus import load_company, load_follow_ups
from nim_cookbook.data import data_path, read_jsonl
from nim_cookbook.errors import DataError
from tests.support import recipe_cells
from tests.unit.fake_models import KEY, KEY_VARIABLE, serving

COMPANY = load_company()
SPLITS = ("dev", "test")
FOLLOW_UPS = {split: load_follow_ups(split) for split in SPLITS}
KINDS = ("reference", "ellipsis", "earlier", "new-subject")


@pytest.mark.parametrize("split", SPLITS)
def test_every_follow_up_is_judged_by_a_quote_of_a_document_in_force(split: str) -> None:
    in_force = {source.id for source in COMPANY.in_force()}
    for query in FOLLOW_UPS[split]:
        (entry,) = query.evidence
        source = COMPANY.source(entry.document)
        assert entry.quote in source.text, (query.id, entry.quote)
        assert "\n" not in entry.quote and 5 <= len(entry.quote.split()) <= 40, query.id
        assert query.answers[0] in entry.quote, query.id
        assert source.id in in_force, query.id
        assert source.split == split, query.id


@pytest.mark.parametrize("split", SPLITS)
def test_a_follow_up_needs_its_conversation_unless_its_subject_is_new(split: str) -> None:
    for query in FOLLOW_UPS[split]:
        assert query.kind in KINDS, query.id
        assert (query.standalone == query.question) == (query.kind == "new-subject"), query.id
        assert (len(query.turns) > 1) == (query.kind == "earlier"), query.id
        assert 1 <= len(query.turns) <= conversations.QUESTIONS, query.id


def test_the_prompts_show_nothing_of_the_measured_questions() -> None:
    shown = " ".join(m.text or "" for m in (*conversations.REWRITE, *conversations.DECOMPOSE))
    asked = [q.question for q in COMPANY.split("dev") + COMPANY.split("test")]
    for query in FOLLOW_UPS["dev"] + FOLLOW_UPS["test"]:
        asked += [query.question, query.standalone, *(turn.question for turn in query.turns)]
    assert [text for text in asked if len(text.split()) > 3 and text in shown] == []


def test_the_recipe_shows_the_prompt() -> None:
    shown: dict[str, Any] = {}
    exec(recipe_cells("16")["prompt"], shown)
    assert [ChatMessage.from_user(shown["template"])] == conversations.REWRITE


def test_the_readme_has_the_counts() -> None:
    readme = (data_path("conversations") / "README.md").read_text("utf-8")
    for kind in KINDS:
        counts = [Counter(q.kind for q in FOLLOW_UPS[split])[kind] for split in SPLITS]
        assert f"| {kind} | {counts[0]} | {counts[1]} |" in readme
    assert len(FOLLOW_UPS["test"]) >= 40


def test_the_parts_by_hand_are_of_all_measured_two_document_questions() -> None:
    parts = {r["id"]: r["parts"] for r in read_jsonl(data_path("conversations/parts.jsonl"))}
    measured = COMPANY.split("dev") + COMPANY.split("test")
    assert set(parts) == {query.id for query in measured if query.kind == "two-documents"}
    assert all(len(found) == 2 for found in parts.values())


def test_what_the_benchmark_stored_is_whole() -> None:
    stored = json.loads((data_path("conversations/measured.json")).read_text("utf-8"))
    ids = {query.id for query in FOLLOW_UPS["test"]}
    assert set(stored["weights"]) == {"chat", "embedding", "reranking"}
    assert set(stored["rewritten"]) == ids
    two = {q.id for q in COMPANY.split("test") if q.kind == "two-documents"}
    assert two < set(stored["parts"])
    assert len(stored["parts"]) == 2 * len(two)


def test_a_malformed_turn_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    record = {"question": "And then?", "turns": [{"question": "When?"}]}
    (tmp_path / "dev.jsonl").write_text(json.dumps(record), "utf-8")
    folder = data_path("company/documents")
    monkeypatch.setattr(
        "nim_cookbook.corpus.data_path",
        lambda name: folder if name.startswith("company") else tmp_path / "dev.jsonl",
    )
    with pytest.raises(DataError, match=r"Line 1 of dev\.jsonl: 'turns\.0\.answer'"):
        load_follow_ups("dev")


# ------------------------------------------------------------------------------ what is asked


def test_the_earlier_questions_come_first() -> None:
    assert conversations.joined(["A?", "B?"], "And C?") == "A? B? And C?"
    assert conversations.joined([], "A?") == "A?"


@pytest.mark.parametrize(
    ("earlier", "room", "kept"),
    [
        (["a?", "b?", "c?", "d?", "e?"], 1000, ["c?", "d?", "e?"]),
        (["a?", "b" * 1000, "c?"], 1000, ["c?"]),  # no gap: what came before is forgotten too
        (["a?", "b?"], 5, ["b?"]),
        (["a?", "b?"], 6, ["a?", "b?"]),
        (["a?"], 0, []),
        (["a" * 999], 9999, ["a" * 999]),
        (["a" * 1000], 9999, []),
        ([], 1000, []),
    ],
)
def test_only_the_latest_questions_are_remembered(
    earlier: list[str], room: int, kept: list[str]
) -> None:
    assert conversations.remembered(earlier, room) == kept


def test_the_chat_model_sees_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with serving() as models:
        models.said = " What does the lid cost?\n\nIt is a lid. "
        pipeline = conversations.pipeline(models.endpoints(), conversations.REWRITE)
        given = conversations.inputs(["Is there a {{ lid }}?"], "What does it cost?")
        result = pipeline.run(given)
        (prompt,) = models.prompts
    # What people write is no template.
    assert "Question: Is there a {{ lid }}?\nQuestion: What does it cost?\n" in prompt
    assert conversations.lines(result) == ["What does the lid cost?", "It is a lid."]


@pytest.mark.parametrize(("text", "finish"), [("What does", "length"), (" \n ", "stop")])
def test_a_reply_that_is_cut_off_or_empty_is_none(text: str, finish: str) -> None:
    reply = ChatMessage.from_assistant(text, meta={"finish_reason": finish})
    assert conversations.lines({"generator": {"replies": [reply]}}) == []


def test_a_follow_up_is_a_query_with_more() -> None:
    query = FOLLOW_UPS["test"][0]
    assert replace(query, question=query.standalone).evidence == query.evidence
