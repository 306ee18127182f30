"""Reranking: by late interaction over an encoder's token vectors, or with a real cross-encoder.

Late interaction (MaxSim, the scoring of ColBERT, Khattab and Zaharia 2020): every token of the
query looks for the passage token most like it (cosine), and the passage's score is the mean of
those. [CLS] and [SEP] are left out on both sides. The encoder was trained for whole texts, not for
this, and it is a useful second opinion all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from local_endpoints.engines.encoder import POOL, FloatArray, Truncate
from local_endpoints.weights import ResolvedWeights
from nim_cookbook.errors import WeightsError

MAXSIM = frozenset({"onnx-maxsim", "onnx-bert"})
CROSS_ENCODER = "onnx-cross-encoder"

# logit = SLOPE * (score - CENTRE), which keeps the order and puts the logit on the scale that
# readers know: fitted by logistic regression on 35 small queries with one right passage of three
# to five. Its sigmoid is roughly the chance of such a passage being right, no more than that.
SLOPE = 7.0
CENTRE = 0.6


@dataclass(frozen=True, slots=True)
class RankingResult:
    """Scores of passages, and what they cost.

    Attributes:
        logits: One for each passage, in the order given; higher is more relevant.
        tokens: Tokens read in all, special tokens included, after truncation.
    """

    logits: list[float]
    tokens: int


class RerankingEngine:
    """Scores passages for a query; concurrent callers share batches.

    Args:
        weights: The model; its engine says how it scores.
        threads: Threads of ONNX Runtime; the machine's cores by default.

    Attributes:
        max_tokens: Most tokens of the query and of each passage (MaxSim), or of the two together
            (cross-encoder).

    Raises:
        WeightsError: The model cannot be loaded or is no reranking model.
    """

    def __init__(self, weights: ResolvedWeights, threads: int | None = None) -> None:
        if weights.engine not in MAXSIM and weights.engine != CROSS_ENCODER:
            raise WeightsError(
                f"{weights.description} is for the engine {weights.engine}, which does not rank: "
                "choose another --reranking-model."
            )
        self._cross = weights.engine == CROSS_ENCODER
        self._shared = POOL.acquire(
            weights.folder,
            threads,
            model=weights.files[0][0],
            output="score" if self._cross else "tokens",
        )
        self.max_tokens = min(weights.max_tokens, self._shared.encoder.max_tokens)

    async def rank(
        self,
        query: str,
        passages: Sequence[str],
        truncate: Truncate = "NONE",
        limit: int | None = None,
    ) -> RankingResult:
        """Return a logit for each passage, in the order given.

        Args:
            query: The query.
            passages: The passages.
            truncate: What to do with too many tokens: `NONE` refuses; `START` and `END` drop that
                side down to exactly the limit.
            limit: The most tokens; `max_tokens` by default and at most.

        Raises:
            InputTooLong: There are too many tokens and `truncate` is `NONE`.
            BatcherClosed: The engine is closed.
        """
        limit = min(limit or self.max_tokens, self.max_tokens)
        score = self._rank_pairs if self._cross else self._rank_maxsim
        return await score(query, passages, truncate, limit)

    async def close(self) -> None:
        """Close the engine; work that waits fails with `BatcherClosed`."""
        await POOL.release(self._shared)

    async def _rank_maxsim(
        self, query: str, passages: Sequence[str], truncate: Truncate, limit: int
    ) -> RankingResult:
        items = await self._shared.tokenize([query, *passages], truncate, limit)
        (asked,) = await self._shared.run(items[:1], _unit_rows)
        # Scored in the worker, batch by batch: passages' token vectors are never kept.
        logits = await self._shared.run(items[1:], partial(_maxsim_logit, asked))
        return RankingResult(logits, sum(len(item) for item in items))

    async def _rank_pairs(
        self, query: str, passages: Sequence[str], truncate: Truncate, limit: int
    ) -> RankingResult:
        items = await self._shared.tokenize_pairs(query, passages, truncate, limit)
        logits = await self._shared.run(items, _only_value)
        return RankingResult(logits, sum(len(item) for item in items))


def _unit_rows(tokens: FloatArray) -> FloatArray:
    """Return token vectors of length one, without the first and last, which are special.

    A text without any token of its own keeps the special ones, for want of others.
    """
    own = tokens[1:-1] if len(tokens) > 2 else tokens
    return np.asarray(own / np.linalg.norm(own, axis=1, keepdims=True), np.float32)


def _maxsim_logit(query: FloatArray, passage: FloatArray) -> float:
    score = float((query @ _unit_rows(passage).T).max(axis=1).mean())
    return SLOPE * (score - CENTRE)


def _only_value(output: FloatArray) -> float:
    return float(output[0])
