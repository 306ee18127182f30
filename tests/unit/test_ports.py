"""The listening sockets of the local servers."""

from __future__ import annotations

import asyncio
import socket

from local_endpoints.ports import bind


async def test_no_answer_waits_for_a_delayed_acknowledgement() -> None:
    """Each answer of the local servers once came 40 ms late: asyncio had left Nagle's way on."""
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        seen.put_nowait(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = bind("127.0.0.1", 0, "test")
    async with await asyncio.start_server(connected, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await seen.get() == 1
        writer.close()
