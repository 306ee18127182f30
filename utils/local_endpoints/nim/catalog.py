"""The four applications: one NIM a role, and the API catalog that serves all roles on one URL.

Only the chat NIM serves LoRA adapters: the hosted catalog loads none either. Only it has two
dialects: the retrieval NIMs kept their protocol in 2.x, and the catalog has a gateway's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI

from local_endpoints.nim import chat, embedding, reranking, vllm
from local_endpoints.nim.common import build_app
from local_endpoints.nim.dialect import DIALECTS, NIM_1, NIM_2
from local_endpoints.nim.metrics import Metrics
from local_endpoints.options import Nim


@dataclass(frozen=True, slots=True)
class Services:
    """The roles behind all servers; the catalog shares their engines."""

    chat: chat.Service
    embedding: embedding.Service
    reranking: reranking.Service


def build_apps(
    services: Services, key: str, demand_key_everywhere: bool, nim: Nim
) -> dict[str, FastAPI]:
    """Return the applications by name.

    Args:
        services: The roles.
        key: The key that the catalog demands.
        demand_key_everywhere: Whether the NIMs demand it too, as they must off loopback;
            a self-hosted NIM ignores the key.
        nim: The major version of NIM LLM that the chat NIM speaks.
    """
    nim_key = key if demand_key_everywhere else None
    dialect = DIALECTS[nim]
    metrics = {name: Metrics() for name in ("embedding", "reranking", "catalog")}
    metrics["chat"] = Metrics(dialect.metrics)
    catalog = metrics["catalog"]
    return {
        "chat": build_app(
            "Chat NIM (local stand-in)",
            [services.chat],
            [
                chat.router(services.chat, metrics["chat"], dialect, adapters=True),
                *([vllm.router(services.chat)] if dialect is NIM_2 else []),
            ],
            metrics["chat"],
            nim_key,
            adapters=True,
            errors=dialect.errors,
            nim=dialect.nim,
        ),
        "embedding": build_app(
            "Embedding NIM (local stand-in)",
            [services.embedding],
            [embedding.router(services.embedding, metrics["embedding"])],
            metrics["embedding"],
            nim_key,
        ),
        "reranking": build_app(
            "Reranking NIM (local stand-in)",
            [services.reranking],
            [reranking.router(services.reranking, metrics["reranking"])],
            metrics["reranking"],
            nim_key,
        ),
        "catalog": build_app(
            "API catalog (local stand-in)",
            [services.chat, services.embedding, services.reranking],
            [
                chat.router(services.chat, catalog, NIM_1),
                embedding.router(services.embedding, catalog),
                reranking.router(services.reranking, catalog),
                reranking.hosted_router(services.reranking, catalog),
            ],
            catalog,
            key,
        ),
    }
