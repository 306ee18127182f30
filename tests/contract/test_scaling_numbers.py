"""The numbers that drive scaling, read from real servers by the paths that the chart configures.

KEDA's scaler `nats-jetstream` gets
`http://<natsServerMonitoringEndpoint>/jsz?acc=<account>&consumers=true&config=true`, looks for the
account's stream and the stream's consumer, and adds up the consumer's `num_pending` and
`num_ack_pending`; the scaler is active when that is more than `activationLagThreshold`. Without the
consumer it takes the stream's `state.last_seq`, that is all messages there ever were; without the
stream it says "stream not found", and after a few times the ScaledObject's fallback counts.

Source: KEDA's `pkg/scalers/nats_jetstream_scaler.go` (`getNATSJetStreamMonitoringURL`,
`getMaxMsgLag`, `GetMetricsAndActivity`) and https://keda.sh/docs/latest/scalers/nats-jetstream/.

Jobs are sent and taken as a worker would, and not worked on.

The autoscaler's number is read from the query service as a process of its own, with the arguments
and the token of the rendered Deployment, by the port, path and token of the ServiceMonitor.
Questions stay open while the way to the chat model is held up.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rag_service import app, chart
from rag_service.local import LocalServices
from rag_service.queue import Job, Queue, connect
from rag_service.settings import TOKEN as TOKEN_VARIABLE
from tests.query_service import Tap, TestedService, environment, index_documents, running
from tests.support import Servers

pytest.importorskip("helm_python", reason="no Helm: install helm-python-sdk")

needs_servers = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX signals and sockets")

INDEX = "scaling"
#: Seconds after which a number that should have changed is a fault.
PATIENCE = 90
#: Requests in flight for each pod; one more is asked at a time, so that another pod were wanted.
TARGET = "5"


def everything(**values: Any) -> chart.Manifests:
    """Return all objects of the chart."""
    return chart.render(overrides=values, release="rag", namespace="demo")


@pytest.fixture(scope="module")
def trigger() -> dict[str, str]:
    """What the chart tells KEDA."""
    scaled = everything(index=INDEX).one("ScaledObject", "indexer")
    (one,) = scaled.data["spec"]["triggers"]
    assert one["type"] == "nats-jetstream"
    metadata: dict[str, str] = one["metadata"]
    return metadata


@pytest.fixture(scope="module")
def services() -> Iterator[LocalServices]:
    with LocalServices() as running:
        yield running


def keda_lag(endpoint: str, trigger: Mapping[str, str]) -> int | None:
    """Return the lag as KEDA computes it; None where it would find no such stream."""
    answer = httpx.get(
        f"http://{endpoint}/jsz?acc={trigger['account']}&consumers=true&config=true",
        trust_env=False,
        timeout=10,
    )
    for account in answer.json().get("account_details") or ():
        if account["name"] != trigger["account"]:
            continue
        for stream in account.get("stream_detail") or ():
            if stream["name"] != trigger["stream"]:
                continue
            for consumer in stream.get("consumer_detail") or ():
                if consumer["name"] == trigger["consumer"]:
                    return int(consumer["num_pending"] + consumer["num_ack_pending"])
            return int(stream["state"]["last_seq"])
    return None


def active(lag: int | None, trigger: Mapping[str, str]) -> bool:
    """Tell whether KEDA would run at least one worker."""
    return (lag or 0) > int(trigger["activationLagThreshold"])


def endpoint(services: LocalServices) -> str:
    return services.monitoring_url.removeprefix("http://")


async def send(queue: Queue, number: int) -> None:
    for document in range(number):
        await queue.submit(Job(f"scaling-{document}"))


@needs_servers
async def test_keda_reads_the_queue_as_the_services_do(
    services: LocalServices, trigger: dict[str, str]
) -> None:
    where = endpoint(services)

    async def until_lag(number: int) -> None:
        """The consumer notices a new job a moment after the stream has it."""
        limit = time.monotonic() + PATIENCE
        while keda_lag(where, trigger) != number:
            assert time.monotonic() < limit
            await asyncio.sleep(0.05)

    # Before the first connection KEDA has an error; the worker of its fallback makes the stream.
    assert keda_lag(where, trigger) is None
    async with connect(services.nats_url, name=INDEX) as queue:
        assert keda_lag(where, trigger) == 0
        assert not active(0, trigger)

        await send(queue, 7)
        await until_lag(7)
        assert (await queue.depth()).pending == 7
        await send(queue, 7)  # the same documents again: each waits once
        await until_lag(7)

        # Jobs in hand count, so that their worker is not the next to go.
        taken = [await queue.take(timeout=60) for _ in range(7)]
        depth = await queue.depth()
        assert (depth.pending, depth.open) == (0, 7)
        assert keda_lag(where, trigger) == 7
        assert active(7, trigger)

        # One waits for its next try: somebody has to be there for it.
        for message in taken[1:]:
            assert message is not None
            await message.ack_sync()
        assert taken[0] is not None
        await taken[0].nak(delay=1)
        assert keda_lag(where, trigger) == 1
        assert active(1, trigger)

        again = await queue.take(timeout=60)
        assert again is not None
        await again.ack_sync()
        assert keda_lag(where, trigger) == (await queue.depth()).open == 0
        assert not active(keda_lag(where, trigger), trigger)


@dataclass(frozen=True, slots=True)
class Scrape:
    """How Prometheus reads the autoscaler's metric, followed through the rendered objects.

    Attributes:
        arguments: Of the service, as its container has them.
        container_port: Where the chart sends Prometheus.
        path: Of the metrics.
        token: That Prometheus shows.
        service_token: That the service wants.
        metric: Whose number the autoscaler reads.
        target: That number for each pod.
    """

    arguments: tuple[str, ...]
    container_port: int
    path: str
    token: str
    service_token: str
    metric: str
    target: float


def scrape(workers: int | None = None) -> Scrape:
    """Follow ServiceMonitor, Service, container port and Secret; None for the chart's workers."""
    # One rendering: the token is another in each.
    made = everything(
        metrics={"serviceMonitor": {"enabled": True}},
        query={"autoscaling": {"requestsInFlight": {"enabled": True, "target": TARGET}}}
        | ({"workers": workers} if workers else {}),
    )
    (endpoint,) = made.one("ServiceMonitor", "query").data["spec"]["endpoints"]
    (port,) = [
        entry
        for entry in made.one("Service", "query").data["spec"]["ports"]
        if entry["name"] == endpoint["port"]
    ]
    (container,) = made.one("Deployment", "query").data["spec"]["template"]["spec"]["containers"]
    (target,) = [
        entry["containerPort"]
        for entry in container["ports"]
        if port["targetPort"] in (entry["name"], entry["containerPort"])
    ]
    (wanted,) = [
        entry["valueFrom"]["secretKeyRef"]
        for entry in container["env"]
        if entry["name"] == TOKEN_VARIABLE
    ]
    (pods,) = [
        entry["pods"]
        for entry in made.one("HorizontalPodAutoscaler", "query").data["spec"]["metrics"]
        if entry["type"] == "Pods"
    ]
    assert container["args"][:5] == [
        *("python", "-m", "rag_service.app"),
        *("--host", "0.0.0.0"),  # here it is loopback
    ]
    assert endpoint["authorization"]["type"] == "Bearer"
    return Scrape(
        arguments=tuple(container["args"][5:]),
        container_port=target,
        path=endpoint["path"],
        token=secret(made, endpoint["authorization"]["credentials"]),
        service_token=secret(made, wanted),
        metric=pods["metric"]["name"],
        target=float(pods["target"]["averageValue"]),
    )


