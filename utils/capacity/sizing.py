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
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from nim_cookbook.errors import DataError

Encoding = Literal["float32", "float16", "int8", "binary"]
Vectors = npt.NDArray[np.float32]

ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
#: Links of a node in Qdrant's graph (its default); the lowest layer has twice as many.
HNSW_M = 16
#: Qdrant's rule of thumb: half as much again for indexes, versions and temporary segments
#: (https://qdrant.tech/documentation/guides/capacity-planning/).
RULE_OF_THUMB = 1.5
#: Bytes that Qdrant keeps in memory to find a chunk by its id and its id by its place: a UUID of
#: 16 bytes by place, the same UUID with a place of 4 bytes in order, and a version of 4 bytes
#: (https://github.com/qdrant/qdrant/tree/master/lib/segment/src/id_tracker/compressed). Haystack's
#: store names every chunk by a UUID.
ID_BYTES = 16 + (16 + 4) + 4

# Qdrant fills quantised vectors up to 16 bytes; one of a byte a number then has a float32 of its
# score before it (`ALIGNMENT` and `ADDITIONAL_CONSTANT_SIZE` in `lib/quantization`).
_ALIGNED, _SCORE_CONSTANT = 16, 4
# On disk: an id is a kind, a place and a UUID, and has a version; a payload has a pointer and
# begins a block of 128 bytes (Qdrant's `id_tracker.mappings`, `.versions` and gridstore).
_ID_ON_DISK = (1 + 4 + 16) + 8
_PAYLOAD_POINTER, _PAYLOAD_BLOCK = 16, 128
_LEVELS = 127  # the highest code: Qdrant's int8 uses seven bits


