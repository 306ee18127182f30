"""How much memory and disk vectors take, and what it costs to keep them in fewer bytes.

A server that keeps quantised vectors searches those and, if asked, scores the best of them again
with the full ones. The embedded Qdrant ignores quantisation, so the same steps are done here with
NumPy, exhaustively: what is lost is then lost by the encoding and not by an approximate graph.

The encodings follow Qdrant (https://qdrant.tech/documentation/guides/quantization/), whose scalar
quantisation has one range for all dimensions and 128 levels in a byte; a range for each dimension
can be asked for as well.

`memory` and `disk` follow how Qdrant's engine lays a finished segment out; `capacity.measured`
measures the same in that engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from nim_cookbook.errors import DataError

Encoding = Literal["float32", "float16", "int8", "binary"]
Vectors = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]

ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
#: Links of a node in Qdrant's graph (its default); the lowest layer has twice as many.
HNSW_M = 16
#: Qdrant's rule of thumb: half as much again for indexes, versions and temporary segments
#: (https://qdrant.tech/documentation/guides/capacity-planning/).
RULE_OF_THUMB = 1.5
#: Bytes that Qdrant keeps in memory to find a passage by its id and its id by its place: a UUID of
#: 16 bytes by place, the same UUID with a place of 4 bytes in order, and a version of 4 bytes
#: (https://github.com/qdrant/qdrant/tree/master/lib/segment/src/id_tracker/compressed). Haystack's
#: store names every passage by a UUID.
ID_BYTES = 16 + (16 + 4) + 4

# Qdrant fills quantised vectors up to 16 bytes; one of a byte a number then has a float32 of its
# score before it (`ALIGNMENT` and `ADDITIONAL_CONSTANT_SIZE` in `lib/quantization`).
_ALIGNED, _SCORE_CONSTANT = 16, 4
# On disk: an id is a kind, a place and a UUID, and has a version; a payload has a pointer and
# begins a block of 128 bytes (Qdrant's `id_tracker.mappings`, `.versions` and gridstore).
_ID_ON_DISK = (1 + 4 + 16) + 8
_PAYLOAD_POINTER, _PAYLOAD_BLOCK = 16, 128
_LEVELS = 127  # the highest code: Qdrant's int8 uses seven bits
_BLOCK = 2_000_000  # scores or bytes held at once


def bytes_per_vector(dimensions: int, encoding: Encoding = "float32") -> int:
    """Return the bytes of one vector's numbers, without index, id and text.

    Args:
        dimensions: How many numbers the vector has.
        encoding: `float32`, `float16`, `int8` (a byte a number) or `binary` (a bit a number).

    Raises:
        DataError: The encoding is unknown, or there is not at least one dimension.
    """
    _known(encoding)
    if dimensions < 1:
        raise DataError(f"A vector of {dimensions} numbers is impossible: give 1 or more.")
    if encoding == "binary":
        return -(-dimensions // 8)  # the last byte may be half empty
    return dimensions * {"float32": 4, "float16": 2, "int8": 1}[encoding]


def graph_bytes(passages: int, m: int = HNSW_M) -> int:
    """Return the most bytes that one vector's links take in Qdrant's HNSW graph.

    The lowest layer, which holds every vector, has up to `2 * m` links (Malkov and Yashunin,
    "Efficient and Robust Approximate Nearest Neighbor Search Using Hierarchical Navigable Small
    World Graphs", TPAMI 2020, section 4.2.3). Qdrant packs a link into as many bits as the largest
    place needs, eight at least (`pack_links` in its `bitpacking_links.rs`), or fewer where sorted
    links lie close; the layers above hold few and fit into what that saves. Vectors in tight
    clusters were seen to get half as many links.

    Args:
        passages: How many vectors the graph holds.
        m: Links of a node in the other layers.

    Raises:
        DataError: There is less than one vector, or less than one link.
    """
    if passages < 1 or m < 1:
        raise DataError(f"A graph of {passages} vectors with m={m} is impossible: give 1 or more.")
    return -(-2 * m * max(8, (passages - 1).bit_length()) // 8)


def memory(passages: int, dimensions: int, encoding: Encoding = "float32") -> int:
    """Return the bytes that one copy of the vectors, their graph and their ids takes in memory.

    What Qdrant needs in memory for a search: the vectors in the given encoding (with `int8` and
    `binary` the full ones stay on disk), the links and the ids. Texts are not counted: its server
    keeps them on disk unless told otherwise (`on_disk_payload: true` in its `config.yaml`).

    Args:
        passages: How many vectors.
        dimensions: How many numbers each has.
        encoding: How they are kept; see `bytes_per_vector`.

    Raises:
        DataError: As for `bytes_per_vector` and `graph_bytes`.
    """
    vector = _stored_bytes(dimensions, encoding)
    return passages * (vector + graph_bytes(passages) + ID_BYTES)


def most_passages(limit: float, dimensions: int, encoding: Encoding = "float32") -> int:
    """Return how many passages' vectors fit into that many bytes of memory; see `memory`.

    Raises:
        DataError: As for `bytes_per_vector`.
    """
    fewer, more = 0, 1 + int(limit) // bytes_per_vector(dimensions, encoding)
    while more - fewer > 1:  # `memory` grows with every passage
        middle = (fewer + more) // 2
        if memory(middle, dimensions, encoding) <= limit:
            fewer = middle
        else:
            more = middle
    return fewer


def disk(passages: int, dimensions: int, encoding: Encoding, text_bytes: int) -> int:
    """Return the bytes that one copy takes on disk, texts included.

    The full vectors (with `float16` they are the short ones), the quantised ones, the graph, the
    ids, and each passage's payload. Qdrant compresses payloads, so this is rather too much.

    Args:
        passages: How many.
        dimensions: How many numbers each vector has.
        encoding: See `bytes_per_vector`.
        text_bytes: UTF-8 bytes of a passage's text and meta data.

    Raises:
        DataError: As for `memory`, or the text has less than no bytes.
    """
    if text_bytes < 0:
        raise DataError(f"A text of {text_bytes} bytes is impossible: give 0 or more.")
    vector = bytes_per_vector(dimensions, "float16" if encoding == "float16" else "float32")
    if encoding in ("int8", "binary"):
        vector += _stored_bytes(dimensions, encoding)
    payload = _PAYLOAD_POINTER + -(-text_bytes // _PAYLOAD_BLOCK) * _PAYLOAD_BLOCK
    return passages * (vector + graph_bytes(passages) + _ID_ON_DISK + payload)


@dataclass(frozen=True, slots=True)
class Quantised:
    """Vectors in one of the encodings.

    Attributes:
        encoding: How they are kept.
        codes: What is kept, one row a vector; shape (n, dimensions), or for `binary` (n, bytes).
        low: Value of the lowest code of `int8`, for all dimensions or for each.
        high: Value of its highest code.
    """

    encoding: Encoding
    codes: npt.NDArray[Any]
    low: Vectors
    high: Vectors

    @property
    def bytes_per_vector(self) -> int:
        """The bytes that one vector takes, counted in the array itself."""
        return self.codes.nbytes // len(self.codes)

    def scores(self, queries: Vectors) -> Vectors:
        """Return how close each vector is to each query, shape (queries, n); more is closer.

        Queries of `float16` and `int8` stay as they are (Qdrant rounds those of `int8` as well),
        those of `binary` become bits, and the score counts the bits that agree.
        """
        if self.encoding == "binary":
            return -_hamming(np.packbits(queries > 0, axis=1), self.codes)
        decoded: Vectors = self.codes.astype(np.float32)
        if self.encoding == "int8":
            decoded = decoded * ((self.high - self.low) / np.float32(_LEVELS)) + self.low
        scores: Vectors = queries @ decoded.T
        return scores


def quantise(
    vectors: Vectors,
    encoding: Encoding,
    *,
    quantile: float = 0.99,
    per_dimension: bool = False,
) -> Quantised:
    """Encode vectors.

    Args:
        vectors: Shape (n, dimensions); of length 1 if their scores are to be cosines.
        encoding: See `bytes_per_vector`.
        quantile: The share of all values inside the range that `int8` divides into levels; those
            outside are cut to its ends. 1 takes the range from the smallest to the largest.
        per_dimension: Whether every dimension has a range of its own.

    Raises:
        DataError: There are no vectors, the quantile is not above 0 and at most 1, or the encoding
            is unknown.
    """
    _known(encoding)
    if vectors.ndim != 2 or not vectors.size:
        raise DataError("There are no vectors to encode: give an array of shape (n, dimensions).")
    if not 0 < quantile <= 1:
        raise DataError(f"The quantile is {quantile}: give a share above 0 and at most 1.")
    low, high = np.zeros(1, np.float32), np.ones(1, np.float32)
    if encoding == "binary":
        codes: npt.NDArray[Any] = np.packbits(vectors > 0, axis=1)
    elif encoding == "int8":
        ends = [(1 - quantile) / 2, (1 + quantile) / 2]
        low, high = np.quantile(vectors, ends, axis=0 if per_dimension else None).astype(np.float32)
        width = np.where(high > low, high - low, 1)  # a dimension in which nothing varies
        codes = np.rint(np.clip((vectors - low) / width, 0, 1) * _LEVELS).astype(np.int8)
    else:
        codes = vectors.astype(encoding)
    return Quantised(encoding, codes, np.atleast_1d(low), np.atleast_1d(high))


def search(
    queries: Vectors,
    kept: Quantised,
    k: int = 10,
    *,
    full: Vectors | None = None,
    oversampling: float = 1,
) -> Places:
    """Return the places of the k vectors closest to each query, best first; shape (queries, k).

    Every vector is looked at. With `full`, the best `oversampling * k` by their codes are scored
    again by the full vectors, as Qdrant does with `rescore`. Of equal scores the earlier vector
    comes first.

    Args:
        queries: Shape (queries, dimensions).
        kept: The encoded vectors.
        k: How many to return, or as many as there are.
        full: The vectors before encoding, in the same order.
        oversampling: How many times k to take for the second scoring; 1 or more.

    Raises:
        DataError: k or the oversampling is below 1.
    """
    if k < 1 or oversampling < 1:
        raise DataError(f"k is {k} and oversampling {oversampling}: both must be 1 or more.")
    if full is None:
        return _best(kept.scores(queries), k)
    candidates = _best(kept.scores(queries), round(k * oversampling))
    candidates.sort(axis=1)  # so that equal scores keep the order of the vectors
    again = np.stack(
        [full[places] @ query for places, query in zip(candidates, queries, strict=True)]
    )
    return np.take_along_axis(candidates, _best(again, k), axis=1)


def recall(found: Places, wanted: Places) -> float:
    """Return the share of the wanted places that were found, as the mean over the queries.

    Args:
        found: Shape (queries, any).
        wanted: What the exact search returns, shape (queries, k).

    Raises:
        DataError: The two are about different numbers of queries, or about none.
    """
    if len(found) != len(wanted) or not wanted.size:
        raise DataError("Recall needs what was found and what was wanted for the same queries.")
    pairs = zip(found, wanted, strict=True)
    return float(np.mean([np.isin(right, left).mean() for left, right in pairs]))


def compare(
    vectors: Vectors, queries: Vectors, *, k: int = 10, oversampling: Sequence[float] = (1, 2, 4)
) -> list[dict[str, object]]:
    """Return what each encoding saves and what it costs, a row each.

    A row has the encoding, its bytes a vector, how many times fewer these are than with `float32`,
    the recall@k of its search against the exact one, and the same with the best `oversampling * k`
    scored again by the full vectors. (With an oversampling of 1 scoring again cannot change which k
    are found, so that column is the search by the codes alone.)

    Args:
        vectors: Shape (n, dimensions), float32, of length 1.
        queries: Shape (queries, dimensions), likewise.
        k: How many are looked for.
        oversampling: The factors to try.
    """
    exact = search(queries, quantise(vectors, "float32"), k)
    variants: list[tuple[str, Quantised]] = [
        ("float32", quantise(vectors, "float32")),
        ("float16", quantise(vectors, "float16")),
        ("int8, one range", quantise(vectors, "int8")),
        ("int8, a range a dimension", quantise(vectors, "int8", per_dimension=True)),
        ("binary", quantise(vectors, "binary")),
    ]
    rows: list[dict[str, object]] = []
    for name, kept in variants:
        row: dict[str, object] = {
            "encoding": name,
            "bytes a vector": kept.bytes_per_vector,
            "times smaller": vectors[0].nbytes // kept.bytes_per_vector,
        }
        for factor in oversampling:
            title = f"recall@{k}" if factor == 1 else f"rescored, {factor:g} x {k}"
            found = search(queries, kept, k, full=vectors, oversampling=factor)
            row[title] = f"{recall(found, exact):.3f}"
        rows.append(row)
    return rows


def _stored_bytes(dimensions: int, encoding: Encoding) -> int:
    """Return the bytes of one vector as Qdrant keeps it for searching."""
    plain = bytes_per_vector(dimensions, encoding)
    if encoding in ("float32", "float16"):
        return plain
    filled = -(-plain // _ALIGNED) * _ALIGNED
    return filled + (_SCORE_CONSTANT if encoding == "int8" else 0)


def _best(scores: npt.NDArray[Any], k: int) -> Places:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _hamming(queries: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8]) -> Vectors:
    """Return how many bits differ, shape (queries, n)."""
    block = max(1, _BLOCK // codes.size)
    parts = [
        np.bitwise_count(queries[start : start + block, None] ^ codes).sum(axis=2, dtype=np.float32)
        for start in range(0, len(queries), block)
    ]
    return np.concatenate(parts)


def _known(encoding: str) -> None:
    if encoding not in ENCODINGS:
        raise DataError(
            f"There is no encoding {encoding!r}: use one of {', '.join(ENCODINGS[:-1])} or "
            f"{ENCODINGS[-1]}."
        )
