"""How well a passage answers a query, from an encoder's token vectors: four features, one logit.

The encoder was trained for whole texts, not for ranking, so no single reading of its vectors ranks
well everywhere. MaxSim (ColBERT's late interaction, Khattab and Zaharia 2020) finds answers to
questions and loses on topics, where it likes long passages; the pooled vectors do the reverse. In
a weighted sum each makes up for the other: reordering the first twenty of a fusion of BM25 and
dense search, its mean nDCG@10 was below the fusion's on none of the ten collections it was tried
on, though on half of them the gain was no larger than chance.

    logit = MAXSIM * sum_t w_t max_p cos(t, p)      query tokens t, passage tokens p
          + WINDOW * max_s cos(mean(query), mean(s))    runs s of 24 passage tokens
          + WHOLE  * cos(mean(query), mean(passage))
          + LENGTH * log(max(n, 16) / 128)          n passage tokens
          + BIAS

w_t sums to 1 and grows with a token's rarity (`rarity`). LENGTH makes up for the maxima of the
first two, which grow with the number of tokens they are taken over. Nothing depends on the other
passages or on their order, so a logit compares across requests, which a threshold needs.

The weights come from `benchmarks/fit_reranker.py`: listwise logistic regression on the company's
train questions and seven collections of other kinds (FAQ, manual pages, docstrings, abstracts,
news, web pages), each counting the same, LENGTH being the value whose worst collection does best
when it is left out of the fit; then scaled and shifted by logistic regression on the first twenty
passages of BM25 and dense search. So the sigmoid is roughly the chance that a passage found by
such a search is relevant. Most are not, and most logits are below zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from local_endpoints.engines.encoder import FloatArray

MAXSIM = 5.0
WINDOW = 3.9
WHOLE = 0.7
LENGTH = -0.37
BIAS = -7.4

WINDOW_STEP = 8
WINDOW_TOKENS = 3 * WINDOW_STEP  # about a sentence
SHORTEST = 16  # below this a passage gains nothing by being shorter
USUAL = 128  # tokens of a passage for which LENGTH adds nothing
# One text in two batches differs in about the sixth decimal; equal texts must have equal logits.
DECIMALS = 4

_MOST_FREQUENT = ("the", "▁the", "Ġthe")


@dataclass(frozen=True, slots=True)
class Asked:
    """A query, ready to be compared.

    Attributes:
        tokens: Its own tokens' vectors, of length one: [tokens, width].
        weights: How much each counts, summing to 1: [tokens].
        whole: The mean of all its vectors, of length one: [width].
    """

    tokens: FloatArray
    weights: FloatArray
    whole: FloatArray


def rarity(vocabulary: Sequence[str]) -> FloatArray:
    """Return how much each token of a vocabulary says, 0 to 1, shape (tokens,).

    Vocabularies of WordPiece and SentencePiece are sorted by frequency in the training text, and by
    Zipf's law the frequency of the r-th word goes with 1/r. So log(r) stands in for the inverse
    document frequency, without any documents. Special tokens and punctuation say nothing; single
    letters and digits, which BERT lists before the words, count one half. Where the vocabulary
    shows no such order ("the" is missing), all tokens with a letter or digit count the same.

    Args:
        vocabulary: The tokens by their ids.
    """
    first = next((vocabulary.index(word) for word in _MOST_FREQUENT if word in vocabulary), None)
    values = np.full(len(vocabulary), 0.5 if first is not None else 1.0)
    if first is not None:
        ranks = np.arange(1, len(vocabulary) - first + 1)
        values[first:] = np.log(ranks) / np.log(len(vocabulary) - first + 1)
    for index, token in enumerate(vocabulary):
        special = len(token) > 2 and (token[0] + token[-1]) in ("[]", "<>")
        if special or not any(letter.isalnum() for letter in token):
            values[index] = 0.0
    return values.astype(np.float32)


def asked(vectors: FloatArray, ids: Sequence[int], rarities: FloatArray) -> Asked:
    """Return a query ready to be compared.

    Args:
        vectors: The encoder's output for the query, special tokens first and last: [tokens, width].
        ids: The ids of those tokens.
        rarities: See `rarity`.
    """
    own = _own(vectors)
    weights = rarities[np.asarray(ids[1:-1] if len(ids) > 2 else ids, np.int64)]
    total = float(weights.sum())
    if total <= 0:  # nothing but stop words, marks, or tokens the model does not know
        weights, total = np.ones(len(own), np.float32), float(len(own))
    return Asked(_unit(own), weights / np.float32(total), _unit(vectors.mean(axis=0)))


def features(query: Asked, passage: FloatArray) -> FloatArray:
    """Return the four features of a passage, shape (4,): see the formula above.

    Args:
        query: The query.
        passage: The encoder's output for the passage, special tokens first and last:
            [tokens, width].
    """
    own = _own(passage)
    # Scaled after the product, which has far fewer numbers than the vectors.
    closest = (own @ query.tokens.T / _lengths(own)).max(axis=0)
    return np.array(
        [
            query.weights @ closest,
            (_windows(own) @ query.whole).max(),
            query.whole @ _unit(passage.mean(axis=0)),
            np.log(max(len(own), SHORTEST) / USUAL),
        ],
        np.float32,
    )


def logit(query: Asked, passage: FloatArray) -> float:
    """Return the logit of a passage (see `features`), rounded so that equal texts are equal."""
    weights = np.array([MAXSIM, WINDOW, WHOLE, LENGTH], np.float32)
    return round(float(features(query, passage) @ weights) + BIAS, DECIMALS)


def _own(vectors: FloatArray) -> FloatArray:
    """Leave out the special tokens; a text with no token of its own keeps them, for want of any."""
    return vectors[1:-1] if len(vectors) > 2 else vectors


def _unit(vectors: FloatArray) -> FloatArray:
    return np.asarray(vectors / _lengths(vectors), np.float32)


def _lengths(vectors: FloatArray) -> FloatArray:
    squares = np.einsum("...i,...i->...", vectors, vectors)
    return np.asarray(np.sqrt(np.maximum(squares, 1e-24))[..., np.newaxis], np.float32)


def _windows(tokens: FloatArray) -> FloatArray:
    """Return the direction of each run of tokens, the last one flush with the end."""
    last = tokens[-WINDOW_TOKENS:].sum(axis=0, keepdims=True)
    count = len(tokens) // WINDOW_STEP
    whole = tokens[: count * WINDOW_STEP].reshape(count, WINDOW_STEP, tokens.shape[1])
    steps = whole.sum(axis=1)  # of which each run takes three: a tenth of the time of `cumsum`
    runs = steps[:-2] + steps[1:-1] + steps[2:]
    return _unit(np.concatenate([runs, last]))
