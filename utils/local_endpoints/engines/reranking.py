"""Reranking: from an encoder's token vectors (see `relevance`), or with a real cross-encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from local_endpoints.engines import relevance
from local_endpoints.engines.encoder import POOL, FloatArray, Tokens, Truncate
from local_endpoints.engines.passages import HalfArray, PassageVectors, halved
from local_endpoints.weights import ResolvedWeights
from nim_cookbook.errors import WeightsError

TOKEN_VECTORS = frozenset({"onnx-maxsim", "onnx-bert"})
CROSS_ENCODER = "onnx-cross-encoder"


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
        max_tokens: Most tokens of the query and of each passage (token vectors), or of the two
            together (cross-encoder).

    Raises:
        WeightsError: The model cannot be loaded or is no reranking model.
    """

    def __init__(self, weights: ResolvedWeights, threads: int | None = None) -> None:
        if weights.engine not in TOKEN_VECTORS and weights.engine != CROSS_ENCODER:
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
        encoder = self._shared.encoder
        self.max_tokens = min(weights.max_tokens, encoder.max_tokens)
        if not self._cross:
            self._rarity = relevance.rarity(encoder.vocabulary())
            self._passages = PassageVectors()

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
        score = self._rank_pairs if self._cross else self._rank_texts
        return await score(query, passages, truncate, limit)

    async def close(self) -> None:
        """Close the engine; work that waits fails with `BatcherClosed`."""
        await POOL.release(self._shared)

    async def _rank_texts(
        self, query: str, passages: Sequence[str], truncate: Truncate, limit: int
    ) -> RankingResult:
        items = await self._shared.tokenize([query, *passages], truncate, limit)
        finish = partial(relevance.asked, ids=items[0].ids, rarities=self._rarity)
        (query_vectors,) = await self._shared.run(items[:1], finish)
        vectors = await self._passage_vectors(items[1:])
        logits = await asyncio.to_thread(_logits, query_vectors, vectors)
        return RankingResult(logits, sum(len(item) for item in items))

    async def _passage_vectors(self, items: Sequence[Tokens]) -> list[HalfArray]:
        """Return the passages' token vectors, computed where they are not remembered."""
        keys = [tuple(item.ids) for item in items]
        found: dict[tuple[int, ...], HalfArray] = {}
        new: dict[tuple[int, ...], Tokens] = {}
        for key, item in zip(keys, items, strict=True):
            remembered = self._passages.get(key)
            if remembered is None:
                new[key] = item
            else:
                found[key] = remembered
        computed = await self._shared.run(list(new.values()), halved)
        for key, vectors in zip(new, computed, strict=True):
            found[key] = vectors
            self._passages.keep(key, vectors)
        return [found[key] for key in keys]

    async def _rank_pairs(
        self, query: str, passages: Sequence[str], truncate: Truncate, limit: int
    ) -> RankingResult:
        items = await self._shared.tokenize_pairs(query, passages, truncate, limit)
        logits = await self._shared.run(items, _only_value)
        return RankingResult(logits, sum(len(item) for item in items))


def _logits(query: relevance.Asked, passages: Sequence[HalfArray]) -> list[float]:
    return [relevance.logit(query, vectors.astype(np.float32)) for vectors in passages]


def _only_value(output: FloatArray) -> float:
    return float(output[0])
