"""`nim-cookbook sweep`: what is shown, what is written, and one sentence for each mistake."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cookbook_cli import connection
from cookbook_cli import sweep as command
from cookbook_cli.__main__ import main
from nim_cookbook.bounded import BoundedPreparation
from nim_cookbook.endpoints import Endpoints, Mode
from tests.unit.fake_models import KEY, KEY_VARIABLE, FakeModels, serving

GRID = """
[knobs]
split = ["20 words", "9 words"]
search = ["vectors", "hybrid"]
depth = [3, 0]
top_k = [2, 1]
[race]
first_stages = 2
finalists = 2
"""


@pytest.fixture(scope="module")
def preparation() -> Iterator[BoundedPreparation]:
    """One child for all tests: it takes seconds to start."""
    with contextlib.closing(BoundedPreparation()) as started:
        yield started


@pytest.fixture
def models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, preparation: BoundedPreparation
) -> Iterator[FakeModels]:
    """Twelve notes and a question on each; the endpoints answer by rule."""
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setattr(preparation, "close", lambda: None)
    monkeypatch.setattr(command, "BoundedPreparation", lambda: preparation)
    monkeypatch.chdir(tmp_path)
    notes = tmp_path / "notes"
    notes.mkdir()
    lines = []
    for number in range(12):
        word = f"boat{number}"
        (notes / f"{word}.md").write_text(f"# The {word}\n\nThe {word} lies at pier {number}.\n")
        lines.append({"question": f"Where is the {word}?", "relevant": [word], "answer": "so"})
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "grid.toml").write_text(GRID)
    with serving() as running:

        @contextlib.contextmanager
        def connected(mode: Mode | None = None) -> Iterator[Endpoints]:
            yield running.endpoints()

        monkeypatch.setattr(connection, "connected", connected)
        yield running


def sweep(*arguments: str) -> int:
    return main(["sweep", "notes", "q.jsonl", "--grid", "grid.toml", *arguments])


def one_line(text: str) -> str:
    assert "Traceback" not in text
    (line,) = text.strip().splitlines()
    return line


def test_all_results_are_shown_and_the_winner_is_written(models, capsys, tmp_path):
    assert sweep("--top", "3") == 0
    output = capsys.readouterr().out
    for title in (
        "8 designs;",
        "Designs by retrieval",
        "Answers of the best",
        "Each knob, from the winner",
        "The winner on the test questions",
        "Winner and baseline on the test questions",
        "Answered by: chat: fake weights",
    ):
        assert title in output
    assert {path.name for path in (tmp_path / "winner").iterdir()} == {
        "ask.yaml",
        "indexing.yaml",
        "search.yaml",
    }


def test_json_is_one_object_with_every_score(models, capsys):
    assert sweep("--json", "--answers", "2") == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert record["designs_raced"] == 8
    questions = len(record["questions"])
    whole = [d for d in record["designs"] if len(d["scores"]) == questions]
    assert len(whole) >= 4
    assert [d["ndcg"]["mean"] for d in whole] == sorted(
        (d["ndcg"]["mean"] for d in whole), reverse=True
    )
    assert any(d["front"] for d in whole)
    assert not any(d["front"] for d in record["designs"] if d not in whole)
    assert len(record["answers"]) == 2
    assert all(a["f1"]["n"] == 2 for a in record["answers"])
    assert record["test"]["winners_confirmed"] == 1
    assert questions + record["test"]["retrieval"][0]["ndcg"]["n"] == 12


def test_the_second_time_nothing_is_asked(models, capsys):
    sweep("--json")
    first = json.loads(capsys.readouterr().out)
    asked = len(models.embedded), len(models.ranked), len(models.chats)
    sweep("--json")
    second = json.loads(capsys.readouterr().out)
    assert (len(models.embedded), len(models.ranked), len(models.chats)) == asked
    assert second["computed"] == {}
    for part in ("designs", "answers", "winner", "knobs", "test"):
        assert second[part] == first[part]


def test_a_file_that_takes_too_much_is_left_out(models, monkeypatch, capsys, tmp_path):
    assert sweep() == 0
    (tmp_path / "notes" / "bomb.md").write_text("Any file is too much for a byte of memory.")
    monkeypatch.setattr(command, "BoundedPreparation", lambda: BoundedPreparation(memory=1))
    capsys.readouterr()
    assert sweep() == 0  # the others are in the cache
    assert "bomb.md: it needs more than 0 MB of memory to read" in capsys.readouterr().out


def test_after_ctrl_c_it_says_that_it_goes_on_and_does(models, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        show = command._Bars.show

        def interrupt(self: Any, what: str, left: float) -> None:
            show(self, what, left)
            if "pairs" in what:
                raise KeyboardInterrupt

        patched.setattr(command._Bars, "show", interrupt)
        assert sweep() == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    embedded = len(models.embedded)
    assert embedded
    assert sweep() == 0
    assert len(models.embedded) == embedded


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{oops", "Line 13 of q.jsonl is no JSON object"),
        ('{"question": "Who?"}', "Line 13 of q.jsonl: the question has no relevant documents"),
        ('{"question": "Who?", "relevant": ["x.md"]}', "no document is called 'x.md'"),
        (
            '{"question": "Who?", "evidence": [{"document": "boat1.md", "quote": "a cat"}]}',
            "No chunk of 'boat1.md' holds the quote 'a cat'",
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_one_sentence(models, capsys, tmp_path, line, says):
    path = tmp_path / "q.jsonl"
    path.write_text(f"{path.read_text()}\n{line}")
    assert sweep() == 2
    assert says in one_line(capsys.readouterr().err)


def test_too_few_questions_are_one_sentence(models, capsys, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:4]))
    assert sweep() == 2
    assert "write 10 or more" in one_line(capsys.readouterr().err)


def test_questions_of_a_file_of_their_own_are_the_test(models, capsys, tmp_path):
    lines = (tmp_path / "q.jsonl").read_text().splitlines()
    (tmp_path / "q.jsonl").write_text("\n".join(lines[:8]))
    (tmp_path / "t.jsonl").write_text("\n".join(lines[8:]))
    assert sweep("--json", "--test", "t.jsonl") == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["questions"]) == 8
    assert record["test"]["retrieval"][0]["ndcg"]["n"] == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nothing", "q.jsonl"), "There is no folder"),
        (("notes", "nothing.jsonl"), "nothing.jsonl cannot be read"),
        (("notes", "q.jsonl", "--grid", "q.jsonl"), "q.jsonl is no TOML"),
        (("cache", "q.jsonl"), "holds no file that can be read"),
    ],
)
def test_mistakes_are_one_sentence(models, capsys, tmp_path, arguments, says):
    (tmp_path / "cache").mkdir()
    assert main(["sweep", *arguments]) == 2
    assert says in one_line(capsys.readouterr().err)


def test_an_endpoint_that_fails_is_one_sentence(models, capsys):
    models.failing = 503
    assert sweep() == 2
    one_line(capsys.readouterr().err)


def test_questions_without_answers_choose_by_retrieval(models, capsys, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(path.read_text().replace(', "answer": "so"', ""))
    assert sweep("--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["answers"] == []
    assert not models.chats
    assert record["winner"] == record["designs"][0]["design"]
