"""Requests per second and latency through the query service: search and answers, sync and async.

    nice -n 19 .venv/bin/python benchmarks/serving.py [--seconds 15] [--clients 1 8 32]

Everything is on this machine and on loopback: PostgreSQL, the local endpoints (started if none
run), one process of the service, and the clients. So the numbers say how the ways to serve compare,
and not what a machine of its own would do; the small chat model answers one question at a time and
sets the pace of the answers.

One run at niceness 19 on two cores that other work shared, on 40 documents, so that only the order
of magnitude counts:

| pipeline | clients | requests | requests/s | median, ms | p95, ms |
|---|---|---|---|---|---|
| search | 1 | 23 | 2.3 | 371 | 1005 |
| search | 8 | 74 | 7.0 | 1081 | 1886 |
| search | 32 | 136 | 10.5 | 2596 | 4179 |
| search-sync | 1 | 60 | 5.9 | 185 | 260 |
| search-sync | 8 | 94 | 9.0 | 856 | 1609 |
| search-sync | 32 | 98 | 8.4 | 3689 | 5137 |
| ask | 1 | 6 | 0.5 | 2010 | 3933 |
| ask | 8 | 14 | 0.5 | 11156 | 24889 |
| ask | 32 | 40 | 0.5 | 27746 | 81460 |
| ask-sync | 1 | 6 | 0.5 | 1936 | 3489 |
| ask-sync | 8 | 14 | 0.6 | 10628 | 19312 |

The run was ended before its last row. The local models take the cores, and other work came and went
(the first row had most of it), so no difference between sync and async can be read from this.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from cookbook_services.indexer import dimension, document_embedder
from cookbook_services.local import LocalServices
from cookbook_services.stores import open_store
from nim_cookbook import endpoints, indexing
from nim_cookbook.corpus import company_files, load_company

WRAPPERS = {"search": "Search", "search-sync": "SearchSync", "ask": "Ask", "ask-sync": "AskSync"}
#: Requests that one measurement makes at most; answers take long on a small machine.
MOST = {"search": 400, "ask": 40}
DOCUMENTS = 40
PORT = 14160


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; times in milliseconds."""

    pipeline: str
    clients: int
    requests: int
    per_second: float
    median: float
    p95: float

    def __str__(self) -> str:
        """Return a line of the table."""
        return (
            f"| {self.pipeline} | {self.clients} | {self.requests} | {self.per_second:.1f} | "
            f"{self.median:.0f} | {self.p95:.0f} |"
        )


async def measure(
    name: str, clients: int, seconds: float, url: str, token: str, questions: Sequence[str]
) -> Row:
    """Ask for some seconds, each client one question after the other."""
    times: list[float] = []
    left = MOST[name.partition("-")[0]]
    began = time.perf_counter()

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal left
        while left > 0 and time.perf_counter() - began < seconds:
            left -= 1
            question = questions[left % len(questions)]
            start = time.perf_counter()
            answer = await http.post(f"/{name}/run", json={"question": question})
            answer.raise_for_status()
            times.append(time.perf_counter() - start)

    headers = {"Authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=300, limits=limits, trust_env=False
    ) as http:
        (await http.post(f"/{name}/run", json={"question": questions[0]})).raise_for_status()
        began = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
    elapsed = time.perf_counter() - began
    milliseconds = np.array(times) * 1000
    return Row(
        name,
        clients,
        len(times),
        len(times) / elapsed,
        float(np.median(milliseconds)),
        float(np.percentile(milliseconds, 95)),
    )


def main() -> int:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement at most")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--pipelines", nargs="+", choices=list(WRAPPERS), default=list(WRAPPERS))
    options = parser.parse_args()
    api = endpoints.connect()
    token = secrets.token_hex(32)
    questions = [query.question for query in load_company().split("dev")[:50]]
    with tempfile.TemporaryDirectory() as folder, LocalServices() as local:
        _index(local, api)
        service = subprocess.Popen(
            [sys.executable, "-m", "cookbook_services.app", "--port", str(PORT)],
            env={
                **os.environ,
                **local.environment(),
                "COOKBOOK_SERVICE_TOKEN": token,
                "COOKBOOK_WRAPPERS": str(_wrappers(Path(folder, "wrappers"))),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = f"http://127.0.0.1:{PORT}"
            _wait(url, service)
            print("| pipeline | clients | requests | requests/s | median, ms | p95, ms |")
            print("|---|---|---|---|---|---|")
            for name in options.pipelines:
                for clients in options.clients:
                    row = measure(name, clients, options.seconds, url, token, questions)
                    print(asyncio.run(row), flush=True)
        finally:
            service.terminate()
            service.wait(30)
    print(f"\nNiceness {os.nice(0)}, {os.cpu_count()} cores; {api.weights}")
    return 0


def _index(local: LocalServices, api: endpoints.Endpoints) -> None:
    embedder = document_embedder(api.embedding)
    files = indexing.source_files(company_files()[:DOCUMENTS])
    store = open_store(local.store_url, dimension=dimension(embedder))
    indexing.update(store, files, preparation=indexing.preparation(), embedder=embedder)


def _wrappers(folder: Path) -> Path:
    for name, kind in WRAPPERS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "pipeline_wrapper.py").write_text(
            f"from cookbook_services.query import {kind}\n\n\nclass PipelineWrapper({kind}):\n"
            '    """Under this name."""\n',
            encoding="utf-8",
        )
    return folder


def _wait(url: str, service: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if service.poll() is not None:
            break
        time.sleep(0.2)
    raise SystemExit("The query service did not start.")


if __name__ == "__main__":
    raise SystemExit(main())
