"""Request bodies read as strict JSON.

Python's own reader takes NaN, lone surrogates and any depth, and what works on the body later
fails on them. orjson refuses the first two (RFC 8259, section 8), `loads` the third, and FastAPI
answers such a body as any other that is no JSON. JSON in a string of a body is read alike.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

#: Lists and objects within each other that a text may have: orjson reads 1,024 and writes 254, and
#: the requests to an engine, around a part of a body, have a few of their own.
MAX_LEVELS = 250


def loads(text: bytes | str) -> Any:  # noqa: ANN401  whatever the text holds
    """Read strict JSON.

    Raises:
        json.JSONDecodeError: It is none, or has more than `MAX_LEVELS` levels.
    """
    value = orjson.loads(text)
    try:
        orjson.dumps([[[[value]]]])  # fails at 254; far faster than to walk through it in Python
    except TypeError:
        raise orjson.JSONDecodeError(f"more than {MAX_LEVELS} levels", "", 0) from None
    return value


class _StrictRequest(Request):
    async def json(self) -> Any:  # noqa: ANN401  whatever the body holds
        if not hasattr(self, "_json"):
            self._json = loads(await self.body())
        return self._json


class StrictRoute(APIRoute):
    """A route whose body is strict JSON; the `route_class` of a router."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, for requests that read their body so."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict
