"""Prometheus metrics of the query service: requests, their latency, and how many are in flight.

With several worker processes `PROMETHEUS_MULTIPROC_DIR` names a folder through which they add up;
it has to be set before prometheus_client is imported.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
#: Upper bounds of the latency's buckets in seconds: a search takes tens of milliseconds, an answer
#: of a large model many seconds.
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_registry = CollectorRegistry()
_requests = Counter(
    "cookbook_requests",
    "Requests that were answered, to the last byte.",
    ("route", "method", "status"),
    registry=_registry,
)
_seconds = Histogram(
    "cookbook_request_seconds",
    "Seconds from a request to the last byte of its answer.",
    ("route",),
    buckets=BUCKETS,
    registry=_registry,
)
_in_flight = Gauge(
    "cookbook_requests_in_flight",
    "Requests that are being answered.",
    registry=_registry,
    multiprocess_mode="livesum",
)


class Measure:
    """ASGI middleware that counts and times requests; the outermost, so that it sees refusals."""

    def __init__(self, app: ASGIApp) -> None:
        """Measure an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note how it went."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = "none"  # the client went away, or the server failed

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        began = time.perf_counter()
        with _in_flight.track_inprogress():
            try:
                await self._app(scope, receive, noted)
            finally:
                route = _route(scope, status)
                _requests.labels(route, scope["method"], status).inc()
                _seconds.labels(route).observe(time.perf_counter() - began)


async def show(request: Request) -> Response:
    """Answer `GET /metrics`."""
    registry = _registry
    if folder := os.environ.get(MULTIPROCESS):
        forget_dead_workers(Path(folder))
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def forget_dead_workers(folder: Path) -> None:
    """Remove the in-flight gauges of killed workers, which would never fall again.

    uvicorn starts another worker for one that was killed, as for want of memory, and tells
    prometheus_client nothing (`prometheus_client.multiprocess.mark_process_dead`). Counters stay:
    those requests were made.

    Args:
        folder: Where the workers' numbers are.
    """
    for file in folder.glob("gauge_live*_*.db"):
        if not _lives(int(file.stem.rpartition("_")[2])):
            file.unlink(missing_ok=True)  # another worker may be just as far


def _lives(process: int) -> bool:
    if sys.platform == "win32":  # there signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):  # it ended, or another process has its number
        return False
    return True


def _route(scope: Scope, status: str) -> str:
    """Return the route's own path: a caller cannot fill the memory with paths of their own."""
    path = getattr(scope.get("route"), "path", None)
    return str(path) if path else "refused" if status in ("401", "411", "413") else "other"
