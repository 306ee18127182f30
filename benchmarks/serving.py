"""What the query service costs over what it serves, as ratios within one run; of `make bench`.

    python benchmarks/serving.py [--pipelines wait ask] [--clients 200] [--wait 0.2]
                                 [--requests 2000] [--rounds 5] [--json [FILE]]

A stand-in for the NIMs (`slow_nim.py`) takes 200 ms for a chat; it embeds and ranks at once. As
many requests as asked go through each of these, 200 at a time:

asyncio      nothing but that wait, 200 coroutines at a time: what the clock allows
components   the steps of the `ask` pipeline, called one after the other in this process
Hayhooks     as `hayhooks run` serves it, with its own settings
service      `rag_service.app`, as it is shipped: token, readiness, metrics

Two pipelines are served. `wait` only waits as long as that NIM takes: what is left is what serving
costs. `ask` is the shipped one, with PostgreSQL, on `DOCUMENTS` of the company's documents.

Stand-in, PostgreSQL, service and clients share this machine, so the rates of `ask` say how the ways
to serve compare. The processor time a request of the server's process hardly depends on what else
the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
from timing import Measure, Row, alternating, parser, rate_of, ratio_rows, report, say, spread

from capacity.load import Target
from nim_cookbook import endpoints, indexing
from nim_cookbook.corpus import company_files, load_company
from nim_cookbook.errors import DataError
from nim_cookbook.models import ROLES
from rag_service import query
from rag_service.indexer import dimension, document_embedder
from rag_service.local import LocalServices
from rag_service.pipelines import load
from rag_service.stores import open_store

HERE = Path(__file__).parent
DOCUMENTS = 40
TARGET = 0.9
START_SECONDS = 180
PIPELINES = ("wait", "ask")
LIMIT, COMPONENTS, HAYHOOKS, SERVICE = "asyncio", "components", "Hayhooks", "service"
WRAPPER = '''import asyncio

from hayhooks import BasePipelineWrapper


class PipelineWrapper(BasePipelineWrapper):
    def setup(self) -> None:
        self.pipeline = None

    async def run_api_async(self, question: str) -> str:
        """Wait as long as the NIM takes."""
        await asyncio.sleep({wait})
        return question
'''
ASK = '''from rag_service.query import Ask


class PipelineWrapper(Ask):
    """Under this name."""
'''


@contextlib.contextmanager
def child(*command: str, ready: str, log: Path, **variables: str) -> Iterator[psutil.Process]:
    """Run a server until the context ends; it answers when the context begins."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **variables}
        )
    try:
        limit = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(ready, trust_env=False).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > limit:
                raise DataError(f"{command} did not start: {log.read_text('utf-8')[-500:]}")
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


# ----------------------------------------------------------------------------------- measures


class Loaded:
    """A route of a server: requests a second, and its processor time a request."""

    def __init__(self, target: Target, clients: int, server: psutil.Process) -> None:
        """Take what is loaded; nothing is sent yet."""
        self._target, self._clients, self._server = target, clients, server
        self.milliseconds: list[float] = []

    def __call__(self) -> float:
        """Send each of the target's bodies once; return answers a second."""
        before = _processor(self._server)
        rate = rate_of(self._target, self._clients)
        used = _processor(self._server) - before
        self.milliseconds.append(used / len(self._target.bodies) * 1000)
        return rate


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def shared(work: Any, items: Sequence[Any], clients: int) -> float:  # noqa: ANN401
    """Let coroutines take one item after the other; return items a second."""
    left = iter(items)

    async def client() -> None:
        for item in left:
            await work(item)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return len(items) / (time.perf_counter() - began)


async def components(
    pipeline: Any,  # noqa: ANN401
    questions: Sequence[str],
    clients: int,
    pool: ThreadPoolExecutor,
) -> float:
    """Call the steps of the `ask` pipeline without `Pipeline`; return answers a second."""
    embedder, retriever, ranker, builder, generator = (
        pipeline.get_component(name)
        for name in ("text_embedder", "retriever", "ranker", "prompt_builder", "generator")
    )

    async def answer(question: str) -> None:
        vector = await asyncio.to_thread(embedder.run, text=question)
        found = await retriever.run_async(query_embedding=vector["embedding"])
        ranked = await asyncio.to_thread(ranker.run, query=question, documents=found["documents"])
        prompt = builder.run(question=question, documents=ranked["documents"])["prompt"]
        replies = (await generator.run_async(messages=prompt))["replies"]
        if not replies[0].text:
            raise DataError("The stand-in said nothing.")

    asyncio.get_running_loop().set_default_executor(pool)
    return await shared(answer, questions, clients)


