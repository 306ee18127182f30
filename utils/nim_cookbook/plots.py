"""Plots for notebooks, each a `Picture` that says in words what it shows."""

from __future__ import annotations

from collections.abc import Mapping

from nim_cookbook.evaluation import Difference
from nim_cookbook.pictures import BLUE, ORANGE, Picture, figure_of, finished


def forest_plot(pairs: Mapping[str, Difference], *, title: str) -> Picture:
    """Draw differences with their intervals, a line each, against zero.

    Args:
        pairs: Differences of two systems on the same questions, by what is compared.
        title: What differs.
    """
    figure, axes = figure_of((7, 1.2 + 0.45 * len(pairs)))
    for row, difference in enumerate(pairs.values()):
        sure = difference.low > 0 or difference.high < 0
        axes.errorbar(
            difference.mean, row, fmt="o" if sure else "s", capsize=3, markersize=7,
            xerr=[[difference.mean - difference.low], [difference.high - difference.mean]],
            color=BLUE if sure else ORANGE,
        )  # fmt: skip
        axes.annotate(
            f"{difference.mean:+.3f}, {difference.n} questions", (difference.high, row),
            xytext=(8, -3), textcoords="offset points", fontsize=9,
        )  # fmt: skip
    axes.axvline(0, color="black", lw=1)
    axes.set_yticks(range(len(pairs)), list(pairs))
    axes.invert_yaxis()
    axes.margins(x=0.35, y=0.15)
    axes.set_title(f"{title}; squares: zero is inside", fontsize=10)
    said = ", ".join(f"{name} {difference}" for name, difference in pairs.items())
    return finished(figure, f"Dots with intervals. {title}: {said}.")
