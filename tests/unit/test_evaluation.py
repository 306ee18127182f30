"""Scores and intervals."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nim_cookbook.data import Evidence, Query, people_questions
from nim_cookbook.errors import DataError
from nim_cookbook.evaluation import (
    Chunk,
    bootstrap,
    evaluate_answers,
    exact_match,
    paired_bootstrap,
    proportion,
    score_retrieval,
    supported,
    token_f1,
)

ONE = Query("q1", "?", ("x",), "lookup", (Evidence("d1", "one two three four"),))
TWO = Query(
    "q2", "?", ("x",), "two-documents", (Evidence("d1", "a b c d"), Evidence("d2", "e f g"))
)
NONE = Query("q3", "?", (), "unanswerable", ())
GOOD = Chunk("d1", "Zero one two three four five")
WRONG = Chunk("d9", "one two three four")
LEFT, RIGHT = Chunk("d1", "a b c d"), Chunk("d2", "e f g")

few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# ----------------------------------------------------------------------------------- retrieval


def test_ranx_is_imported_late_and_keeps_its_files_in_our_cache(tmp_path):
    code = (
        "import os, sys\nfrom nim_cookbook.evaluation import score_retrieval\n"
        "from nim_cookbook.data import Evidence, Query\nassert 'ranx' not in sys.modules\n"
        "score_retrieval({}, [Query('1', '?', evidence=(Evidence('d'),))])\n"
        "print(os.environ['IR_DATASETS_HOME'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "IR_DATASETS_HOME"}
    environment["COOKBOOK_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.decode().strip() == str(tmp_path / "cache" / "ir_datasets"), done.stderr


def test_by_hand():
    run = {"q1": [WRONG, GOOD], "q2": [LEFT, WRONG, RIGHT]}
    scores = score_retrieval(
        run, [ONE, TWO, NONE], metrics=("ndcg@10", "recall@1", "recall@5", "mrr")
    )
    assert scores.queries == (ONE, TWO)
    ideal = 1 + 1 / np.log2(3)
    assert scores.values["ndcg@10"] == pytest.approx([1 / np.log2(3), (1 + 0.5) / ideal])
    assert scores.values["recall@1"].tolist() == [0, 0.5]
    assert scores.values["recall@5"].tolist() == [1, 1]
    assert scores.values["mrr"].tolist() == [0.5, 1]
    rows = scores.rows()
    assert [(row["questions"], row["n"]) for row in rows] == [
        ("all", 2),
        ("lookup", 1),
        ("two-documents", 1),
    ]
    assert rows[0]["mrr"].mean == 0.75


def test_grades_count_with_linear_gain():
    query = Query("q", "?", (), "", (Evidence("d1", "", 1), Evidence("d2", "", 3)))
    run = {"q": [Chunk("d1", "x"), Chunk("d2", "y")]}
    scores = score_retrieval(run, [query], metrics=["ndcg@10"])
    expected = (1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3))
    assert scores.values["ndcg@10"] == pytest.approx([expected])


def test_the_order_of_the_questions_is_kept():
    queries = [Query(name, "?", ("x",), "", ONE.evidence) for name in ("b", "c", "a")]
    scores = score_retrieval({"c": [GOOD], "a": [WRONG, GOOD]}, queries)
    assert scores.values["mrr"].tolist() == [0, 1, 0.5]


def test_a_second_chunk_of_the_same_quote_is_a_place_wasted():
    once = score_retrieval({"q2": [LEFT, RIGHT]}, [TWO])
    twice = score_retrieval({"q2": [LEFT, LEFT, RIGHT]}, [TWO])
    assert once.values["ndcg@10"].tolist() == [1]
    assert 0 < twice.values["ndcg@10"][0] < 1
    assert twice.values["recall@5"].tolist() == [1]


def test_one_chunk_may_hold_both():
    query = Query("q", "?", ("x",), "", (Evidence("d", "a b c"), Evidence("d", "e f g")))
    scores = score_retrieval({"q": [Chunk("d", "a b c e f g")]}, [query])
    assert [values.tolist() for values in scores.values.values()] == [[1], [1], [1]]


@few
@given(st.lists(st.sampled_from([GOOD, WRONG, LEFT, RIGHT]), max_size=12))
def test_scores_are_shares_and_a_better_start_never_hurts(found):
    run = {"q1": found, "q2": found}
    scores = score_retrieval(run, [ONE, TWO])
    for values in scores.values.values():
        assert ((values >= 0) & (values <= 1)).all()
    perfect = score_retrieval({"q1": [GOOD, *found], "q2": [LEFT, RIGHT, *found]}, [ONE, TWO])
    for metric, values in perfect.values.items():
        assert values.tolist() == [1, 1], metric


def test_what_cannot_be_scored_is_one_sentence():
    with pytest.raises(DataError, match="None of the questions has evidence"):
        score_retrieval({}, [NONE])
    with pytest.raises(DataError, match="same id"):
        score_retrieval({}, [ONE, ONE])
    with pytest.raises(DataError, match="nonsense@3"):
        score_retrieval({"q1": [GOOD]}, [ONE], metrics=["nonsense@3"])


# ------------------------------------------------------------------------------------- answers


def test_answers_by_hand():
    assert exact_match("The SP-1107.", ["x", "SP-1107"])
    assert not exact_match("It is SP-1107", ["SP-1107"])
    assert token_f1("It is on 26 March", ["26 March", "March"]) == pytest.approx(4 / 7)
    assert token_f1("Rome", ["Paris"]) == token_f1("", ["Paris"]) == token_f1("Rome", []) == 0
    assert token_f1("no no", ["no"]) == pytest.approx(2 / 3)


def test_support_by_hand():
    chunk = ["The rate rises to 0.46 cr per kilometre."]
    assert not supported("0.46 cr a mile", chunk)  # two words of three
    assert supported("The rate is 0.46", chunk, "What is the rate?")
    assert supported("", chunk)
    assert supported("It rises to 0.46 cr", chunk, "Where does it go?")
    assert not supported("The rate rises to 0.47 cr per kilometre", chunk)
    assert not supported("blue", chunk)
    assert not supported("The rate rises", [])


def test_all_answers():
    queries = [
        Query("1", "Where?", ("Rome",), "lookup", ()),
        Query("2", "When?", ("1999",), "lookup", ()),
        NONE,
        NONE,
    ]
    answers = ["Rome", "I don't know.", "I don't know.", "In 2001"]
    judged = evaluate_answers(queries, answers, [["rome"], [], [], ["in 2002"]])
    means = [
        judged.exact, judged.f1, judged.contains, judged.right, judged.refused,
        judged.refused_wrongly, judged.supported,
    ]  # fmt: skip
    assert [m.mean for m in means] == [0.5] * 7
    assert [m.n for m in means] == [2] * 7
    assert judged.of_kind("unanswerable").exact is None
    assert evaluate_answers(queries, answers).supported is None
    with pytest.raises(DataError, match="4 questions and 1 answers"):
        evaluate_answers(queries, ["x"])
    with pytest.raises(DataError, match="4 questions and 0 lists of chunks"):
        evaluate_answers(queries, answers, [])


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        ("Who lives in Rome?", "Giorgio lives in Rome.", True),
        ("Who lives in Rome?", "Giorgio and Mark live in Rome.", False),
        ("In which city is Mark's home?", "Mark lives in Berlin.", True),
        ("In which city is Mark's home?", "Berlin or Paris.", False),
        ("Where does Giorgio live?", "My name is Giorgio and I live in Berlin.", False),
        ("Who lives in Madrid?", "I don't know.", True),
        ("Who lives in Madrid?", "Jean", False),
    ],
)
def test_a_right_answer_names_nobody_else_or_refuses(question, answer, right):
    questions = people_questions()
    given = [answer if q.question == question else "" for q in questions]
    rows = evaluate_answers(questions, given).rows
    assert [row.correct for row in rows if row.query.question == question] == [right]


@given(st.text(), st.lists(st.text()), st.text())
def test_answer_scores_are_shares(answer, texts, question):
    assert 0 <= token_f1(answer, texts) <= 1 + 1e-12
    assert supported(answer, [answer, *texts], question)
    if exact_match(answer, texts) and token_f1(answer, [answer]):
        assert token_f1(answer, texts) == 1


# ----------------------------------------------------------------------------------- intervals


def test_an_interval_is_the_textbook_one():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    interval = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.001)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.001)
    assert interval == bootstrap(values) != bootstrap(values, seed=1)
    assert str(bootstrap([1, 1])) == "1.000 [1.000, 1.000]"
    narrow = bootstrap(values, confidence=0.5)
    assert interval.low < narrow.low < narrow.high < interval.high


@few
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_an_interval_holds_its_mean(values):
    interval = bootstrap(values, resamples=500)
    assert min(values) - 1e-9 <= interval.low <= interval.mean <= interval.high
    assert interval.high <= max(values) + 1e-9
    assert interval.n == len(values)


@pytest.mark.parametrize("values", [[], [[1.0]], [float("nan")], 3.0])
def test_what_has_no_interval(values):
    with pytest.raises(DataError, match="one row of finite numbers"):
        bootstrap(values)


def test_paired_bootstrap():
    generator = np.random.default_rng(2)
    hard = generator.uniform(0, 1, 200)  # questions differ more than systems
    gain = generator.normal(0.02, 0.05, 200)
    difference = paired_bootstrap(hard + gain, hard)
    assert difference.better and difference.p < 0.01
    assert difference.low < gain.mean() < difference.high
    back = paired_bootstrap(hard, hard + gain)
    assert not back.better and back.p == difference.p and back.mean == -difference.mean
    same = paired_bootstrap(hard, hard)
    assert (same.mean, same.low, same.high, same.p, same.better) == (0, 0, 0, 1, False)
    with pytest.raises(DataError, match="200 and 199 scores"):
        paired_bootstrap(hard, hard[1:])


@few
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_a_difference_is_that_of_the_means(pairs):
    first, second = np.array(pairs).T
    difference = paired_bootstrap(first, second, resamples=300)
    assert difference.mean == pytest.approx(first.mean() - second.mean())
    assert 0 < difference.p <= 1
    assert difference.low <= difference.mean <= difference.high


def test_another_form_of_a_word_of_the_question_claims_nothing():
    chunk = ["The open day is on 12 September 2026."]
    question = "On what date does the open day 2026 take place?"
    assert supported("The open day takes place on 12 September.", chunk, question)
    assert not supported("The open day takes place on 13 September.", chunk, question)


def test_the_interval_of_a_share_does_not_shrink_to_a_point():
    all_right = proportion([True] * 9)
    assert (all_right.mean, all_right.high) == (1, 1)
    assert all_right.low == pytest.approx(9 / (9 + 1.96**2), abs=1e-4)  # Wilson's, for n of n
    none_right = proportion([False] * 12)
    assert none_right.low == none_right.mean == 0
    assert none_right.high == pytest.approx(1.96**2 / (12 + 1.96**2), abs=1e-4)
    assert proportion([1, 0, 1, 0]).n == 4
    with pytest.raises(DataError):
        proportion([])
