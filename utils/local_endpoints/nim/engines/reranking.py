"""Reranking with a cross-encoder, which reads the question and a chunk together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from local_endpoints.nim.engines.encoder import Encoder, Truncate
from local_endpoints.weights import ResolvedWeights


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
    """Scores passages for a query.

    Args:
        weights: The model.

    Raises:
        WeightsError: The model cannot be loaded.
    """

    def __init__(self, weights: ResolvedWeights) -> None:
        self._encoder = Encoder(weights)

    async def rank(
        self, query: str, passages: Sequence[str], truncate: Truncate = "NONE"
    ) -> RankingResult:
        """Return a logit for each passage, in the order given.

        A logit depends on its own pair only, so a threshold means the same in every request.

        Args:
            query: The query.
            passages: The passages.
            truncate: What to do with a pair of too many tokens: `NONE` refuses; `START` and `END`
                drop that side of the passage down to exactly the limit.

        Raises:
            InputTooLong: A pair is over the limit and `truncate` is `NONE`.
        """
        pairs = await self._encoder.tokenize_pairs(query, passages, truncate)
        outputs = await self._encoder.run(pairs)
        return RankingResult([float(o[0]) for o in outputs], sum(len(ids) for ids, _ in pairs))

    async def close(self) -> None:
        """Close the engine."""
        await self._encoder.close()
