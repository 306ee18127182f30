"""Plots of sizes, costs and load, each a `Picture` that says in words what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nim_cookbook.pictures import (
    GREY,
    STYLES,
    Picture,
    figure_of,
    finished,
)
from nim_cookbook.wording import duration

if TYPE_CHECKING:
    from capacity.load import Load


def load_plot(
    runs: Mapping[str, Sequence[Load]],
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
    """
    from matplotlib.ticker import LogLocator

    points = [point for run in runs.values() for point in run]
    figure, (rates, times) = figure_of((9, 4.2), panels=2, shared=False)
    said = []
    for (name, run), (colour, marker) in zip(runs.items(), STYLES, strict=False):
        clients = [point.clients for point in run]
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
    ticks = sorted({point.clients for point in points})
    times.set(yscale="log", ylabel="latency: median; dashed: 95 %")
    times.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    times.yaxis.set_major_formatter(lambda seconds, _: duration(seconds))
    for panel in (rates, times):
        panel.set(xscale="log", xlabel="clients that ask at the same time")
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    rates.set_ylabel("answers a second")
    rates.set_ylim(bottom=0)
    if goal is not None:
        times.axhline(goal, color=GREY, lw=1)
        times.text(ticks[0], goal, f" goal: {duration(goal)}", va="bottom", fontsize=8)
        said.append(f"The goal for 95 % is {duration(goal)}")
    figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"{title}\n{weights}", fontsize=10)
    return finished(figure, f"Lines. {title} ({weights}). {'. '.join(said)}.")
