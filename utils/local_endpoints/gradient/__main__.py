"""``python -m local_endpoints.gradient``: the Gradient stand-in alone, on loopback."""

from __future__ import annotations

import argparse
import os
import sys

import uvicorn

from local_endpoints import loading
from local_endpoints.access import choose_key
from local_endpoints.engines.embedding import EmbeddingEngine
from local_endpoints.gradient.app import build_app, warn
from local_endpoints.gradient.store import AdapterStore, adapters_dir
from local_endpoints.options import ServeOptions
from local_endpoints.ports import bind
from nim_cookbook.errors import CookbookError
from nim_cookbook.models import load_registry

HOST = "127.0.0.1"


def say(line: str) -> None:
    """Print one line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped; return 2 after a user's mistake, which is printed as one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m local_endpoints.gradient",
        description="A stand-in for Gradient AI that trains LoRA adapters.",
    )
    parser.add_argument("--port", type=int, default=8004)
    parser.add_argument("--models", choices=("small", "better"), default="small")
    given = parser.parse_args(arguments)
    options = ServeOptions(models=given.models)
    registry = load_registry()
    services = loading.make_services(registry)
    try:
        listener = bind(HOST, given.port, "gradient")
        token = choose_key("gradient-local")
        # llama.cpp starts with the first completion, so only the embedding model is loaded here.
        services.chat.weights = loading.resolve("chat", options, registry, say)
        embedding = loading.resolve("embedding", options, registry, say)
        services.embedding.load(EmbeddingEngine(embedding), embedding)
    except CookbookError as error:
        say(f"Error: {error}")
        return 2
    store = AdapterStore(adapters_dir(), warn)
    app = build_app(services.chat, services.embedding, token, store)
    say(f"ready: gradient   http://{HOST}:{given.port}/api")
    if "COOKBOOK_LOCAL_KEY" not in os.environ:
        say(f"Token of this start: {token}")
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # llama.cpp's threads may still wind down; everything of ours is closed by now