def measure(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Start everything, and return the rows."""
    wrappers = folder / "wrappers"
    for name, text in (("wait", WRAPPER.format(wait=options.wait)), ("ask", ASK)):
        (wrappers / name).mkdir(parents=True)
        (wrappers / name / "pipeline_wrapper.py").write_text(text, encoding="utf-8")
    port, bare = _ports(2)
    nim = f"http://127.0.0.1:{port}/v1"
    os.environ["COOKBOOK_ENDPOINTS"] = "self-hosted"
    os.environ.update({f"NIM_{role.upper()}_URL": nim for role in ROLES})
    stand_in = (sys.executable, str(HERE / "slow_nim.py"), str(port), str(options.wait))
    token = secrets.token_hex(32)
    with contextlib.ExitStack() as stack:
        ready = f"{nim}/health/ready"
        stack.enter_context(child(*stand_in, ready=ready, log=folder / "nim.log"))
        api = endpoints.connect("nim", wait=START_SECONDS)
        local = stack.enter_context(LocalServices(settings={"COOKBOOK_SERVICE_TOKEN": token}))
        embedder = document_embedder(api.embedding)
        store = open_store(local.store_url, dimension=dimension(embedder))
        files = indexing.source_files(company_files()[:DOCUMENTS])
        indexing.update(store, files, preparation=indexing.preparation(), embedder=embedder)
        service = local.start_service("app", COOKBOOK_WRAPPERS=str(wrappers))
        hayhooks = stack.enter_context(
            child(
                *(
                    str(Path(sys.executable).with_name("hayhooks")),
                    "run",
                    "--pipelines-dir",
                    str(wrappers),
                ),
                *("--host", "127.0.0.1", "--port", str(bare)),
                ready=f"http://127.0.0.1:{bare}/status",
                log=folder / "hayhooks.log",
                **local.environment(),
            )
        )
        servers = {
            HAYHOOKS: (f"http://127.0.0.1:{bare}", hayhooks),
            SERVICE: (service.url, psutil.Process(service.process.pid)),
        }
        pipeline = load("ask", api, store)
        # One loop for all rounds: the clients of the components keep their connections.
        runner = stack.enter_context(asyncio.Runner())
        pool = stack.enter_context(ThreadPoolExecutor(query.THREADS))

        def called(questions: Sequence[str]) -> float:
            return runner.run(components(pipeline, questions, options.clients, pool))

        return compare(options, servers, token, called)


def compare(
    options: argparse.Namespace,
    servers: dict[str, tuple[str, psutil.Process]],
    token: str,
    called: Callable[[Sequence[str]], float],
) -> list[Row]:
    """Measure both pipelines in turns."""
    asked = [query.question for query in load_company().split("dev")]
    rows: list[Row] = []
    for name in options.pipelines:
        count = options.requests if name == "wait" else max(1, options.requests // 2)
        questions = list(itertools.islice(itertools.cycle(asked), count))
        bodies = [{"question": question} for question in questions]
        loaded = {
            kind: Loaded(Target(url, f"/{name}/run", bodies, token), options.clients, process)
            for kind, (url, process) in servers.items()
        }
        waits = [options.wait] * count
        measures: dict[str, Measure] = {
            LIMIT: lambda waits=waits: asyncio.run(shared(asyncio.sleep, waits, options.clients))
        }
        if name == "ask":
            called(questions[:1])  # it connects the store; all at once would each open a connection
            called(questions[: options.clients])  # clients connect at their first call
            measures[COMPONENTS] = lambda questions=questions: called(questions)
        say(f"  {name}, {options.clients} clients, {count} requests")
        for server in loaded.values():
            server()  # what is imported or opened at first is not measured
            server.milliseconds.clear()
        rates = alternating({**measures, **loaded}, options.rounds)
        case = {"pipeline": name, "clients": options.clients, "wait": f"{options.wait:g} s"}
        targets: dict[str, float | None] = {LIMIT: TARGET if name == "wait" else None}
        targets |= {COMPONENTS: None} if name == "ask" else {}
        rows += ratio_rows(case, rates, SERVICE, {**targets, HAYHOOKS: None})
        for row in rows[-len(targets) - 1 :]:
            row["what, ms of processor"] = spread(loaded[SERVICE].milliseconds)
            if row["against"] == HAYHOOKS:
                row["against, ms of processor"] = spread(loaded[HAYHOOKS].milliseconds)
    return rows


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in opened:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in opened]


def main() -> int:
    """Measure and print."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=PIPELINES)
    options.add_argument("--clients", type=int, default=200)
    options.add_argument("--wait", type=float, default=0.2, help="seconds that a chat takes")
    options.add_argument("--requests", type=int, default=2000, help="of a round; half for ask")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(given, Path(folder))
    title = f"The query service under {given.clients} clients, with a NIM of {given.wait:g} s"
    report({"sections": [{"title": title, "plot": "ratios", "rows": rows}]}, given.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
