"""Plots for notebooks, each a `Picture` that says in words what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nim_cookbook.evaluation import Difference, Interval
from nim_cookbook.pictures import BLUE, GREY, ORANGE, Picture, figure_of, finished


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


def pareto_plot(
    points: Mapping[str, tuple[float, Interval]],
    front: Sequence[str],
    *,
    title: str,
) -> Picture:
    """Draw nDCG@10 against time, and the front: what nothing else beats in both.

    Args:
        points: Seconds and nDCG@10 by name.
        front: The names on the front, the fastest first; drawn with their intervals and named.
        title: What is compared.
    """
    figure, axes = figure_of((8, 4.6))
    rest = [point for name, point in points.items() if name not in front]
    axes.scatter(
        [seconds * 1000 for seconds, _ in rest], [value.mean for _, value in rest], s=16, color=GREY
    )
    best = [points[name] for name in front]
    times, values = [s * 1000 for s, _ in best], [value.mean for _, value in best]
    axes.plot(times, values, "o-", color=BLUE, ms=6)
    axes.errorbar(
        times, values, fmt="none", ecolor=BLUE, alpha=0.4, capsize=3,
        yerr=[[v.mean - v.low for _, v in best], [v.high - v.mean for _, v in best]],
    )  # fmt: skip
    for number, (x, y) in enumerate(zip(times, values, strict=True), 1):
        axes.annotate(str(number), (x, y), xytext=(6, -12), textcoords="offset points", fontsize=9)
    axes.set(xscale="log", xlabel="milliseconds for one search", ylabel="nDCG@10")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    named = "\n".join(f"{n} {name}" for n, name in enumerate(front, 1))
    axes.set_title(f"{title}; line: the Pareto front\n{named}", fontsize=9, loc="left")
    said = "; ".join(
        f"{n} {name}: {points[name][0] * 1000:.0f} ms, {points[name][1]}"
        for n, name in enumerate(front, 1)
    )
    return finished(
        figure, f"Dots. {title}: {len(points)} designs by time and nDCG@10. The front: {said}."
    )
