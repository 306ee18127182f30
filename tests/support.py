"""What several test modules need: free ports, and where the session's servers are."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import httpx
import nbformat
import pytest
import uvicorn
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from starlette.types import ASGIApp

from local_endpoints.ports import bind

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
START_SECONDS = 300  # a first start fetches the weights
BLOCK = 6
NAMES = ("chat", "embedding", "reranking", "catalog", "gradient", "notion")  # in order of ports
PATHS = {"gradient": "/api", "notion": ""}
KEYED = ("catalog", "gradient", "notion")

# xdist's processes run side by side: each begins far from the others, or two would hand out the
# same block before either's servers listen.
_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw-1").removeprefix("gw")) + 1
_bases = iter(range(12000 + _process % 5 * 4000 + os.getpid() % 300 * 10, 60000, 10))


def free_port_block(size: int = BLOCK) -> int:
    """Return the first of `size` consecutive free ports, another block at each call.

    A block handed out before may look free: the servers meant for it are still starting.
    """
    for base in _bases:
        sockets = []
        try:
            for port in range(base, base + size):
                listener = socket.socket()
                sockets.append(listener)
                listener.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
        finally:
            for listener in sockets:
                listener.close()
    raise RuntimeError("no block of free ports")


@contextlib.contextmanager
def serving_app(app: ASGIApp, ssl_certfile: Path | None = None) -> Iterator[str]:
    """Serve an application on a free port, in a thread; give its address.

    With a file of a certificate and its key, over TLS.
    """
    port = free_port_block(1)
    listener = bind("127.0.0.1", port, "test")
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="error",
            timeout_graceful_shutdown=1,
            lifespan="on",
            ssl_certfile=ssl_certfile,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"{'https' if ssl_certfile else 'http'}://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@dataclass(frozen=True)
class Servers:
    """Where a start of the local servers is.

    Attributes:
        port_base: Its first port.
        key: Its key.
        log: Where it writes what it says; the session's servers' by default.
    """

    port_base: int
    key: str
    log: Path | None = None

    def url(self, name: str) -> str:
        """Return a server's base URL, which ends in /v1 for the NIMs and the catalog."""
        port, path = self.port_base + NAMES.index(name), PATHS.get(name, "/v1")
        return f"http://127.0.0.1:{port}{path}"

    def client(self, name: str, key: str | None = None) -> httpx.Client:
        """Return an HTTP client for one server; it carries the key where one is demanded."""
        key = self.key if key is None and name in KEYED else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url(name), headers=headers, timeout=120)

    def wait(self) -> None:
        """Wait until all roles are loaded, or fail with the server's own last words."""
        limit = time.monotonic() + START_SECONDS
        while time.monotonic() < limit:
            try:
                with self.client("catalog") as client:
                    if client.get("/health/ready").status_code == 200:
                        return
            except httpx.TransportError:
                pass
            log = (self.log or Path(os.environ["COOKBOOK_TEST_LOG"])).read_text(encoding="utf-8")
            if "Error: " in log:
                break
            time.sleep(0.1)
        pytest.fail(f"the local servers did not start:\n{log[-2000:]}", pytrace=False)


def start_servers(
    port_base: int, log: Path, *arguments: str, **variables: str
) -> subprocess.Popen[bytes]:
    """Start the local servers without waiting; they end with their standard input."""
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "local_endpoints", "--stop-with-stdin"),
                f"--port-base={port_base}",
                *arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, **variables},
        )


@contextlib.contextmanager
def started_servers(
    log: Path, key: str, *arguments: str, **variables: str
) -> Iterator[tuple[Servers, subprocess.Popen[bytes]]]:
    """Start local servers beside the session's, ready, and end them."""
    base = free_port_block()
    process = start_servers(base, log, *arguments, COOKBOOK_LOCAL_KEY=key, **variables)
    try:
        servers = Servers(base, key, log)
        servers.wait()
        yield servers, process
    finally:
        stop_servers(process)


def stop_servers(process: subprocess.Popen[bytes]) -> None:
    """End servers of `start_servers`."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()


def closure(names: Iterable[str]) -> set[str]:
    """Return packages with all that they need, of what is installed here."""
    done: set[str] = set()
    todo = []
    for requirement in map(Requirement, names):
        todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        done.add(name)
        for need in map(Requirement, needs):
            environments = [{"extra": extra} for extra in ("", *extras)]
            if need.marker is None or any(need.marker.evaluate(e) for e in environments):
                todo.append((canonicalize_name(need.name), frozenset(need.extras)))
    return done


def recipe_cells(number: str) -> dict[str, str]:
    """Return the source of a recipe's cells, by their ids."""
    (notebook,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    return {cell.id: cell.source for cell in nbformat.read(notebook, as_version=4).cells}
