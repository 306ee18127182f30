"""Text embeddings: an encoder, and its [CLS] vector scaled to length one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from local_endpoints.nim.engines.encoder import Encoder, FloatArray, Truncate
from local_endpoints.weights import ResolvedWeights


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """Vectors and what they cost.

    Attributes:
        vectors: float32 of [texts, dimensions], each row of length one, in the order of the texts.
        tokens: Tokens read for each text, special tokens and prefix included, after truncation.
    """

    vectors: FloatArray
    tokens: list[int]


class EmbeddingEngine:
    """Embeds questions and chunks.

    The vector of a text is that of its [CLS] token, as the bge models are trained (Xiao et al.,
    "C-Pack", SIGIR 2024); a question gets the weights' instruction in front.

    Args:
        weights: The model.

    Attributes:
        dimensions: Width of the vectors.

    Raises:
        WeightsError: The model cannot be loaded.
    """

    def __init__(self, weights: ResolvedWeights) -> None:
        self._encoder = Encoder(weights)
        self._query_prefix = weights.query_prefix
        self.dimensions = weights.dimensions or 0

    async def embed(
        self, texts: Sequence[str], truncate: Truncate = "NONE", *, query: bool = False
    ) -> EmbeddingResult:
        """Return one vector a text.

        Args:
            texts: The texts.
            truncate: What to do with too long a text: `NONE` refuses; `START` and `END` drop that
                side down to exactly the limit.
            query: Whether the texts are questions.

        Raises:
            InputTooLong: A text is over the limit and `truncate` is `NONE`.
        """
        lead = self._query_prefix if query else ""
        ids = await self._encoder.tokenize(texts, truncate, lead)
        outputs = await self._encoder.run([(row, len(row)) for row in ids])
        vectors = [tokens[0] / np.linalg.norm(tokens[0]) for tokens in outputs]
        matrix = np.array(vectors, np.float32).reshape(len(vectors), self.dimensions)
        return EmbeddingResult(matrix, [len(row) for row in ids])

    async def close(self) -> None:
        """Close the engine."""
        await self._encoder.close()
