"""NIMs that answer by rule, all three on one port; a chat takes as long as one wants.

    python benchmarks/slow_nim.py PORT SECONDS

Vectors are drawn at random for each text, chunks keep their order, and the chat model says one
sentence. It imports little, so that it starts at once.
"""

from __future__ import annotations

import asyncio
import sys
import zlib

import numpy as np
from aiohttp import web

from nim_cookbook.models import ROLES, load_registry

MODELS = {role: load_registry().default(role) for role in ROLES}
WIDTH = 384  # of the vectors
USAGE = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
MESSAGE = {"role": "assistant", "content": "It is so."}
routes = web.RouteTableDef()


@routes.get("/v1/health/ready")
@routes.get("/v1/metadata")
async def ready(_: web.Request) -> web.Response:
    """Answer probes."""
    return web.json_response({"ready": True})


@routes.get("/v1/models")
async def models(_: web.Request) -> web.Response:
    """List the models that the recipes ask for."""
    return web.json_response({"data": [{"id": model.id} for model in MODELS.values()]})


@routes.post("/v1/embeddings")
async def embed(request: web.Request) -> web.Response:
    """Return a vector a text, the same each time."""
    texts = (await request.json())["input"]
    data = []
    for number, text in enumerate([texts] if isinstance(texts, str) else texts):
        vector = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(WIDTH)
        vector /= np.linalg.norm(vector)
        data.append({"index": number, "embedding": vector.round(4).tolist()})
    return web.json_response({"data": data, "usage": USAGE})


@routes.post("/v1/ranking")
async def rank(request: web.Request) -> web.Response:
    """Keep the order."""
    count = len((await request.json())["passages"])
    return web.json_response({"rankings": [{"index": n, "logit": -n} for n in range(count)]})


@routes.post("/v1/chat/completions")
async def chat(request: web.Request) -> web.Response:
    """Take the time."""
    await asyncio.sleep(request.app[SECONDS])
    choice = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}
    about = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    return web.json_response({**about, "choices": [choice], "usage": USAGE})


SECONDS = web.AppKey("seconds", float)


def main() -> None:
    """Serve until stopped."""
    app = web.Application(client_max_size=2**26)
    app[SECONDS] = float(sys.argv[2])
    app.add_routes(routes)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
