"""What the endpoints cost over their engines, as ratios within one run.

    python benchmarks/endpoints.py [--rounds 7] [--json results.json]

1. Embedding: texts per second through the endpoint, against the encoder called directly.
2. Chat: tokens per second of prompt and of answer through the endpoint, against llama.cpp's own
   server on the same file with as many threads. Each prompt is new, so that neither side finds it
   in its prompt cache.
3. Reranking: seconds for twenty chunks of a hundred words.

Rounds alternate and the ratio of each pair is taken, so that a machine that slows down favours
neither. The servers are started if they do not run; the direct calls load the weights once more.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import httpx
import xllamacpp
from timing import report, seconds, spread

from local_endpoints.nim.engines.chat import default_threads
from local_endpoints.nim.engines.encoder import Encoder
from local_endpoints.weights import resolve
from nim_cookbook import endpoints
from nim_cookbook.models import load_registry

TEXTS, CHUNKS = 64, 20
ANSWER_TOKENS = 64
SENTENCE = "The committee met on Tuesday and discussed the budget of the coming year in detail. "


def embedding(nim: endpoints.Endpoints, rounds: int) -> dict[str, object]:
    """Measure the embedding endpoint against its encoder on the same texts."""
    encoder = Encoder(resolve(load_registry().weights_for("embedding"), report=print))
    texts = [f"{n}. {SENTENCE * 6}" for n in range(TEXTS)]
    body = {"model": nim.embedding.model, "input": texts, "input_type": "passage"}
    items = [(ids, len(ids)) for ids in encoder.tokenize(texts)]
    with httpx.Client(base_url=nim.embedding.url, timeout=120) as http:

        def over_http() -> None:
            http.post("/embeddings", json=body).raise_for_status()

        def direct() -> None:
            asyncio.run(encoder.run(items))

        over_http()
        direct()
        pairs = [(seconds(direct), seconds(over_http)) for _ in range(rounds)]
    return {
        "texts": TEXTS,
        "tokens_per_text": len(items[0][0]),
        "direct_texts_per_second": spread([TEXTS / a for a, _ in pairs]),
        "http_over_direct": spread([a / b for a, b in pairs]),
    }


def reranking(nim: endpoints.Endpoints, rounds: int) -> dict[str, object]:
    """Time twenty chunks of a hundred words."""
    chunks = [{"text": " ".join(f"{n}. {SENTENCE * 8}".split()[:100])} for n in range(CHUNKS)]
    query = {"text": "When did the committee discuss the budget?"}
    body = {"model": nim.reranking.model, "query": query, "passages": chunks}
    with httpx.Client(base_url=nim.reranking.url, timeout=120) as http:

        def over_http() -> None:
            http.post("/ranking", json=body).raise_for_status()

        over_http()
        return {"chunks": CHUNKS, "seconds": spread([seconds(over_http) for _ in range(rounds)])}


def chat(nim: endpoints.Endpoints, rounds: int) -> dict[str, object]:
    """Measure the chat endpoint against llama.cpp's own server."""
    weights = resolve(load_registry().weights_for("chat"), report=print)
    params = xllamacpp.CommonParams()
    params.model.path = str(weights.folder / weights.files[0][0])
    params.n_ctx, params.warmup, params.ui, params.verbosity = 4096, False, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = default_threads()
    params.api_keys = [os.urandom(16).hex()]
    server = xllamacpp.Server(params)
    own = {"base_url": server.listening_address, "headers": {}}
    own["headers"] = {"Authorization": f"Bearer {params.api_keys[0]}"}
    numbers = iter(range(10**6))

    def ask(http: httpx.Client, path: str, sentences: int, tokens: int) -> float:
        """Return tokens per second of what dominates the request."""
        text = f"{next(numbers)}. {SENTENCE * sentences}Tell a long story about it."
        body = {
            "model": nim.chat.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 0,
        }
        usage: dict[str, int] = {}

        def call() -> None:
            usage.update(http.post(path, json=body).raise_for_status().json()["usage"])

        taken = seconds(call)
        return (usage["prompt_tokens"] if tokens == 1 else usage["completion_tokens"]) / taken

    results: dict[str, object] = {}
    with (
        httpx.Client(base_url=nim.chat.url, timeout=300) as http,
        httpx.Client(**own, timeout=300, trust_env=False) as direct,
    ):
        for name, sentences, tokens in (("prompt", 30, 1), ("answer", 1, ANSWER_TOKENS)):
            pairs = [
                (
                    ask(direct, "/v1/chat/completions", sentences, tokens),
                    ask(http, "/chat/completions", sentences, tokens),
                )
                for _ in range(rounds + 1)
            ][1:]
            results[f"{name}_tokens_per_second"] = spread([b for _, b in pairs])
            results[f"{name}_over_llama_cpp"] = spread([b / a for a, b in pairs])
    return results


def main() -> int:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    nim = endpoints.connect("nim")
    results = {
        "weights": nim.weights,
        "embedding": embedding(nim, options.rounds),
        "reranking": reranking(nim, options.rounds),
        "chat": chat(nim, options.rounds),
    }
    report(results, options.json)
    nim.close()
    sys.stdout.flush()
    os._exit(0)  # llama.cpp's threads may still wind down


if __name__ == "__main__":
    main()
