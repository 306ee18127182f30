"""A plot of a service: the spans of a request."""

from __future__ import annotations

from collections.abc import Mapping

from nim_cookbook.pictures import BLUE, Picture, figure_of, finished
from nim_cookbook.wording import duration


def waterfall(spans: Mapping[str, tuple[float, float]], *, title: str) -> Picture:
    """Draw when each step of a request ran, a bar each, in the order in which they began.

    Args:
        spans: Begin and end in seconds since the request began, by the step's name.
        title: What was traced.
    """
    ordered = sorted(spans.items(), key=lambda item: (item[1][0], -item[1][1]))
    figure, axes = figure_of((7, 1.2 + 0.42 * len(ordered)))
    for row, (_, (begin, end)) in enumerate(ordered):
        axes.barh(row, end - begin, left=begin, color=BLUE)
        axes.annotate(duration(end - begin), (end, row), xytext=(4, -3), textcoords="offset points")
    axes.set_yticks(range(len(ordered)), [name for name, _ in ordered])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("seconds since the request began")
    axes.set_title(title, fontsize=10)
    said = ", ".join(f"{name} {duration(end - begin)}" for name, (begin, end) in ordered)
    return finished(figure, f"Waterfall. {title}: {said}.")
