"""Liveness and readiness of the query service.

Live means that the event loop turns. Ready means that a question can be answered: the store and
the NIMs that the pipelines need have just answered. The checks are kept for a moment, and asked
once at a time, so that probes are no load.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse

from nim_cookbook import keys
from nim_cookbook.endpoints import Endpoint
from nim_cookbook.models import ROLES
from rag_service.query import Service, service

#: Seconds for which an answer is good.
KEPT = 2.0
#: Seconds for one check.
TIMEOUT = 3.0

Check = Callable[[], Awaitable[bool]]


class Readiness:
    """The checks of one process."""

    def __init__(self, checks: Mapping[str, Check] | None = None) -> None:
        """Take the checks; None for those of the service."""
        self._checks = checks
        self._lock = asyncio.Lock()
        self._last: tuple[float, dict[str, bool]] | None = None

    async def results(self) -> dict[str, bool]:
        """Return what is ready, by name."""
        async with self._lock:
            if self._last is None or time.monotonic() - self._last[0] > KEPT:
                checks = self._checks = self._checks or service_checks(service())
                answers = await asyncio.gather(*(_checked(check) for check in checks.values()))
                self._last = time.monotonic(), dict(zip(checks, answers, strict=True))
            return self._last[1]

    async def show(self, request: Request) -> JSONResponse:
        """Answer `GET /health/ready`: 200 or 503, with names only, for anybody may ask."""
        results = await self.results()
        ready = all(results.values())
        named = {name: "ready" if good else "not ready" for name, good in results.items()}
        return JSONResponse({"ready": ready, "checks": named}, 200 if ready else 503)


async def live(request: Request) -> JSONResponse:
    """Answer `GET /health/live`."""
    return JSONResponse({"live": True})


def service_checks(shared: Service) -> dict[str, Check]:
    """Return the checks of what a question needs: all three models, and the store."""
    hosted = shared.api.mode == "hosted"
    checks: dict[str, Check] = {}
    for role in ROLES:
        checks[role] = _endpoint_check(getattr(shared.api, role), hosted)
    checks["store"] = _store_check()
    return checks


async def _checked(check: Check) -> bool:
    try:
        return await asyncio.wait_for(check(), TIMEOUT)
    except Exception:  # whatever a client raises, the answer is no
        return False


def _endpoint_check(endpoint: Endpoint, hosted: bool) -> Check:
    """Ask a NIM whether it is ready; the API catalog has its list of models for that."""
    url = f"{endpoint.url}/models" if hosted else f"{endpoint.url}/health/ready"
    keys.guard(endpoint.key, url, key_variable=endpoint.key_variable)
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}

    async def check() -> bool:
        async with httpx.AsyncClient(headers=headers, timeout=TIMEOUT, trust_env=hosted) as client:
            return (await client.get(url)).status_code == 200

    return check


def _store_check() -> Check:
    """Ask the store of the configuration for the least that it can answer."""
    from rag_service.settings import QDRANT_KEY, STORE_URL, Settings
    from rag_service.stores import store_kind

    url = Settings.from_environment().require(STORE_URL)
    if store_kind(url) == "pgvector":
        import psycopg

        async def postgres() -> bool:
            async with await psycopg.AsyncConnection.connect(
                url, connect_timeout=int(TIMEOUT)
            ) as connection:
                return await (await connection.execute("SELECT 1")).fetchone() == (1,)

        return postgres

    async def qdrant() -> bool:
        key = os.environ.get(QDRANT_KEY, "").strip()
        headers = {"api-key": key} if key else {}
        async with httpx.AsyncClient(headers=headers, timeout=TIMEOUT) as client:
            return (await client.get(f"{url.rstrip('/')}/readyz")).status_code == 200

    return qdrant
