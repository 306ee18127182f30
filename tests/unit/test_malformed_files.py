"""Whatever a file holds, a loader reads it or says in one sentence what is wrong with it."""

from __future__ import annotations

import json
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nim_cookbook
from nim_cookbook.corpus import Collection, load_beir, load_folder
from nim_cookbook.errors import DataError
from nim_cookbook.models import Registry, parse_registry

REGISTRY = (Path(nim_cookbook.__file__).parent / "models.toml").read_text("utf-8")
#: The same files in every run; writing them is most of the time.
bounded = settings(derandomize=True, max_examples=60, deadline=None, database=None)

ODD = st.sampled_from(
    ["", "\0", "\x01", "\r", "\x85", "\u2028", "\ufeff", "\ue000", "[" * 5000, "9" * 5000, "\t\t"]
)
TEXT = st.lists(st.one_of(st.text(max_size=20), ODD), max_size=4).map("".join)
MARKUP = st.lists(
    st.one_of(
        TEXT,
        st.sampled_from(
            [
                "---\n",
                "id: a\n",
                "title:",
                "<html>",
                "</html>",
                "<!--",
                "-->",
                "<?x ",
                "?>",
                "<meta name='id' content='a'>",
                "<meta name=",
                "<title>",
                "</title>",
                "<td>",
                "</table>",
                "<p>",
                "<script>",
                "&#1;",
                "&#xD800;",
                "&#0;",
                "&nbsp;",
                "&x;",
                "<![CDATA[",
                "<!DOCTYPE ",
                "<frameset>",
                "<svg>",
                "<a:b>",
                "<body",
            ]
        ),
    ),
    max_size=8,
).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "id",
                    "_id",
                    "question",
                    "text",
                    "title",
                    "evidence",
                    "document",
                    "quote",
                    "answers",
                ]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
LINES = st.lists(st.one_of(JSON.map(json.dumps), TEXT), max_size=4).map("\n".join)
ROW = st.lists(st.sampled_from(["q1", "d1", "1", "0", "score", '"', "²", "x" * 140_000]) | TEXT)
ROWS = st.lists(ROW.map("\t".join), max_size=4).map("\n".join)


def content(texts: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Texts as files hold them, and sometimes bytes that are no text at all."""
    encoded = texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
    return encoded | st.binary(max_size=30)


def read_or_refused(load: Any, *arguments: Any) -> str:
    """Return the sentence of a refusal, nothing where the file is read."""
    try:
        assert isinstance(load(*arguments), Collection | Registry)
    except DataError as error:
        sentence = str(error)
        assert sentence.endswith(".") and sentence.isprintable(), sentence
        assert len(sentence) < 1000
        return sentence
    return ""


def written(files: dict[str, bytes], load: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        return read_or_refused(load, folder)


@bounded
@given(suffix=st.sampled_from([".md", ".txt", ".html"]), data=content(MARKUP))
def test_any_document_is_read_or_refused(suffix: str, data: bytes) -> None:
    written({f"one{suffix}": data}, load_folder)


@bounded
@given(data=content(LINES))
def test_any_questions_are_read_or_refused(data: bytes) -> None:
    written({"one.md": b"A text.", "questions.jsonl": data}, load_folder)


@settings(bounded, max_examples=20)  # four folders each
@given(corpus=content(LINES), queries=content(LINES), grades=content(ROWS))
@example(b'{"_id": "d1", "text": ""}', b'{"_id": "q1", "text": "?"}', b"\nq1\td1\t1")
def test_any_beir_folder_is_read_or_refused(corpus: bytes, queries: bytes, grades: bytes) -> None:
    good = {
        "corpus.jsonl": b'{"_id": "d1", "text": "A text."}',
        "queries.jsonl": b'{"_id": "q1", "text": "A question?"}',
        "qrels/test.tsv": b"q\td\tscore\nq1\td1\t1\n",
    }
    bad = {"corpus.jsonl": corpus, "queries.jsonl": queries, "qrels/test.tsv": grades}
    written(bad, load_beir)
    for name, data in bad.items():
        written(good | {name: data}, load_beir)


@bounded
@given(cut=st.integers(0, len(REGISTRY)), end=st.integers(0, 400), text=TEXT)
def test_any_damage_to_the_registry_is_refused_or_harmless(cut: int, end: int, text: str) -> None:
    read_or_refused(parse_registry, REGISTRY[:cut] + text + REGISTRY[cut + end :])


@bounded
@given(data=st.data(), value=JSON)
def test_any_value_in_the_registry_is_refused_or_harmless(data: Any, value: Any) -> None:
    table: Any = tomllib.loads(REGISTRY)
    place, key = table, data.draw(st.sampled_from(list(table)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
    place[key] = value
    read_or_refused(Registry, table)


@pytest.mark.parametrize("name", ["model", "weights", "catalog"])
def test_the_registry_names_the_table_that_it_lacks(name: str) -> None:
    table = {key: value for key, value in tomllib.loads(REGISTRY).items() if key != name}
    assert f"{name!r}: Field required" in read_or_refused(Registry, table)


def test_every_role_needs_a_default_model() -> None:
    table = tomllib.loads(REGISTRY)
    del table["catalog"]["chat"]
    assert "'catalog.chat' must be the id of a chat model" in read_or_refused(Registry, table)


def test_a_control_character_in_a_page_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "one.html").write_text("<p>A\x01 text&#2;.</p>")
    assert load_folder(tmp_path).sources[0].text == "A text.\n"


def test_a_line_of_a_thousand_brackets_is_no_json_object() -> None:
    line = b"[" * 5000
    refused = written({"one.md": b"A text.", "questions.jsonl": line}, load_folder)
    assert refused == "Line 1 of questions.jsonl is no JSON object: correct it or remove it."


def test_a_blank_line_before_the_judgements_is_skipped() -> None:
    files = {
        "corpus.jsonl": b'{"_id": "d1", "text": "A text."}',
        "queries.jsonl": b'{"_id": "q1", "text": "A question?"}',
        "qrels/test.tsv": b"\nq1\td1\t1\n",
    }
    assert written(files, load_beir) == ""


def test_a_field_too_long_for_a_table_is_said() -> None:
    files = {
        "corpus.jsonl": b'{"_id": "d1", "text": "A text."}',
        "queries.jsonl": b'{"_id": "q1", "text": "A question?"}',
        "qrels/test.tsv": b"q1\td1\t" + b"1" * 140_000,
    }
    assert "test.tsv is no tab-separated file" in written(files, load_beir)
