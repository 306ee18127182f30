"""How an index grows: build time, memory, latency and recall by size; a part of `make bench`.

    python benchmarks/growth.py [--sizes 1000 10000 100000] [--queries 200] [--json [FILE]]

An HNSW index over so many chunks in pgvector (PostgreSQL, `vector_cosine_ops`) and in Qdrant's
engine (`qdrant-edge-py`), with the stores' own defaults for the graph: 16 links, and as many
candidates for building and searching as each has by default.

- Build: from the first vector written to an index that holds all of them.
- Memory: for Qdrant, what opening and searching adds to a process that has searched
  a small store; for PostgreSQL, which
  leaves caching to the system, table and index, as both are read in a search. `capacity.sizing`
  computes the former.
- p50 and p95: of one search for the nearest ten at a time, after a tenth that does not count.
- Recall: how many of the exact nearest ten are found.

The vectors are synthetic, of length 1: 32 directions of 384 dimensions carry nearly all of them, as
with the vectors of texts. Straight lines on logarithmic axes give the exponents; 1 is growth in
proportion. Last comes what 10^8 chunks need, on paper.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from timing import Row, parser, report, say

from capacity.sizing import (
    ENCODINGS,
    HNSW_M,
    ID_BYTES,
    RULE_OF_THUMB,
    bytes_per_vector,
    graph_bytes,
    memory,
)
from rag_service.local import LocalServices

Vectors = npt.NDArray[np.float32]

DIMENSIONS, DIRECTIONS = 384, 32
NOISE = 0.05  # in each dimension, beside 1 in each direction
BATCH = 1000
NEAREST = 10
SMALL = 100  # chunks of the store that warms the engine up
PAPER = 10**8
#: Memory of one machine on paper, in bytes.
MACHINE = 256 * 10**9
STORES = ("pgvector HNSW", "qdrant-edge")
GROWS = {"build, s": "build time", "memory, MB": "memory", "p50, ms": "p50", "p95, ms": "p95"}


def batches(size: int) -> Iterator[Vectors]:
    """Yield the vectors of an index in batches, the same at each call."""
    for start in range(0, size, BATCH):
        yield drawn(min(BATCH, size - start), 1 + start)


def drawn(count: int, seed: int) -> Vectors:
    """Return vectors of length 1; shape (count, dimensions)."""
    axes = np.random.default_rng(0).standard_normal((DIRECTIONS, DIMENSIONS), dtype=np.float32)
    numbers = np.random.default_rng(seed)
    where = numbers.standard_normal((count, DIRECTIONS), dtype=np.float32)
    found = where @ axes / math.sqrt(DIMENSIONS)
    found += NOISE * numbers.standard_normal((count, DIMENSIONS), dtype=np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def exact(size: int, queries: Vectors) -> list[set[int]]:
    """Return the places of the nearest vectors of each query, by looking at all."""
    scores = np.full((len(queries), 0), 0, np.float32)
    places = np.full((len(queries), 0), 0)
    for number, batch in enumerate(batches(size)):
        new = np.broadcast_to(np.arange(len(batch)) + number * BATCH, (len(queries), len(batch)))
        scores, places = np.hstack([scores, queries @ batch.T]), np.hstack([places, new])
        best = np.argsort(-scores, axis=1)[:, :NEAREST]
        scores = np.take_along_axis(scores, best, axis=1)
        places = np.take_along_axis(places, best, axis=1)
    return [set(row) for row in places.tolist()]


def searched(search: Any, queries: Vectors) -> dict[str, Any]:  # noqa: ANN401
    """Ask one query after the other; return the seconds of each, and what was found."""
    for query in queries[: max(1, len(queries) // 10)].tolist():
        search(query)
    times, found = [], []
    for query in queries.tolist():
        began = time.perf_counter()
        found.append(search(query))
        times.append(time.perf_counter() - began)
    return {"times": times, "found": found}


# ------------------------------------------------------------------------------------ pgvector


def pgvector(url: str, size: int, queries: Vectors) -> dict[str, Any]:
    """Build and search a table of its own, which is dropped again."""
    import psycopg
    from pgvector.psycopg import register_vector

    with psycopg.connect(url, autocommit=True) as server:
        server.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(server)
        server.execute("DROP TABLE IF EXISTS growth")
        server.execute(f"CREATE TABLE growth (id int, embedding vector({DIMENSIONS}))")
        # The graph is built in memory, or page by page and many times slower.
        need = size * (memory(size, DIMENSIONS) // size + 2000) // 2**20 + 64
        server.execute(f"SET maintenance_work_mem = '{need}MB'")
        began = time.perf_counter()
        copy = "COPY growth (id, embedding) FROM STDIN WITH (FORMAT BINARY)"
        with server.cursor() as cursor, cursor.copy(copy) as rows:
            rows.set_types(["int4", "vector"])
            place = 0
            for batch in batches(size):
                for vector in batch:
                    rows.write_row((place, vector))
                    place += 1
        server.execute("CREATE INDEX ON growth USING hnsw (embedding vector_cosine_ops)")
        build = time.perf_counter() - began
        server.execute("ANALYZE growth")
        row = server.execute("SELECT pg_total_relation_size('growth')").fetchone()

        def search(query: list[float]) -> list[int]:
            nearest = "SELECT id FROM growth ORDER BY embedding <=> %s::vector LIMIT %s"
            return [id for (id,) in server.execute(nearest, [str(query), NEAREST])]

        answer = searched(search, queries)
        server.execute("DROP TABLE growth")
    return {**answer, "build": build, "memory": row[0] if row else 0}


# --------------------------------------------------------------------------------- qdrant-edge


def qdrant(size: int, queries: int) -> dict[str, Any]:
    """Build in one process; open and search in another, whose memory is then known."""
    with tempfile.TemporaryDirectory() as folder:
        build = _child("build", folder, size, queries)["build"]
        return {**_child("search", folder, size, queries), "build": build}


def _child(step: str, folder: str, size: int, queries: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", step, folder, str(size), str(queries)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def case(step: str, folder: str, size: int, queries: int) -> dict[str, Any]:
    """Do one step of Qdrant's in this process."""
    import qdrant_edge as edge

    if step == "build":
        vectors = edge.EdgeVectorParams(
            DIMENSIONS,
            edge.Distance.Cosine,
            hnsw_config=edge.HnswIndexConfig(HNSW_M, 100, full_scan_threshold=1),
        )
        # One segment with a graph, however small it is.
        segments = edge.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1)
        config = edge.EdgeConfig(vectors=vectors, optimizers=segments, wal_enabled=False)

        def build(name: str, count: int) -> float:
            path = Path(folder, name)
            path.mkdir()
            began = time.perf_counter()
            store = edge.EdgeShard.create(str(path), config)
            for number, batch in enumerate(batches(count)):
                numbered = enumerate(batch.tolist(), number * BATCH)
                points = [edge.Point(place, vector, {}) for place, vector in numbered]
                store.update(edge.UpdateOperation.upsert_points(points))
            store.optimize()
            took = time.perf_counter() - began
            indexed = store.info().indexed_vectors_count
            store.close()
            if indexed != count:
                raise RuntimeError(f"{indexed} of {count} vectors are in the graph")
            return took

        build("small", SMALL)
        return {"build": build("store", size)}

    def search(name: str) -> dict[str, Any]:
        store = edge.EdgeShard.load(str(Path(folder, name)))

        def nearest(query: list[float]) -> list[int]:
            request = edge.QueryRequest(limit=NEAREST, query=edge.Query.Nearest(query))
            return [int(point.id) for point in store.query(request)]

        return {**searched(nearest, drawn(queries, 0)), "store": store}  # it stays open

    small = search("small")  # the engine's code and threads are there from then on
    before = psutil.Process().memory_info().rss
    answer = search("store")
    answer["memory"] = max(psutil.Process().memory_info().rss - before, 0)
    del answer["store"], small
    return answer


