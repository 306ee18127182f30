"""Sixty-four clients of all kinds ask the local servers for ten minutes.

`COOKBOOK_SOAK_SECONDS` makes it shorter or longer.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from nim_cookbook.models import load_registry
from tests.support import Servers, started_servers

SECONDS = int(os.environ.get("COOKBOOK_SOAK_SECONDS", "600"))
CLIENTS = 64
REGISTRY = load_registry()
WORDS = ["river", "weir", "sensor", "report", "pump", "depot", "water", "level", "gauge", "order"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(SECONDS + 600)]


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[tuple[Servers, psutil.Process]]:
    """Servers of their own, so that their memory is that of this load."""
    key = "nvapi-local-fake-key-for-the-soak"
    with started_servers(tmp_path / "log", key, COOKBOOK_MODELS="small") as (servers, process):
        yield servers, psutil.Process(process.pid)


def request(dice: random.Random) -> tuple[str, str, dict[str, object]]:
    """Return a server, a path and a body, drawn from what clients of all kinds send."""

    def text(length: int) -> str:
        return " ".join(dice.choices(WORDS, k=length))

    chat = {"model": REGISTRY.default("chat").id, "max_tokens": 8}
    messages = [{"role": "user", "content": text(dice.choice((5, 150)))}]
    embed = {"model": REGISTRY.default("embedding").id, "input_type": "passage"}
    rank = {"model": REGISTRY.default("reranking").id, "query": {"text": text(8)}}
    return dice.choice(
        (
            ("chat", "/chat/completions", chat | {"messages": messages}),
            ("chat", "/chat/completions", chat | {"messages": messages, "stream": True}),
            ("embedding", "/embeddings", embed | {"input": text(20)}),
            ("embedding", "/embeddings", embed | {"input": [text(90) for _ in range(16)]}),
            ("embedding", "/embeddings", embed | {"input": text(600), "truncate": "END"}),
            ("reranking", "/ranking", rank | {"passages": [{"text": text(80)}] * 10}),
        )
    )


async def test_sixty_four_clients_for_ten_minutes(
    loaded: tuple[Servers, psutil.Process],
) -> None:
    servers, process = loaded
    seen: Counter[object] = Counter()
    memory: list[int] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS

    async def client(number: int) -> None:
        dice = random.Random(number)
        async with httpx.AsyncClient(
            headers={"Authorization": f"Bearer {servers.key}"}, timeout=None, trust_env=False
        ) as http:
            while loop.time() < end:
                server, path, body = request(dice)
                try:
                    answer = await http.post(servers.url(server) + path, json=body)
                    seen[answer.status_code] += 1
                except httpx.HTTPError as error:
                    seen[repr(error)] += 1

    async def watch() -> None:
        while loop.time() < end:
            memory.append(process.memory_info().rss)
            await asyncio.sleep(SECONDS / 100)

    await asyncio.gather(watch(), *map(client, range(CLIENTS)))
    print(dict(seen), [round(value / 1e6) for value in memory[::10]])
    assert set(seen) <= {200, 429, 503}, seen
    assert seen[200] > CLIENTS
    second, last = memory[10:20], memory[-10:]
    assert statistics.median(last) < 1.1 * statistics.median(second), memory


async def test_small_requests_are_answered_while_a_huge_one_is_read(
    loaded: tuple[Servers, psutil.Process],
) -> None:
    servers, _ = loaded
    url = servers.url("embedding") + "/embeddings"
    body = {"model": REGISTRY.default("embedding").id, "input_type": "passage"}
    async with httpx.AsyncClient(
        headers={"Authorization": f"Bearer {servers.key}"}, timeout=None, trust_env=False
    ) as http:
        texts = [" ".join(random.Random(n).choices(WORDS, k=300)) for n in range(500)]
        huge = asyncio.create_task(http.post(url, json=body | {"input": texts}))
        await asyncio.sleep(0)
        for done in itertools.count():
            answer = await http.post(url, json=body | {"input": "a short text"})
            assert answer.status_code == 200
            if huge.done() or done == 50:
                break
        assert done == 50, f"{done} small requests were answered before the huge one"
        huge.cancel()
