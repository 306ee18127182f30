"""What chunks really take in memory and on disk, measured in Qdrant's own engine.

`qdrant-edge-py` is the engine of Qdrant's server as a library. One process writes chunks, builds
the HNSW graph and closes the store; another opens it, searches, and reads its resident memory (RSS,
memory-mapped files included). The same is done with a small store of the same settings, and the
difference is what the chunks take: the library's code, its threads and an empty store are in
both.

Payloads are on disk, as Qdrant's server has them unless told otherwise. With `int8` and `binary`
the quantised vectors are in memory and the full ones on disk, and searches do not score again.
Vectors are random, which gives nearly the most links that a graph may have; where vectors lie in
tight clusters it has fewer.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from capacity.sizing import HNSW_M, Encoding, memory
from nim_cookbook.corpus import load_company
from nim_cookbook.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import qdrant_edge

    Quantisation = qdrant_edge.ScalarQuantizationConfig | qdrant_edge.BinaryQuantizationConfig

#: Chunks of the small store whose memory is taken off.
SMALL = 500

#: Where Linux tells it exactly; psutil reads counters that lag behind by some pages.
ROLLUP = Path("/proc/self/smaps_rollup")

_BATCH = 1000
_WORDS = 200  # of a chunk's text
_SEARCHES = 200
_READS = 3


@dataclass(frozen=True, slots=True)
class StoreMemory:
    """What was measured."""

    chunks: int  # how many the store holds
    memory: int  # bytes of resident memory that the chunks take
    process: int  # bytes of resident memory of the whole process, library and Python included
    disk: int  # bytes of the store's files, counted in the blocks they occupy
    text_bytes: int  # mean bytes of a chunk's payload as JSON, before Qdrant compresses it
    seconds: float  # how long writing, building and reading took


def store_memory_measured(
    chunks: int,
    dimensions: int = 384,
    encoding: Encoding = "float32",
    *,
    ef_construct: int = 100,
) -> StoreMemory:
    """Write chunks into Qdrant's engine and measure what they take.

    Args:
        chunks: How many; at least ten times `SMALL`, so that the difference is clear.
        dimensions: How many numbers each vector has.
        encoding: How vectors are kept in memory; see `sizing.bytes_per_vector`.
        ef_construct: How many neighbours the graph's construction looks at; Qdrant's own is 100.
            Fewer are faster and leave fewer links.

    Raises:
        DataError: There are too few chunks, or the encoding or dimensions are impossible.
        ConfigurationError: `qdrant-edge-py` is not installed, or a process failed.
    """
    if chunks < 10 * SMALL:
        raise DataError(f"{chunks:,} chunks are too few to measure: give {10 * SMALL:,}.")
    memory(chunks, dimensions, encoding)  # refuses what is impossible
    began = time.perf_counter()
    settings = (str(dimensions), encoding, str(ef_construct))
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name, "small"), Path(name, "large")
        _child("write", str(small), str(SMALL), *settings)
        written = _child("write", str(large), str(chunks), *settings)
        before = _resident_of(small, SMALL, *settings)
        after = _resident_of(large, chunks, *settings)
        files = [path for path in large.rglob("*") if path.is_file()]
        occupied = sum(path.stat().st_blocks * 512 for path in files)
    # The small store's own chunks were taken off as well: what is left is that of the others.
    taken = (after - before) * chunks // (chunks - SMALL)
    seconds = time.perf_counter() - began
    return StoreMemory(chunks, taken, after, occupied, written["text_bytes"], seconds)


def _resident_of(store: Path, chunks: int, *settings: str) -> int:
    """Return the resident memory of a process that searches a store.

    The median of several, as an allocator's luck is worth half a megabyte.
    """
    step = ("read", str(store), str(chunks), *settings)
    return statistics.median_low(_child(*step)["rss"] for _ in range(_READS))


def _child(*arguments: str) -> dict[str, int]:
    """Run a step in a fresh process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        if "No module named 'qdrant_edge'" in last:
            raise ConfigurationError(
                "Qdrant's engine is not installed: run "
                '`pip install "nim-rag-cookbook[kubernetes]"`.'
            )
        raise ConfigurationError(f"The store could not be measured ({last}).")
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


