"""Text embeddings: an encoder, pooled to one vector a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from local_endpoints.engines import onnx_files
from local_endpoints.engines.encoder import POOL, FloatArray, Truncate
from local_endpoints.weights import ResolvedWeights
from nim_cookbook.errors import WeightsError

ENGINES = frozenset({"onnx-bert", "onnx"})


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """Vectors and what they cost.

    Attributes:
        vectors: float32 of [texts, dimensions], each row of length one, in the order of the texts.
        tokens: Tokens read for each text, special tokens included, after truncation.
    """

    vectors: FloatArray
    tokens: list[int]


class EmbeddingEngine:
    """Embeds texts; concurrent callers share batches.

    Token vectors are averaged, as sentence-transformers does for these weights (a user's model may
    ask for its [CLS] vector in `1_Pooling/config.json`, or bring its own pooling), and scaled to
    length one.

    Args:
        weights: The model.
        threads: Threads of ONNX Runtime; the machine's cores by default.

    Attributes:
        dimensions: Width of the vectors.
        max_tokens: Longest input in tokens, special tokens included.

    Raises:
        WeightsError: The model cannot be loaded or is no embedding model.
    """

    def __init__(self, weights: ResolvedWeights, threads: int | None = None) -> None:
        if weights.engine not in ENGINES:
            raise WeightsError(
                f"{weights.description} is for the engine {weights.engine}, which does not embed: "
                "choose another --embedding-model."
            )
        pooling = onnx_files.pooling(weights.folder)
        self._shared = POOL.acquire(
            weights.folder, threads, model=weights.files[0][0], output="sentence"
        )
        encoder = self._shared.encoder
        self._finish = _as_is if encoder.output == "sentence" else _POOLING[pooling]
        self.dimensions = encoder.width
        self.max_tokens = min(weights.max_tokens, encoder.max_tokens)

    async def embed(
        self, texts: Sequence[str], truncate: Truncate = "NONE", limit: int | None = None
    ) -> EmbeddingResult:
        """Return one vector a text.

        Args:
            texts: The texts.
            truncate: What to do with too long a text: `NONE` refuses; `START` and `END` drop that
                side down to exactly the limit.
            limit: The most tokens; `max_tokens` by default and at most.

        Raises:
            InputTooLong: A text is over the limit and `truncate` is `NONE`.
            BatcherClosed: The engine is closed.
        """
        limit = min(limit or self.max_tokens, self.max_tokens)
        tokens = await self._shared.tokenize(texts, truncate, limit)
        vectors = await self._shared.run(tokens, self._finish)
        matrix = np.array(vectors, np.float32).reshape(len(vectors), self.dimensions)
        return EmbeddingResult(matrix, [len(item) for item in tokens])

    async def close(self) -> None:
        """Close the engine; work that waits fails with `BatcherClosed`."""
        await POOL.release(self._shared)


def _normalised(vector: FloatArray) -> FloatArray:
    # A zero vector stays one: no real model makes it, and dividing would make it NaN.
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)


def _mean(tokens: FloatArray) -> FloatArray:
    return _normalised(np.asarray(tokens.mean(axis=0), np.float32))


def _first(tokens: FloatArray) -> FloatArray:
    return _normalised(tokens[0])


def _as_is(vector: FloatArray) -> FloatArray:
    return _normalised(vector)


_POOLING = {"mean": _mean, "cls": _first}
