"""A chat engine whose LoRA adapters change while it answers.

llama.cpp loads adapters only together with the model. So a new set of adapters needs a new
`ChatEngine`. It is loaded beside the old one (the weights are mapped from the same file) and takes
all new requests once it is ready; the old one is closed after its last request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from local_endpoints.nim.engines.chat import ChatEngine
from local_endpoints.weights import ResolvedWeights

Json = dict[str, Any]

# A client that stopped reading must not keep a replaced engine in memory for ever.
DRAIN_SECONDS = 300


class _Running:
    """One loaded engine and the requests that it is answering."""

    def __init__(self, engine: ChatEngine) -> None:
        self.engine = engine
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def request(self) -> AsyncIterator[ChatEngine]:
        """Keep the engine open for one request."""
        self._requests += 1
        self._idle.clear()
        try:
            yield self.engine
        finally:
            self._requests -= 1
            if self._requests == 0:
                self._idle.set()

    async def close_when_idle(self) -> None:
        """Close the engine after its requests, after DRAIN_SECONDS, or when cancelled."""
        try:
            await asyncio.wait_for(self._idle.wait(), DRAIN_SECONDS)
        except TimeoutError:
            pass
        finally:
            await self.engine.close()


class AdaptableEngine:
    """Answers as a `ChatEngine` does, with adapters that can be replaced at any time.

    Nothing is loaded before `start` or `set_adapters`; use it from one event loop.

    Args:
        weights: Where the base model's GGUF file lies and what it is.
        threads: Threads for prompt and generation; `engines.chat.default_threads()` if not given.
    """

    def __init__(self, weights: ResolvedWeights, threads: int | None = None) -> None:
        self.weights = weights
        self.context = weights.max_tokens
        self._threads = threads
        self._current: _Running | None = None
        self._changing = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def _engine(self) -> ChatEngine:
        return self._require().engine

    def _require(self) -> _Running:
        if self._current is None:
            raise RuntimeError("AdaptableEngine.start() was not awaited")
        return self._current

    @property
    def started(self) -> bool:
        """Whether the model is loaded."""
        return self._current is not None

    @property
    def adapters(self) -> Mapping[str, Path]:
        """The adapters that requests can choose now: name and GGUF file."""
        return self._current.engine.adapters if self._current is not None else {}

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template shows tools to the model, and its calls."""
        return self._engine.knows_tools

    @property
    def calls_begin(self) -> str:
        """What the model's tool calls begin with, if it must be made to call."""
        return self._engine.calls_begin

    async def start(self) -> None:
        """Load the model if it is not; the engine is ready after it.

        Raises:
            WeightsError: llama.cpp cannot load the file.
        """
        if not self.started:
            await self._change(None)

    async def set_adapters(self, adapters: Mapping[str, Path]) -> None:
        """Serve with these adapters, and no others, from the moment this returns.

        Requests already running keep the adapters they began with.

        Args:
            adapters: Name and GGUF file (`adapters.to_gguf`) of each; another content must be
                another file.

        Raises:
            WeightsError: llama.cpp cannot load one; the adapters before stay as they are.
        """
        await self._change(dict(adapters))

    async def _change(self, adapters: dict[str, Path] | None) -> None:
        async with self._changing:
            old = self._current
            if old is not None and adapters in (None, old.engine.adapters):
                return
            # A cancelled load goes on in its thread: wait for it, then close the engine.
            loading = asyncio.ensure_future(
                asyncio.to_thread(ChatEngine, self.weights, self._threads, adapters)
            )
            try:
                engine = await asyncio.shield(loading)
                await engine.start()
            except asyncio.CancelledError:
                await (await loading).close()
                raise
            self._current = _Running(engine)
            if old is not None:
                task = asyncio.create_task(old.close_when_idle())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def busy_slots(self) -> int:
        """Return how many of the parallel slots are generating now, replaced engines left out."""
        return await self._engine.busy_slots()

    async def complete(self, path: str, body: Json, adapter: str | None = None) -> Json:
        """Return a whole answer; see `ChatEngine.complete`."""
        async with self._require().request() as engine:
            return await engine.complete(path, body, adapter)

    async def stream(
        self, path: str, body: Json, adapter: str | None = None
    ) -> AsyncGenerator[Json, None]:
        """Yield an answer's chunks; see `ChatEngine.stream`."""
        async with (
            self._require().request() as engine,
            aclosing(engine.stream(path, body, adapter)) as chunks,
        ):
            async for chunk in chunks:
                yield chunk

    async def render(self, body: Json) -> str:
        """Return what the model reads of a chat; see `ChatEngine.render`."""
        async with self._require().request() as engine:
            return await engine.render(body)

    async def tokenize(self, text: str, special: bool) -> list[tuple[int, str]]:
        """Return a text's tokens; see `ChatEngine.tokenize`."""
        async with self._require().request() as engine:
            return await engine.tokenize(text, special)

    def abandon(self) -> None:
        """Leave llama.cpp to the end of the process; see `ChatEngine.abandon`."""
        if self._current is not None:
            self._current.engine.abandon()

    async def close(self) -> None:
        """Stop llama.cpp, also where answers are still running."""
        async with self._changing:
            for task in self._closing:
                task.cancel()
            await asyncio.gather(*self._closing, return_exceptions=True)
            if self._current is not None:
                await self._current.engine.close()
                self._current = None
