"""The numbers that drive scaling, read from real servers by the paths that the chart configures.

KEDA's scaler `nats-jetstream` gets
`http://<natsServerMonitoringEndpoint>/jsz?acc=<account>&consumers=true&config=true`, looks for the
account's stream and the stream's consumer, and adds up the consumer's `num_pending` and
`num_ack_pending`; the scaler is active when that is more than `activationLagThreshold`. Without the
consumer it takes the stream's `state.last_seq`, that is all messages there ever were.

Source: KEDA's `pkg/scalers/nats_jetstream_scaler.go` (`getNATSJetStreamMonitoringURL`,
`getMaxMsgLag`, `GetMetricsAndActivity`) and https://keda.sh/docs/latest/scalers/nats-jetstream/.

No model is needed: jobs are sent and taken as a worker would, and not worked on.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cookbook_services.local import LocalServices
from cookbook_services.metrics import Measure, show
from cookbook_services.queue import Job, Queue, connect

helm = pytest.importorskip("helm_python", reason="no Helm: install helm-python-sdk")

needs_servers = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX signals and sockets")

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "nim-rag-cookbook"
INDEX = "scaling"


def rendered(kind: str, name: str, **values: Any) -> dict[str, Any]:
    """Return one object of the chart."""
    made: Mapping[str, str] = helm.Chart.load(CHART).render(values, name="rag", namespace="demo")
    found: list[dict[str, Any]] = [
        one
        for file, text in made.items()
        if file.endswith(".yaml")
        for one in yaml.safe_load_all(text)
        if one and one["kind"] == kind and one["metadata"]["name"].endswith(name)
    ]
    (one,) = found
    return one


@pytest.fixture(scope="module")
def trigger() -> dict[str, str]:
    """What the chart tells KEDA."""
    scaled = rendered("ScaledObject", "-indexer", index=INDEX)
    (one,) = scaled["spec"]["triggers"]
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
    assert keda_lag(where, trigger) is None  # before the first connection: asleep
    async with connect(services.nats_url, name=INDEX) as queue:
        assert keda_lag(where, trigger) == 0
        assert not active(0, trigger)

        await send(queue, 7)
        assert keda_lag(where, trigger) == (await queue.depth()).pending == 7
        await send(queue, 7)  # the same documents again: each waits once
        assert keda_lag(where, trigger) == 7

        # Jobs in hand count, so that their worker is not the next to go.
        taken = [await queue.take() for _ in range(7)]
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

        again = await queue.take(timeout=10)
        assert again is not None
        await again.ack_sync()
        assert keda_lag(where, trigger) == (await queue.depth()).open == 0
        assert not active(keda_lag(where, trigger), trigger)


@needs_servers
@pytest.mark.parametrize("key", ["account", "stream", "consumer"])
async def test_a_misspelt_name_is_noticed(
    services: LocalServices, trigger: dict[str, str], key: str
) -> None:
    async with connect(services.nats_url, name=INDEX) as queue:
        await send(queue, 3)
        where = endpoint(services)
        assert keda_lag(where, trigger) == (await queue.depth()).open == 3
        bad = {**trigger, key: f"{trigger[key]}X"}
        # Of a consumer that is not there KEDA makes a number that never falls.
        assert keda_lag(where, bad) not in (3, 0)
        for _ in range(3):
            message = await queue.take()
            assert message is not None
            await message.ack_sync()
        assert keda_lag(where, trigger) == 0
        assert keda_lag(where, bad) != 0


async def test_the_autoscalers_metric_is_read_where_the_chart_says() -> None:
    """Reads the gauge through the middleware and route of the service, with requests open."""
    monitor = rendered("ServiceMonitor", "-query", metrics={"serviceMonitor": {"enabled": True}})
    (scrape,) = monitor["spec"]["endpoints"]
    autoscaler = rendered(
        "HorizontalPodAutoscaler",
        "-query",
        query={"autoscaling": {"requestsInFlight": {"enabled": True}}},
    )
    (metric,) = [one["pods"] for one in autoscaler["spec"]["metrics"] if one["type"] == "Pods"]

    release = asyncio.Event()

    async def ask(request: Request) -> Response:
        await release.wait()
        return PlainTextResponse("")

    app = Starlette(routes=[Route("/ask/run", ask), Route("/metrics", show)])
    app.add_middleware(Measure)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:

        async def gauge() -> float:
            text = (await client.get(scrape["path"])).text
            for family in text_string_to_metric_families(text):
                if family.name == metric["metric"]["name"]:
                    return float(family.samples[0].value)
            raise AssertionError(f"{scrape['path']} has no {metric['metric']['name']}")

        # The request that reads is one: no target may be as low as that.
        assert await gauge() == 1
        assert float(metric["target"]["averageValue"]) > 1
        asked = [asyncio.create_task(client.get("/ask/run")) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert await gauge() == 6
        release.set()
        await asyncio.gather(*asked)
        assert await gauge() == 1
