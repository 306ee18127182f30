"""Load on a service of this machine, bounded in count and time, and what it says.

The load is closed: a number of clients, each of which asks again when it has its answer. That finds
how much a service can do. As its clients wait when the service is slow, it hides what people feel
who do not coordinate with it (Schroeder, Wierman and Harchol-Balter, "Open Versus Closed: A
Cautionary Tale", NSDI 2006).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from nim_cookbook.errors import ConfigurationError, DataError, EndpointUnreachable
from nim_cookbook.hosts import is_loopback

#: Requests that one load sends at most.
MOST = 400
#: Seconds for which one load sends requests at most.
LONGEST = 60.0
#: Seconds after which an answer is given up and counted as failed.
PATIENCE = 120.0
#: Share of the highest throughput at which a service counts as saturated.
SATURATED = 0.9


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked, and where.

    Attributes:
        url: The service's address, on loopback.
        route: Path of the request, which is a POST, such as `/search/run`.
        bodies: What is sent, one after the other and then again from the first; each goes as JSON.
        token: The bearer token; nothing for none.

    Raises:
        ConfigurationError: The address is not one of this machine.
        DataError: There is nothing to send.
    """

    url: str
    route: str
    bodies: Sequence[Mapping[str, Any]]
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Refuse what must not be loaded."""
        if not is_loopback(urlsplit(self.url).hostname or ""):
            raise ConfigurationError(
                f"{self.url} is not on this machine, and load goes to services of this machine "
                "only: give an address such as http://127.0.0.1:1416."
            )
        if not self.bodies:
            raise DataError("A load needs something to send: give at least one body.")

    def session(self, connections: int) -> aiohttp.ClientSession:
        """Return a client for so many requests at a time.

        It is aiohttp's: with a hundred clients the time of httpx's pool is measured, and not that
        of the service (50 requests a second against 680 on two busy cores).
        """
        return aiohttp.ClientSession(
            self.url,
            headers={"Authorization": f"Bearer {self.token}"} if self.token else {},
            timeout=aiohttp.ClientTimeout(total=PATIENCE),
            connector=aiohttp.TCPConnector(limit=connections),
        )


@dataclass(frozen=True, slots=True)
class Load:
    """What became of a load."""

    what: str  # name of what was loaded, for tables and plots
    clients: int  # how many asked at the same time
    latencies: tuple[float, ...]  # seconds to each answer, those with status 200 only
    failed: int  # requests that were answered otherwise, or not at all
    seconds: float  # from the first request to the last answer
    work: float  # seconds that all requests together were open, failed ones included

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    @property
    def in_flight(self) -> float:
        """Requests that were open at the same time, on average over the whole load.

        The mean number of requests in a system is the rate at which they arrive times the mean time
        that they spend in it (Little, "A Proof for the Queuing Formula: L = λW", Operations
        Research 9(3), 1961); here both are counted, so this is an identity.
        """
        return self.work / self.seconds

    def percentile(self, percent: float) -> float:
        """Return the seconds within which so many per cent of the answers came.

        Args:
            percent: From 0 to 100; 50 is the median.

        Raises:
            DataError: Nothing was answered.
        """
        if not self.latencies:
            raise DataError(f"No request of {self.what!r} was answered: {self.failed} failed.")
        return float(np.percentile(self.latencies, percent))

    def row(self) -> dict[str, object]:
        """Return a line of a table; times in milliseconds, and none where nothing was answered."""
        times = {
            f"p{p}, ms": round(self.percentile(p) * 1000) if self.latencies else "none"
            for p in (50, 95)
        }
        return {
            "what": self.what,
            "clients": self.clients,
            "answers": len(self.latencies),
            "failed": self.failed,
            "answers/s": round(self.per_second, 1),
            "in flight": round(self.in_flight, 1),
            **times,
        }


async def closed_load(
    target: Target, clients: int, *, seconds: float = 5.0, most: int = MOST, what: str = ""
) -> Load:
    """Let clients ask one question after the other, and time the answers.

    One request goes before, untimed. After the time no request is begun; open ones are waited for.

    Args:
        target: What is asked.
        clients: How many ask at the same time.
        seconds: For how long; at most `LONGEST`.
        most: How many requests together.
        what: Name of what is loaded; by default the route.

    Raises:
        DataError: An argument is out of range.
        EndpointUnreachable: The service does not answer the first request with status 200.
    """
    _check(seconds, most, clients)
    bodies = itertools.islice(itertools.cycle(target.bodies), most)
    answers: list[tuple[float, bool]] = []

    async def client(http: aiohttp.ClientSession, began: float) -> None:
        for body in bodies:  # all clients share it
            if time.perf_counter() - began >= seconds:
                return
            answers.append(await _ask(http, target, body))

    async with target.session(clients) as http:
        await _first(http, target)
        began = time.perf_counter()
        await asyncio.gather(*(client(http, began) for _ in range(clients)))
        elapsed = time.perf_counter() - began
    latencies = tuple(took for took, answered in answers if answered)
    work = sum(took for took, _ in answers)
    failed = len(answers) - len(latencies)
    return Load(what or target.route, clients, latencies, failed, elapsed, work)


def saturation(loads: Sequence[Load], share: float = SATURATED) -> Load:
    """Return the load with the fewest clients that reaches nearly the highest throughput.

    More clients than these only wait longer. Where it is the last one, throughput may still rise.

    Args:
        loads: Closed loads on the same service; those with failures do not count.
        share: Of the highest throughput among them.

    Raises:
        DataError: There are none without failures.
    """
    whole = [load for load in loads if not load.failed]
    if not whole:
        raise DataError("Requests failed under each load: look at the service's log first.")
    enough = share * max(load.per_second for load in whole)
    return min((load for load in whole if load.per_second >= enough), key=lambda load: load.clients)


async def _ask(
    http: aiohttp.ClientSession, target: Target, body: Mapping[str, Any]
) -> tuple[float, bool]:
    """Return the seconds that a request took, and whether it was answered with 200."""
    began = time.perf_counter()
    try:
        async with http.post(target.route, json=body) as answer:
            await answer.read()
            answered = answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        answered = False
    return time.perf_counter() - began, answered


async def _first(http: aiohttp.ClientSession, target: Target) -> None:
    where = f"{target.url}{target.route}"
    try:
        async with http.post(target.route, json=target.bodies[0]) as answer:
            status, said = answer.status, await answer.text(errors="replace")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EndpointUnreachable(
            f"{where} does not answer ({type(error).__name__}): start the service first."
        ) from error
    if status != 200:
        raise EndpointUnreachable(
            f"{where} answers with status {status}, so there is nothing to measure: {said[:200]}"
        )


def _check(seconds: float, most: int, rate: float) -> None:
    if not (0 < seconds <= LONGEST and most > 0 and rate > 0):
        raise DataError(
            f"A load of {rate:g}, {most} requests at most, for {seconds:g} s: give numbers above "
            f"0, and at most {LONGEST:g} s."
        )
