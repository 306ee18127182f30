"""Errors as the Gradient API writes them: a type, a message and, for bad bodies, a payload.

The types and shapes are those that the models `CompleteModelError` and `FineTuneModelError` of
`gradientai` 1.13.1 accept; the status codes of 4xx are chosen here, since its client tells only
400, 401, 403, 404 and 5xx apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from local_endpoints.nim.errors import ClientGone

Json = dict[str, Any]

NO_JSON_OBJECT = "The body must be a JSON object, with Content-Type: application/json."


class GradientError(Exception):
    """An error that a client should see.

    Args:
        status: HTTP status code.
        kind: The body's `type`, one of the SDK's, such as `unknownModelAdapter`.
        message: One sentence that says what is wrong and what to do.
        payload: Details of a body, path or query that cannot be read.
    """

    def __init__(self, status: int, kind: str, message: str, payload: Json | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.payload = payload

    def body(self) -> Json:
        """Return the JSON object of the answer."""
        payload = {} if self.payload is None else {"payload": self.payload}
        return {"type": self.kind, "message": self.message, **payload}


def unauthorized() -> GradientError:
    """Return the error of a missing or wrong token."""
    return GradientError(
        401,
        "failed",
        "The access token is missing or wrong: send it as 'Authorization: Bearer <token>' "
        "(GRADIENT_ACCESS_TOKEN).",
    )


def unknown_adapter(identity: str) -> GradientError:
    """Return the error of an adapter that does not exist, or no longer does."""
    return GradientError(
        404,
        "unknownModelAdapter",
        f"There is no model adapter '{identity}' here: it was never created or has been deleted; "
        "GET /api/models lists what there is.",
    )


def damaged_adapter(identity: str, folder: object) -> GradientError:
    """Return the error of an adapter whose description on disk cannot be read."""
    return GradientError(
        404,
        "unknownModelAdapter",
        f"The description of the model adapter '{identity}' cannot be read: restore adapter.json "
        f"in {folder}, or delete that folder.",
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


def incapable(message: str) -> GradientError:
    """Return the error of a model that cannot be trained."""
    return GradientError(400, "modelIncapableOfFineTuning", message)


def bad_request(where: str, message: str, details: Sequence[Json] = ()) -> GradientError:
    """Return the error of a body, path or query of a wrong shape.

    Args:
        where: `body`, or anything else for path, query and headers.
        message: One sentence.
        details: What was wrong at which place.
    """
    kind = "bodyParsingError" if where == "body" else "queryOrPathParsingError"
    payload = {"formattedValidationError": message, "validationError": list(details)}
    return GradientError(400, kind, message, payload)


def unprocessable(message: str) -> GradientError:
    """Return the error of a well-formed request whose content cannot be worked on."""
    return GradientError(422, "unprocessableContent", message)


def failed(status: int, message: str) -> GradientError:
    """Return the error of something that went wrong on this side."""
    return GradientError(status, "failed", message)


def not_offered(request: Request) -> GradientError:
    """Return the error of a path or method that this server lacks."""
    return GradientError(
        404,
        "queryOrPathParsingError",
        f"{request.method} {request.url.path[:80]} is not offered by this local stand-in: it has "
        "the paths under /api/models and /api/embeddings.",
    )


def response(error: GradientError) -> JSONResponse:
    """Return the answer; 401 says which scheme is expected, 503 when to come back."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status)
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def _described(problem: Mapping[str, Any]) -> tuple[str, str]:
    """Return the part of the request and the sentence of one of pydantic's errors."""
    part, *path = (str(step) for step in problem["loc"])
    # Where a value may be of two types, pydantic names the type it tried.
    where = ".".join(step for step in path if not re.search(r"constrained-|\W", step))
    if problem["type"] == "json_invalid" or not path:
        return part, NO_JSON_OBJECT
    if problem["type"] == "extra_forbidden":
        return part, f"Unknown field '{where}': remove it from the {part}."
    return part, f"Invalid value at '{where}' of the {part}: {problem['msg']}."


def install_handlers(app: FastAPI) -> None:
    """Make every error of `app` answer with a body of `GradientError`."""

    @app.exception_handler(GradientError)
    async def _gradient(request: Request, error: GradientError) -> Response:
        return response(error)

    @app.exception_handler(ClientGone)
    async def _gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # nobody reads it; nginx logs the same

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        problems = [
            {"path": list(p["loc"][1:]), "message": p["msg"], "code": p["type"]}
            for p in error.errors()
        ]
        # The deepest: where a value may be of two types, that is the one that was meant.
        part, message = _described(max(error.errors(), key=lambda p: len(p["loc"])))
        # Paths and messages only: a value may be a whole document, or no JSON at all.
        return response(bad_request(part, message, json.loads(json.dumps(problems, default=str))))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # bytes that are no text
            return response(bad_request("body", NO_JSON_OBJECT))
        if error.status_code == 405:
            return response(not_offered(request))
        return response(failed(error.status_code, str(error.detail)))

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> Response:
        return response(failed(500, "Unexpected error in the local stand-in; its log says more."))
