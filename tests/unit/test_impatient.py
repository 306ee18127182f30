"""A connection that sends no headers is closed, and one that asks is answered."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from local_endpoints import server
from nim_cookbook import impatient
from rag_service import app as query_service
from rag_service import chat as chat_page


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(impatient, "HEADER_SECONDS", 2)


@contextlib.asynccontextmanager
async def serving():  # type: ignore[no-untyped-def]
    app = FastAPI()

    @app.get("/slow")
    async def slow() -> str:
        await asyncio.sleep(3)
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
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()


@pytest.mark.usefixtures("quick")
async def test_the_second_request_of_a_connection_has_the_same_limit() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"404" in await reader.readline()
        writer.write(b"GET /none HTTP/1.1\r\nX-Slow: ")
        await asyncio.wait_for(reader.read(), 60)  # the rest of the first answer, and the end
        writer.close()


@pytest.mark.usefixtures("quick")
async def test_an_answer_may_take_longer_than_the_headers() -> None:
    async with serving() as port, httpx.AsyncClient(trust_env=False, timeout=60) as client:
        for _ in range(2):
            answer = await client.get(f"http://127.0.0.1:{port}/slow")
            assert answer.json() == "done"


def test_all_listeners_of_the_local_servers_are_impatient() -> None:
    listeners = server._listeners({"chat": FastAPI(), "notion": FastAPI()})
    protocols = {listener.config.http for listener in listeners.values()}
    assert protocols == {impatient.ImpatientProtocol}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_query_service_is_impatient(
    workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[object] = []
    monkeypatch.setattr(uvicorn, "run", lambda *_, http, **__: given.append(http))
    monkeypatch.setattr(query_service, "create", FastAPI)
    monkeypatch.setattr("rag_service.query.service", FastAPI)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # set by the function, and put back
    options = argparse.Namespace(host="127.0.0.1", port=1, workers=workers)
    query_service._serve(options, str(tmp_path))
    assert given == [impatient.ImpatientProtocol]


def test_the_chat_page_is_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(uvicorn, "run", lambda *_, http, **__: given.append(http))
    monkeypatch.setattr(chat_page, "create", lambda _: FastAPI())
    monkeypatch.setattr(chat_page, "stop_cleanly", lambda _: None)
    assert chat_page.main([]) == 0
    assert given == [impatient.ImpatientProtocol]
