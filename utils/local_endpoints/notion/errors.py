"""Errors as the Notion API documents them: status, code, message and a request id.

Source: https://developers.notion.com/reference/status-codes
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

REQUEST_ID_HEADER = "x-notion-request-id"


class NotionError(Exception):
    """An error that a client should see.

    Args:
        status: HTTP status code.
        code: One of the documented codes, such as `object_not_found`.
        message: What is wrong, in Notion's words where they are known.
        headers: Further response headers.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


def unauthorized() -> NotionError:
    """Return the error of a missing or wrong token."""
    return NotionError(401, "unauthorized", "API token is invalid.")


def missing_version() -> NotionError:
    """Return the error of a request without the `Notion-Version` header."""
    return NotionError(
        400,
        "missing_version",
        "Notion-Version header failed validation: Notion-Version header should be defined, "
        "instead was `undefined`.",
    )


def not_found(kind: str, object_id: str) -> NotionError:
    """Return the error of an object that does not exist, or is not shared."""
    hint = (
        ""
        if kind == "user"
        else (" Make sure the relevant pages and databases are shared with your integration.")
    )
    return NotionError(
        404, "object_not_found", f"Could not find {kind} with ID: {object_id}.{hint}"
    )


def invalid(message: str) -> NotionError:
    """Return a `validation_error`."""
    return NotionError(400, "validation_error", message)


def shown(value: object) -> str:
    """Return a value as Notion quotes it in a message: JSON between backticks, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"`{text if len(text) <= 100 else text[:97] + '...'}`"


def should(where: str, expected: str, value: object) -> NotionError:
    """Return a `validation_error` about one parameter.

    Args:
        where: The parameter, such as `body.page_size`.
        expected: What it should be, such as `a valid uuid`.
        value: What it was.
    """
    part = where.split(".", 1)[0]
    return invalid(
        f"{part} failed validation: {where} should be {expected}, instead was {shown(value)}."
    )


def rate_limited(retry_after: int) -> NotionError:
    """Return the error of too many requests; `retry_after` is in whole seconds."""
    return NotionError(
        429,
        "rate_limited",
        "You have been rate limited. Please try again in a few minutes.",
        {"Retry-After": str(retry_after)},
    )


def read_only(method: str, path: str) -> NotionError:
    """Return the error of a write: what an integration without write capabilities gets."""
    return NotionError(
        403,
        "restricted_resource",
        f"Insufficient permissions for this endpoint: this stand-in is read-only, so {method} "
        f"{path} is refused; edit the workspace's files instead.",
    )


def unsupported(method: str, path: str) -> NotionError:
    """Return the error of an endpoint that Notion has and the stand-in lacks."""
    return NotionError(
        400,
        "invalid_request",
        f"Unsupported request: this stand-in does not offer {method} {path}.",
    )


def invalid_url() -> NotionError:
    """Return the error of an address that Notion does not have in this version."""
    return NotionError(400, "invalid_request_url", "Invalid request URL.")


def request_id(request: Request) -> str:
    """Return the id of a request, made on first use."""
    if not hasattr(request.state, "request_id"):
        request.state.request_id = str(uuid.uuid4())
    return str(request.state.request_id)


def _response(request: Request, error: NotionError) -> JSONResponse:
    identity = request_id(request)
    body: dict[str, Any] = {
        "object": "error",
        "status": error.status,
        "code": error.code,
        "message": error.message,
        "request_id": identity,
    }
    return JSONResponse(
        body, status_code=error.status, headers={REQUEST_ID_HEADER: identity, **error.headers}
    )


def install_handlers(app: FastAPI) -> None:
    """Make every error of `app` answer in Notion's shape."""

    @app.exception_handler(NotionError)
    async def _notion(request: Request, error: NotionError) -> JSONResponse:
        return _response(request, error)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        message = "Unexpected error in the local stand-in; its log says more."
        return _response(request, NotionError(500, "internal_server_error", message))
