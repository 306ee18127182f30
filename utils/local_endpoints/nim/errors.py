"""Error bodies as NVIDIA's endpoints write them.

Hosted answers carry ``status``, ``title`` and ``detail`` (RFC 9457 problem details), the retrieval
microservices ``object: error`` and ``message``. Clients read either, so a body of `PROBLEMS` has
both. NIM LLM 2.x passes on what vLLM writes: `VLLM_ERRORS`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from local_endpoints import routes


class ApiError(Exception):
    """An error that a client should see.

    Args:
        status: HTTP status code; 422 where a field has a bad value, in whatever dialect.
        detail: One sentence that says what is wrong and what to do.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class ClientGone(Exception):
    """The client closed its connection before the answer was ready."""


class Problem(BaseModel):
    """The body of an error, as the OpenAPI document shows it."""

    object: Literal["error"]
    type: Literal["invalid_request_error", "server_error"]
    title: str
    status: int
    message: str
    detail: str
    instance: str
    requestId: uuid.UUID


class VllmError(BaseModel):
    """The inner part of vLLM's errors."""

    message: str
    type: str
    param: str | None
    code: int


class VllmErrorBody(BaseModel):
    """The body of an error of NIM LLM 2.x, as the OpenAPI document shows it."""

    error: VllmError


def problem(status: int, detail: str, instance: str = "") -> dict[str, Any]:
    """Return the JSON object of an error answer (never a top-level list: clients index it)."""
    return {
        "object": "error",
        "type": "invalid_request_error" if status < 500 else "server_error",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "message": detail,
        "detail": detail,
        "instance": instance,
        "requestId": str(uuid.uuid4()),
    }


def vllm_error(status: int, detail: str, instance: str = "") -> dict[str, Any]:
    """Return an error answer as vLLM writes it; it does not name the path."""
    names = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}
    kind = names.get(status) or HTTPStatus(status).phrase
    return {"error": {"message": detail, "type": kind, "param": None, "code": status}}


@dataclass(frozen=True, slots=True)
class Errors:
    """How a server writes its errors.

    Attributes:
        model: The body, for the OpenAPI document.
        body: Makes it from status, sentence and path.
        invalid: The status of a known field with a bad value.
    """

    model: type[BaseModel]
    body: Callable[[int, str, str], dict[str, Any]]
    invalid: int

    def documented(self, *statuses: int) -> dict[int | str, dict[str, Any]]:
        """Return these errors as FastAPI's `responses` wants them."""
        return routes.documented(self.model, *statuses)

    def response(
        self, status: int, detail: str, instance: str = "", headers: Mapping[str, str] | None = None
    ) -> JSONResponse:
        """Return an error answer; 401 says which scheme is expected, 503 when to come back."""
        more = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status, {})
        return JSONResponse(
            self.body(status, detail, instance),
            status_code=status,
            headers={**more, **(headers or {})},
        )


PROBLEMS = Errors(Problem, problem, invalid=422)
VLLM_ERRORS = Errors(VllmErrorBody, vllm_error, invalid=400)


def _describe(errors: Sequence[Any], invalid: int) -> tuple[int, str]:
    """Turn pydantic's list of errors into a status and one sentence.

    A parameter that the server does not know is 400, so that nothing is silently ignored; a known
    one with a bad value has the status `invalid`.
    """
    unknown = [e for e in errors if e["type"] == "extra_forbidden"]
    if unknown:
        names = ", ".join(f"'{'.'.join(str(p) for p in e['loc'][1:])}'" for e in unknown)
        return 400, f"Unsupported parameter {names}: remove it from the request."
    first = errors[0]
    if first["type"] == "json_invalid":
        return invalid, f"The body is not valid JSON: {first['ctx']['error']}."
    if tuple(first["loc"]) == ("body",):
        if first["type"] == "value_error":  # a sentence of our own
            return invalid, str(first["ctx"]["error"])
        sentence = "The body must be a JSON object: send it with Content-Type: application/json."
        return invalid, sentence
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return invalid, f"Invalid value at '{where}': {first['msg']}."


def install_handlers(app: FastAPI, errors: Errors) -> None:
    """Make every error of `app` answer in this form."""

    @app.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> JSONResponse:
        status = errors.invalid if error.status == 422 else error.status
        return errors.response(status, error.detail, request.url.path)

    @app.exception_handler(ClientGone)
    async def _gone(request: Request, error: ClientGone) -> Response:
        # Nobody reads it; 499 is what nginx logs for a request that its client closed.
        return Response(status_code=499)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        status, detail = _describe(error.errors(), errors.invalid)
        return errors.response(status, detail, request.url.path)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        status, detail = error.status_code, str(error.detail)
        return errors.response(status, detail, request.url.path, error.headers)
