"""Checks before every route: the bearer token, the size of bodies, and the shut paths."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Paths that answer without a token: probes and load balancers carry none.
OPEN = frozenset({"/health/live", "/health/ready", "/status"})
#: Paths below these answer 404: the first two run code that a request carries, the third sends the
#: pipeline to an online service to be drawn, and no pipeline of ours has the last two.
SHUT = ("/deploy", "/undeploy", "/draw", "/responses", "/v1/responses")
#: Paths that take files.
UPLOADS = frozenset({"/v1/files", "/files"})
#: Largest body in bytes of all other requests.
BODY = 1024 * 1024


class BearerAuthMiddleware:
    """ASGI middleware that refuses requests without the token, too large ones, and shut paths.

    It is to stand inside the CORS middleware, so that a browser may read why it was refused.
    """

    def __init__(self, app: ASGIApp, token: str, upload_bytes: int) -> None:
        """Guard an application.

        Args:
            app: The application.
            token: What requests carry as their bearer token.
            upload_bytes: Largest upload.
        """
        self._app = app
        self._token = token.encode()
        self._upload_bytes = upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the service has no websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"].rstrip("/") or "/"
        headers = Headers(scope=scope)
        if path not in OPEN and not self._knows(headers.getlist("authorization")):
            await _refuse(send, 401, "Send the service's token as `Authorization: Bearer TOKEN`.")
        elif is_shut(path):
            await _refuse(send, 404, "Not Found")
        else:
            limit = self._upload_bytes if path in UPLOADS else BODY
            fault = _fault(headers, scope["method"], limit)
            if fault:
                await _refuse(send, *fault)
            else:
                await self._app(scope, receive, send)

    def _knows(self, values: list[str]) -> bool:
        """Tell whether one header carries the token; the time it takes does not tell how much."""
        if len(values) != 1:
            return False
        scheme, _, token = values[0].partition(" ")
        same = hmac.compare_digest(token.strip().encode("latin-1", "replace"), self._token)
        return scheme.lower() == "bearer" and same


def is_shut(path: str) -> bool:
    """Tell whether a path is below one of `SHUT`."""
    return any(
        path == shut or path.startswith((f"{shut}/", f"{shut}_", f"{shut}-")) for shut in SHUT
    )


def _fault(headers: Headers, method: str, limit: int) -> tuple[int, str] | None:
    """Say what is wrong with a request's body: too large, or of unknown size."""
    if "transfer-encoding" in headers:
        return 411, "Send the body with its Content-Length."
    text = headers.get("content-length", "0")
    if not text.isascii() or not text.isdigit():
        return 400, "The Content-Length is no number."
    if int(text) > limit:
        return 413, f"The body has {text} bytes; at most {limit} are taken."
    return None


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers: Iterable[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == 401:
        headers = [*headers, (b"www-authenticate", b"Bearer")]
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
