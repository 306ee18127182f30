"""The Notion stand-in on a free port, for tests that need another than the session's."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from local_endpoints.notion import RateLimit, Workspace, build_app
from local_endpoints.ports import bind
from tests.support import free_port_block

TOKEN = "notion-fake-token-for-tests"


@contextlib.contextmanager
def serving(space: Workspace, limit: RateLimit | None = None) -> Iterator[str]:
    """Serve a workspace on a free port; give its address."""
    with serving_app(build_app(space, TOKEN, limit)) as url:
        yield url


@contextlib.contextmanager
def serving_app(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free port; give its address."""
    port = free_port_block(1)
    listener = bind("127.0.0.1", port, "notion")
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
