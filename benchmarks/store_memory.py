"""How near the computed memory of a vector store is to what Qdrant's engine takes.

    python benchmarks/store_memory.py [--chunks 10000 100000] [--dimensions 384]
                                      [--encodings float32 int8 binary] [--ef-construct 100]
                                      [--json results.json]

Chunks with random vectors and the company's texts are written into Qdrant's engine
(`qdrant-edge-py`), which builds its HNSW graph; a fresh process opens the store, searches, and
reads its resident memory. What a store of 500 chunks takes is taken off. See
`capacity.measured`. Disk is what the files occupy.

Most of the time goes into the graph of full vectors. A smaller `--ef-construct` is faster, and
leaves a few links fewer.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from timing import report

from capacity.measured import store_memory_measured
from capacity.sizing import ENCODINGS, Encoding, disk, memory


def compare(chunks: int, dimensions: int, encoding: Encoding, ef: int) -> dict[str, object]:
    """Return what was computed and measured, and by how much the former is too high."""
    found = store_memory_measured(chunks, dimensions, encoding, ef_construct=ef)
    computed = memory(chunks, dimensions, encoding)
    files = disk(chunks, dimensions, encoding, found.text_bytes)
    return {
        "chunks": chunks,
        "encoding": encoding,
        "memory_computed": computed,
        "memory_measured": found.memory,
        "memory_error": round(computed / found.memory - 1, 3),
        "process": found.process,
        "disk_computed": files,
        "disk_measured": found.disk,
        "disk_error": round(files / found.disk - 1, 3),
        "seconds": round(found.seconds, 1),
    }


def main() -> int:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument(
        "--encodings", nargs="+", choices=ENCODINGS, default=["float32", "int8", "binary"]
    )
    parser.add_argument("--ef-construct", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for chunks in options.chunks:
        for encoding in options.encodings:
            row = compare(chunks, options.dimensions, encoding, options.ef_construct)
            line = ", ".join(f"{name} {value}" for name, value in row.items())
            print(f"  {line}", file=sys.stderr, flush=True)
            rows.append(row)
    results = {"dimensions": options.dimensions, "ef_construct": options.ef_construct}
    report(results | {"rows": rows}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
