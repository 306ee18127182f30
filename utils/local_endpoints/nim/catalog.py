"""The four applications: one NIM a role, and the API catalog that serves all roles on one URL.

Only the chat NIM serves LoRA adapters: the hosted catalog loads none either.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI

from local_endpoints.nim import chat, embedding, reranking
from local_endpoints.nim.common import build_app
from local_endpoints.nim.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    """The roles behind all servers; the catalog shares their engines."""

    chat: chat.Service
    embedding: embedding.Service
    reranking: reranking.Service


def build_apps(services: Services, key: str, demand_key_everywhere: bool) -> dict[str, FastAPI]:
    """Return the applications by name.

    Args:
        services: The roles.
        key: The key that the catalog demands.
        demand_key_everywhere: Whether the NIMs demand it too, as they must off loopback;
            a self-hosted NIM ignores the key.
    """
    nim_key = key if demand_key_everywhere else None
    metrics = {name: Metrics() for name in ("chat", "embedding", "reranking", "catalog")}
    catalog = metrics["catalog"]
    return {
        "chat": build_app(
            "Chat NIM (local stand-in)",
            [services.chat],
            [chat.router(services.chat, metrics["chat"], adapters=True)],
            metrics["chat"],
            nim_key,
            adapters=True,
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
                chat.router(services.chat, catalog),
                embedding.router(services.embedding, catalog),
                reranking.router(services.reranking, catalog),
                reranking.hosted_router(services.reranking, catalog),
            ],
            catalog,
            key,
        ),
    }
