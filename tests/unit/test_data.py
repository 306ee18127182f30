"""The packaged data."""

import pytest

from nim_cookbook import data
from nim_cookbook.errors import DataError
from nim_cookbook.scoring import contains


def test_three_documents_fit_haystack():
    from haystack import Document

    documents = [Document(**record) for record in data.people()]
    assert [d.content for d in documents] == [
        "My name is Jean and I live in Paris.",
        "My name is Mark and I live in Berlin.",
        "My name is Giorgio and I live in Rome.",
    ]
    assert len({d.meta["id"] for d in documents}) == 3


def test_references_are_in_the_relevant_documents():
    documents = {record["meta"]["id"]: record["content"] for record in data.people()}
    questions = data.people_questions()
    assert sum(not q.answerable for q in questions) == 3
    for question in questions:
        assert bool(question.answers) == bool(question.evidence)
        for entry in question.evidence:
            assert contains(documents[entry.document], question.answers)


def test_every_collection_says_where_it_comes_from():
    for folder in data.data_dir().iterdir():
        if folder.is_dir():
            readme = (folder / "README.md").read_text("utf-8")
            assert "Origin" in readme and "Licence" in readme


@pytest.mark.parametrize("name", ["people/nothing.jsonl", "../pyproject.toml", "/etc/hostname"])
def test_an_unknown_file_names_what_there_is(name):
    with pytest.raises(DataError, match="people"):
        data.data_path(name)


@pytest.mark.parametrize("line", ["{", "[1]", "3", '"text"', "null"])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"a": 1}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"Line 3 of x\.jsonl"):
        data.read_jsonl(path)
