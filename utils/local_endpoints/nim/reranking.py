"""Routes of the reranking NIM, and the paths under which the hosted catalog serves reranking."""

from __future__ import annotations

import math

from fastapi import APIRouter, Request, Response

from local_endpoints.nim.answers import Rankings
from local_endpoints.nim.common import FastJSONResponse, until_disconnect
from local_endpoints.nim.embedding import too_long
from local_endpoints.nim.engines.encoder import InputTooLong
from local_endpoints.nim.engines.reranking import RerankingEngine
from local_endpoints.nim.errors import PROBLEMS, ApiError
from local_endpoints.nim.metrics import Metrics
from local_endpoints.nim.schemas import RankingRequest
from local_endpoints.nim.service import RoleService
from local_endpoints.strict_json import StrictRoute

Service = RoleService[RerankingEngine]
#: What the routes answer, for the OpenAPI document.
RESPONSES = PROBLEMS.documented(400, 404, 413, 422, 503) | {200: {"model": Rankings}}


def slug(model_id: str) -> str:
    """Return the path part of a hosted reranking URL: the id without its owner, '.' as '_'."""
    return model_id.rsplit("/", 1)[-1].replace(".", "_")


async def _rank(
    service: Service, metrics: Metrics, request: Request, body: RankingRequest
) -> Response:
    """Rank the passages: every index once, by descending logit (ties in the order given)."""
    if body.model is not None:
        service.check(body.model)
    engine = service.require_engine()
    passages = [passage.text for passage in body.passages]
    with metrics.request("reranking"):
        try:
            result = await until_disconnect(
                request, engine.rank(body.query.text, passages, body.truncate)
            )
        except InputTooLong as error:
            raise too_long(error) from error
    metrics.prompt_tokens.labels("reranking").inc(result.tokens)
    order = sorted(range(len(passages)), key=lambda index: -result.logits[index])
    if not all(math.isfinite(logit) for logit in result.logits):
        raise ApiError(500, "The reranking model gave a score that is not a finite number.")
    return FastJSONResponse(
        {
            "rankings": [{"index": index, "logit": float(result.logits[index])} for index in order],
            "usage": {"prompt_tokens": result.tokens, "total_tokens": result.tokens},
        }
    )


def router(service: Service, metrics: Metrics) -> APIRouter:
    """Return the route of a self-hosted reranking NIM."""
    routes = APIRouter(
        route_class=StrictRoute, prefix="/v1", tags=["reranking"], responses=RESPONSES
    )

    @routes.post("/ranking", response_model=None)
    async def ranking(body: RankingRequest, request: Request) -> Response:
        """Rank passages by how well they answer the query."""
        return await _rank(service, metrics, request, body)

    return routes


def hosted_router(service: Service, metrics: Metrics) -> APIRouter:
    """Return the paths of the hosted catalog: one a model, and the legacy one for all."""
    routes = APIRouter(
        route_class=StrictRoute,
        prefix="/v1/retrieval/nvidia",
        tags=["reranking"],
        responses=RESPONSES,
    )

    @routes.post("/reranking", response_model=None)
    async def legacy(body: RankingRequest, request: Request) -> Response:
        """Rank passages (legacy path, the model is in the body)."""
        return await _rank(service, metrics, request, body)

    @routes.post("/{model_slug}/reranking", response_model=None)
    async def by_model(model_slug: str, body: RankingRequest, request: Request) -> Response:
        """Rank passages with the model that the path names."""
        if model_slug not in {slug(model) for model in service.ids()}:
            raise ApiError(404, f"There is no reranking model '{model_slug}' here.")
        return await _rank(service, metrics, request, body)

    return routes
