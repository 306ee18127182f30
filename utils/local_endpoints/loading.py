"""From options to loaded engines: which weights each role gets, and the engine that runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from local_endpoints import weights as store
from local_endpoints.api.catalog import Services
from local_endpoints.api.service import RoleService, ServedAdapter
from local_endpoints.engines.adaptable import AdaptableEngine
from local_endpoints.engines.embedding import EmbeddingEngine
from local_endpoints.engines.reranking import RerankingEngine
from local_endpoints.options import ServeOptions
from local_endpoints.peft_source import PeftSettings, PeftSource
from local_endpoints.weights import ResolvedWeights
from nim_cookbook.models import ROLES, Registry, Role

Report = Callable[[str], None]


def make_services(registry: Registry) -> Services:
    """Return the roles, not loaded yet; the default id of each comes first."""
    return Services(
        chat=RoleService("chat", registry.models("chat")),
        embedding=RoleService("embedding", registry.models("embedding")),
        reranking=RoleService("reranking", registry.models("reranking")),
    )


def resolve(
    role: Role, options: ServeOptions, registry: Registry, report: Report
) -> ResolvedWeights:
    """Return a role's weights on disk, fetched and checked if need be.

    Raises:
        WeightsError: They cannot be fetched, or are not what they should be.
    """
    given: list[str] = getattr(options, f"{role}_model")
    if given:
        return store.from_option(given, role, report=report)
    return store.resolve(registry.weights_of_set(role, options.models), report=report)


async def load(
    services: Services,
    options: ServeOptions,
    registry: Registry,
    peft: PeftSettings,
    report: Report,
) -> PeftSource:
    """Load all roles, each in a thread of its own, so that none waits for another.

    Returns:
        What loads the chat model's LoRA adapters; it has scanned once and wants to be run.

    Raises:
        WeightsError: Weights are missing, damaged or not loadable.
    """
    chat, embedding, reranking = await asyncio.gather(
        *(asyncio.to_thread(resolve, role, options, registry, report) for role in ROLES)
    )

    async def load_chat() -> PeftSource:
        engine = AdaptableEngine(chat)
        await engine.start()

        def publish(served: Mapping[str, ServedAdapter]) -> None:
            services.chat.adapters = served

        def reserved() -> list[str]:
            return [*services.chat.catalog, chat.local_id, chat.name]

        source = PeftSource(peft, engine, reserved, publish, report)
        await source.scan()
        services.chat.load(engine, chat)
        return source

    async def load_embedding() -> None:
        engine = await asyncio.to_thread(EmbeddingEngine, embedding)
        services.embedding.load(engine, embedding)

    async def load_reranking() -> None:
        engine = await asyncio.to_thread(RerankingEngine, reranking)
        services.reranking.load(engine, reranking)

    source, _, _ = await asyncio.gather(load_chat(), load_embedding(), load_reranking())
    return source


async def close(services: Services) -> None:
    """Close the engines that were loaded."""
    for service in (services.chat, services.embedding, services.reranking):
        if service.engine is not None:
            await service.engine.close()
