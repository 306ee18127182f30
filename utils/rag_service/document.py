"""The OpenAPI document of the query service: Hayhooks' own, corrected.

Hayhooks lists routes that the guard shuts, and no status that the guard or our wrappers answer.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from rag_service.guard import OPEN, UPLOADS, is_shut

Json = dict[str, Any]

_FAULTS = {"type": "array", "items": {"$ref": "#/components/schemas/ValidationError"}}
_REFUSAL = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"anyOf": [{"type": "string"}, _FAULTS]}},
}
#: Of every path that takes a body: the guard's, FastAPI's and the wrappers'.
_POST = (400, 411, 413, 422, 500, 502)
#: Of the removal of an upload; the last when the queue is not there.
_DELETE = (400, 411, 413, 422, 503)


def correct(app: FastAPI) -> None:
    """Let an application say which paths it has and what each may answer.

    See https://fastapi.tiangolo.com/how-to/extending-openapi/.
    """
    build = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            document = build()
            document["components"]["schemas"]["Refusal"] = _REFUSAL
            document["components"]["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer"}
            }
            paths = {path: item for path, item in document["paths"].items() if not is_shut(path)}
            for path, item in paths.items():
                for method, operation in item.items():
                    _correct(path, method, operation)
            document["paths"] = paths | _unlisted()
        return app.openapi_schema or {}

    app.openapi_schema = None
    app.openapi = openapi  # type: ignore[method-assign]


def _correct(path: str, method: str, operation: Json) -> None:
    """Add the statuses of one route."""
    statuses = set({"post": _POST, "delete": _DELETE}.get(method, ()))
    if path not in OPEN:
        operation["security"] = [{"token": []}]
        statuses.add(401)
    if path in UPLOADS:
        statuses |= {415, 503}
    if path.endswith("/chat/completions"):
        statuses.add(404)
        operation["responses"]["200"]["content"]["text/event-stream"] = {}
    if "{" in path:
        statuses.add(404)
    operation["responses"] |= {str(status): _refused(status) for status in sorted(statuses)}


def _refused(status: int) -> Json:
    schema = {"$ref": "#/components/schemas/Refusal"}
    content = {"application/json": {"schema": schema}}
    return {"description": HTTPStatus(status).phrase, "content": content}


def _text() -> Json:
    return {"schema": {"type": "string"}}


def _unlisted() -> Json:
    """Return the routes that are Starlette's, which FastAPI does not list."""
    kind: Json = {"application/json": {"schema": {"type": "object"}}}
    live = {"200": {"description": "Live", "content": kind}}
    ready = {
        "200": {"description": "Ready", "content": kind},
        "503": {"description": "Not ready", "content": kind},
    }
    shown = {"200": {"description": "Prometheus' text", "content": {"text/plain": _text()}}}
    return {
        "/health/live": {"get": {"responses": live}},
        "/health/ready": {"get": {"responses": ready}},
        "/metrics": {
            "get": {"responses": shown | {"401": _refused(401)}, "security": [{"token": []}]}
        },
    }
