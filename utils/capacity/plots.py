"""Plots of sizes, costs and load, each a `Picture` that says in words what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from capacity.prices import Published
from capacity.sizing import ENCODINGS, RULE_OF_THUMB, bytes_per_vector, memory, most_passages
from nim_cookbook.pictures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    STYLES,
    Picture,
    figure_of,
    finished,
)
from nim_cookbook.wording import count, duration, size, wrapped

if TYPE_CHECKING:
    from capacity.load import Load


def memory_plot(
    passages: int,
    dimensions: Sequence[int],
    *,
    weights: str,
    limit: float = 16e9,
    title: str = "Memory for vectors and their graph",
) -> Picture:
    """Draw how much memory vectors need against how many there are, by `sizing.memory`.

    One copy, computed, not measured: one panel a width, one line an encoding, and a thin one for
    Qdrant's rule of thumb (vectors and half as much again).

    Args:
        passages: How many the reader's collection has.
        dimensions: Widths of vectors; the first is that of the collection.
        weights: What makes the collection's vectors.
        limit: Bytes of memory to draw a line at; the usual one is a laptop's 16 GB.
        title: What is drawn.
    """
    figure, axes = figure_of((9, 4.1), panels=len(dimensions))
    counts = [10**power for power in range(2, 9)]
    styles = zip(ENCODINGS, (BLUE, SKY, GREEN, ORANGE), ("-", "--", "-.", ":"), strict=True)
    for encoding, colour, line in styles:
        for panel, width in zip(axes, dimensions, strict=True):
            sizes = [memory(n, width, encoding) for n in counts]
            panel.plot(counts, sizes, line, color=colour, lw=2, label=encoding)
    for panel, width in zip(axes, dimensions, strict=True):
        thumb = [RULE_OF_THUMB * bytes_per_vector(width) * n for n in counts]
        panel.plot(counts, thumb, color=GREY, lw=1, label="float32, rule of thumb")
        panel.axhline(limit, color="black", lw=0.8)
        panel.text(1e2, limit * 1.2, f"{size(limit)}, a laptop", fontsize=8)
        panel.set(xscale="log", yscale="log", xlabel="passages", title=f"{width} numbers a vector")
        panel.title.set_fontsize(10)
        panel.grid(alpha=0.3)
    axes[0].scatter(
        passages, memory(passages, dimensions[0]), marker="*", s=160, c="black", zorder=3,
        label="your collection, float32",
    )  # fmt: skip
    ticks = [10.0**power for power in (5, 6, 7, 8, 9, 10, 11, 12)]
    axes[0].set_yticks(ticks, [size(tick) for tick in ticks])
    axes[0].set_ylabel("memory")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"{title}, computed\nyour collection: {weights}", fontsize=10)
    fits = "; ".join(
        f"{width} numbers: "
        + ", ".join(f"{e} {most_passages(limit, width, e):,}" for e in ENCODINGS)
        for width in dimensions
    )
    alt = (
        f"Lines, both axes logarithmic. {title}, computed. Your collection ({weights}): "
        f"{count(passages, 'passage')}, {size(memory(passages, dimensions[0]))}. "
        f"Passages that fit into {size(limit)}, by width and encoding: {fits}."
    )
    return finished(figure, alt)


def dimension_plot(
    passages: int,
    dimensions: Sequence[int],
    *,
    title: str = "Memory of one copy against the length of its vectors",
) -> Picture:
    """Draw how much memory a number of passages needs with vectors of several lengths.

    Computed by `sizing.memory`: a line an encoding.

    Args:
        passages: How many.
        dimensions: Numbers of a vector, two lengths or more.
        title: What is drawn.
    """
    widths = sorted(set(dimensions))
    figure, axes = figure_of((7.4, 3.8))
    said = []
    for encoding, (colour, marker) in zip(ENCODINGS, STYLES, strict=False):
        sizes = [memory(passages, width, encoding) for width in widths]
        axes.plot(widths, [n / 1e9 for n in sizes], marker=marker, color=colour, label=encoding)
        listed = ", ".join(
            f"{width} numbers {size(n)}" for width, n in zip(widths, sizes, strict=True)
        )
        said.append(f"{encoding}: {listed}")
    axes.set(xlabel="numbers a vector", ylabel="memory, GB", xticks=widths)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    caption = f"{title}, {count(passages, 'passage')}, computed"
    axes.set_title(wrapped(caption, width=80), fontsize=10)
    return finished(figure, f"Lines. {caption}. {'; '.join(said)}.")


def latency_cost_plot(
    published: Published,
    gpu_hour: float,
    *,
    currency: str = "USD",
    title: str = "Latency against cost",
) -> Picture:
    """Draw what a million answer tokens cost against how long an answer takes.

    A point for each number of requests at once, as published, with the GPUs always busy.

    Args:
        published: Of a chat model, from `capacity.published_throughput`.
        gpu_hour: The price of one GPU for an hour.
        currency: Of that price.
        title: What is drawn.
    """
    from matplotlib.ticker import LogLocator

    figure, axes = figure_of((7.4, 4))
    costs = [published.million(point, gpu_hour) for point in published.points]
    first = [point.ttft_ms / 1000 for point in published.points]
    whole = [published.seconds(point) for point in published.points]
    axes.plot(first, costs, "o--", color=BLUE, label="first token")
    axes.plot(whole, costs, "s-", color=ORANGE, label="whole answer")
    said = []
    for point, cost, soon, late in zip(published.points, costs, first, whole, strict=True):
        axes.annotate(
            str(point.concurrency), (late, cost), xytext=(4, 6), textcoords="offset points",
            fontsize=8,
        )  # fmt: skip
        said.append(
            f"{count(point.concurrency, 'request')} at once: first token after {soon:.1f} s, "
            f"whole answer after {late:.1f} s, {cost:.2f} {currency}"
        )
    axes.set(xscale="log", yscale="log", xlabel="seconds")
    axes.set_ylabel(f"{currency} a million answer tokens")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    served = (
        f"{published.model}, NIM {published.version}, {published.hardware}, {published.precision}; "
        f"{published.prompt_tokens} prompt and {published.answer_tokens} answer tokens, "
        f"published by NVIDIA; a GPU at {gpu_hour:g} {currency} an hour"
    )
    remark = "figures: requests at once"
    axes.set_title(wrapped(f"{title}; {remark}", served, width=85), fontsize=9)
    return finished(figure, f"Lines, both axes logarithmic. {title} ({served}). {'; '.join(said)}.")


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
    rates.set_ylabel("answers a second")
    rates.set_ylim(bottom=0)
    if goal is not None:
        times.axhline(goal, color=GREY, lw=1)
        times.text(ticks[0], goal, f" goal: {duration(goal)}", va="bottom", fontsize=8)
        said.append(f"The goal for 95 % is {duration(goal)}")
    figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"{title}\n{weights}", fontsize=10)
    return finished(figure, f"Lines. {title} ({weights}). {'. '.join(said)}.")
