"""Requests per second and latency through the query service: search and answers, sync and async.

    nice -n 19 .venv/bin/python benchmarks/serving.py [--seconds 15] [--clients 1 8 32]

Everything is on this machine and on loopback: PostgreSQL, the local endpoints (started if none
run), one process of the service, and the clients. So the numbers say how the ways to serve compare,
and not what a machine of its own would do; the small chat model answers one question at a time and
sets the pace of the answers.

One run on two cores that did nothing else, on 40 documents, with `--seconds 8 --clients 1 8`:

| pipeline | clients | requests | requests/s | median, ms | p95, ms |
|---|---|---|---|---|---|
| search | 1 | 67 | 8.3 | 104 | 206 |
| search | 8 | 182 | 22.3 | 331 | 629 |
| search-sync | 1 | 88 | 11.0 | 92 | 111 |
| search-sync | 8 | 219 | 26.8 | 285 | 448 |
| ask | 1 | 7 | 0.9 | 1173 | 2218 |
| ask | 8 | 16 | 0.9 | 8076 | 17005 |
| ask-sync | 1 | 7 | 0.8 | 1172 | 2419 |
| ask-sync | 8 | 16 | 0.9 | 7382 | 13925 |

The local models take the cores, so the processor is the limit and a thread a request costs less
than the event loop; NVIDIA's embedder and ranker know no `await` and take threads in both. Awaiting
pays where requests wait for a NIM elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import tempfile
from pathlib import Path

from capacity.load import Target, closed_load
from nim_cookbook import endpoints, indexing
from nim_cookbook.corpus import company_files, load_company
from rag_service.indexer import dimension, document_embedder
from rag_service.local import LocalServices, endpoint_settings
from rag_service.stores import open_store

WRAPPERS = {"search": "Search", "search-sync": "SearchSync", "ask": "Ask", "ask-sync": "AskSync"}
#: Requests that one measurement makes at most; answers take long on a small machine.
MOST = {"search": 400, "ask": 40}
DOCUMENTS = 40


def main() -> int:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement at most")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--pipelines", nargs="+", choices=list(WRAPPERS), default=list(WRAPPERS))
    options = parser.parse_args()
    api = endpoints.connect()
    token = secrets.token_hex(32)
    settings = endpoint_settings(api) | {"COOKBOOK_SERVICE_TOKEN": token}
    bodies = [{"question": query.question} for query in load_company().split("dev")[:50]]
    with tempfile.TemporaryDirectory() as folder, LocalServices(settings=settings) as local:
        _index(local, api)
        wrappers = str(_wrappers(Path(folder, "wrappers")))
        url = local.start_service("app", COOKBOOK_WRAPPERS=wrappers).url
        columns: list[str] = []
        for name in options.pipelines:
            target = Target(url, f"/{name}/run", bodies, token)
            most = MOST[name.partition("-")[0]]
            for clients in options.clients:
                made = closed_load(target, clients, seconds=options.seconds, most=most, what=name)
                row = asyncio.run(made).row()
                if not columns:
                    columns = list(row)
                    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
                print(f"| {' | '.join(map(str, row.values()))} |", flush=True)
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
            f"from rag_service.query import {kind}\n\n\nclass PipelineWrapper({kind}):\n"
            '    """Under this name."""\n',
            encoding="utf-8",
        )
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
