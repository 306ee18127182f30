"""What the indexing queue costs and how soon it recovers, on this machine.

    python benchmarks/indexing_queue.py [--files 120] [--rounds 3] [--workers 1 2]
                                        [--ack-wait 3] [--json results.json]

1. Files indexed per second with 1 and 2 workers. The workers are processes that have started and
   wait; the time is from the first job sent to the last one done. Rounds alternate and each gives a
   ratio. All share this machine with the embedding model, which is most of the work: where that
   has cores or a GPU of its own, the ratio is another.
2. What a file costs without the queue: the same files by `nim_cookbook.indexing.update` into the
   same PostgreSQL, in this process, which embeds them in large batches.
3. Recovery: a worker is killed with SIGKILL while it has a job; the time until another worker
   begins with that job, over the time that a job is lent without a sign of life (`--ack-wait`).

It starts NATS, PostgreSQL and the local endpoints on loopback, and stops what it started.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from nats.js.errors import NotFoundError
from timing import report, spread

from nim_cookbook import endpoints, indexing
from nim_cookbook.folders import folder_files
from rag_service.files import FileStore
from rag_service.indexer import dimension, document_embedder
from rag_service.intake import submit_all
from rag_service.local import LocalServices, endpoint_settings
from rag_service.queue import Queue, connect, subject_key
from rag_service.stores import open_store

LONG = 60  # chunks of the file whose worker is killed


def say(text: str) -> None:
    """Show progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def write_files(folder: Path, count: int) -> None:
    """Write small Markdown files, one chunk each."""
    for number in range(count):
        text = f"# Note {number}\n\n" + f"The lamp in room {number} is green. " * 10
        (folder / f"note-{number}.md").write_text(text, encoding="utf-8")


async def one_round(services: LocalServices, folder: Path, workers: int, index: str) -> float:
    """Index the folder with some workers; return files per second."""
    sources = folder_files(folder)
    names = [f"{index}-{number}" for number in range(workers)]
    processes = [services.start_worker(name=name, index=index) for name in names]
    try:
        await asyncio.to_thread(services.wait_for_workers)
        async with connect(services.nats_url, name=index) as queue:
            # Conversion imports what it needs at the first file.
            await warm(queue, services, workers)
            began = time.perf_counter()
            await submit_all(queue, FileStore(services.files), sources)
            await queue.until_done(every=0.05)
            return len(sources) / (time.perf_counter() - began)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


async def warm(queue: Queue, services: LocalServices, workers: int) -> None:
    """Give each worker a few files."""
    with tempfile.TemporaryDirectory() as name:
        for number in range(8 * workers):
            Path(name, f"warm-{number}.md").write_text(f"# Warm {number}\n\nUp.", encoding="utf-8")
        await submit_all(queue, FileStore(services.files), folder_files(name))
        await queue.until_done(every=0.05)


def without_queue(
    services: LocalServices, api: endpoints.Endpoints, folder: Path, index: str
) -> float:
    """Index the folder in this process; return files per second."""
    embedder = document_embedder(api.embedding)
    store = open_store(services.store_url, dimension=dimension(embedder), index=index)
    preparation = indexing.preparation()
    sources = folder_files(folder)
    indexing.prepare(sources[0], preparation)  # imports what it needs
    began = time.perf_counter()
    indexing.update(store, sources, preparation=preparation, embedder=embedder)
    elapsed = time.perf_counter() - began
    store.close()
    return len(sources) / elapsed


async def recovery(services: LocalServices, ack_wait: float, index: str) -> dict[str, float]:
    """Kill a worker that has a job; return seconds until another has it, and until it is done."""
    names = [f"{index}-{number}" for number in range(2)]
    option = f"--ack-wait={ack_wait}"
    both = [services.start_worker(option, name=name, index=index) for name in names]
    await asyncio.to_thread(services.wait_for_workers)
    with tempfile.TemporaryDirectory() as name:
        words = " ".join(f"Lamp {number} is green." for number in range(LONG * 20))
        Path(name, "long.txt").write_text(words, encoding="utf-8")
        async with connect(services.nats_url, name=index) as queue:
            await submit_all(queue, FileStore(services.files), folder_files(name))
            while not (owner := await claimed_by(queue, "long.txt")):
                await asyncio.sleep(0.01)
            killed = names.index(owner)
            both[killed].kill()
            began = time.perf_counter()
            while await claimed_by(queue, "long.txt") != names[1 - killed]:
                await asyncio.sleep(0.01)
            taken = time.perf_counter() - began
            await queue.until_done(every=0.05)
            done = time.perf_counter() - began
    both[1 - killed].terminate()
    for process in both:
        process.wait()
    return {"taken_over_s": round(taken, 2), "done_s": round(done, 2)}


async def claimed_by(queue: Queue, document: str) -> str:
    """Return the worker that has claimed a document, nothing where there is none."""
    try:
        found = await queue.stream.get_last_msg(
            queue.stream_name("CLAIMS"), queue.subject("CLAIMS", subject_key(document))
        )
    except NotFoundError:
        return ""
    return (found.data or b"").decode()


async def measure(options: argparse.Namespace, api: endpoints.Endpoints) -> dict[str, object]:
    """Run all measurements."""
    rates: dict[int, list[float]] = {count: [] for count in options.workers}
    plain: list[float] = []
    settings = endpoint_settings(api)
    with tempfile.TemporaryDirectory() as name, LocalServices(settings=settings) as services:
        write_files(Path(name), options.files)
        for number in range(options.rounds):
            for count in options.workers:
                rates[count].append(
                    await one_round(services, Path(name), count, f"w{count}_{number}")
                )
                say(f"  round {number + 1}, {count} workers: {rates[count][-1]:.1f} files/s")
            plain.append(
                await asyncio.to_thread(without_queue, services, api, Path(name), f"p{number}")
            )
            say(f"  round {number + 1}, without the queue: {plain[-1]:.1f} files/s")
        recovered = []
        for number in range(options.rounds):
            recovered.append(await recovery(services, options.ack_wait, f"r{number}"))
            say(f"  recovery {number + 1}: {recovered[-1]}")
    least, most = min(options.workers), max(options.workers)
    return {
        "files": options.files,
        "files_per_second": {f"{count} workers": spread(rates[count]) for count in rates},
        "files_per_second_without_queue": spread(plain),
        f"ratio_{most}_to_{least}_workers": spread(
            [many / one for many, one in zip(rates[most], rates[least], strict=True)]
        ),
        "ack_wait_s": options.ack_wait,
        "recovery": recovered,
        "median_takeover_over_ack_wait": round(
            statistics.median(r["taken_over_s"] for r in recovered) / options.ack_wait, 2
        ),
    }


def main() -> int:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ack-wait", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    api = endpoints.connect("nim")
    try:
        results: dict[str, object] = {"weights": api.embedding.weights}
        results |= asyncio.run(measure(options, api))
    finally:
        api.close()
    report(results, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