# ------------------------------------------------------------------------------------- results


def row_of(store: str, size: int, made: dict[str, Any], truth: Sequence[set[int]]) -> Row:
    """Return the row of one index."""
    p50, p95 = np.quantile(made["times"], [0.5, 0.95]) * 1000
    hits = [len(nearest & set(found)) for nearest, found in zip(truth, made["found"], strict=True)]
    return {
        "store": store,
        "chunks": size,
        "build, s": round(made["build"], 2),
        "memory, MB": round(made["memory"] / 1e6, 1),
        "computed, MB": round(memory(size, DIMENSIONS) / 1e6, 1) if "qdrant" in store else "",
        "p50, ms": round(float(p50), 2),
        "p95, ms": round(float(p95), 2),
        f"recall@{NEAREST}": round(sum(hits) / sum(map(len, truth)), 3),
    }


def exponents(rows: Sequence[Row]) -> list[Row]:
    """Return the slopes of straight lines through the logarithms."""
    found: list[Row] = []
    for store in STORES:
        mine = [row for row in rows if row["store"] == store]
        if len(mine) < 2:
            continue
        sizes = np.log([float(str(row["chunks"])) for row in mine])
        slopes: Row = {"store": store, "sizes": len(mine)}
        for column, name in GROWS.items():
            values = np.log([max(float(str(row[column])), 1e-3) for row in mine])
            slopes[name] = round(float(np.polyfit(sizes, values, 1)[0]), 2)
        found.append(slopes)
    return found


