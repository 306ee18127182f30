"""Scoring of answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim_cookbook.data import Question, people_questions
from nim_cookbook.errors import DataError
from nim_cookbook.scoring import contains, normalise, refuses, score_answers


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
        "  ",
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
    ],
)
def test_answers_that_are_no_refusals(answer):
    assert not refuses(answer)


def test_scores():
    questions = [
        Question("Who lives in Rome?", ("Giorgio",)),
        Question("Who lives in Paris?", ("Jean",)),
        Question("Who lives in Berlin?", ("Mark",)),
        Question("Who lives in Madrid?"),
        Question("How old is Mark?"),
    ]
    answers = [
        "Giorgio.",
        "I don't know.",
        "I am not sure; Mark, I don't know.",
        "I don't know",
        "42",
    ]
    scores = score_answers(questions, answers)
    assert scores.right == pytest.approx(2 / 3)
    assert scores.refused == 0.5
    assert scores.refused_wrongly == pytest.approx(1 / 3)
    assert [row.correct for row in scores.rows] == [True, False, True, True, False]


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        ("Who lives in Rome?", "Giorgio lives in Rome.", True),
        ("Who lives in Rome?", "Giorgio and Mark live in Rome.", False),
        ("Who lives in Rome?", "Giorgio lives in Rome, Jean in Paris.", False),
        ("In which city is Mark's home?", "Mark lives in Berlin.", True),
        ("In which city is Mark's home?", "Berlin or Paris.", False),
        ("Where does Giorgio live?", "My name is Giorgio and I live in Berlin.", False),
    ],
)
def test_a_right_answer_names_nobody_else(question, answer, right):
    questions = people_questions()
    given = [answer if q.question == question else "" for q in questions]
    (row,) = [r for r in score_answers(questions, given).rows if r.question.question == question]
    assert row.right is right


def test_no_questions_have_no_share():
    scores = score_answers([], [])
    assert scores.right is scores.refused is scores.refused_wrongly is None


def test_a_missing_answer_is_one_sentence():
    with pytest.raises(DataError, match="9 questions and 1 answers"):
        score_answers(people_questions(), ["Giorgio"])
