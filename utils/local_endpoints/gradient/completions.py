"""Completions on llama.cpp, with the adapters that are asked for at their current weights.

The engine starts with the first completion. When an adapter is asked for that is not loaded, or
has been trained since, the engine is given the new set of adapters; requests that run finish on
the old one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from local_endpoints.gradient.store import Adapter, AdapterStore, DamagedAdapter, UnknownAdapter
from local_endpoints.nim import adapters as lora
from local_endpoints.nim.adapters import AdapterError
from local_endpoints.nim.engines.adaptable import AdaptableEngine
from local_endpoints.weights import ResolvedWeights

Json = dict[str, Any]

MAX_LOADED = 8  # adapters in the engine at once; each costs its size in memory
_ATTEMPTS = 3


class Completer:
    """The base model and its adapters behind llama.cpp.

    Args:
        store: The adapters.
    """

    def __init__(self, store: AdapterStore) -> None:
        self._store = store
        self._engine: AdaptableEngine | None = None
        self._lock = asyncio.Lock()
        # Version by adapter, the one used last at the end; what of it is in the engine now.
        self._loaded: OrderedDict[str, str] = OrderedDict()

    async def complete(
        self, weights: ResolvedWeights, path: str, body: Json, adapter_id: str | None
    ) -> Json:
        """Return llama.cpp's answer.

        Args:
            weights: The base model.
            path: `/v1/completions` or `/v1/chat/completions`.
            body: The request in llama.cpp's words.
            adapter_id: The adapter to use; None for the base model alone.

        Raises:
            UnknownAdapter: There is no such adapter, or no longer.
            DamagedAdapter: Its description cannot be read.
            AdapterError: Its weights cannot be converted for llama.cpp.
            WeightsError: llama.cpp cannot load the base model or an adapter.
            PromptTooLong: The prompt does not fit the context window.
            EngineRefusal: llama.cpp refused the request.
        """
        async with self._lock:
            if self._engine is None:
                self._engine = AdaptableEngine(weights)
            engine = self._engine
            if adapter_id is None:
                await engine.start()
            else:
                await self._load(engine, weights, adapter_id)
        # It holds on to what is loaded now, whatever is loaded next.
        return await engine.complete(path, body, adapter=adapter_id)

    async def undisturbed(self, change: Callable[[], Awaitable[None]]) -> None:
        """Run `change`, which moves adapters on disk, while none is being read."""
        async with self._lock:
            await change()

    async def close(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            await self._engine.close()
            self._engine = None

    async def _load(
        self, engine: AdaptableEngine, weights: ResolvedWeights, adapter_id: str
    ) -> None:
        """Have an adapter in the engine with its current weights; the lock is held."""
        adapter = await asyncio.to_thread(self._store.get, adapter_id)
        if self._loaded.get(adapter_id) == adapter.version:
            self._loaded.move_to_end(adapter_id)
            return
        base = weights.folder / weights.files[0][0]
        found = await asyncio.to_thread(self._convert, self._wanted(adapter_id), base, adapter_id)
        await engine.set_adapters({adapter.id: path for adapter, path in found})
        self._loaded = OrderedDict((adapter.id, adapter.version) for adapter, _ in found)

    def _wanted(self, adapter_id: str) -> list[str]:
        """Return the ids to load: as many as were, without the ones unused for longest."""
        others = [name for name in self._loaded if name != adapter_id]
        return [*others[-(MAX_LOADED - 1) :], adapter_id]

    def _convert(
        self, identities: list[str], base: Path, required: str
    ) -> list[tuple[Adapter, Path]]:
        found = []
        for identity in identities:
            try:
                found.append(self._convert_one(identity, base))
            except (UnknownAdapter, DamagedAdapter, AdapterError):
                if identity == required:
                    raise
        return found

    def _convert_one(self, identity: str, base: Path) -> tuple[Adapter, Path]:
        for attempt in range(_ATTEMPTS):
            adapter = self._store.get(identity)
            try:
                peft, gguf = self._store.peft(adapter), self._store.gguf(adapter)
                return adapter, lora.to_gguf(peft, base, gguf)
            except AdapterError:
                # Another server may have trained it between the two lines.
                changed = self._store.get(identity).version != adapter.version
                if not changed or attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError
