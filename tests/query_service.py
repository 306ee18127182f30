"""A query service as a process of its own, for tests of what it answers over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping

import httpx
import pytest

from nim_cookbook import indexing
from nim_cookbook.corpus import company_files
from nim_cookbook.endpoints import connect
from nim_cookbook.models import load_registry
from rag_service.children import end
from rag_service.indexer import document_embedder
from rag_service.local import LocalServices, Module, RunningService
from rag_service.stores import open_store
from tests.relay import Relay
from tests.support import Servers

TOKEN = "fake-token-for-tests-0123456789abcdef"
START_SECONDS = 300
#: Enough to find something and to find something else.
DOCUMENTS = ("handbook-001", "handbook-017", "handbook-021")


class TestedService(RunningService):
    """A service that answers."""

    __test__ = False  # no test, whatever its name

    def client(self, token: str | None = TOKEN) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False)

    def wait_for(self, path: str, status: int) -> httpx.Response:
        """Wait until a path answers with this status."""
        limit = time.monotonic() + START_SECONDS
        with self.client() as client:
            while time.monotonic() < limit and self.process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    answer = client.get(path)
                    if answer.status_code == status:
                        return answer
                time.sleep(0.1)
        pytest.fail(f"{path} does not answer {status}:\n{self.log.read_text()[-3000:]}", False)


def environment(services: LocalServices, servers: Servers, **more: str) -> dict[str, str]:
    """Return the settings of a service over local NIMs, as Compose gives them."""
    # Not local mode: a service in a container knows addresses only.
    return {
        **os.environ,
        **services.environment(),
        "COOKBOOK_ENDPOINTS": "self-hosted",
        "NIM_CHAT_URL": servers.url("chat"),
        "NIM_EMBEDDING_URL": servers.url("embedding"),
        "NIM_RERANKING_URL": servers.url("reranking"),
        "COOKBOOK_SERVICE_TOKEN": TOKEN,
        **more,
    }


@contextlib.contextmanager
def running(
    services: LocalServices, settings: Mapping[str, str], *arguments: str, module: Module = "app"
) -> Iterator[TestedService]:
    """Run a service until the context ends; it is ready when the context begins."""
    started = services.start_service(module, *arguments, **settings)
    try:
        yield TestedService(started.url, started.process, started.log)
    finally:
        end(started.process)


def index_documents(services: LocalServices) -> None:
    """Put some of the company's documents into the store."""
    api = connect()
    files = [file for file in company_files() if file.id in DOCUMENTS]
    assert len(files) == len(DOCUMENTS)
    width = load_registry().weights_for("embedding").dimensions
    indexing.update(
        open_store(services.store_url, dimension=width or 0),
        indexing.source_files(files),
        preparation=indexing.preparation(),
        embedder=document_embedder(api.embedding),
    )


class Tap:
    """A relay before a server, run in a thread, that can be turned off and on."""

    def __init__(self, target: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._relay = Relay(target)
        self.turn(on=True)
        self.port = self._relay.port

    def turn(self, *, on: bool) -> None:
        work = self._relay.up() if on else self._relay.down()
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def hold(self) -> None:
        """Pass no request on until `release`; the callers wait."""
        self._loop.call_soon_threadsafe(self._relay.hold)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._relay.release)

    def close(self) -> None:
        self.release()
        self.turn(on=False)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
