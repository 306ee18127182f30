"""Scores of retrieval and of answers, with intervals, so that nobody celebrates noise.

Rankings are scored by ranx (Bassani, "ranx: A Blazing-Fast Python Library for Ranking Evaluation
and Comparison", ECIR 2022): nDCG with linear gain (Järvelin and Kekäläinen, "Cumulated gain-based
evaluation of IR techniques", TOIS 2002), recall and mean reciprocal rank. ranx compiles itself at
its first use after an installation, which takes some fifteen seconds, and loads in about two
seconds later; so it is imported when something is scored, not before.

Answers are compared in SQuAD's normal form (see `nim_cookbook.scoring`).
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import Stemmer

from nim_cookbook.corpus import THRESHOLD, Query, relevant
from nim_cookbook.errors import DataError
from nim_cookbook.explain import needing_extra
from nim_cookbook.local import cache_dir
from nim_cookbook.scoring import contains, normalise, refuses

Scores = npt.NDArray[np.float64]

#: An answer is supported when the chunks hold this share of its words (and all its numbers).
SUPPORT = 0.75


# ----------------------------------------------------------------------------------- intervals


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its bootstrap interval."""

    mean: float  # the mean of the values
    low: float  # lower end
    high: float  # upper end
    n: int  # how many values

    def __str__(self) -> str:
        """Show the mean and, in brackets, the interval."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Difference(Interval):
    """The mean difference of two systems on the same questions, first minus second."""

    p: float  # two-sided p-value of "there is no difference"

    @property
    def better(self) -> bool:
        """Whether the first system wins: the whole interval lies above zero."""
        return self.low > 0


def bootstrap(
    values: npt.ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean of values with its percentile bootstrap interval.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.

    Args:
        values: One number per question, shape (n,).
        confidence: The share of the resampled means that the interval holds.
        resamples: How often n values are drawn with replacement.
        seed: Of the draws; the same seed gives the same interval.

    Raises:
        DataError: There are no values, or they are not one row of finite numbers.
    """
    row = _row(values)
    return _resampled(row, confidence, resamples, seed)[0]


def proportion(values: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Return the share of values that are true, with Wilson's interval.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927). Unlike
    the bootstrap's it does not shrink to a point where all or none are true: nine right ones of
    nine do not prove that the tenth will be.

    Args:
        values: One truth value per question, shape (n,).
        confidence: How often an interval made in this way holds the true share.

    Raises:
        DataError: There are no values, or they are not one row.
    """
    with needing_extra():
        from scipy.stats import binomtest  # takes a second to load

    row = _row(values)
    hits = int(np.count_nonzero(row))
    ends = binomtest(hits, row.size).proportion_ci(confidence, method="wilson")
    return Interval(hits / row.size, float(ends.low), float(ends.high), row.size)


def paired_bootstrap(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compare two systems by their scores on the same questions.

    The questions are drawn with replacement, and both systems keep their scores on each (Koehn,
    "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004). The p-value is
    twice the smaller share of resampled differences on either side of zero, with one added to
    count and total (Davison and Hinkley, "Bootstrap Methods and their Application", 1997).

    Args:
        first: Scores of the first system, shape (n,).
        second: Scores of the second system on the same questions in the same order, shape (n,).
        confidence: The share of the resampled differences that the interval holds.
        resamples: How often n questions are drawn with replacement.
        seed: Of the draws.

    Raises:
        DataError: The two do not have as many scores, or have none.
    """
    one, two = _row(first), _row(second)
    if one.shape != two.shape:
        raise DataError(
            f"The systems have {one.size} and {two.size} scores: score both on the same questions."
        )
    # The mean of the differences is the difference of the means, so that one sample is enough.
    interval, means = _resampled(one - two, confidence, resamples, seed)
    side = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (side + 1) / (resamples + 1))
    return Difference(interval.mean, interval.low, interval.high, interval.n, p)


