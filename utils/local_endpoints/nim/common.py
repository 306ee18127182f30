"""What every server has: middleware, health, models, metadata, version and metrics."""

from __future__ import annotations

import asyncio
import ctypes
import secrets
import sys
from collections.abc import Coroutine, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local_endpoints.nim.answers import Health, Listing
from local_endpoints.nim.errors import PROBLEMS, ClientGone, Errors, install_handlers
from local_endpoints.nim.metrics import Metrics
from local_endpoints.nim.service import RoleService
from local_endpoints.routes import without_fastapi_errors
from local_endpoints.strict_json import StrictRoute

T = TypeVar("T")

MAX_BODY_BYTES = 8 * 1024 * 1024
#: After a body of so many bytes, freed memory goes back to the system.
GIVE_BACK_FROM = 100_000
# A load balancer or Prometheus has no key; neither path says anything about a request.
OPEN_PATHS = ("/v1/health/live", "/v1/health/ready", "/openapi.json", "/docs")


#: Plain text in an OpenAPI document.
TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}


class FastJSONResponse(Response):
    """JSON written by orjson, which takes NumPy rows as they are (embeddings are large)."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Return the body's bytes."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


class KeyCheck:
    """ASGI middleware that demands ``Authorization: Bearer <key>``, as the hosted catalog does."""

    def __init__(self, app: ASGIApp, key: str, errors: Errors = PROBLEMS) -> None:
        self.app = app
        self.key = key.encode()
        self.errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 without a key, 403 with a wrong one, else pass the request on."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        header = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = header.partition(b" ")
        if scheme.lower() != b"bearer" or not token.strip():
            detail = "401 Unauthorized: send your key as 'Authorization: Bearer nvapi-...'."
            await self.errors.response(401, detail, scope["path"])(scope, receive, send)
        elif not secrets.compare_digest(token.strip(), self.key):
            refusal = self.errors.response(403, "Authorization failed", scope["path"])
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class BodyLimit:
    """ASGI middleware that answers 413 to a body over `limit` bytes, declared or streamed."""

    def __init__(
        self, app: ASGIApp, limit: int = MAX_BODY_BYTES, errors: Errors = PROBLEMS
    ) -> None:
        self.app = app
        self.limit = limit
        self.errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on while its body stays under the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.limit:
            await self._refuse(scope, receive, send)
            return
        received = 0
        too_large = False
        refused = False

        async def counted() -> Message:
            nonlocal received, too_large
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                too_large = True
                return {"type": "http.disconnect"}
            return message

        async def watched(message: Message) -> None:
            """Send the answer on, or the refusal in its place."""
            nonlocal refused
            if not too_large:
                await send(message)
            elif not refused:
                refused = True
                await self._refuse(scope, receive, send)

        await self.app(scope, counted, watched)
        if received > GIVE_BACK_FROM:
            await asyncio.to_thread(_give_back)
        if too_large and not refused:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"The request body is over {self.limit} bytes; send fewer or shorter texts."
        await self.errors.response(413, detail, scope["path"])(scope, receive, send)


def _give_back() -> None:
    """Return freed memory to the system; glibc keeps it for itself otherwise (malloc_trim(3))."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, and cancel it when the client goes away, so that it stops costing.

    Raises:
        ClientGone: The client went away.
        HTTPException: 503, when the server stops and waits no longer.
    """
    task = asyncio.ensure_future(work)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    except asyncio.CancelledError:  # uvicorn's, after its time of grace
        raise HTTPException(503, "The local server is stopping; start it again.") from None
    finally:
        task.cancel()
        watcher.cancel()


def _health_router(services: Sequence[RoleService[Any]]) -> APIRouter:
    router = APIRouter(route_class=StrictRoute, prefix="/v1", tags=["system"])

    @router.get("/health/live")
    async def live() -> dict[str, Any]:
        return {"object": "health.response", "message": "live", "live": True}

    @router.get("/health/ready", responses={200: {"model": Health}, 503: {"model": Health}})
    async def ready() -> JSONResponse:
        loading = [service.role for service in services if not service.ready]
        message = f"loading: {', '.join(loading)}" if loading else "ready"
        body = {"object": "health.response", "message": message, "ready": not loading}
        return JSONResponse(body, status_code=503 if loading else 200)

    return router


def _system_router(
    services: Sequence[RoleService[Any]], metrics: Metrics, adapters: bool, nim: str | None
) -> APIRouter:
    router = APIRouter(route_class=StrictRoute, prefix="/v1", tags=["system"])

    @router.get("/models", responses={200: {"model": Listing}})
    async def models() -> dict[str, Any]:
        data = [entry for service in services for entry in service.listing()]
        if adapters:
            data += [entry for service in services for entry in service.adapter_listing()]
        return {"object": "list", "data": data}

    @router.get("/version")
    async def get_version() -> dict[str, str]:
        release = version("nim-rag-cookbook")
        return {"release": release, "api": "1.0.0"}

    @router.get("/metadata")
    async def metadata() -> dict[str, Any]:
        loaded = [entry for service in services for entry in service.adapter_provenance()]
        return {
            "id": "-".join(service.role for service in services),
            "version": version("nim-rag-cookbook"),
            "modelInfo": [
                {"shortName": model, "modelUrl": ""}
                for service in services
                for model in service.ids()
            ],
            "localStandIn": True,
            **({"nim": nim} if nim else {}),
            "weights": [entry for service in services for entry in service.provenance()],
            **({"adapters": loaded} if adapters else {}),
        }

    @router.get("/metrics", response_class=Response, responses={200: TEXT})
    async def get_metrics() -> Response:
        return Response(metrics.render(), media_type=metrics.content_type)

    return router


def build_app(
    title: str,
    services: Sequence[RoleService[Any]],
    routers: Sequence[APIRouter],
    metrics: Metrics,
    key: str | None,
    adapters: bool = False,
    errors: Errors = PROBLEMS,
    nim: str | None = None,
) -> FastAPI:
    """Return one server's application.

    Args:
        title: Shown in ``/openapi.json``.
        services: The roles it serves.
        routers: The routes of those roles.
        metrics: Its Prometheus figures.
        key: The key to demand, None to accept any request as a self-hosted NIM does.
        adapters: Whether it shows the roles' LoRA adapters.
        errors: How it writes its errors.
        nim: The version of NIM LLM whose protocol it speaks, for its metadata.
    """
    app = FastAPI(
        title=title,
        version=version("nim-rag-cookbook"),
        description=(
            "A NIM-compatible stand-in: NVIDIA's wire protocol in front of small local models. "
            "GET /v1/metadata names the weights that really answer."
        ),
        redoc_url=None,
    )
    install_handlers(app, errors)
    keyed = key is not None
    refusals = errors.documented(401, 403) if keyed else {}
    # For the document alone: `KeyCheck` reads the header before any route does.
    bearer = [Depends(HTTPBearer(auto_error=False))] if keyed else []
    # The models' routes first: FastAPI looks at one after the other.
    for router in (*routers, _system_router(services, metrics, adapters, nim)):
        app.include_router(router, responses=refusals, dependencies=bearer)
    app.include_router(_health_router(services))
    if errors.invalid != 422:
        without_fastapi_errors(app)
    app.add_middleware(BodyLimit, errors=errors)
    if key is not None:
        app.add_middleware(KeyCheck, key=key, errors=errors)
    return app
