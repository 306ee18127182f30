"""When not to answer: a threshold on the score of the best passage.

A question is refused when its best passage scores below the threshold. Right refusals are those of
questions that the documents do not answer, wrong ones those of questions that they do answer. A
higher threshold brings more of both, and the curve shows at what price. Choose the threshold on
other questions than those that it is judged on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nim_cookbook.errors import DataError
from nim_cookbook.evaluation import Interval, proportion


@dataclass(frozen=True, slots=True)
class RefusalPoint:
    """What one threshold does.

    Attributes:
        threshold: Questions whose best score is below it are refused.
        right: Share of the unanswerable questions that are refused, 0 to 1.
        wrong: Share of the answerable questions that are refused, 0 to 1.
    """

    threshold: float
    right: float
    wrong: float


@dataclass(frozen=True, slots=True)
class RefusalRates:
    """What a threshold does, with intervals.

    Attributes:
        right: Share of the unanswerable questions that are refused.
        wrong: Share of the answerable questions that are refused.
    """

    right: Interval
    wrong: Interval


def refusal_curve(logits: Sequence[float], answerable: Sequence[bool]) -> list[RefusalPoint]:
    """Return what every threshold that makes a difference does, the lowest first.

    The first one refuses nothing, the last one everything, and those between lie half-way from one
    score to the next. This is the ROC curve of refusing (Fawcett, "An introduction to ROC
    analysis", Pattern Recognition Letters 2006).

    Args:
        logits: The best score for each question, shape (n,).
        answerable: Whether the documents answer it, shape (n,); both kinds must occur.

    Raises:
        DataError: The lengths differ, a score is no finite number, or one of the kinds is missing.
    """
    scores, can = _checked(logits, answerable)
    steps = np.unique(scores)
    between = (steps[:-1] + steps[1:]) / 2
    thresholds = [float(steps[0]), *map(float, between), float(np.nextafter(steps[-1], np.inf))]
    return [
        RefusalPoint(t, float((scores[~can] < t).mean()), float((scores[can] < t).mean()))
        for t in thresholds
    ]


def choose_threshold(curve: Sequence[RefusalPoint], most_wrong: float = 0.10) -> RefusalPoint:
    """Return the point with the most right refusals among those with few enough wrong ones.

    Of several such points it is the one with the fewest wrong refusals.

    Args:
        curve: See `refusal_curve`.
        most_wrong: The share of answerable questions whose refusal is bearable, 0 to 1.

    Raises:
        DataError: The curve has no such point.
    """
    bearable = [point for point in curve if point.wrong <= most_wrong]
    if not bearable:
        raise DataError(f"The curve has no threshold with at most {most_wrong:.0%} wrong refusals.")
    return max(bearable, key=lambda point: (point.right, -point.wrong))


def refusal_rates(
    logits: Sequence[float], answerable: Sequence[bool], threshold: float
) -> RefusalRates:
    """Return what a threshold does to some questions, with 95 % intervals.

    Args:
        logits: The best score for each question, shape (n,).
        answerable: Whether the documents answer it, shape (n,); both kinds must occur.
        threshold: Questions whose best score is below it are refused.

    Raises:
        DataError: As for `refusal_curve`.
    """
    scores, can = _checked(logits, answerable)
    refused = scores < threshold
    return RefusalRates(proportion(refused[~can]), proportion(refused[can]))


def separation(logits: Sequence[float], answerable: Sequence[bool]) -> float:
    """Return how often an answerable question scores above an unanswerable one, 0 to 1.

    The area under the curve of `refusal_curve`: 1 is perfect, 0.5 is a coin, and ties count half.

    Raises:
        DataError: As for `refusal_curve`.
    """
    scores, can = _checked(logits, answerable)
    gaps = scores[can][:, None] - scores[~can][None, :]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def _checked(
    logits: Sequence[float], answerable: Sequence[bool]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    scores = np.asarray(logits, dtype=np.float64)
    can = np.asarray(answerable, dtype=np.bool_)
    if scores.ndim != 1 or scores.shape != can.shape:
        raise DataError(
            f"There are {scores.size} scores and {can.size} questions: give one score to each, in "
            "one row."
        )
    if not np.isfinite(scores).all():
        raise DataError("A score is no finite number: leave out questions that found nothing.")
    if can.all() or not can.any():
        raise DataError(
            "Refusals need answerable and unanswerable questions, and one of the kinds is missing."
        )
    return scores, can
