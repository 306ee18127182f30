"""Prometheus figures of one server, under the names that NIM's LLM containers use."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as render_registry

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters of one server.

    Args:
        prefix: What their names begin with.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, prefix: str = "") -> None:
        self.registry = CollectorRegistry()
        self.running = Gauge(
            f"{prefix}num_requests_running",
            "Requests being answered.",
            ["role"],
            registry=self.registry,
        )
        self.success = Counter(
            f"{prefix}request_success",
            "Requests answered in full.",
            ["role"],
            registry=self.registry,
        )
        self.failure = Counter(
            f"{prefix}request_failure",
            "Requests refused, failed or left by the client.",
            ["role"],
            registry=self.registry,
        )
        self.latency = Histogram(
            f"{prefix}e2e_request_latency_seconds",
            "Seconds from request to the end of its answer.",
            ["role"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            f"{prefix}time_to_first_token_seconds",
            "Seconds from request to the first streamed token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            f"{prefix}prompt_tokens", "Tokens read.", ["role"], registry=self.registry
        )
        self.generated_tokens = Counter(
            f"{prefix}generation_tokens", "Tokens written.", registry=self.registry
        )

    @contextmanager
    def request(self, role: str) -> Iterator[None]:
        """Count and time one request; an exception inside counts as a failure."""
        began = time.perf_counter()
        running = self.running.labels(role)
        running.inc()
        try:
            yield
        except BaseException:
            self.failure.labels(role).inc()
            raise
        else:
            self.success.labels(role).inc()
        finally:
            running.dec()
            self.latency.labels(role).observe(time.perf_counter() - began)

    def render(self) -> bytes:
        """Return the exposition text."""
        return render_registry(self.registry)
