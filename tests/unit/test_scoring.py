"""What an answer says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim_cookbook.scoring import contains, normalise, refuses


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("an apple, a day", "apple day"),
        ("U.S.A.", "usa"),
        ("Theatre", "theatre"),
        ("\u201cGiorgio\u201d\u2026", "giorgio"),
        ("\uff32\uff4f\uff4d\uff45", "rome"),
        ("the", ""),
    ],
)
def test_normal_form(text, normal):
    assert normalise(text) == normal


@given(st.text())
def test_normal_form_holds_itself(text):
    normal = normalise(text)
    assert "  " not in normal and normal == normal.strip()
    assert contains(f"It is {text}, they say", text) or not normal


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("Giorgio lives in Rome.", "Giorgio", True),
        ("GIORGIO!", ["Jean", "Giorgio"], True),
        ("He went to a party.", "art", False),
        ("Mark's home is Berlin", "mark", False),
        ("In New York City.", "new york", True),
        ("New old York", "new york", False),
        ("anything", [], False),
        ("anything", "the", False),
        ("", "Rome", False),
    ],
)
def test_contains_whole_words(answer, references, expected):
    assert contains(answer, references) is expected


@pytest.mark.parametrize(
    "answer",
    [
        "I don't know.",
        "I don\u2019t know who lives in Madrid.",
        "I do not know the answer to that.",
        "The documents do not contain the answer.",
        "The documents don't mention Madrid.",
        "The document does not provide any information about his age.",
        "The context doesn't say.",
        "I cannot answer this question based on the documents.",
        "I can't find that.",
        "I'm unable to answer.",
        "It is not mentioned in the documents.",
        "Giorgio's age is not explicitly stated.",
        "There is no information about Madrid.",
        "There isn't enough information, and not enough context.",
        "UNKNOWN",
    ],
)
def test_refusals(answer):
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Giorgio lives in Rome.",
        "Jean does not live in Rome, Giorgio does.",
        "It is known that Mark lives in Berlin.",
        "Mark is a baker.",
        "Note: the Golden Gate Bridge was built in 1933.",
        "Nobody but Giorgio.",
        "",
        "  ",
    ],
)
def test_answers_that_are_no_refusals(answer):
    assert not refuses(answer)