def _row(values: npt.ArrayLike) -> Scores:
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or row.size == 0 or not np.isfinite(row).all():
        raise DataError("An interval needs one row of finite numbers, and at least one of them.")
    return row


def _resampled(
    row: Scores, confidence: float, resamples: int, seed: int
) -> tuple[Interval, Scores]:
    """Return the percentile interval of a mean, and the mean of each resample."""
    with needing_extra():
        from scipy import stats  # takes a second to load

    mean = float(row.mean())
    if row.size == 1:  # SciPy wants two values
        return Interval(mean, mean, mean, 1), np.full(resamples, mean)
    found = stats.bootstrap(
        (row,), np.mean, n_resamples=resamples, batch=1000, confidence_level=confidence,
        method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = map(float, found.confidence_interval)
    # The mean of equal values and of their resamples differ in the last bit.
    return Interval(mean, min(low, mean), max(high, mean), row.size), found.bootstrap_distribution


# ----------------------------------------------------------------------------------- retrieval


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a retriever returned."""

    document: str  # the id of the document that it comes from
    text: str  # its words


@dataclass(frozen=True, slots=True)
class RetrievalScores:
    """Scores of one retriever."""

    queries: tuple[Query, ...]  # the n answerable questions that were scored
    # per metric, such as `ndcg@10`, one score per question, shape (n,), 0 to 1
    values: Mapping[str, Scores]

    def interval(self, metric: str) -> Interval:
        """Return the mean of a metric over the questions, with its interval."""
        return bootstrap(self.values[metric])

    def of_kind(self, kind: str) -> RetrievalScores:
        """Return the scores on the questions of one kind."""
        kept = [n for n, query in enumerate(self.queries) if query.kind == kind]
        return RetrievalScores(
            tuple(self.queries[n] for n in kept),
            {metric: scores[kept] for metric, scores in self.values.items()},
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return a table: a row for all questions, then one for each kind; cells are intervals."""
        kinds = sorted({query.kind for query in self.queries} - {""})
        parts = [("all", self), *((kind, self.of_kind(kind)) for kind in kinds)]
        return [
            {"questions": name, "n": len(part.queries)}
            | {metric: part.interval(metric) for metric in part.values}
            for name, part in parts
        ]


def score_retrieval(
    run: Mapping[str, Sequence[Chunk]],
    queries: Sequence[Query],
    *,
    metrics: Sequence[str] = ("ndcg@10", "recall@5", "mrr"),
    threshold: float = THRESHOLD,
) -> RetrievalScores:
    """Score the rankings of one retriever by nDCG, recall and reciprocal rank.

    What counts is each piece of evidence, once: the first chunk that holds it scores, and a
    second one (an overlapping chunk, say) is a place wasted; a chunk that holds two pieces counts
    as two places. So the ideal ranking and the number of things to find depend on the question
    alone, and scores compare across ways of splitting. Where whole documents are judged and
    returned, as in BEIR, this is the ordinary definition.

    Args:
        run: Per question id, the chunks that were found, best first. A question that is missing
            found nothing and scores 0.
        queries: The questions; those without evidence (the unanswerable ones) are left out.
        metrics: Names that ranx knows: `ndcg@k`, `recall@k`, `mrr`, `mrr@k`, `precision@k` ...
        threshold: See `nim_cookbook.corpus.relevant`.

    Raises:
        DataError: No question has evidence, two have the same id, or a metric is unknown.
    """
    judged = tuple(query for query in queries if query.evidence)
    if not judged:
        raise DataError("None of the questions has evidence: there is nothing to find.")
    if len({query.id for query in judged}) < len(judged):
        raise DataError("Two questions have the same id: score one split at a time.")
    wanted = {
        query.id: {n: entry.grade for n, entry in enumerate(query.evidence)} for query in judged
    }
    found = {query.id: _ranking(query, run.get(query.id, ()), threshold) for query in judged}
    return RetrievalScores(judged, _ranx(wanted, found, list(dict.fromkeys(metrics))))


def _ranking(query: Query, chunks: Sequence[Chunk], threshold: float) -> dict[int, float]:
    """Return what the chunks hold, in order, with falling scores as ranx wants them."""
    order: list[int] = []
    missing = dict(enumerate(query.evidence))
    for place, chunk in enumerate(chunks):
        held = [
            n
            for n, entry in missing.items()
            if relevant(chunk.text, entry, chunk.document, threshold=threshold)
        ]
        order += held or [len(query.evidence) + place]
        for n in held:
            del missing[n]
    order = order or [len(query.evidence)]  # ranx wants at least one result
    return {item: float(len(order) - place) for place, item in enumerate(order)}


def _ranx(
    wanted: dict[str, dict[int, int]], found: dict[str, dict[int, float]], metrics: list[str]
) -> dict[str, Scores]:
    """Return the scores of all questions, in their order, by each metric.

    The items are numbers and not names, which ranx would hash. The dictionaries go in as they are:
    ranx's own `Qrels` and `Run` are compiled anew for each length of the longest name.
    """
    # ir-datasets, which ranx imports, makes folders where this says; not in the user's home.
    os.environ.setdefault("IR_DATASETS_HOME", str(cache_dir() / "ir_datasets"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Numba on its own casts, while it compiles
        with needing_extra():
            from ranx import evaluate

        try:
            # Twice, as ranx 0.3.21 fails on a single metric with a cut-off and no mean.
            scores = evaluate(wanted, found, metrics * 2, return_mean=False)
        except (ValueError, AssertionError) as error:
            raise DataError(f"ranx cannot score {', '.join(metrics)}: {error}.") from None
    return {metric: np.asarray(scores[metric], dtype=np.float64) for metric in metrics}


# ------------------------------------------------------------------------------------- answers


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Tell whether an answer is one of the references, in SQuAD's normal form."""
    return normalise(answer) in {normalise(reference) for reference in references}


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return SQuAD's F1 of an answer's words against the best of the references, 0 to 1.

    Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", EMNLP 2016:
    the harmonic mean of precision and recall of words, counted as often as they occur.
    """
    given = Counter(normalise(answer).split())
    best = 0.0
    for reference in references:
        wanted = Counter(normalise(reference).split())
        common = (given & wanted).total()
        if common:
            best = max(best, 2 * common / (given.total() + wanted.total()))
    return best


def supported(answer: str, chunks: Sequence[str], question: str = "") -> bool:
    """Tell whether chunks support an answer: most of its words, and every number and code.

    A check of words, not of meaning: it finds made-up figures and names, not a wrong "not". It is
    K-Precision of Adlakha et al., "Evaluating Correctness and Faithfulness of Instruction-Following
    Models for Question Answering" (TACL 2024); words of the question are left out, as they claim
    nothing new, and each word counts once. Words are compared by their English stems, so that
    "takes" claims no more than "take".
    """
    stemmer = Stemmer.Stemmer("english")

    def stems(text: str) -> set[str]:
        return set(stemmer.stemWords(normalise(text).split()))

    claimed = stems(answer) - stems(question)
    held = claimed & set().union(*map(stems, chunks))
    figures = {word for word in claimed if any(letter.isdigit() for letter in word)}
    return figures <= held and len(held) >= SUPPORT * len(claimed)


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """One answer and what each metric says of it.

    Attributes:
        query: The question.
        answer: What was answered.
        exact: It is one of the references.
        f1: Its words against the best reference, 0 to 1.
        contains: It holds one of the references.
        right: It does, and holds none of the other questions' but what its own question names:
            "Giorgio and Mark live in Rome" is wrong where only Giorgio does.
        refuses: It says that it does not know.
        supported: The chunks support it; None for a refusal, or where none were given.
    """

    query: Query
    answer: str
    exact: bool
    f1: float
    contains: bool
    right: bool
    refuses: bool
    supported: bool | None

    @property
    def correct(self) -> bool:
        """The answer is right; or, where there is no reference, it refuses."""
        return self.right if self.query.answerable else self.refuses


@dataclass(frozen=True, slots=True)
class AnswerEvaluation:
    """The verdicts on all answers. Each score is an interval, or None where no answer counts."""

    rows: tuple[JudgedAnswer, ...]

    @property
    def exact(self) -> Interval | None:
        """Share of the answerable questions answered in the words of a reference."""
        return _mean(row.exact for row in self._answerable)

    @property
    def f1(self) -> Interval | None:
        """Mean F1 over the answerable questions."""
        return _mean(row.f1 for row in self._answerable)

    @property
    def contains(self) -> Interval | None:
        """Share of the answerable questions whose answer holds a reference."""
        return _mean(row.contains for row in self._answerable)

    @property
    def right(self) -> Interval | None:
        """Share of the answerable questions whose answer holds their own references alone."""
        return _mean(row.right for row in self._answerable)

    @property
    def refused(self) -> Interval | None:
        """Share of the unanswerable questions that were refused, as they should be."""
        return _mean(row.refuses for row in self.rows if not row.query.answerable)

    @property
    def refused_wrongly(self) -> Interval | None:
        """Share of the answerable questions that were refused without giving the reference."""
        return _mean(row.refuses and not row.contains for row in self._answerable)

    @property
    def supported(self) -> Interval | None:
        """Share of the answers given, right or wrong, that the retrieved chunks support."""
        return _mean(row.supported for row in self.rows if row.supported is not None)

    def of_kind(self, kind: str) -> AnswerEvaluation:
        """Return the verdicts on the questions of one kind."""
        return AnswerEvaluation(tuple(row for row in self.rows if row.query.kind == kind))

    @property
    def _answerable(self) -> list[JudgedAnswer]:
        return [row for row in self.rows if row.query.answerable]


def _mean(values: Iterable[float]) -> Interval | None:
    numbers = list(values)
    return bootstrap(numbers) if numbers else None


def evaluate_answers(
    queries: Sequence[Query],
    answers: Sequence[str],
    chunks: Sequence[Sequence[str]] | None = None,
) -> AnswerEvaluation:
    """Judge one answer to each question.

    Args:
        queries: The questions.
        answers: The answers, in the same order.
        chunks: The texts that were retrieved for each question, in the same order; without them
            nothing is said about support.

    Raises:
        DataError: There are not as many answers, or lists of chunks, as questions.
    """
    for what, given in (("answers", answers), ("lists of chunks", chunks)):
        if given is not None and len(given) != len(queries):
            raise DataError(
                f"There are {len(queries)} questions and {len(given)} {what}: give one to each "
                "question, in the same order."
            )
    known = {normalise(reference) for query in queries for reference in query.answers} - {""}
    texts: Sequence[Sequence[str] | None] = chunks or [None] * len(queries)
    return AnswerEvaluation(
        tuple(_judged(*row, known) for row in zip(queries, answers, texts, strict=True))
    )


def _judged(
    query: Query, answer: str, chunks: Sequence[str] | None, known: set[str]
) -> JudgedAnswer:
    """Judge one answer; `known` are the normalised references of all questions."""
    own = {normalise(reference) for reference in query.answers}
    asked, said = normalise(query.question), f" {normalise(answer)} "
    others = any(f" {form} " in said for form in known - own if form not in asked)
    refused, held = refuses(answer), contains(answer, query.answers)
    unsupported = refused or chunks is None or not answer.strip()  # it says nothing
    return JudgedAnswer(
        query,
        answer,
        exact=exact_match(answer, query.answers),
        f1=token_f1(answer, query.answers),
        contains=held,
        right=held and not others,
        refuses=refused,
        supported=None if unsupported else supported(answer, chunks or (), query.question),
    )
