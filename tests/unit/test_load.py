"""Load on a service: what is counted, what is refused, and what is made of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity import load
from nim_cookbook.errors import ConfigurationError, DataError, EndpointUnreachable

TOKEN = "fake-token-for-tests"


class Service:
    """Answers `POST /ask`, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.tokens: set[str | None] = set()
        self.meeting: threading.Barrier | None = None
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.asked.append(body)
                service.tokens.add(self.headers["Authorization"])
                if service.meeting and body.get("meet"):
                    service.meeting.wait(timeout=30)
                self.send_response(body.get("status", 200))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def target(self, *bodies: dict[str, Any]) -> load.Target:
        return load.Target(self.url, "/ask", bodies or ({},), TOKEN)


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    yield running
    running.server.shutdown()
    running.server.server_close()


async def test_a_closed_load_sends_no_more_than_it_may(service):
    bodies = ({"n": 0}, {"n": 1}, {"n": 2})
    made = await load.closed_load(service.target(*bodies), 2, seconds=30, most=7)
    assert len(made.latencies) == 7
    assert (made.failed, made.clients, made.what) == (0, 2, "/ask")
    assert len(service.asked) == 8  # one goes before
    assert sorted(body["n"] for body in service.asked[1:]) == [0, 0, 0, 1, 1, 2, 2]
    assert service.tokens == {f"Bearer {TOKEN}"}


async def test_clients_ask_at_the_same_time(service):
    # Each of four waits for the others: fewer clients would never come together.
    service.meeting = threading.Barrier(4)
    target = service.target({}, *[{"meet": True}] * 4)
    made = await load.closed_load(target, 4, seconds=30, most=5)
    assert (len(made.latencies), made.failed) == (5, 0)


async def test_time_ends_a_load(service):
    made = await load.closed_load(service.target(), 1, seconds=0.05, most=10**6)
    assert 1 <= len(made.latencies) < 10**5


async def test_failures_are_counted_and_not_timed(service):
    target = service.target({}, {"status": 500}, {"status": 404})
    made = await load.closed_load(target, 1, seconds=30, most=6)
    assert (len(made.latencies), made.failed) == (2, 4)
    assert made.row()["failed"] == 4
    assert made.work > sum(made.latencies)


async def test_a_service_that_is_not_there_is_said(service):
    service.server.shutdown()
    service.server.server_close()
    with pytest.raises(EndpointUnreachable, match=r"/ask does not answer \(ClientConnectorError\)"):
        await load.closed_load(service.target(), 1)


async def test_a_service_that_refuses_is_said(service):
    with pytest.raises(EndpointUnreachable, match="answers with status 401"):
        await load.closed_load(service.target({"status": 401}), 1)


@pytest.mark.parametrize("host", ["service.example.com", "10.0.0.7", "0.0.0.0", "[2001:db8::1]"])
def test_only_this_machine_is_loaded(host):
    with pytest.raises(ConfigurationError, match="not on this machine"):
        load.Target(f"http://{host}:1416", "/ask", [{}])


def test_a_token_is_not_shown():
    assert TOKEN not in repr(load.Target("http://127.0.0.1:1416", "/ask", [{}], TOKEN))


@pytest.mark.parametrize(
    "given", [{"seconds": 0}, {"seconds": 61}, {"seconds": float("nan")}, {"most": 0}]
)
async def test_bad_numbers_are_refused(service, given):
    with pytest.raises(DataError, match="give numbers above 0, and at most 60 s"):
        await load.closed_load(service.target(), 1, **given)
    with pytest.raises(DataError, match="at least one body"):
        load.Target(service.url, "/ask", [])
    assert service.asked == []


def made(clients: int, answers: int, seconds: float = 1.0) -> load.Load:
    return load.Load("x", clients, (0.1,) * answers, 0, seconds, 0.1 * answers)


def test_saturation_is_the_fewest_clients_that_reach_nearly_the_most():
    loads = [made(1, 10), made(2, 19), made(4, 27), made(8, 30), made(16, 29)]
    assert load.saturation(loads).clients == 4
    assert load.saturation(loads, share=1.0).clients == 8
    assert load.saturation(loads, share=0.3).clients == 1


def test_a_load_with_failures_is_no_saturation():
    broken = load.Load("x", 16, (0.1,) * 99, 1, 1.0, 10.0)
    assert load.saturation([made(1, 10), made(2, 11), broken]).clients == 1
    with pytest.raises(DataError, match="failed under each load"):
        load.saturation([broken])


def test_a_load_without_answers_has_no_percentiles():
    nothing = load.Load("search", 2, (), 5, 1.0, 3.0)
    assert nothing.row()["p95, ms"] == "none"
    with pytest.raises(DataError, match="'search' was answered: 5 failed"):
        nothing.percentile(50)


@given(
    latencies=st.lists(st.floats(1e-6, 100), min_size=1, max_size=50),
    seconds=st.floats(1e-3, 1000),
)
def test_littles_law_and_the_order_of_percentiles(latencies, seconds):
    one = load.Load("x", 1, tuple(latencies), 0, seconds, sum(latencies))
    mean = sum(latencies) / len(latencies)
    assert one.in_flight == pytest.approx(one.per_second * mean)
    ordered = [one.percentile(percent) for percent in (0, 50, 95, 99, 100)]
    assert ordered == sorted(ordered)
    assert (ordered[0], ordered[-1]) == (min(latencies), max(latencies))
