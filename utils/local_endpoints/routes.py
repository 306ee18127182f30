"""What a stand-in tells of its routes: their errors, and the methods that a path has."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.routing import BaseRoute, Match

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
FASTAPI_OWN = "#/components/schemas/HTTPValidationError"


def documented(body: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return errors with this body as FastAPI's `responses` wants them."""
    return {
        status: {"model": body, "description": HTTPStatus(status).phrase} for status in statuses
    }


def allowed(routes: Sequence[BaseRoute], request: Request) -> str:
    """Return the methods of a path as the header Allow lists them; nothing for an unknown path.

    Starlette's own 405 names those of the first route alone, also where two share a path.
    """
    scope = {"type": "http", "path": request.scope["path"], "root_path": "", "headers": []}
    return ", ".join(
        method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    )


def without_fastapi_errors(app: FastAPI) -> None:
    """Leave FastAPI's own 422 out of the OpenAPI document of an app that never answers it.

    See https://fastapi.tiangolo.com/how-to/extending-openapi/.
    """
    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()
        operations = [one for path in document["paths"].values() for one in path.values()]
        for operation in operations:
            if FASTAPI_OWN in str(operation["responses"].get("422", "")):
                del operation["responses"]["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
