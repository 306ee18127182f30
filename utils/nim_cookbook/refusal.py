"""When not to answer: a threshold on the score of the best passage.

A question is refused when its best passage scores below the threshold. Right refusals are those of
questions that the documents do not answer, wrong ones those of questions that they do answer. A
higher threshold brings more of both, and the curve shows at what price. Choose the threshold on
other questions than those that it is judged on.

All functions take the best score for each question, shape (n,), and whether the documents answer
it, shape (n,). They raise DataError if these do not fit, a score is no finite number, or one of the
two kinds of questions is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nim_cookbook.errors import DataError
from nim_cookbook.evaluation import Interval, proportion


class RefusalPoint(NamedTuple):
    """What one threshold does: the shares of questions that score below it and are refused."""

    threshold: float  # questions whose best score is below it are refused
    right: float  # share of the unanswerable questions that are refused, 0 to 1
    wrong: float  # share of the answerable questions that are refused, 0 to 1


class RefusalRates(NamedTuple):
    """The same shares with their intervals."""

    right: Interval
    wrong: Interval


def refusal_curve(logits: Sequence[float], answerable: Sequence[bool]) -> list[RefusalPoint]:
    """Return what every threshold that makes a difference does, the lowest first.

    The first one refuses nothing, the last one everything, and those between lie half-way from one
    score to the next. This is the ROC curve of refusing (Fawcett, "An introduction to ROC
    analysis", Pattern Recognition Letters 2006).
    """
    unanswerable, can = _parted(logits, answerable)
    steps = np.unique([*unanswerable, *can])
    thresholds = [steps[0], *(steps[:-1] + steps[1:]) / 2, np.nextafter(steps[-1], np.inf)]
    return [
        RefusalPoint(float(t), float((unanswerable < t).mean()), float((can < t).mean()))
        for t in thresholds
    ]


def choose_threshold(curve: Sequence[RefusalPoint], most_wrong: float = 0.10) -> RefusalPoint:
    """Return the point with the most right refusals among those with few enough wrong ones.

    Of several such points it is the one with the fewest wrong refusals.

    Args:
        curve: See `refusal_curve`, whose first point refuses nothing.
        most_wrong: The share of answerable questions whose refusal is bearable, 0 to 1.
    """
    bearable = [point for point in curve if point.wrong <= most_wrong]
    return max(bearable, key=lambda point: (point.right, -point.wrong))


def refusal_rates(
    logits: Sequence[float], answerable: Sequence[bool], threshold: float
) -> RefusalRates:
    """Return what a threshold does to some questions, with 95 % intervals."""
    unanswerable, can = _parted(logits, answerable)
    return RefusalRates(proportion(unanswerable < threshold), proportion(can < threshold))


def separation(logits: Sequence[float], answerable: Sequence[bool]) -> float:
    """Return how often an answerable question scores above an unanswerable one, 0 to 1.

    The area under the curve of `refusal_curve`: 1 is perfect, 0.5 is a coin, and ties count half.
    """
    unanswerable, can = _parted(logits, answerable)
    gaps = can[:, None] - unanswerable
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def _parted(
    logits: Sequence[float], answerable: Sequence[bool]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the scores of the unanswerable and of the answerable questions."""
    scores = np.asarray(logits, dtype=np.float64)
    can = np.asarray(answerable, dtype=np.bool_)
    if scores.ndim != 1 or scores.shape != can.shape or not np.isfinite(scores).all():
        raise DataError("Refusals need one finite score to each question, in one row.")
    if can.all() or not can.any():
        raise DataError("Refusals need answerable questions and unanswerable ones.")
    return scores[~can], scores[can]
