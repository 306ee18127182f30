"""A document embedder for tests of bookkeeping: vectors from a hash, and a record of its work.

Whether vectors are good is tested with the real endpoint; here it matters what is embedded when.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from haystack import Document

DIMENSIONS = 16


class HashEmbedder:
    """Gives equal texts equal vectors, and remembers the texts."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.texts: list[str] = []
        self._fail_after = fail_after

    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        for document in documents:
            if self._fail_after is not None and len(self.texts) >= self._fail_after:
                raise RuntimeError("the endpoint went away")
            self.texts.append(document.content or "")
        return {"documents": [replace(d, embedding=vector(d.content or "")) for d in documents]}


def vector(text: str) -> list[float]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return [float(x) for x in np.random.default_rng(seed).normal(size=DIMENSIONS)]
