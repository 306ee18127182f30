"""Plots for notebooks, each a `Picture` that says in words what it shows.

Whatever shows a model's output takes `weights`, the name of what really answered, and shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nim_cookbook.errors import DataError
from nim_cookbook.evaluation import Difference, RetrievalScores, same_questions
from nim_cookbook.pictures import (
    BAR,
    BLUE,
    GOLD,
    GREY,
    ORANGE,
    STYLES,
    Picture,
    figure_of,
    finished,
    png_of,
    png_width,
)
from nim_cookbook.wording import count, duration, two_digits, wrapped

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from nim_cookbook.refusal import RefusalPoint, RefusalRates


def timing_chart(
    seconds: Mapping[str, float], *, weights: str, title: str = "Time per step"
) -> Picture:
    """Draw how long steps took, as horizontal bars.

    Args:
        seconds: Duration of each step, by its name, in the order from top to bottom.
        weights: What answered.
        title: What was timed.
    """
    figure, axes = figure_of((7, 1.2 + 0.42 * len(seconds)))
    bars = axes.barh(list(seconds), list(seconds.values()), color=BAR)
    axes.bar_label(bars, labels=[duration(s) for s in seconds.values()], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("seconds")
    axes.set_title(f"{title}\n{weights}", fontsize=10)
    steps = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    return Picture(png_of(figure), f"Bar chart. {title} ({weights}): {steps}.")


def similarity_chart(
    similarity: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    weights: str,
    title: str = "Cosine similarity",
) -> Picture:
    """Draw how similar texts are to one another, as a grid of numbers and colours.

    Args:
        similarity: Symmetric matrix of shape (n, n); a NumPy array will do.
        labels: The n texts.
        weights: What made the vectors.
        title: What is compared.
    """
    size = len(labels)
    letters = [chr(ord("A") + number) for number in range(size)]
    figure, axes = figure_of((4 + 0.7 * size, 1 + 0.65 * size))
    axes.imshow(similarity, cmap="Greens", vmin=0, vmax=1.4)  # never too dark for black figures
    axes.set_xticks(range(size), letters)
    axes.set_yticks(range(size), [f"{a}: {b}" for a, b in zip(letters, labels, strict=True)])
    for row, values in enumerate(similarity):
        for column, value in enumerate(values):
            axes.text(column, row, two_digits(value), ha="center", va="center")
    axes.set_title(f"{title}\n{weights}", fontsize=10)
    pairs = [
        f"{letters[a]} and {letters[b]} {two_digits(similarity[a][b])}"
        for a in range(size)
        for b in range(a + 1, size)
    ]
    alt = f"Grid. {title} ({weights}): {', '.join(pairs)}."
    png = png_of(figure)
    return Picture(png, alt, width=png_width(png) * 2 // 3)


def split_picture(
    text: str,
    splits: Sequence[tuple[int, int]],
    quote: str,
    *,
    title: str = "One document, split in several ways",
) -> Picture:
    """Draw what a document's passages are under several settings, and what becomes of a quote.

    Each setting is a row and each passage a bar along the document's words. Bars lie alternately
    higher and lower, so that the words that two passages share are seen. No model is involved.

    Args:
        text: The document's text, as the splitter gets it.
        splits: Words of a passage, and how many of them it shares with the one before.
        quote: Words of the text, which a passage should hold as a whole; their case, marks and
            line breaks do not matter.
        title: Which document it is.
    """
    start, end = _quote_place(text, quote)
    rows = [_word_spans(text, length, overlap) for length, overlap in splits]
    figure, axes = figure_of((8, 1.6 + 0.75 * len(splits)))
    axes.axvspan(start, end, color=GOLD, alpha=0.45, lw=0)
    words, said = [], []
    for row, (spans, (length, overlap)) in enumerate(zip(rows, splits, strict=True)):
        parts = [max(0, min(b, end) - max(a, start)) / (end - start) for a, b in spans]
        for number, ((a, b), part) in enumerate(zip(spans, parts, strict=True)):
            colour = BLUE if part == 1 else ORANGE if part > 0 else GREY
            place = (row - 0.3 + 0.32 * (number % 2), b - a)
            axes.barh(
                place[0], place[1], 0.28, a, align="edge", color=colour, edgecolor="white",
                hatch="///" if 0 < part < 1 else None,
            )  # fmt: skip
        whole = sum(part == 1 for part in parts)
        verdict = "whole" if whole == 1 else f"whole, {whole} times" if whole else "cut"
        words.append(f"{length} words,\n{overlap} shared")
        axes.text(max(b for _, b in spans) * 1.01, row, verdict, va="center")
        parted = "" if whole else f" (at most {max(parts):.0%} of it in one passage)"
        said.append(
            f"{length} words with {overlap} shared: {count(len(spans), 'passage')}, "
            f"quote {verdict}{parted}"
        )
    axes.set_yticks(range(len(splits)), words)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("words of the document (shaded: the quote)")
    axes.set_title(
        f"{title}\nblue: holds the whole quote; orange, hatched: a part of it; grey: none",
        fontsize=10,
    )
    return finished(figure, f"Bars. {title}. {'; '.join(said)}.")


def passage_map(
    vectors: Sequence[Sequence[float]],
    kinds: Sequence[str],
    query: Sequence[float],
    *,
    weights: str,
    nearest: int = 5,
    title: str = "Passages and a question",
) -> Picture:
    """Draw vectors as points of a plane, and lines from a query to the passages nearest to it.

    The plane is the one that keeps most of the passages' variance (principal component analysis);
    which passages are nearest is decided by the cosine of the whole vectors, not on the plane. The
    title says what share of the variance is kept.

    Args:
        vectors: One for each passage, shape (n, dimensions), at least three.
        kinds: What each passage is; eight kinds at most.
        query: The question's vector, shape (dimensions,).
        weights: What made the vectors.
        nearest: How many lines to draw.
        title: What is on the map.
    """
    import numpy as np

    points, asked = np.asarray(vectors, dtype=float), np.asarray(query, dtype=float)
    names = sorted(set(kinds))
    plane, place, kept = _plane(points, asked)
    lengths = np.linalg.norm(points, axis=1) * np.linalg.norm(asked)
    closest = np.argsort(-(points @ asked) / np.where(lengths > 0, lengths, 1), kind="stable")
    closest = closest[:nearest]
    on_map = np.argsort(np.linalg.norm(plane - place, axis=1), kind="stable")[:nearest]
    both = len(set(closest.tolist()) & set(on_map.tolist()))
    figure, axes = figure_of((8, 5.4))
    for name, (colour, marker) in zip(names, STYLES, strict=False):
        own = [n for n, kind in enumerate(kinds) if kind == name]
        axes.scatter(*plane[own].T, c=colour, marker=marker, s=22, alpha=0.65, lw=0, label=name)
    for n in closest:
        axes.plot(*zip(place, plane[n], strict=True), color="black", lw=0.9)
    axes.scatter(
        *plane[closest].T, s=75, facecolors="none", edgecolors="black", label="nearest passages"
    )
    axes.scatter(*place, c="black", marker="*", s=220, edgecolors="white", label="the question")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    remark = f"the plane keeps {kept:.0%} of the variance"
    axes.set_title(f"{wrapped(title, width=80)}\n{weights}; {remark}", fontsize=10)
    found = ", ".join(kinds[n] for n in closest)
    alt = (
        f"Map. {title} ({weights}): {count(len(points), 'passage')} of the kinds "
        f"{', '.join(names)}; {remark}. Kinds of the passages nearest to the question: {found}. "
        f"Of these {len(closest)}, {both} are also among the {len(closest)} nearest on the map."
    )
    return finished(figure, alt)


def retrieval_plot(
    systems: Mapping[str, RetrievalScores],
    metric: str = "ndcg@10",
    *,
    weights: str,
    title: str = "Retrieval by kind of question",
) -> Picture:
    """Draw the mean score of several retrievers with its interval, for each kind of question.

    Args:
        systems: Scores on the same questions, by the retriever's name; six at most.
        metric: Which of the scores.
        weights: What made the vectors and logits.
        title: What was searched.
    """
    names = same_questions(systems)
    queries = systems[names[0]].queries
    kinds = sorted({query.kind for query in queries} - {""})
    figure, axes = figure_of((8, 1.6 + 0.22 * (len(kinds) + 1) * (len(names) + 1)))
    labels, said = [], []
    for row, kind in enumerate(["all", *kinds]):
        parts = {n: systems[n] if kind == "all" else systems[n].of_kind(kind) for n in names}
        number = len(parts[names[0]].queries)
        means = {name: part.interval(metric) for name, part in parts.items()}
        for place, (name, mean) in enumerate(means.items()):
            colour, marker = STYLES[place]
            axes.errorbar(
                mean.mean, row + 0.8 * ((place + 0.5) / len(names) - 0.5), fmt=marker,
                xerr=[[mean.mean - mean.low], [mean.high - mean.mean]], color=colour, capsize=2,
                label=name if row == 0 else None,
            )  # fmt: skip
        labels.append(f"{kind} ({number})")
        listed = ", ".join(f"{name} {mean}" for name, mean in means.items())
        said.append(f"{kind}, {count(number, 'question')}: {listed}")
        if row:
            axes.axhline(row - 0.5, color=GREY, lw=0.6)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel=f"{metric}, mean and 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    axes.set_title(wrapped(title, weights, width=80), fontsize=10)
    return finished(
        figure, f"Dots with intervals. {title}, {metric} ({weights}): {'; '.join(said)}."
    )


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


def refusal_plot(
    curves: Mapping[str, Sequence[RefusalPoint]],
    chosen: Mapping[str, RefusalRates],
    *,
    weights: str,
    title: str = "Right against wrong refusals",
) -> Picture:
    """Draw what every threshold refuses rightly against what it refuses wrongly.

    Args:
        curves: By what the unanswerable questions are, the points of `refusal.refusal_curve`;
            four at most.
        chosen: By the same names, what the chosen threshold does, from `refusal.refusal_rates`;
            marked with its intervals.
        weights: What made the scores.
        title: Which questions these are.
    """
    figure, axes = figure_of((6.4, 5))
    said = []
    lines = zip(curves.items(), STYLES, ("-", "--", "-.", ":"), strict=False)
    for (name, curve), (colour, marker), line in lines:
        across, up = ([getattr(point, side) for point in curve] for side in ("wrong", "right"))
        right, wrong = chosen[name].right, chosen[name].wrong
        axes.plot(across, up, line, color=colour, lw=2, label=name)
        axes.errorbar(
            wrong.mean, right.mean, fmt=marker, color=colour, markersize=9, capsize=3, zorder=3,
            xerr=[[wrong.mean - wrong.low], [wrong.high - wrong.mean]],
            yerr=[[right.mean - right.low], [right.high - right.mean]],
        )  # fmt: skip
        most = max(p.right for p in curve if p.wrong <= 0.15 or p is curve[0])
        said.append(
            f"{name}: the chosen threshold refuses {right} rightly and {wrong} wrongly; any "
            f"threshold with at most 15 % wrong refusals, at most {most:.3f} rightly"
        )
    axes.plot([0, 1], [0, 1], color="black", lw=0.8, alpha=0.5)
    axes.text(0.72, 0.68, "a coin", fontsize=8)
    axes.axvline(0.15, color="black", lw=0.8, ls=":")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xlabel("wrong refusals: share of the answerable questions")
    axes.set_ylabel("right refusals: share of the unanswerable ones")
    marked = "marked: the chosen threshold"
    axes.set_title(wrapped(f"{title}; {marked}", weights, width=70), fontsize=10)
    axes.legend(loc="center right", frameon=False, fontsize=9)
    return finished(figure, f"Curves. {title} ({weights}). {'. '.join(said)}.")


class LossCurve:
    """The loss of each training step, drawn again as the steps come in."""

    def __init__(
        self,
        steps: int,
        losses: Sequence[float] = (),
        *,
        weights: str,
        title: str = "Training loss",
    ) -> None:
        """Show the picture so far; outside a notebook nothing is shown."""
        from IPython.display import display  # only notebooks have it

        self.losses = list(losses)
        self._steps = steps
        self._caption = f"{title}\n{weights}"
        self._handle = display(self.picture(), display_id=True)  # type: ignore[no-untyped-call]

    def add(self, loss: float) -> None:
        """Draw one step more.

        Args:
            loss: Mean cross-entropy of the step's trainable tokens, in nats.
        """
        self.losses.append(loss)
        if self._handle:
            self._handle.update(self.picture())

    def picture(self) -> Picture:
        """Return the picture as it is now."""
        figure, axes = figure_of((7, 3))
        axes.plot(range(1, len(self.losses) + 1), self.losses, "o-", color=BLUE, ms=4)
        axes.set(xlim=(0.5, self._steps + 0.5), xlabel="step", ylabel="loss, nats a token")
        axes.set_ylim(bottom=0, top=None if self.losses else 1)
        axes.set_title(self._caption, fontsize=10)
        said = ", ".join(f"{loss:.2f}" for loss in self.losses) or "none yet"
        what = self._caption.replace("\n", ", ")
        return finished(
            figure, f"Line. {what}, step by step ({len(self.losses)} of {self._steps}): {said}."
        )


def _quote_place(text: str, quote: str) -> tuple[int, int]:
    """Return the first word of a quote in a text and the one after its last; spaces part words."""
    pattern = r"[\W_]+".join(map(re.escape, re.findall(r"[^\W_]+", quote)))
    found = re.search(pattern, text, re.IGNORECASE) if pattern else None
    if found is None:
        raise DataError(f"The text does not hold the quote {quote[:60]!r}.")
    return text.count(" ", 0, found.start()), text.count(" ", 0, found.end()) + 1


def _word_spans(text: str, length: int, overlap: int) -> list[tuple[int, int]]:
    """Return the first word of each passage and the one after its last."""
    from haystack import Document
    from haystack.components.preprocessors import DocumentSplitter

    splitter = DocumentSplitter(split_by="word", split_length=length, split_overlap=overlap)
    spans = []
    for passage in splitter.run([Document(content=text)])["documents"]:
        first = text.count(" ", 0, passage.meta["split_idx_start"])
        spans.append((first, first + len((passage.content or "").rstrip(" ").split(" "))))
    return spans


def _plane(
    points: npt.NDArray[np.float64], query: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """Return points and a query on the plane of most variance, and the share that it keeps."""
    import numpy as np

    middle = points.mean(axis=0)
    _, spread, axes = np.linalg.svd(points - middle, full_matrices=False)
    first = axes[:2]
    # The sign of an axis is arbitrary: its largest part counts upwards, on every machine.
    largest = np.abs(first).argmax(axis=1)
    first = first * np.where(first[range(len(first)), largest] < 0, -1, 1)[:, None]
    total = float((spread**2).sum())
    kept = float((spread[:2] ** 2).sum()) / total if total else 1.0
    return (points - middle) @ first.T, (query - middle) @ first.T, kept
