"""Errors as the Gradient API writes them: a type, a message and, for bad bodies, a payload.

Types and shapes are those of `CompleteModelError` and `FineTuneModelError` in `gradientai` 1.13.1;
the SDK distinguishes only the status codes 400, 401, 403, 404 and 5xx.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from local_endpoints import routes
from local_endpoints.nim.errors import ClientGone, Problem


class GradientError(Exception):
    """An error that a client should see.

    Args:
        status: HTTP status code.
        kind: The body's `type`, one of the SDK's, such as `unknownModelAdapter`.
        message: One sentence that states the fault and the remedy.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message


class Payload(BaseModel):
    """What is wrong with a request."""

    formattedValidationError: str
    validationError: list[Any]


class Fault(BaseModel):
    """The body of an error, as the OpenAPI document shows it."""

    type: Literal[
        "bodyParsingError",
        "failed",
        "modelIncapableOfFineTuning",
        "nanLoss",
        "queryOrPathParsingError",
        "unknownBaseModel",
        "unknownModelAdapter",
        "unprocessableContent",
    ]
    message: str
    payload: Payload | None = None


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return these errors as FastAPI's `responses` wants them; `BodyLimit` has a 413 of its own."""
    return routes.documented(Fault, *statuses) | (
        routes.documented(Problem, 413) if 413 in statuses else {}
    )


def unknown_adapter(identity: str) -> GradientError:
    """Return the error of an adapter that does not exist, or no longer does."""
    return GradientError(
        404,
        "unknownModelAdapter",
        f"There is no model adapter '{identity}' here: it was never created, has been deleted, or "
        "its adapter.json is damaged; GET /api/models lists the adapters.",
    )


def unknown_base(identity: str) -> GradientError:
    """Return the error of a base model that is not served."""
    return GradientError(
        404,
        "unknownBaseModel",
        f"There is no base model '{identity}' here: GET /api/models lists the one that is served.",
    )


def other_base(name: str) -> GradientError:
    """Return the error of an adapter that belongs to other weights than those served."""
    return GradientError(
        404,
        "unknownBaseModel",
        f"The model adapter '{name}' was made for other weights than the ones that are served: "
        "start the server with the chat weights it was made for, or create a new adapter.",
    )


def bad_request(message: str, kind: str = "queryOrPathParsingError") -> GradientError:
    """Return the error of a path, query, header or (with `bodyParsingError`) body."""
    return GradientError(400, kind, message)


def unprocessable(message: str) -> GradientError:
    """Return the error of a well-formed request with content that the model cannot process."""
    return GradientError(422, "unprocessableContent", message)


def failed(status: int, message: str) -> GradientError:
    """Return the error of any other fault."""
    return GradientError(status, "failed", message)


def _response(error: GradientError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    body: dict[str, Any] = {"type": error.kind, "message": error.message}
    if error.kind.endswith("ParsingError"):
        body["payload"] = {"formattedValidationError": error.message, "validationError": []}
    more = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status, {})
    return JSONResponse(body, status_code=error.status, headers={**more, **(headers or {})})


def _invalid(error: RequestValidationError) -> GradientError:
    # Where a value may be of two types, the deepest problem belongs to the type that was meant.
    problem = max(error.errors(), key=lambda p: len(p["loc"]))
    part, *path = (str(step) for step in problem["loc"])
    kind = "bodyParsingError" if part == "body" else "queryOrPathParsingError"
    if problem["type"] == "json_invalid" or not path:
        message = "The body must be a JSON object, with Content-Type: application/json."
    else:  # pydantic puts the names of alternative types into the path
        where = ".".join(step for step in path if not re.search(r"constrained-|\W", step))
        message = f"Invalid value at '{where}' of the {part}: {problem['msg']}."
    return bad_request(message, kind)


def install_handlers(app: FastAPI, served: Sequence[BaseRoute]) -> None:
    """Make every error of `app` answer in the API's form.

    Args:
        app: The application.
        served: Its routes without the one for everything else, which answers 405.
    """

    @app.exception_handler(GradientError)
    async def _gradient(request: Request, error: GradientError) -> Response:
        return _response(error)

    @app.exception_handler(ClientGone)
    async def _gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # nginx's code; the client does not read it

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        return _response(_invalid(error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if error.status_code != 405:
            return _response(failed(error.status_code, str(error.detail)), error.headers)
        asked, methods = (
            f"{request.method} {request.url.path[:80]}",
            routes.allowed(served, request),
        )
        if methods:
            message = f"{asked} is not offered: use {methods}."
            return _response(failed(405, message), {"Allow": methods})
        return _response(
            failed(
                404,
                f"{asked} is not offered by this local stand-in: it has the paths under "
                "/api/models and /api/embeddings.",
            )
        )

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> Response:
        return _response(failed(500, "Unexpected error in the local stand-in; see its log."))
