"""The query service: Hayhooks behind a bearer token, with readiness, metrics and traces.

    COOKBOOK_SERVICE_TOKEN=$(openssl rand -hex 32) python -m rag_service.app

| path | what |
|---|---|
| `POST /ask/run` | a question; its answer with sources |
| `POST /search/run` | a question; chunks only |
| `POST /v1/chat/completions`, `GET /v1/models` | the same, model `ask`, for OpenAI's clients |
| `POST /v1/files` | a file to be indexed; its name and content give its id |
| `DELETE /v1/files/ID` | withdraws it: delete the old file and send the new one to replace it |
| `GET /metrics` | Prometheus |
| `GET /health/live`, `/health/ready`, `/status` | open, for probes |

Hayhooks is run in the mode that loads its pipelines once, at the start: no route deploys anything,
and a start that finds one refuses to serve.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.middleware import Middleware

from nim_cookbook.errors import ConfigurationError, CookbookError, causes
from rag_service.children import OPTION, stop_cleanly
from rag_service.settings import OTLP, ServingSettings, service_token

HOST, PORT = "127.0.0.1", 1416
#: The folder of Hayhooks pipeline wrappers, if not the package's.
WRAPPERS = "COOKBOOK_WRAPPERS"
#: Hayhooks' own variable: least level that it writes. At `INFO`, three lines a request are a fifth
#: of the work, and one of them holds the question.
LOG_LEVEL = "HAYHOOKS_LOG_LEVEL"
#: Seconds that a worker may be busy, while it imports as well, before uvicorn starts another in its
#: place; its own 5 are too few on a starved machine.
HEALTHCHECK = 60
#: Seconds that open requests have to end when the service is told to stop.
GRACE = 20
_TRACING = (
    "haystack_integrations.tracing.opentelemetry",
    "opentelemetry.sdk.trace",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)


def create() -> FastAPI:
    """Return the application; uvicorn calls it in each worker process.

    Raises:
        CookbookError: A setting, an endpoint or the store is missing.
        RuntimeError: Hayhooks would serve a route that deploys.
    """
    os.environ.setdefault(LOG_LEVEL, "WARNING")  # read when Hayhooks is imported
    from rag_service.document import correct
    from rag_service.guard import BearerAuthMiddleware
    from rag_service.health import Readiness, live
    from rag_service.metrics import Measure, show

    settings = ServingSettings.from_environment()
    app = _hayhooks(settings)
    refuse_deploy_routes(app)
    app.add_exception_handler(RequestValidationError, _invalid)
    _files(app)
    correct(app)
    app.add_route("/health/live", live, ["GET"])
    app.add_route("/health/ready", Readiness().show, ["GET"])
    app.add_route("/metrics", show, ["GET"])
    # FastAPI looks at one route after the other: the pipelines' own before Hayhooks' routers.
    app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
    # The last is the innermost: within CORS, so that a page can read why it was refused.
    app.user_middleware.append(
        Middleware(
            BearerAuthMiddleware,
            token=service_token(),
            upload_bytes=settings.upload_mb * 1024 * 1024,
        )
    )
    app.add_middleware(Measure)
    _at_the_start(app)
    return app


def _files(app: FastAPI) -> None:
    """Add what Hayhooks' Files API lacks; tracing has been set up when Haystack is imported."""
    from rag_service.query import withdraw

    app.delete("/v1/files/{file_id}", tags=["openai"])(withdraw)


async def _invalid(_: Request, error: Exception) -> Response:
    """Say what is wrong with a body and not what it held, which may be long or no Unicode."""
    assert isinstance(error, RequestValidationError)
    faults = [{key: fault[key] for key in ("type", "loc", "msg")} for fault in error.errors()]
    body = json.dumps({"detail": faults}, default=str)  # in ASCII
    return Response(body, 422, media_type="application/json")


def refuse_deploy_routes(app: FastAPI) -> None:
    """Make sure that no request can bring code of its own.

    Raises:
        RuntimeError: There is such a route.
    """
    found = [path for path in app.openapi()["paths"] if "deploy" in path]
    if found:
        raise RuntimeError(f"The service has routes that deploy code: {', '.join(found)}")


