"""Thresholds for refusing."""

import math

import pytest

from nim_cookbook.errors import DataError
from nim_cookbook.refusal import (
    RefusalPoint,
    choose_threshold,
    refusal_curve,
    refusal_rates,
    separation,
)

LOGITS = [-2.0, -1.0, 0.0, 0.0, 1.0, 3.0]
ANSWERABLE = [False, True, False, True, True, True]


def test_the_curve_by_hand():
    shares = [(point.right, point.wrong) for point in refusal_curve(LOGITS, ANSWERABLE)]
    assert shares == [(0, 0), (0.5, 0), (0.5, 0.25), (1, 0.5), (1, 0.75), (1, 1)]
    thresholds = [point.threshold for point in refusal_curve(LOGITS, ANSWERABLE)]
    assert thresholds[:5] == [-2.0, -1.5, -0.5, 0.5, 2.0] and thresholds[5] > 3.0


def test_a_score_on_the_threshold_is_let_through():
    rates = refusal_rates(LOGITS, ANSWERABLE, 0.0)
    assert (rates.right.mean, rates.wrong.mean) == (0.5, 0.25)
    assert (rates.right.n, rates.wrong.n) == (2, 4)
    assert rates.wrong.low <= 0.25 <= rates.wrong.high


def test_rates_agree_with_the_curve():
    for point in refusal_curve(LOGITS, ANSWERABLE):
        rates = refusal_rates(LOGITS, ANSWERABLE, point.threshold)
        assert (rates.right.mean, rates.wrong.mean) == (point.right, point.wrong)


@pytest.mark.parametrize(
    ("most_wrong", "threshold"), [(0.0, -1.5), (0.3, -1.5), (0.5, 0.5), (1.0, 0.5)]
)
def test_choice_takes_most_right_then_fewest_wrong(most_wrong, threshold):
    assert choose_threshold(refusal_curve(LOGITS, ANSWERABLE), most_wrong).threshold == threshold


def test_no_bearable_threshold():
    with pytest.raises(DataError, match="at most 10% wrong"):
        choose_threshold([RefusalPoint(0.0, 1.0, 0.5)])


def test_separation():
    assert separation(LOGITS, ANSWERABLE) == (4 + 2.5) / 8
    assert separation([0, 1], [False, True]) == 1
    assert separation([0, 1], [True, False]) == 0
    assert separation([1, 1], [True, False]) == 0.5


@pytest.mark.parametrize(
    ("logits", "answerable", "message"),
    [
        ([1.0], [True, False], "1 scores and 2 questions"),
        ([1.0, 2.0], [True, True], "one of the kinds is missing"),
        ([1.0, 2.0], [False, False], "one of the kinds is missing"),
        ([], [], "one of the kinds is missing"),
        ([1.0, math.nan], [True, False], "no finite number"),
        ([math.inf, 0.0], [True, False], "no finite number"),
    ],
)
def test_what_cannot_be_judged(logits, answerable, message):
    for function in (refusal_curve, separation):
        with pytest.raises(DataError, match=message):
            function(logits, answerable)
    with pytest.raises(DataError, match=message):
        refusal_rates(logits, answerable, 0.0)
