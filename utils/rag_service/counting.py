"""What a worker has done: for its last line, and for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from nim_cookbook.errors import PortInUseError


@dataclass(slots=True)
class Count:
    """What a worker has done.

    Attributes:
        done: Jobs that ended well, with those that found nothing to do.
        failed: Tries that failed.
        dead: Jobs given up.
        released: Jobs given back.
    """

    done: int = 0
    failed: int = 0
    dead: int = 0
    released: int = 0

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"{self.done} jobs done, {self.failed} tries failed, {self.dead} given up, "
            f"{self.released} given back"
        )


class _Jobs(Collector):
    """Reads a count when Prometheus asks."""

    def __init__(self, count: Count) -> None:
        self._count = count

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "cookbook_indexer_jobs", "Jobs by how they ended.", labels=["outcome"]
        )
        for outcome, number in asdict(self._count).items():
            family.add_metric([outcome], number)
        yield family


def expose(count: Count, host: str, port: int) -> None:
    """Serve a worker's count as Prometheus metrics, in a thread of its own.

    Args:
        count: Read at each request.
        host: Address to listen on.
        port: Port to listen on.

    Raises:
        PortInUseError: The port is in use.
    """
    registry = CollectorRegistry()
    registry.register(_Jobs(count))
    try:
        start_http_server(port, host, registry=registry)
    except OSError as error:
        raise PortInUseError(
            f"Metrics cannot be served on {host}:{port} ({error.strerror}): give another "
            "--metrics-port."
        ) from None
