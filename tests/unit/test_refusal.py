"""Thresholds for refusing."""

import math

import pytest

from nim_cookbook.errors import DataError
from nim_cookbook.refusal import choose_threshold, refusal_curve, refusal_rates, separation

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


def test_separation():
    assert separation(LOGITS, ANSWERABLE) == (4 + 2.5) / 8
    assert separation([0, 1], [False, True]) == 1
    assert separation([0, 1], [True, False]) == 0
    assert separation([1, 1], [True, False]) == 0.5


@pytest.mark.parametrize(
    ("logits", "answerable", "message"),
    [
        ([1.0], [True, False], "one finite score"),
        ([1.0, math.nan], [True, False], "one finite score"),
        ([1.0, 2.0], [True, True], "unanswerable ones"),
        ([], [], "unanswerable ones"),
    ],
)
def test_what_cannot_be_judged(logits, answerable, message):
    for function in (refusal_curve, separation, lambda *given: refusal_rates(*given, 0.0)):
        with pytest.raises(DataError, match=message):
            function(logits, answerable)
