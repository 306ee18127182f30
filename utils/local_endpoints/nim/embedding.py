"""Routes of the embedding NIM."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from local_endpoints.nim.answers import Embeddings
from local_endpoints.nim.common import FastJSONResponse, until_disconnect
from local_endpoints.nim.engines.embedding import EmbeddingEngine
from local_endpoints.nim.engines.encoder import InputTooLong
from local_endpoints.nim.errors import PROBLEMS, ApiError
from local_endpoints.nim.metrics import Metrics
from local_endpoints.nim.schemas import EmbeddingRequest
from local_endpoints.nim.service import RoleService
from local_endpoints.strict_json import StrictRoute

Service = RoleService[EmbeddingEngine]
Vector = np.ndarray[Any, np.dtype[np.float32]]
SUFFIXES = ("-query", "-passage")


def too_long(error: InputTooLong) -> ApiError:
    """Return the documented error for an input over the model's limit."""
    return ApiError(
        400,
        f"Input length {error.length} exceeds maximum allowed token size {error.limit}",
    )


def _check(service: Service, body: EmbeddingRequest) -> None:
    """Refuse what the model cannot do.

    Raises:
        ApiError: 404 for an unknown model, 400 for a missing input_type or an unsupported value.
    """
    suffix = next((s for s in SUFFIXES if body.model.endswith(s)), "")
    entry = service.check(body.model.removesuffix(suffix))
    if entry is not None and entry.asymmetric and not suffix and body.input_type is None:
        raise ApiError(400, "'input_type' parameter is required for asymmetric models")
    if body.embedding_type != "float":
        raise ApiError(
            400, f"embedding_type '{body.embedding_type}' is not supported here; use 'float'."
        )
    width = service.require_engine().dimensions
    if body.dimensions is not None and body.dimensions != width:
        raise ApiError(
            400,
            f"dimensions {body.dimensions} is not supported: this model's vectors have {width}; "
            "leave the parameter out.",
        )


def _is_query(body: EmbeddingRequest) -> bool:
    return body.input_type == "query" or body.model.endswith("-query")


def _encode(vector: Vector, encoding: str) -> Vector | str:
    """Return a vector as the JSON value asked for: numbers, or base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return vector


def router(service: Service, metrics: Metrics) -> APIRouter:
    """Return the embedding routes over `service`."""
    refusals = PROBLEMS.documented(400, 404, 413, 422, 503)
    routes = APIRouter(
        route_class=StrictRoute, prefix="/v1", tags=["embedding"], responses=refusals
    )

    @routes.post("/embeddings", response_model=None, responses={200: {"model": Embeddings}})
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Embed one text or many; vectors come back in the order of the input, of length one."""
        _check(service, body)
        texts = [body.input] if isinstance(body.input, str) else body.input
        engine = service.require_engine()
        with metrics.request("embedding"):
            try:
                work = engine.embed(texts, body.truncate, query=_is_query(body))
                result = await until_disconnect(request, work)
            except InputTooLong as error:
                raise too_long(error) from error
        tokens = int(sum(result.tokens))
        metrics.prompt_tokens.labels("embedding").inc(tokens)
        return FastJSONResponse(
            {
                "object": "list",
                "data": [
                    {
                        "object": "embedding",
                        "index": index,
                        "embedding": _encode(vector, body.encoding_format),
                    }
                    for index, vector in enumerate(result.vectors)
                ],
                "model": body.model,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    return routes