def on_paper(rows: Sequence[Row], slopes: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Return what 10^8 chunks need, and how that was computed."""
    needs: list[Row] = []
    for encoding in ENCODINGS:
        whole = memory(PAPER, DIMENSIONS, encoding)
        room = whole * RULE_OF_THUMB
        needs.append(
            {
                "encoding": encoding,
                "bytes a vector": bytes_per_vector(DIMENSIONS, encoding),
                "bytes of links": graph_bytes(PAPER),
                "bytes of ids": ID_BYTES,
                "memory, GB": round(whole / 1e9, 1),
                f"with {RULE_OF_THUMB} times the room, GB": round(room / 1e9, 1),
                f"machines of {MACHINE // 10**9} GB": math.ceil(room / MACHINE),
            }
        )
    vector, links = bytes_per_vector(DIMENSIONS), graph_bytes(PAPER)
    said = [
        f"Memory of one copy, float32: {PAPER:.0e} x ({DIMENSIONS} x 4 + {links} + {ID_BYTES}) "
        f"bytes = {PAPER * (vector + links + ID_BYTES) / 1e9:.1f} GB. Links: 2 x {HNSW_M} of "
        f"{(PAPER - 1).bit_length()} bits each. With int8 and binary the full vectors, "
        f"{PAPER * vector / 1e9:.1f} GB, are on disk.",
        f"pgvector keeps each vector twice, in the table and in the index: at least 2 x {PAPER:.0e}"
        f" x {vector} bytes = {2 * PAPER * vector / 1e9:.1f} GB without links and headers.",
    ]
    for slope in slopes:
        last = [row for row in rows if row["store"] == slope["store"]][-1]
        size, build = int(str(last["chunks"])), float(str(last["build, s"]))
        power = float(str(slope["build time"]))
        hours = build * (PAPER / size) ** power / 3600
        said.append(
            f"Build, {slope['store']}: {build:.1f} s x (10^8 / {size:,})^{power} = {hours:,.0f} "
            f"hours on this machine's {os.cpu_count()} cores, from {slope['sizes']} sizes; an "
            "extrapolation over "
            f"{math.log10(PAPER / size):.0f} powers of ten, so an order of magnitude at best."
        )
    return needs, said


def main() -> int:
    """Run the measurements and print them."""
    options = parser(__doc__, rounds=1)
    options.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options.add_argument("--queries", type=int, default=200)
    options.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.case:
        step, folder, size, queries = given.case
        print(json.dumps(case(step, folder, int(size), int(queries))), flush=True)
        os._exit(0)  # the engine's threads would block the interpreter's end
    rows: list[Row] = []
    queries = drawn(given.queries, 0)
    with LocalServices() as local:
        for size in sorted(given.sizes):
            truth = exact(size, queries)
            for store in STORES:
                say(f"  {store}, {size:,} chunks")
                if store == STORES[0]:
                    made = pgvector(local.store_url, size, queries)
                else:
                    made = qdrant(size, given.queries)
                rows.append(row_of(store, size, made, truth))
                say(f"    {rows[-1]}")
    slopes = exponents(rows)
    needs, said = on_paper(rows, slopes)
    sections = [
        {"title": "Growth of an index", "plot": "growth", "rows": rows},
        {"title": "Exponents of growth", "rows": slopes},
        {"title": f"{PAPER:,} chunks, on paper", "rows": needs, "text": said},
    ]
    report({"sections": sections}, given.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
