"""What the vector store costs, embedded: indexing, searching, opening, bytes.

    python benchmarks/vector_store.py [--rounds 3] [--sizes 1000 10000] [--queries 60]
                                      [--parts indexing search] [--json results.json]

1. Indexing: the company's files into an embedded Qdrant on disk by `nim_cookbook.indexing.update`,
   from the files to the last vector written, against the same chunks' texts sent straight to the
   embedding endpoint in the client's batches, which is its limit. Rounds alternate, each pair gives
   a ratio (1 would be an index that costs nothing), and a clock around each part tells where the
   rest goes.
2. Search: the time of one query through `QdrantEmbeddingRetriever`, with and without a filter on
   the metadata, on disk and in memory, for each size; time to open the store, bytes on disk, and
   how much larger the process becomes. Each case has a process of its own. The vectors are
   synthetic: those of the company's chunks with noise, of length 1, with the chunks' texts and
   metadata. The embedded mode is called reasonable up to the largest size at which 95 % of the
   searches take less than 50 ms, and beside it stands what embedding the question takes.

It starts the local servers if none run. 100,000 chunks on disk take many minutes to write. Ctrl-C
leaves nothing behind but the results so far.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from haystack import Document
from haystack.document_stores.types import DuplicatePolicy
from haystack.utils import Secret
from haystack_integrations.components.embedders.nvidia import NvidiaDocumentEmbedder
from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from timing import report, seconds, spread

from nim_cookbook import endpoints, indexing
from nim_cookbook.corpus import company_files, load_company

BATCH = 32  # NvidiaDocumentEmbedder's own
LIMIT_MS = 50.0  # a search that people do not notice beside embedding and answering
NOISE = 0.5  # length of what is added to a vector of length 1; the cosine to it is then about 0.9
BATCH = 1000  # chunks written at a time
FILTER = {"field": "meta.kind", "operator": "==", "value": "policy"}


def say(text: str) -> None:
    """Show progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def percentiles(values: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile of seconds, in milliseconds."""
    p50, p95 = np.quantile(values, [0.5, 0.95]) * 1000
    return {"p50": round(float(p50), 2), "p95": round(float(p95), 2)}


def store_at(path: str | None, dimensions: int) -> QdrantDocumentStore:
    """Return an embedded store: in a folder, or in memory."""
    where: dict[str, Any] = {"path": path} if path else {"location": ":memory:"}
    return QdrantDocumentStore(**where, embedding_dim=dimensions, progress_bar=False)


# ------------------------------------------------------------------------------------ indexing


class Clock:
    """Passes calls on to an object and adds up how long some of its methods take."""

    def __init__(self, inner: object, parts: Mapping[str, str], spent: dict[str, float]) -> None:
        """Time the methods in `parts`, each under the name that it has there."""
        self._inner, self._parts, self._spent = inner, parts, spent

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the object has
        """Return the object's attribute, timed if it is one of those."""
        attribute = getattr(self._inner, name)
        if name not in self._parts:
            return attribute

        def timed(*args: object, **named: object) -> object:
            began = time.perf_counter()
            try:
                return attribute(*args, **named)
            finally:
                part = self._parts[name]
                self._spent[part] = self._spent.get(part, 0) + time.perf_counter() - began

        return timed


def embed(api: endpoints.Endpoints, texts: list[str], kind: str = "passage") -> np.ndarray:
    """Return the endpoint's vectors, asked for with nothing in between; shape (n, dimensions)."""
    rows: list[list[float]] = []
    headers = {"Authorization": f"Bearer {api.embedding.key}"}
    with httpx.Client(base_url=api.embedding.url, headers=headers, timeout=300) as http:
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            body = {"model": api.embedding.model, "input": batch, "input_type": kind}
            answer = http.post("/embeddings", json=body).raise_for_status().json()
            rows += [entry["embedding"] for entry in answer["data"]]
    return np.array(rows, dtype=np.float32)


def index_once(
    api: endpoints.Endpoints, files: list[indexing.SourceFile], dimensions: int
) -> dict[str, float]:
    """Build the index in a new folder; return the seconds of the whole and of its parts."""
    spent: dict[str, float] = {}
    embedder = NvidiaDocumentEmbedder(
        model=api.embedding.model,
        api_url=api.embedding.url,
        api_key=Secret.from_env_var(api.embedding.key_variable),
        batch_size=BATCH,
        progress_bar=False,
    )
    embedder.warm_up()
    with tempfile.TemporaryDirectory() as folder:
        store = store_at(folder, dimensions)
        whole = seconds(
            lambda: indexing.update(
                Clock(store, {"write_documents": "writing", "filter_documents": "looking"}, spent),
                files,
                preparation=Clock(indexing.preparation(), {"run": "preparing"}, spent),
                embedder=Clock(embedder, {"run": "embedding"}, spent),
                settings=api.embedding.model,
            )
        )
        store.close()
    return {**spent, "whole": whole}


def measure_indexing(
    api: endpoints.Endpoints, chunks: list[Document], rounds: int
) -> dict[str, object]:
    """Measure indexing against the embedding endpoint's own limit."""
    files = indexing.source_files(indexing.in_force(company_files())[0])
    texts = [chunk.content or "" for chunk in chunks]
    dimensions = embed(api, texts[:BATCH]).shape[1]
    direct: list[float] = []
    built: list[dict[str, float]] = []
    for number in range(rounds):
        steps: list[Callable[[], object]] = [
            lambda: direct.append(seconds(lambda: embed(api, texts))),
            lambda: built.append(index_once(api, files, dimensions)),
        ]
        for step in steps if number % 2 == 0 else reversed(steps):
            step()
        say(
            f"indexing, round {number + 1} of {rounds}: endpoint alone {direct[-1]:.1f} s, "
            f"files to index {built[-1]['whole']:.1f} s"
        )
    parts = list(dict.fromkeys(name for times in built for name in times))
    return {
        "files": len(files),
        "chunks": len(texts),
        "endpoint_chunks_per_second": spread([len(texts) / s for s in direct]),
        "indexing_chunks_per_second": spread([len(texts) / b["whole"] for b in built]),
        "indexing_over_endpoint": spread(
            [s / b["whole"] for s, b in zip(direct, built, strict=True)]
        ),
        # They overlap, as a batch is written while the next one is embedded.
        "share_of_indexing": {
            name: spread([times.get(name, 0) / times["whole"] for times in built])
            for name in parts
            if name != "whole"
        },
    }


# -------------------------------------------------------------------------------------- search


def synthetic(chunks: list[Document], vectors: np.ndarray, size: int) -> Iterable[list[Document]]:
    """Yield chunks in batches: real texts and metadata, real vectors with noise, of length 1."""
    generator = np.random.default_rng(size)
    for start in range(0, size, BATCH):
        numbers = np.arange(start, min(start + BATCH, size))
        noise = generator.normal(size=(len(numbers), vectors.shape[1]))
        noise *= NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
        noisy = vectors[numbers % len(vectors)] + noise
        noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
        yield [
            Document(
                id=f"{number:032x}",
                content=chunks[number % len(chunks)].content,
                meta=chunks[number % len(chunks)].meta,
                embedding=vector.tolist(),
            )
            for number, vector in zip(numbers.tolist(), noisy, strict=True)
        ]


def resident() -> float:
    """Return how much memory this process holds, in MB."""
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def fill(store: QdrantDocumentStore, data: dict[str, Any], size: int) -> float:
    """Write chunks; return the seconds that writing took."""
    taken = 0.0
    done = 0
    for batch in synthetic(data["chunks"], data["vectors"], size):
        began = time.perf_counter()
        store.write_documents(batch, policy=DuplicatePolicy.OVERWRITE)
        taken += time.perf_counter() - began
        done += len(batch)
        if done % (10 * BATCH) == 0:
            say(f"    {done:,} of {size:,} written after {taken:.0f} s")
    return taken


def search_times(
    store: QdrantDocumentStore, queries: np.ndarray, filters: dict[str, Any] | None
) -> list[float]:
    """Return the seconds of each search, after two that do not count."""
    retriever = QdrantEmbeddingRetriever(document_store=store, top_k=10, filters=filters)
    asked = [query.tolist() for query in queries]
    times = [seconds(lambda q=q: retriever.run(query_embedding=q)) for q in [*asked[:2], *asked]]
    return times[2:]


def case(folder: Path, kind: str, step: str, size: int) -> dict[str, object]:
    """Do one step of a case in this process: write, or open and search."""
    data = load(folder)
    path = str(folder / f"store-{size}") if kind == "disk" else None
    before = resident()
    began = time.perf_counter()
    store = store_at(path, data["vectors"].shape[1])
    found = store.count_documents()  # this opens it
    opening = time.perf_counter() - began
    result: dict[str, object] = {}
    if step == "write" or kind == "memory":
        result["write_chunks_per_second"] = round(size / fill(store, data, size))
    if step == "search":
        if kind == "disk":
            assert found == size, (found, size)
            files = (f for f in Path(str(path)).rglob("*") if f.is_file())
            result["open_seconds"] = round(opening, 2)
            result["disk_bytes_per_chunk"] = round(sum(f.stat().st_size for f in files) / size)
        result["memory_mb"] = round(resident() - before)
        result["search_ms"] = percentiles(search_times(store, data["queries"], None))
        result["filtered_search_ms"] = percentiles(search_times(store, data["queries"], FILTER))
    store.close()
    return result


def save(folder: Path, chunks: list[Document], vectors: np.ndarray, queries: np.ndarray) -> None:
    """Leave what the processes of the cases need."""
    np.savez(folder / "vectors.npz", vectors=vectors, queries=queries)
    plain = [{"content": p.content, "meta": p.meta} for p in chunks]
    (folder / "chunks.json").write_text(json.dumps(plain), encoding="utf-8")


def load(folder: Path) -> dict[str, Any]:
    """Read it again."""
    arrays = np.load(folder / "vectors.npz")
    plain = json.loads((folder / "chunks.json").read_text(encoding="utf-8"))
    chunks = [Document(content=p["content"], meta=p["meta"]) for p in plain]
    return {"vectors": arrays["vectors"], "queries": arrays["queries"], "chunks": chunks}


def run_case(folder: Path, kind: str, step: str, size: int) -> dict[str, object]:
    """Run `case` in a process of its own."""
    command = [sys.executable, __file__, "--case", str(folder), kind, step, str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def measure_search(
    api: endpoints.Endpoints,
    chunks: list[Document],
    sizes: list[int],
    queries: int,
    kinds: list[str],
) -> dict[str, object]:
    """Measure searches at each size, and say from which size the embedded mode is too slow."""
    asked = [q.question for q in load_company().queries if q.answerable][:queries]
    vectors = embed(api, [chunk.content or "" for chunk in chunks])
    embed(api, asked[:1], "query")
    embedding = percentiles([seconds(lambda t=t: embed(api, [t], "query")) for t in asked])
    cases: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder, chunks, vectors, embed(api, asked, "query"))
        for size in sorted(sizes):
            for kind in kinds:
                say(f"  {size:,} chunks, {kind}")
                result = run_case(folder, kind, "write", size) if kind == "disk" else {}
                result |= run_case(folder, kind, "search", size)
                cases[f"{size} chunks, {kind}"] = result
                say(f"    {json.dumps(result)}")
    return {
        "vectors": f"synthetic: {len(vectors)} real ones with noise, {vectors.shape[1]} numbers",
        "queries": len(asked),
        "filter_keeps": round(
            sum(p.meta["kind"] == FILTER["value"] for p in chunks) / len(chunks), 3
        ),
        "embedding_a_question_ms": embedding,
        "cases": cases,
        "verdict": verdict(cases, sorted(sizes), kinds, embedding["p50"]),
    }


def verdict(
    cases: Mapping[str, Mapping[str, Any]], sizes: list[int], kinds: list[str], embedding: float
) -> list[str]:
    """Say up to which of the sizes the embedded mode is reasonable."""
    lines = []
    for kind in kinds:
        for what in ("search_ms", "filtered_search_ms"):
            p95 = {size: cases[f"{size} chunks, {kind}"][what]["p95"] for size in sizes}
            slow = [size for size in sizes if p95[size] > LIMIT_MS]
            longer = [size for size in sizes if p95[size] > embedding]
            lines.append(
                f"{kind}, {what.removesuffix('_ms').replace('_', ' ')}: "
                + (
                    f"p95 above {LIMIT_MS:.0f} ms from {slow[0]:,}"
                    if slow
                    else "fast enough at all"
                )
                + (f"; longer than embedding the question from {longer[0]:,}" if longer else "")
            )
    return lines


def main() -> int:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--parts", nargs="+", default=["indexing", "search"])
    parser.add_argument(
        "--kinds", nargs="+", choices=("disk", "memory"), default=["disk", "memory"]
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Local mode is not recommended")  # measured here
    if options.case:
        folder, kind, step, size = options.case
        print(json.dumps(case(Path(folder), kind, step, int(size))))
        return 0
    api = endpoints.connect()
    results: dict[str, object] = {"weights": api.embedding.weights}
    try:
        chunks = indexing.company_chunks(indexing.in_force(company_files())[0])
        if "indexing" in options.parts:
            results["indexing"] = measure_indexing(api, chunks, options.rounds)
        if "search" in options.parts:
            results["search"] = measure_search(
                api, chunks, options.sizes, options.queries, options.kinds
            )
    except KeyboardInterrupt:
        say("Stopped.")
        results["stopped"] = True
    finally:
        api.close()
    report(results, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
