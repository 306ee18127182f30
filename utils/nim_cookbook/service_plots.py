"""Plots of services at work: their queue, and their answers under load.

As all plots, each is a `Picture` that says in words what it shows, and names the weights.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from nim_cookbook.errors import DataError
from nim_cookbook.pictures import GREY, STYLES, Picture, figure_of, finished
from nim_cookbook.wording import duration

#: Seconds between two pictures of a plot that is drawn again and again.
REDRAWN_EVERY = 0.5


class LoadPoint(Protocol):
    """What one closed load found; `cookbook_services.load.Load` is one."""

    @property
    def clients(self) -> int | None:
        """How many asked at the same time."""

    @property
    def per_second(self) -> float:
        """Answers a second."""

    def percentile(self, percent: float) -> float:
        """Return the seconds within which so many per cent of the answers came."""


def load_plot(
    runs: Mapping[str, Sequence[LoadPoint]],
    *,
    weights: str,
    goal: float | None = None,
    title: str = "Load on the service",
) -> Picture:
    """Draw throughput and latency against the number of clients, a line for each run.

    Latency is drawn as two lines, the median and, dashed, the 95th percentile.

    Args:
        runs: Closed loads by the name of what was loaded; eight at most.
        weights: What answered.
        goal: Seconds that the 95th percentile should stay below; a line is drawn there.
        title: What was loaded.

    Raises:
        DataError: There are no runs, too many, one is empty, or one is an open load.
    """
    from matplotlib.ticker import LogLocator

    points = [point for run in runs.values() for point in run]
    if not 1 <= len(runs) <= len(STYLES) or not all(runs.values()):
        raise DataError(f"load_plot() needs one to {len(STYLES)} runs, none of them empty.")
    if any(point.clients is None for point in points):
        raise DataError("load_plot() draws closed loads only: an open one has no clients.")
    figure, (rates, times) = figure_of((9, 4.2), panels=2, shared=False)
    said = []
    for (name, run), (colour, marker) in zip(runs.items(), STYLES, strict=False):
        clients = [point.clients or 0 for point in run]
        style = {"color": colour, "marker": marker, "ms": 5}
        rates.plot(clients, [point.per_second for point in run], label=name, **style)
        times.plot(clients, [point.percentile(50) for point in run], **style)
        times.plot(clients, [point.percentile(95) for point in run], ls="--", **style)
        listed = ", ".join(
            f"{point.clients}: {point.per_second:.1f}/s, median {duration(point.percentile(50))}, "
            f"95 % within {duration(point.percentile(95))}"
            for point in run
        )
        said.append(f"{name}, by number of clients: {listed}")
    ticks = sorted({point.clients or 0 for point in points})
    times.set(yscale="log", ylabel="latency: median; dashed: 95 %")
    times.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    times.yaxis.set_major_formatter(lambda seconds, _: duration(seconds))
    for panel in (rates, times):
        panel.set(xscale="log", xlabel="clients that ask at the same time")
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    rates.set_ylabel("answers a second")
    rates.set_ylim(bottom=0)
    if goal is not None:
        times.axhline(goal, color=GREY, lw=1)
        times.text(ticks[0], goal, f" goal: {duration(goal)}", va="bottom", fontsize=8)
        said.append(f"The goal for 95 % is {duration(goal)}")
    figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"{title}\n{weights}", fontsize=10)
    return finished(figure, f"Lines. {title} ({weights}). {'. '.join(said)}.")


class QueuePlot:
    """Jobs that are not done against time, a line for each run, drawn again as a run goes on.

    Args:
        weights: What embeds the passages.
        title: What is drawn.
    """

    def __init__(self, *, weights: str, title: str = "Jobs not done") -> None:
        """Show the empty picture; outside a notebook nothing is shown."""
        from IPython.display import display  # only notebooks have it

        self._caption = f"{title}\n{weights}"
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
