"""From options to loaded engines: which weights each role gets, and the engine that runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

import httpx

from local_endpoints import weights as store
from local_endpoints.downloads import Cancellation
from local_endpoints.nim.catalog import Services
from local_endpoints.nim.engines.adaptable import AdaptableEngine
from local_endpoints.nim.engines.embedding import EmbeddingEngine
from local_endpoints.nim.engines.reranking import RerankingEngine
from local_endpoints.nim.peft_source import PeftSettings, PeftSource
from local_endpoints.nim.service import RoleService, ServedAdapter
from local_endpoints.options import ServeOptions
from local_endpoints.weights import ResolvedWeights
from nim_cookbook.errors import WeightsUnavailableError
from nim_cookbook.models import ROLES, Registry, Role

Report = Callable[[str], None]
#: Seconds that llama.cpp has to say whether it computes.
BUSY_SECONDS = 0.5


def make_services(registry: Registry) -> Services:
    """Return the roles, not loaded yet; the default id of each comes first."""
    return Services(
        chat=RoleService("chat", registry.models("chat")),
        embedding=RoleService("embedding", registry.models("embedding")),
        reranking=RoleService("reranking", registry.models("reranking")),
    )


def resolve(
    options: ServeOptions, registry: Registry, report: Report, cancellation: Cancellation
) -> dict[Role, ResolvedWeights]:
    """Return all roles' weights on disk, fetched and checked if need be.

    When no source has the default chat model, the small one takes its place, and says so wherever
    weights are named.

    Raises:
        WeightsError: They cannot be fetched, or are not what they should be.
    """
    roles = [role for role in ROLES if role != "chat" or options.chat_model is None]
    chosen = {role: registry.weights_for(role, options.models) for role in roles}
    try:
        store.ensure(*chosen.values(), report=report, cancellation=cancellation)
    except WeightsUnavailableError as error:
        if options.models != "default" or options.chat_model is not None:
            raise
        small = registry.weights_for("chat", "small")
        missed = chosen["chat"].description
        report(f"{error} Until then {small.description} answers, often wrongly.")
        chosen["chat"] = replace(small, description=f"{small.description}, for want of {missed}")
        store.ensure(*chosen.values(), report=report, cancellation=cancellation)
    resolved = {role: store.resolve(weights, report=report) for role, weights in chosen.items()}
    if options.chat_model is not None:
        resolved["chat"] = store.own_chat_model(options.chat_model, report=report)
    return resolved


async def load(
    services: Services,
    options: ServeOptions,
    registry: Registry,
    peft: PeftSettings,
    report: Report,
    cancellation: Cancellation,
) -> PeftSource:
    """Load all roles, each in a thread of its own, so that none waits for another.

    Returns:
        What loads the chat model's LoRA adapters; it has scanned once and wants to be run.

    Raises:
        WeightsError: Weights are missing, damaged or not loadable.
    """
    weights = await asyncio.to_thread(resolve, options, registry, report, cancellation)
    chat, embedding, reranking = (weights[role] for role in ROLES)

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


async def close(services: Services) -> bool:
    """Close the engines that were loaded.

    Returns:
        False when llama.cpp computes for requests that are gone. It stops when it has read what it
        reads, and all threads of the process wait for that: only the end of the process is quicker.
    """
    chat = services.chat.engine
    if chat is not None and chat.started:
        try:
            busy = await asyncio.wait_for(chat.busy_slots(), BUSY_SECONDS) > 0
        except (TimeoutError, httpx.HTTPError):
            busy = True
        if busy:
            chat.abandon()
            return False
    for service in (services.chat, services.embedding, services.reranking):
        if service.engine is not None:
            await service.engine.close()
    return True
