"""Completions on llama.cpp, with the adapters that are asked for at their current weights.

The engine starts with the first completion. A request for an adapter that is not loaded, or was
trained since, gives the engine a new set of adapters; running requests finish on the old set.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from local_endpoints.gradient.store import Adapter, AdapterStore, UnknownAdapter
from local_endpoints.nim import adapters as lora
from local_endpoints.nim.adapters import AdapterError
from local_endpoints.nim.engines.adaptable import AdaptableEngine
from local_endpoints.weights import ResolvedWeights

Json = dict[str, Any]

MAX_LOADED = 8  # adapters in the engine at once; each costs its size in memory


class Completer:
    """The base model and its adapters behind llama.cpp.

    Attributes:
        files: Held while adapters are converted and loaded: their files must not change then.

    Args:
        store: The adapters.
    """

    def __init__(self, store: AdapterStore) -> None:
        self.files = asyncio.Lock()
        self._store = store
        self._engine: AdaptableEngine | None = None
        self._loaded: dict[str, str] = {}  # version by adapter, the last used at the end

    async def complete(self, weights: ResolvedWeights, body: Json, adapter_id: str | None) -> Json:
        """Return llama.cpp's answer.

        Args:
            weights: The base model.
            body: The request in llama.cpp's words.
            adapter_id: The adapter to use; None for the base model alone.

        Raises:
            UnknownAdapter: There is no such adapter, or no longer.
            AdapterError: Its weights cannot be converted for llama.cpp.
            WeightsError: llama.cpp cannot load the base model or an adapter.
            PromptTooLong: The prompt does not fit the context window.
            EngineRefusal: llama.cpp refused the request.
            EngineStopped: llama.cpp stopped meanwhile.
        """
        async with self.files:
            if self._engine is None:
                self._engine = AdaptableEngine(weights)
            engine = self._engine
            if adapter_id is None:
                await engine.start()
            else:
                await self._load(engine, adapter_id)
        return await engine.complete("/v1/completions", body, adapter=adapter_id)

    async def close(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            await self._engine.close()
            self._engine = None

    async def _load(self, engine: AdaptableEngine, adapter_id: str) -> None:
        """Load an adapter's current weights into the engine, beside those loaded already."""
        adapter = await asyncio.to_thread(self._store.get, adapter_id)
        current = self._loaded.pop(adapter_id, None)
        if current != adapter.version:
            others = list(self._loaded)[-(MAX_LOADED - 1) :]
            base = engine.weights.folder / engine.weights.files[0][0]
            found = await asyncio.to_thread(self._convert, others, adapter, base)
            await engine.set_adapters({one.id: path for one, path in found})
            self._loaded = {one.id: one.version for one, _ in found}
        self._loaded[adapter_id] = adapter.version

    def _convert(
        self, others: list[str], adapter: Adapter, base: Path
    ) -> list[tuple[Adapter, Path]]:
        found = []
        for identity in others:
            try:
                found.append(self._convert_one(self._store.get(identity), base))
            except (UnknownAdapter, AdapterError):
                continue
        return [*found, self._convert_one(adapter, base)]

    def _convert_one(self, adapter: Adapter, base: Path) -> tuple[Adapter, Path]:
        peft, gguf = self._store.peft(adapter), self._store.gguf(adapter)
        return adapter, lora.to_gguf(peft, base, gguf)
