"""Fits the weights of the local reranking model (`local_endpoints.engines.relevance`).

    python benchmarks/fit_reranker.py BEIR_FOLDER [BEIR_FOLDER ...] [--questions 400]

On the company's train questions and the collections given, each counting the same, and only on the
first twenty passages of the fused search that a reranker gets to see. Three steps:

1. The three similarities' weights, none below zero, by listwise logistic regression (the softmax
   over a question's passages, cross-entropy with the relevant ones), for several weights of the
   length. Each is judged with every collection left out of the fit in turn, by what reranking then
   adds to that collection's nDCG@10; the one whose worst collection does best is taken.
2. One factor and one bias by ordinary logistic regression over all passages, which change no order
   and put the sum on the scale of a chance.
3. The constants are printed, to be copied by hand, with the differences of step 1.

The company's dev and test questions are not looked at: `benchmarks/reranking.py` is for those.
Token vectors are held in memory, some 0.2 MB a passage.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from reranking import counter, dense_search, fuse, keyword_search, passages
from scipy.optimize import minimize  # type: ignore[import-untyped]

from local_endpoints.engines import relevance
from local_endpoints.engines.encoder import TOKEN_BUDGET, Encoder, FloatArray, Tokens
from local_endpoints.weights import resolve
from nim_cookbook import corpus
from nim_cookbook.errors import CookbookError
from nim_cookbook.evaluation import Passage
from nim_cookbook.models import load_registry

DEPTH = 20
LENGTHS = (-0.3, -0.45, -0.6, -0.75, -0.9)
RIDGE = 1e-5

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a collection gives to the fit.

    Attributes:
        name: Its name.
        questions: Its n judged questions.
        features: For each question, its first passages in fused order: [passages, 4].
        held: For each question and passage, the places of the evidence that it holds.
    """

    name: str
    questions: list[corpus.Query]
    features: list[Array]
    held: list[list[list[int]]]

    @property
    def wanted(self) -> list[Array]:
        """For each question, 1 for relevant passages and 0 for others: [passages]."""
        return [np.array([bool(places) for places in row], np.float64) for row in self.held]

    def gain(self, weights: Array) -> float:
        """Return what reranking by these weights adds to the nDCG@10 of the fused order."""
        gains = []
        for query, rows, held in zip(self.questions, self.features, self.held, strict=True):
            ranked = [held[i] for i in np.argsort(-(rows @ weights), kind="stable")]
            gains.append(ndcg(query, ranked) - ndcg(query, held))
        return float(np.mean(gains))


def ndcg(query: corpus.Query, held: Sequence[Sequence[int]]) -> float:
    """Return nDCG@10 as `nim_cookbook.evaluation.score_retrieval` defines it.

    That one compares the words of passages and quotes anew each time, and here the same passages
    are ranked again and again.
    """
    grades = [entry.grade for entry in query.evidence]
    gains: list[int] = []
    missing = set(range(len(grades)))
    for places in held:
        new = missing.intersection(places)
        gains += [grades[n] for n in sorted(new)] or [0]
        missing -= new
    return _dcg(gains) / _dcg(sorted(grades, reverse=True))


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains[:10]))


class Vectors:
    """The encoder, and what it makes of texts."""

    def __init__(self) -> None:
        weights = resolve(load_registry().weights_for("reranking"), report=print)
        self.encoder = Encoder(weights.folder, model=weights.files[0][0])
        self.rarity = relevance.rarity(self.encoder.vocabulary())

    def __call__(self, texts: Sequence[str], what: str) -> tuple[list[Tokens], list[FloatArray]]:
        """Return tokens, and their vectors as float16."""
        items = self.encoder.tokenize(texts, "END")
        vectors: dict[int, FloatArray] = {}
        order = sorted(range(len(items)), key=lambda index: -len(items[index]))
        while order:
            count = max(1, TOKEN_BUDGET // len(items[order[0]]))
            batch, order = order[:count], order[count:]
            outputs = self.encoder.run([items[index] for index in batch])
            vectors |= {
                index: output.astype(np.float16)
                for index, output in zip(batch, outputs, strict=True)
            }
            counter(what, len(vectors), len(items))
        return items, [vectors[index] for index in range(len(items))]


def candidates(
    name: str, found: list[Passage], queries: Sequence[corpus.Query], vectors: Vectors
) -> Candidates:
    """Search a collection and return its passages' features and judgements."""
    questions = [query for query in queries if query.evidence]
    texts, asked = [passage.text for passage in found], [query.question for query in questions]
    _, of_texts = vectors(texts, f"{name}: passage")
    items, of_questions = vectors(asked, f"{name}: question")
    dense = dense_search(_pooled(of_texts), _pooled(of_questions))
    pairs = zip(keyword_search(texts, asked), dense, strict=True)
    orders = [fuse(*pair)[:DEPTH] for pair in pairs]
    features, held = [], []
    for query, item, vector, order in zip(questions, items, of_questions, orders, strict=True):
        ready = relevance.asked(vector.astype(np.float32), item.ids, vectors.rarity)
        rows = [relevance.features(ready, of_texts[i].astype(np.float32)) for i in order]
        features.append(np.array(rows, np.float64))
        evidence = list(enumerate(query.evidence))
        held.append(
            [
                [n for n, e in evidence if corpus.relevant(found[i].text, e, found[i].document)]
                for i in order
            ]
        )
    return Candidates(name, questions, features, held)


def listwise(groups: Sequence[Candidates], length: float) -> Array:
    """Return the four weights, the last of them given; see step 1."""
    lists = [
        [
            (rows[:, :3], rows[:, 3] * length, held / held.sum())
            for rows, held in zip(group.features, group.wanted, strict=True)
            if 0 < held.sum() < len(held)
        ]
        for group in groups
    ]

    def loss(weights: Array) -> tuple[float, Array]:
        total, slope = RIDGE * float(weights @ weights), 2 * RIDGE * weights
        for one in lists:
            for rows, offset, target in one:
                scores = rows @ weights + offset
                scores -= scores.max()
                log_share = scores - np.log(np.exp(scores).sum())
                total -= float(target @ log_share) / len(one)
                slope = slope + (np.exp(log_share) - target) @ rows / len(one)
        return total, slope

    fitted = minimize(loss, np.full(3, 5.0), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 3)
    return np.append(fitted.x, length)


def scale(groups: Sequence[Candidates], weights: Array) -> tuple[float, float]:
    """Return factor and bias; see step 2."""
    parts = [
        (np.concatenate(group.features) @ weights, np.concatenate(group.wanted)) for group in groups
    ]

    def loss(line: Array) -> float:
        total = 0.0
        for sums, held in parts:
            logits = line[0] * sums + line[1]
            total += float(np.mean(np.logaddexp(0, logits) - held * logits))
        return total

    factor, bias = minimize(loss, np.array([1.0, -8.0])).x
    return float(factor), float(bias)


def fit(groups: Sequence[Candidates]) -> None:
    """Run the three steps and print what comes out."""
    print("LENGTH   gain in nDCG@10 of each collection when it is left out of the fit")
    print("        " + " ".join(f"{group.name[-12:]:>12}" for group in groups), flush=True)
    worst: dict[float, float] = {}
    for length in LENGTHS:
        gains = [
            group.gain(listwise([g for g in groups if g is not group], length)) for group in groups
        ]
        worst[length] = min(gains)
        print(f"{length:+.2f}   " + " ".join(f"{gain:+12.3f}" for gain in gains), flush=True)
    weights = listwise(groups, max(worst, key=lambda length: worst[length]))
    factor, bias = scale(groups, weights)
    names = ("MAXSIM", "WINDOW", "WHOLE", "LENGTH")
    for name, value in zip(names, weights * factor, strict=True):
        print(f"{name} = {value:.2f}")
    print(f"BIAS = {bias:.2f}")


def _pooled(vectors: Sequence[FloatArray]) -> FloatArray:
    means = np.array([rows.astype(np.float32).mean(axis=0) for rows in vectors], np.float32)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def main() -> int:
    """Read the collections, search them and fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="BEIR_FOLDER")
    parser.add_argument("--questions", type=int, default=400, help="most questions of each folder")
    options = parser.parse_args()
    try:
        company = corpus.load_company()
        vectors = Vectors()
        train = company.split("train")
        groups = [candidates("company", passages(company, split=True), train, vectors)]
        for folder in options.folders:
            given = corpus.load_beir(folder)
            name, found = Path(folder).resolve().name, passages(given, split=False)
            unique = list({query.id: query for query in given.queries}.values())
            groups.append(candidates(name, found, unique[: options.questions], vectors))
        fit(groups)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except CookbookError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
