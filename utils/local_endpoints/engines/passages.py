"""Token vectors of passages that were ranked before, so that they need not be computed again.

A recipe asks hundreds of questions about the same few hundred passages, and nearly all the time of
a ranking goes into the passages. Vectors are kept in half precision, and a passage that is new is
brought to half precision as well: what is remembered never changes a logit.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from local_endpoints.engines.encoder import FloatArray

HalfArray = npt.NDArray[np.float16]

#: Some 800 passages of 100 tokens and 384 numbers each.
CAPACITY = 64 * 2**20


def halved(vectors: FloatArray) -> HalfArray:
    """Return token vectors in half precision, as an array of their own."""
    return vectors.astype(np.float16)


class PassageVectors:
    """The vectors of the passages ranked last, within a number of bytes; threads may share it.

    Args:
        capacity: Most bytes kept.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._size = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, ...], HalfArray] = OrderedDict()

    def get(self, ids: tuple[int, ...]) -> HalfArray | None:
        """Return the vectors of a passage by the ids of its tokens, or None."""
        with self._lock:
            if ids in self._kept:
                self._kept.move_to_end(ids)
            return self._kept.get(ids)

    def keep(self, ids: tuple[int, ...], vectors: HalfArray) -> None:
        """Keep the vectors of a passage, and let go of those that were not asked for longest."""
        with self._lock:
            if ids in self._kept or vectors.nbytes > self._capacity:
                return
            self._kept[ids] = vectors
            self._size += vectors.nbytes
            while self._size > self._capacity:
                self._size -= self._kept.popitem(last=False)[1].nbytes