def _config(dimensions: int, encoding: Encoding, ef_construct: int) -> qdrant_edge.EdgeConfig:
    import qdrant_edge as edge

    quantised: Quantisation | None = None
    if encoding == "int8":
        quantised = edge.ScalarQuantizationConfig(
            edge.ScalarType.Int8, quantile=0.99, memory=edge.Memory.Pinned
        )
    elif encoding == "binary":
        quantised = edge.BinaryQuantizationConfig(memory=edge.Memory.Pinned)
    half = encoding == "float16"
    vectors = edge.EdgeVectorParams(
        dimensions,
        edge.Distance.Cosine,
        datatype=edge.VectorStorageDatatype.Float16 if half else None,
        memory=edge.Memory.Cold if quantised else edge.Memory.Cached,
        quantization_config=quantised,
        hnsw_config=edge.HnswIndexConfig(HNSW_M, ef_construct, full_scan_threshold=1),
    )
    return edge.EdgeConfig(
        vectors=vectors,
        payload_memory=edge.Memory.Cold,
        # The small store gets a graph as well.
        optimizers=edge.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1),
        wal_enabled=False,  # a log of updates takes no part in reading
    )


def _write(path: Path, chunks: int, config: qdrant_edge.EdgeConfig, width: int) -> dict[str, int]:
    import numpy as np
    import qdrant_edge as edge

    texts = _texts()
    numbers, ids = np.random.default_rng(0), random.Random(0)
    path.mkdir()
    store = edge.EdgeShard.create(str(path), config)
    size = 0
    for start in range(0, chunks, _BATCH):
        places = range(start, min(start + _BATCH, chunks))
        vectors = numbers.standard_normal((len(places), width), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        points = []
        for place, vector in zip(places, vectors.tolist(), strict=True):
            name = str(uuid.UUID(int=ids.getrandbits(128)))
            # As Haystack's store writes it.
            payload = {
                "id": name,
                "content": texts[place % len(texts)],
                "meta": {"source": f"{place % 1000}.md", "page_number": 1 + place % 7},
            }
            size += len(json.dumps(payload, ensure_ascii=False).encode())
            points.append(edge.Point(name, vector, payload))
        store.update(edge.UpdateOperation.upsert_points(points))
    store.optimize()
    indexed = store.info().indexed_vectors_count
    store.close()
    if indexed != chunks:
        raise RuntimeError(f"{indexed} of {chunks} vectors are in the graph")
    return {"text_bytes": size // chunks}


def _read(path: Path, width: int) -> dict[str, int]:
    import qdrant_edge as edge

    store = edge.EdgeShard.load(str(path))
    numbers = random.Random(1)
    plain = edge.SearchParams(quantization=edge.QuantizationSearchParams(rescore=False))
    for _ in range(_SEARCHES):
        query = edge.Query.Nearest([numbers.gauss(0, 1) for _ in range(width)])
        store.query(edge.QueryRequest(limit=10, query=query, params=plain, with_payload=False))
    return {"rss": _resident()}


def _resident() -> int:
    """Return this process's resident memory in bytes, memory-mapped files included."""
    if ROLLUP.exists():
        line = next(row for row in ROLLUP.read_text("ascii").splitlines() if row.startswith("Rss:"))
        return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)  # not Linux; not tried


def _texts() -> list[str]:
    """Return the company's papers in chunks of about 200 words."""
    words = [source.text.split() for source in load_company().sources]
    return [
        " ".join(text[start : start + _WORDS])
        for text in words
        for start in range(0, len(text), _WORDS)
    ]


def _main(step: str, path: str, chunks: str, width: str, encoding: Encoding, ef: str) -> None:
    if step == "write":
        config = _config(int(width), encoding, int(ef))
        answer = _write(Path(path), int(chunks), config, int(width))
    else:
        answer = _read(Path(path), int(width))
    print(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # skip interpreter shutdown: the engine's threads would block it


if __name__ == "__main__":
    _main(*sys.argv[1:])  # type: ignore[arg-type]