def secret(made: chart.Manifests, place: Mapping[str, str]) -> str:
    """Return a key of a Secret."""
    held = made.one("Secret", place["name"]).data["data"][place["key"]]
    return base64.b64decode(held).decode()


@pytest.fixture(scope="module")
def indexed(services: LocalServices, servers: Servers) -> LocalServices:
    """The servers, with something to ask about."""
    index_documents(services)
    return services


@contextlib.contextmanager
def query_service(
    indexed: LocalServices, servers: Servers, tap: Tap, scraped: Scrape
) -> Iterator[TestedService]:
    """Run the query service with the arguments and the token that the chart gives it."""
    # Nothing says another port, so in the cluster it is the default.
    assert "--port" not in scraped.arguments
    assert scraped.container_port == app.PORT
    settings = environment(
        indexed,
        servers,
        NIM_CHAT_URL=f"http://127.0.0.1:{tap.port}/v1",
        **{TOKEN_VARIABLE: scraped.service_token},
    )
    with running(indexed, settings, *scraped.arguments) as service:
        yield service


class Reader:
    """Prometheus, as far as it matters here: each reading is a connection of its own."""

    def __init__(self, service: TestedService, scraped: Scrape) -> None:
        self._url = f"{service.url}{scraped.path}"
        self._header = {"Authorization": f"Bearer {scraped.token}"}
        self._metric = scraped.metric

    async def read(self) -> float:
        """Return the gauge."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            answer = await client.get(self._url, headers=self._header)
        assert answer.status_code == 200, answer.text
        for family in text_string_to_metric_families(answer.text):
            if family.name == self._metric:
                (sample,) = family.samples
                return float(sample.value)
        raise AssertionError(f"{self._url} has no {self._metric}")

    async def wait(self, enough: Callable[[float], bool]) -> float:
        """Read until the gauge is as it should be, or fail with the last reading."""
        limit = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(httpx.TransportError):  # of a worker that was just killed
                read = await self.read()
                if enough(read):
                    return read
                assert time.monotonic() < limit, read
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def questions(
    service: TestedService, token: str, number: int
) -> AsyncIterator[list[asyncio.Task[httpx.Response]]]:
    """Ask so many questions at the same time, each on a connection of its own."""

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, timeout=120) as client:
            return await client.post(
                f"{service.url}/ask/run",
                headers={"Authorization": f"Bearer {token}"},
                json={"question": "Under which number are hand warmers ordered?"},
            )

    asked = [asyncio.create_task(ask()) for _ in range(number)]
    try:
        yield asked
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


@pytest.fixture(scope="module")
def scraped() -> Scrape:
    return scrape(workers=2)


@pytest.fixture(scope="module")
def service(
    indexed: LocalServices, servers: Servers, chat_tap: Tap, scraped: Scrape
) -> Iterator[TestedService]:
    """The query service with two processes: each has to know of the other's requests."""
    assert scraped.arguments == ("--workers", "2")
    with query_service(indexed, servers, chat_tap, scraped) as started:
        yield started


