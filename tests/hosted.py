"""NVIDIA's hosts on loopback: the hosted clients' own URLs, answered by a stand-in.

A CONNECT proxy leads the clients' connections to NVIDIA's two hosts to a TLS server whose
certificate comes from a throw-away authority. The clients learn of both as they do in a company's
network: by HTTPS_PROXY, SSL_CERT_FILE and REQUESTS_CA_BUNDLE. Behind it is the catalog of local
servers that already run, made like the hosted one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from local_endpoints.faults import switched
from local_endpoints.nim.hosted import HOSTS, HostedCatalog
from tests.relay import Relay
from tests.support import Servers, serving_app

KEY = "nvapi-fake-key-for-tests"
OURS = ("NVIDIA_", "NIM_", "COOKBOOK_ENDPOINTS", "COOKBOOK_THINKING")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class HostedProxy(Relay):
    """Leads connections to NVIDIA's hosts to one port of this machine, and refuses all others."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.refused: list[str] = []
        self.asked: set[str] = set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, address, _ = head.decode("latin-1").split(" ", 2)
            host, _, port = address.partition(":")
            if method != "CONNECT" or host not in HOSTS or port != "443":
                self.refused.append(f"{method} {address}")
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                writer.close()
                return
            self.asked.add(host)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await super()._relay(reader, writer)


@dataclass
class HostedStandIn:
    """NVIDIA's hosts, as the clients of a process see them that has `environment`."""

    catalog: HostedCatalog
    proxy: HostedProxy
    environment: Mapping[str, str]

    def fail(self, *faults: str) -> None:
        """Switch these faults on, and all others off."""
        self.catalog.faults = [switched(fault) for fault in faults]

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give this process, and those that it starts, the environment of hosted mode."""
        for name in list(os.environ):
            if name.startswith(OURS) or name.upper() in PROXIES:
                monkeypatch.delenv(name)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)


def forwarding(servers: Servers) -> Starlette:
    """An application that passes everything on to the catalog of running servers."""
    client = httpx.AsyncClient(
        base_url=servers.url("catalog").removesuffix("/v1"), timeout=300, trust_env=False
    )
    dropped = ("host", "content-length", "transfer-encoding", "connection")

    async def forward(request: Request) -> StreamingResponse:
        headers = {k: v for k, v in request.headers.items() if k not in dropped}
        if headers.get("authorization") == f"Bearer {KEY}":
            headers["authorization"] = f"Bearer {servers.key}"
        content = await request.body()
        passed = client.build_request(
            request.method, request.url.path, headers=headers, content=content
        )
        answer = await client.send(passed, stream=True)
        kept = {k: v for k, v in answer.headers.items() if k not in dropped}
        done = BackgroundTask(answer.aclose)
        return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=done)

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])])


@contextlib.contextmanager
def hosted_stand_in(servers: Servers, folder: Path) -> Iterator[HostedStandIn]:
    """Let the catalog of running servers play NVIDIA's hosts."""
    authority = trustme.CA()
    trusted, certificate = folder / "authority.pem", folder / "hosts.pem"
    authority.cert_pem.write_to_path(trusted)
    issued = authority.issue_cert(*HOSTS)
    issued.private_key_and_cert_chain_pem.write_to_path(certificate)
    catalog = HostedCatalog(forwarding(servers))
    with (
        serving_app(catalog, ssl_certfile=certificate) as address,
        _in_thread(HostedProxy(httpx.URL(address).port or 0)) as proxy,
    ):
        environment = {
            "COOKBOOK_ENDPOINTS": "hosted",
            "NVIDIA_API_KEY": KEY,
            "HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}",
            "SSL_CERT_FILE": str(trusted),
            "REQUESTS_CA_BUNDLE": str(trusted),
        }
        yield HostedStandIn(catalog, proxy, environment)


@contextlib.contextmanager
def _in_thread(proxy: HostedProxy) -> Iterator[HostedProxy]:
    """Run a proxy on an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(proxy.up(), loop).result(10)
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.down(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
