"""A connection that sends no headers is closed, and one that asks is answered."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from nim_cookbook import impatient


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(impatient, "HEADER_SECONDS", 0.2)


@contextlib.asynccontextmanager
async def serving():  # type: ignore[no-untyped-def]
    app = FastAPI()

    @app.get("/slow")
    async def slow() -> str:
        await asyncio.sleep(0.6)
        return "done"

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, http=impatient.ImpatientProtocol, log_level="warning")
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    await task


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "])
async def test_a_connection_without_headers_is_closed(begin: bytes) -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begin)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


@pytest.mark.usefixtures("quick")
async def test_the_second_request_of_a_connection_has_the_same_limit() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"404" in await reader.readline()
        writer.write(b"GET /none HTTP/1.1\r\nX-Slow: ")
        await asyncio.wait_for(reader.read(), 10)  # the rest of the first answer, and the end
        writer.close()


@pytest.mark.usefixtures("quick")
async def test_an_answer_may_take_longer_than_the_headers() -> None:
    async with serving() as port, httpx.AsyncClient(trust_env=False) as client:
        for _ in range(2):
            answer = await client.get(f"http://127.0.0.1:{port}/slow")
            assert answer.json() == "done"
