"""What the benchmarks share: how long a call takes, paired rounds, and how they are told."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from capacity.load import Target
from nim_cookbook.errors import DataError

#: One measurement: what it does is bounded by a count, and it returns how many a second.
Measure = Callable[[], float]
Row = dict[str, object]
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


def seconds(call: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def rate_of(target: Target, clients: int) -> float:
    """Return answers a second to all of a target's bodies, once each, over open connections.

    Load and server share the machine. Of an answer only status and length are read: aiohttp takes
    0.3 ms of processor for a request, and this 0.1 to 0.2, in every row that goes over HTTP.

    Raises:
        DataError: An answer has another status than 200.
    """
    where = urlsplit(target.url)
    requests = []
    for body in target.bodies:
        text = json.dumps(body)
        head = (
            f"POST {target.route} HTTP/1.1\r\nHost: {where.netloc}\r\n"
            f"Authorization: Bearer {target.token}\r\nContent-Type: application/json\r\n"
        )
        requests.append(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())

    async def ask(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: Iterable[bytes]
    ) -> None:
        for request in left:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = LENGTH.search(head)
            answer = await reader.readexactly(int(length[1]) if length else 0)
            if head.split(maxsplit=2)[1] != b"200":
                raise DataError(f"{target.route} answers {head[:20]!r}: {answer[:200]!r}")

    async def load() -> float:
        opened = [await asyncio.open_connection(where.hostname, where.port) for _ in range(clients)]
        await ask(*opened[0], requests[:1])  # untimed
        left = iter(requests)
        began = time.perf_counter()
        await asyncio.gather(*(ask(*connection, left) for connection in opened))
        took = time.perf_counter() - began
        for _, writer in opened:
            writer.close()
        return len(requests) / took

    return asyncio.run(load())


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return minimum, median and maximum."""
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }


def alternating(measures: Mapping[str, Measure], rounds: int) -> dict[str, list[float]]:
    """Take each measure once a round; every other round goes backwards.

    So a machine that slows down, or gets warm, favours none of them.
    """
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name in list(measures)[:: 1 if number % 2 == 0 else -1]:
            rates[name].append(measures[name]())
    return rates


def ratio_rows(
    case: Mapping[str, object],
    rates: Mapping[str, Sequence[float]],
    ours: str,
    targets: Mapping[str, float | None],
) -> list[Row]:
    """Return a row for each of the others, and show its ratio: those of the pairs of rounds.

    Args:
        case: What was measured, in columns that all rows share.
        rates: From `alternating`.
        ours: Whose rate is divided by that of the others.
        targets: The least median that is wanted, by the other's name; None for none.
    """
    rows: list[Row] = []
    for other, target in targets.items():
        ratio = spread([a / b for a, b in zip(rates[ours], rates[other], strict=True)])
        pair = {"what/s": spread(rates[ours]), "against/s": spread(rates[other]), "ratio": ratio}
        say(f"    / {other}: {pair}")
        rows.append({**case, "what": ours, "against": other, **pair, "target": target})
    return rows


def say(text: str) -> None:
    """Show progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def parser(text: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options that parts of the page have."""
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument(
        "--json", nargs="?", type=Path, metavar="FILE", help="print JSON; write it to FILE as well"
    )
    return made


def report(results: Mapping[str, object], path: Path | None = None) -> None:
    """Print results as JSON, and write them to a file if one is wanted."""
    text = json.dumps(results, indent=2)
    print(text, flush=True)
    if path:
        path.write_text(text + "\n", encoding="utf-8")
