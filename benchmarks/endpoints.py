"""What the HTTP layer costs, as ratios and differences within one run.

    python benchmarks/endpoints.py [--rounds 7] [--json results.json]

1. Embedding: texts per second through the endpoint, against ONNX Runtime called directly on the
   same tokens in the same batches (tokenising is then part of what HTTP costs). Rounds alternate
   and the ratio of each pair is taken, so that a machine that slows down favours neither.
2. Chat: time to the first streamed token through the endpoint, against llama.cpp called in-process
   by its own call-back, for the same short prompt, again in turn. Each call has a prompt of its
   own, so that neither side finds it in the prompt cache.

The servers must be running (`make serve`); the direct calls load the same weights once more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import httpx
import xllamacpp
from timing import report, seconds, spread

from local_endpoints.engines.chat import default_threads
from local_endpoints.engines.encoder import TOKEN_BUDGET, Encoder
from local_endpoints.weights import resolve
from nim_cookbook import endpoints
from nim_cookbook.models import load_registry

BATCH = 128
SENTENCE = "The committee met on Tuesday and discussed the budget of the coming year in detail. "


def embedding(nim: endpoints.Endpoints, rounds: int) -> dict[str, object]:
    """Measure the embedding endpoint against ONNX Runtime on the same texts."""
    weights = resolve(load_registry().weights_for("embedding"), report=print)
    encoder = Encoder(weights.folder, threads=os.cpu_count() or 1)
    texts = [f"{n}. {SENTENCE * 6}" for n in range(BATCH)]
    tokens = encoder.tokenize(texts)
    each = TOKEN_BUDGET // len(tokens[0])
    body = {"model": nim.embedding.model, "input": texts, "input_type": "passage"}
    with httpx.Client(base_url=nim.embedding.url, timeout=120) as http:

        def over_http() -> None:
            http.post("/embeddings", json=body).raise_for_status().json()

        def direct() -> None:
            for start in range(0, BATCH, each):
                encoder.run(tokens[start : start + each])

        over_http()
        direct()
        pairs = [(seconds(direct), seconds(over_http)) for _ in range(rounds)]
    return {
        "texts": BATCH,
        "tokens_per_text": len(tokens[0]),
        "direct_texts_per_second": spread([BATCH / a for a, _ in pairs]),
        "http_texts_per_second": spread([BATCH / b for _, b in pairs]),
        "http_over_direct": spread([a / b for a, b in pairs]),
    }


def first_token_direct(server: xllamacpp.Server, body: dict[str, object]) -> float:
    """Return seconds to the first text of an in-process call."""
    arrived: list[float] = []

    def take(chunk: str) -> bool:
        choices = json.loads(chunk)["choices"]
        if not arrived and choices and choices[0]["delta"].get("content"):
            arrived.append(time.perf_counter())
        return False

    began = time.perf_counter()
    server.handle_chat_completions(json.dumps(body), take)
    return arrived[0] - began


def first_token_http(http: httpx.Client, body: dict[str, object]) -> float:
    """Return seconds to the first text of a streamed HTTP answer."""
    began = time.perf_counter()
    with http.stream("POST", "/chat/completions", json=body) as answer:
        arrived = 0.0
        for line in answer.iter_lines():
            if not line.startswith("data: {") or arrived:
                continue
            choices = json.loads(line.removeprefix("data: "))["choices"]
            if choices and choices[0]["delta"].get("content"):
                arrived = time.perf_counter()
    return arrived - began


def chat(nim: endpoints.Endpoints, rounds: int) -> dict[str, object]:
    """Measure the first token of the chat endpoint against llama.cpp in-process."""
    weights = resolve(load_registry().weights_for("chat"), report=print)
    params = xllamacpp.CommonParams()
    params.model.path = str(weights.folder / weights.files[0][0])
    params.n_ctx, params.warmup, params.ui, params.verbosity = 4096, False, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = default_threads()
    params.api_keys = [os.urandom(16).hex()]
    server = xllamacpp.Server(params)

    def body(text: str) -> dict[str, object]:
        messages = [{"role": "user", "content": text}]
        return {
            "model": nim.chat.model,
            "messages": messages,
            "max_tokens": 8,
            "temperature": 0,
            "stream": True,
        }

    added, alone = [], []
    with httpx.Client(base_url=nim.chat.url, timeout=120) as http:
        first_token_direct(server, body("Hello"))
        first_token_http(http, body("Hello"))
        for n in range(rounds * 4):
            asked = body(f"{n}: name a river in France, and say where it ends.")
            direct, over = first_token_direct(server, asked), first_token_http(http, asked)
            alone.append(direct * 1000)
            added.append((over - direct) * 1000)
    return {
        "calls": len(added),
        "direct_first_token_ms": spread(alone),
        "added_by_http_ms": spread(added),
    }


def main() -> int:
    """Run both measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    nim = endpoints.connect("nim")
    results = {
        "weights": nim.weights,
        "embedding": embedding(nim, options.rounds),
        "chat": chat(nim, options.rounds),
    }
    report(results, options.json)
    nim.close()
    sys.stdout.flush()
    os._exit(0)  # llama.cpp's threads may still wind down


if __name__ == "__main__":
    main()
