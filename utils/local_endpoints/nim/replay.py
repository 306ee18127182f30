"""Asking an ASGI application once more, or with another body, in place of the request that came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import ASGIApp, Message, Receive, Scope


async def body_of(receive: Receive, limit: int) -> bytes:
    """Read a request's body; reading stops once it is over `limit` bytes, for others to refuse."""
    body = b""
    while len(body) <= limit:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body


def with_body(scope: Scope, body: bytes, receive: Receive) -> tuple[Scope, Receive]:
    """Return scope and receive of the same request with this body; then the client is waited for.

    A body that was not read to its end keeps the length that its client declared.
    """
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    told = False

    async def replayed() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    length = (b"content-length", str(len(body)).encode())
    return {**scope, "headers": [*headers, length]}, replayed


async def answers(app: ASGIApp, scope: Scope, receive: Receive) -> AsyncGenerator[Message, None]:
    """Yield the messages that an application sends; closing the iterator cancels the request."""
    messages: asyncio.Queue[Message | None] = asyncio.Queue()

    async def run() -> None:
        try:
            await app(scope, receive, messages.put)
        finally:
            messages.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await task
    finally:
        task.cancel()