def _hayhooks(settings: ServingSettings) -> FastAPI:
    """Return Hayhooks' own application, set up so that nothing is open by default."""
    if settings.collector:
        _check_tracing()
    from hayhooks import create_app
    from hayhooks.settings import settings as hayhooks

    wrappers = os.environ.get(WRAPPERS, "").strip()
    hayhooks.pipelines_dir = wrappers or str(Path(__file__).parent / "wrappers")
    hayhooks.durable_mode = True  # no deploy routes
    hayhooks.monitoring_enabled = hayhooks.tracing_enabled = False  # the local dashboard
    hayhooks.chainlit_enabled = False  # the chat page is a service of its own
    # Hayhooks mirrors each span for that dashboard, whether there is one or not.
    hayhooks.tracing_include_haystack_spans = False
    hayhooks.tracing_buffer_capacity = 1
    hayhooks.tracing_include_payload_values = False
    hayhooks.cors_allow_origins = list(settings.origins)
    hayhooks.cors_allow_origin_regex = None
    hayhooks.cors_allow_methods = ["GET", "POST", "DELETE"]
    hayhooks.cors_allow_headers = ["Authorization", "Content-Type"]
    hayhooks.cors_allow_credentials = False
    try:
        app: FastAPI = create_app()
    except Exception as error:
        for cause in causes(error):  # Hayhooks wraps what a wrapper's setup raised
            if isinstance(cause, CookbookError):
                raise cause from None
        raise
    if not settings.collector:
        _stop_tracing_requests(app)
    return app


def _stop_tracing_requests(app: FastAPI) -> None:
    """Take OpenTelemetry out again, which Hayhooks puts in wherever it is installed.

    Without a collector its spans go nowhere, and are a quarter of the work of a request.
    """
    if _installed("opentelemetry.instrumentation.fastapi"):
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        FastAPIInstrumentor.uninstrument_app(app)
        app.middleware_stack = None  # built by that call, and there is more to be put in


def _check_tracing() -> None:
    missing = [name for name in _TRACING if not _installed(name)]
    if missing:
        raise ConfigurationError(
            f"{OTLP} is set and {missing[0]} is not installed: install nim-rag-cookbook[serve], or "
            f"unset {OTLP}."
        )
    os.environ.setdefault("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    os.environ.setdefault("OTEL_SERVICE_NAME", "cookbook-query")


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def _at_the_start(app: FastAPI) -> None:
    """Give the event loop threads for the clients that know no `await`, and its collector peace.

    What was imported stays as long as the process, and Python's garbage collector walks through all
    of it again and again: a third of the work of a request at 200 clients.
    """
    from rag_service.query import THREADS

    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[Any]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "call"))
        async with inner(application) as state:
            gc.collect()
            gc.freeze()
            yield state

    app.router.lifespan_context = lifespan


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service; the command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m rag_service.app",
        description="Answer questions over HTTP from the indexed documents.",
        epilog="Settings: COOKBOOK_SERVICE_TOKEN (needed), COOKBOOK_SERVICE_ORIGINS, "
        "COOKBOOK_STORE_URL, COOKBOOK_ENDPOINTS, COOKBOOK_FILES, COOKBOOK_NATS_URL.",
    )
    parser.add_argument("--host", default=HOST, help=f"address to bind (default {HOST})")
    parser.add_argument("--port", type=int, default=PORT, help=f"port (default {PORT})")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument(OPTION, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    stop_cleanly(options.stop_with_stdin)
    try:
        service_token()
        ServingSettings.from_environment()  # a mistake is said once, and not by each worker
        with tempfile.TemporaryDirectory(prefix="cookbook-metrics-") as folder:
            _serve(options, folder)
    except CookbookError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def _serve(options: argparse.Namespace, folder: str) -> None:
    import uvicorn

    from nim_cookbook.impatient import ImpatientProtocol

    common = {
        "host": options.host,
        "port": options.port,
        "http": ImpatientProtocol,
        "timeout_graceful_shutdown": GRACE,
        "timeout_worker_healthcheck": HEALTHCHECK,
        "log_config": None,
        "access_log": False,  # /metrics counts
        "server_header": False,
    }
    print(f"The query service listens on http://{options.host}:{options.port}.", file=sys.stderr)
    if options.workers == 1:
        uvicorn.run(create(), **common)
        return
    from rag_service.query import service

    service()  # uvicorn starts a worker that cannot begin again and again, without an end
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    uvicorn.run("rag_service.app:create", factory=True, workers=options.workers, **common)


if __name__ == "__main__":
    raise SystemExit(main())