def bytes_per_vector(dimensions: int, encoding: Encoding = "float32") -> int:
    """Return the bytes of one vector's numbers, without index, id and text.

    Args:
        dimensions: How many numbers the vector has.
        encoding: `float32`, `float16`, `int8` (a byte a number) or `binary` (a bit a number).

    Raises:
        DataError: The encoding is unknown, or there is not at least one dimension.
    """
    if dimensions < 1 or encoding not in ENCODINGS:
        raise DataError(
            f"A vector of {dimensions} numbers in {encoding!r} is impossible: give 1 or more, and "
            f"one of {', '.join(ENCODINGS)}."
        )
    if encoding == "binary":
        return -(-dimensions // 8)  # the last byte may be half empty
    return dimensions * {"float32": 4, "float16": 2, "int8": 1}[encoding]


def graph_bytes(chunks: int, m: int = HNSW_M) -> int:
    """Return the most bytes that one vector's links take in Qdrant's HNSW graph.

    The lowest layer, which holds every vector, has up to `2 * m` links (Malkov and Yashunin,
    "Efficient and Robust Approximate Nearest Neighbor Search Using Hierarchical Navigable Small
    World Graphs", TPAMI 2020, section 4.2.3). Qdrant packs a link into as many bits as the largest
    place needs, eight at least (`pack_links` in its `bitpacking_links.rs`), or fewer where sorted
    links lie close; the layers above hold few and fit into what that saves. Vectors in tight
    clusters were seen to get half as many links.

    Args:
        chunks: How many vectors the graph holds.
        m: Links of a node in the other layers.
    """
    return -(-2 * m * max(8, (chunks - 1).bit_length()) // 8)


def memory(chunks: int, dimensions: int, encoding: Encoding = "float32") -> int:
    """Return the bytes that one copy of the vectors, their graph and their ids takes in memory.

    What Qdrant needs in memory for a search: the vectors in the given encoding (with `int8` and
    `binary` the full ones stay on disk), the links and the ids. Texts are not counted: its server
    keeps them on disk unless told otherwise (`on_disk_payload: true` in its `config.yaml`).

    Args:
        chunks: How many vectors.
        dimensions: How many numbers each has.
        encoding: How they are kept; see `bytes_per_vector`.

    Raises:
        DataError: As for `bytes_per_vector`.
    """
    vector = _stored_bytes(dimensions, encoding)
    return chunks * (vector + graph_bytes(chunks) + ID_BYTES)


def disk(chunks: int, dimensions: int, encoding: Encoding, text_bytes: int) -> int:
    """Return the bytes that one copy takes on disk, texts included.

    The full vectors (with `float16` they are the short ones), the quantised ones, the graph, the
    ids, and each chunk's payload. Qdrant compresses payloads, so this is rather too much.

    Args:
        chunks: How many.
        dimensions: How many numbers each vector has.
        encoding: See `bytes_per_vector`.
        text_bytes: UTF-8 bytes of a chunk's text and meta data.
    """
    vector = bytes_per_vector(dimensions, "float16" if encoding == "float16" else "float32")
    if encoding in ("int8", "binary"):
        vector += _stored_bytes(dimensions, encoding)
    payload = _PAYLOAD_POINTER + -(-text_bytes // _PAYLOAD_BLOCK) * _PAYLOAD_BLOCK
    return chunks * (vector + graph_bytes(chunks) + _ID_ON_DISK + payload)


def compare(
    vectors: Vectors, queries: Vectors, *, k: int = 10, oversampling: Sequence[float] = (1, 2, 4)
) -> list[dict[str, object]]:
    """Return what each encoding saves and what it costs, a row each.

    A row has the encoding, its bytes a vector, how many times fewer these are than with `float32`,
    and the recall@k of its search against the exact one: by the codes alone, and with the best
    `oversampling * k` scored again by the full vectors. (What is scored again is found if it is
    among these at all, so that nothing has to be scored.)

    Args:
        vectors: Shape (n, dimensions), float32, of length 1.
        queries: Shape (queries, dimensions), likewise.
        k: How many are looked for.
        oversampling: The factors to try.
    """
    exact = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]
    signs = np.where(queries > 0, 1, -1).astype(np.float32)
    variants: list[tuple[str, Encoding, Vectors, Vectors]] = [
        ("float32", "float32", queries, vectors),
        ("float16", "float16", queries, vectors.astype(np.float16).astype(np.float32)),
        ("int8, one range", "int8", queries, _int8(vectors, None)),
        ("int8, a range a dimension", "int8", queries, _int8(vectors, 0)),
        ("binary", "binary", signs, np.where(vectors > 0, 1, -1).astype(np.float32)),
    ]
    rows: list[dict[str, object]] = []
    for name, encoding, asked, kept in variants:
        size = bytes_per_vector(vectors.shape[1], encoding)
        row: dict[str, object] = {
            "encoding": name,
            "bytes a vector": size,
            "times smaller": vectors[0].nbytes // size,
        }
        order = np.argsort(-(asked @ kept.T), axis=1, kind="stable")
        for factor in oversampling:
            title = f"recall@{k}" if factor == 1 else f"rescored, {factor:g} x {k}"
            pairs = zip(exact, order[:, : round(k * factor)], strict=True)
            row[title] = f"{np.mean([np.isin(*pair).mean() for pair in pairs]):.3f}"
        rows.append(row)
    return rows


def _int8(vectors: Vectors, axis: int | None) -> Vectors:
    """Round vectors to 128 levels between the quantiles that leave 1 % of the values outside."""
    low, high = np.quantile(vectors, [0.005, 0.995], axis=axis).astype(np.float32)
    width = np.where(high > low, high - low, np.float32(1))  # 1 where nothing varies
    levels = np.rint(np.clip((vectors - low) / width, 0, 1) * _LEVELS)
    rounded: Vectors = (levels * (width / np.float32(_LEVELS)) + low).astype(np.float32)
    return rounded


def _stored_bytes(dimensions: int, encoding: Encoding) -> int:
    """Return the bytes of one vector as Qdrant keeps it for searching."""
    plain = bytes_per_vector(dimensions, encoding)
    if encoding in ("float32", "float16"):
        return plain
    filled = -(-plain // _ALIGNED) * _ALIGNED
    return filled + (_SCORE_CONSTANT if encoding == "int8" else 0)
