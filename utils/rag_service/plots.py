"""Plots of a service: the queue while it works, the spans of a request."""

from __future__ import annotations

import time
from collections.abc import Mapping

from nim_cookbook.pictures import BLUE, STYLES, Picture, figure_of, finished
from nim_cookbook.wording import duration

#: Seconds between two pictures of a plot that is drawn again and again.
REDRAWN_EVERY = 0.5


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


class QueuePlot:
    """Jobs that are not done against time, a line for each run, drawn again as a run goes on.

    Args:
        weights: What embeds the chunks.
        title: What is drawn.
    """

    def __init__(self, *, weights: str, title: str = "Jobs not done") -> None:
        """Show the empty picture; outside a notebook nothing is shown."""
        from IPython.display import display  # only notebooks have it

        self._caption = f"{title}\n{weights}".strip()
        self._runs: dict[str, list[tuple[float, int]]] = {}
        self._marks: list[tuple[str, float, int, str]] = []
        self._drawn = 0.0
        self._handle = display(self.picture(), display_id=True)  # type: ignore[no-untyped-call]

    def add(self, run: str, seconds: float, jobs: int) -> None:
        """Add a point.

        Args:
            run: Which line.
            seconds: Since the first job was sent.
            jobs: How many are not done.
        """
        self._runs.setdefault(run, []).append((seconds, jobs))
        # Drawing takes a while, and time is what is measured beside it.
        if jobs == 0 or time.monotonic() - self._drawn > REDRAWN_EVERY:
            self._draw()

    def mark(self, run: str, text: str) -> None:
        """Mark a line's last point.

        Args:
            run: Which line.
            text: What happened there.
        """
        self._marks.append((run, *self._runs[run][-1], text))
        self._draw()

    def _draw(self) -> None:
        if self._handle:
            self._handle.update(self.picture())
        self._drawn = time.monotonic()

    def picture(self) -> Picture:
        """Return the picture as it is now."""
        figure, axes = figure_of((7, 3.6))
        said = []
        for (run, points), (colour, marker) in zip(self._runs.items(), STYLES, strict=False):
            seconds = [point[0] for point in points]
            jobs = [point[1] for point in points]
            each = max(1, len(points) // 12)  # markers, for who does not see the colours
            axes.plot(seconds, jobs, marker=marker, markevery=each, ms=4, color=colour, label=run)
            said.append(f"{run}: {max(jobs)} jobs, {jobs[-1]} left after {seconds[-1]:.1f} s")
        for run, at, left, text in self._marks:
            axes.plot([at], [left], "x", color="black", ms=9, mew=2)
            axes.annotate(text, (at, left), xytext=(8, 6), textcoords="offset points")
            said.append(f"{text} in {run} at {at:.1f} s with {left} left")
        axes.set(xlabel="seconds since the first job was sent", ylabel="jobs not done")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0, top=None if self._runs else 1)
        if self._runs:
            axes.legend(frameon=False)
        axes.set_title(self._caption, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        what = self._caption.replace("\n", ", ")
        return finished(figure, f"Lines. {what}. {'; '.join(said) or 'Nothing yet'}.")