@contextlib.asynccontextmanager
async def open_questions(
    service: TestedService, scraped: Scrape, tap: Tap
) -> AsyncIterator[tuple[Reader, list[asyncio.Task[httpx.Response]]]]:
    """Keep one question more than the target open, until the tap is released; seen in the gauge."""
    reader = Reader(service, scraped)
    number = int(scraped.target) + 1
    tap.hold()
    try:
        async with questions(service, scraped.service_token, number) as asked:
            await reader.wait(lambda read: read >= number + 1)
            yield reader, asked
    finally:
        tap.release()


async def rises_and_falls(service: TestedService, scraped: Scrape, tap: Tap) -> None:
    """Keep questions open, see them in the gauge, let them be answered, see them gone."""
    # The request that reads is one: no target may be as low as that.
    assert await Reader(service, scraped).wait(lambda read: read <= 1) == 1 < scraped.target
    async with open_questions(service, scraped, tap) as (reader, asked):
        # Whichever process answers knows of the others' requests.
        for _ in range(10):
            assert await reader.read() >= len(asked) + 1
        tap.release()
        for answer in await asyncio.gather(*asked):
            assert "WX-77" in answer.json()["result"]["sources"][0]["text"]
        assert await reader.wait(lambda read: read <= 1) == 1


@needs_servers
async def test_the_autoscaler_reads_how_many_requests_are_open(
    service: TestedService, scraped: Scrape, chat_tap: Tap
) -> None:
    await rises_and_falls(service, scraped, chat_tap)


@needs_servers
async def test_the_requests_of_a_killed_process_do_not_count_for_ever(
    service: TestedService, scraped: Scrape, chat_tap: Tap
) -> None:
    """Else one kill for want of memory would keep an idle pod busy in the autoscaler's eyes."""
    async with open_questions(service, scraped, chat_tap) as (reader, asked):
        busiest(service).kill()
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
        assert [task for task in asked if task.done()]  # with an error: it had some
        chat_tap.release()
        await asyncio.gather(*asked, return_exceptions=True)
        assert await reader.wait(lambda read: read <= 1) == 1


@pytest.mark.long
@needs_servers
async def test_one_process_counts_alike(
    indexed: LocalServices, servers: Servers, chat_tap: Tap
) -> None:
    """As in the chart, unless other values are given."""
    alone = scrape()
    assert alone.arguments == ("--workers", "1")
    with query_service(indexed, servers, chat_tap, alone) as service:
        await rises_and_falls(service, alone, chat_tap)


def busiest(service: TestedService) -> psutil.Process:
    """Return the worker with the most connections of clients."""
    port = httpx.URL(service.url).port

    def connections(worker: psutil.Process) -> int:
        return sum(
            one.laddr.port == port
            for one in worker.net_connections("tcp")
            if one.status == psutil.CONN_ESTABLISHED
        )

    return max(psutil.Process(service.process.pid).children(), key=connections)
