"""The local servers with one engine that lies: what the recipes' checks must notice.

python tests/notebooks/sabotaged_server.py shuffled-embeddings --port-base 9000
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from local_endpoints.nim.engines.chat import ChatEngine
from local_endpoints.nim.engines.embedding import EmbeddingEngine
from local_endpoints.nim.engines.reranking import RerankingEngine
from local_endpoints.options import ServeOptions
from local_endpoints.server import main

FIXED = "I am happy to help you with that."


def shuffled_embeddings() -> None:
    """Every text gets a unit vector that has nothing to do with it."""
    honest = EmbeddingEngine.embed
    generator = np.random.default_rng(0)

    async def embed(self: EmbeddingEngine, *arguments: Any, **more: Any) -> Any:
        result = await honest(self, *arguments, **more)
        for row in result.vectors:
            generator.shuffle(row)
        return result

    EmbeddingEngine.embed = embed  # type: ignore[method-assign]


def reversed_ranking() -> None:
    """The worst passage comes first."""
    honest = RerankingEngine.rank

    async def rank(self: RerankingEngine, *arguments: Any, **more: Any) -> Any:
        result = await honest(self, *arguments, **more)
        result.logits[:] = [-logit for logit in result.logits]
        return result

    RerankingEngine.rank = rank  # type: ignore[method-assign]


def fixed_answer() -> None:
    """Every question gets the same sentence, with honest usage figures."""
    honest = ChatEngine.complete

    async def complete(
        self: ChatEngine, path: str, body: dict[str, Any], adapter: str | None = None
    ) -> dict[str, Any]:
        answer = await honest(self, path, body, adapter)
        for choice in answer["choices"]:
            choice["message"]["content"] = FIXED
        return answer

    async def stream(
        self: ChatEngine, path: str, body: dict[str, Any], adapter: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        answer = await complete(self, path, {**body, "max_tokens": 1}, adapter)
        head = {**answer, "object": "chat.completion.chunk"}
        usage = head.pop("usage")
        for word in FIXED.split():
            delta = {"role": "assistant", "content": f"{word} "}
            yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        yield {**head, "choices": [], "usage": usage}

    ChatEngine.complete = complete  # type: ignore[method-assign]
    ChatEngine.stream = stream  # type: ignore[method-assign]


SABOTAGES: dict[str, Callable[[], None]] = {
    "shuffled-embeddings": shuffled_embeddings,
    "reversed-ranking": reversed_ranking,
    "fixed-answer": fixed_answer,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=SABOTAGES)
    parser.add_argument("--port-base", type=int, required=True)
    chosen = parser.parse_args()
    SABOTAGES[chosen.kind]()
    code = main(ServeOptions(port_base=chosen.port_base, stop_with_stdin=True))
    sys.stderr.flush()
    os._exit(code)
