"""The plan and the chart agree: recipe 14 deploys what recipe 13 plans."""

from __future__ import annotations

import pytest

from capacity.plan import Prices, Rates, Workload, chart_values, plan, published_throughput
from nim_cookbook.errors import DataError
from rag_service import chart

pytest.importorskip("helm_python", reason="no Helm: install helm-python-sdk")

WORKLOAD = Workload(
    documents=1_000_000, tokens_per_document=393, dimensions=2048, copies=2, spares=1,
    queries_per_second=20,
)  # fmt: skip


def test_the_chart_deploys_the_plan() -> None:
    published = published_throughput()[-1]
    rates = Rates(
        service=3,
        embedding=100,
        reranking=50,
        chat=published.points[-1].tokens_per_second,
        chat_gpus=published.gpus,
    )
    planned = plan(WORKLOAD, rates, Prices.load())
    release = chart.render("gpu", overrides=chart_values(planned, published, in_flight=7))

    chat = release.one("NIMService", "nim-chat").data["spec"]
    assert chat["image"]["repository"].endswith(f"/{published.model.lower()}")
    assert chat["image"]["tag"] == published.version
    assert chat["resources"]["limits"]["nvidia.com/gpu"] == published.gpus
    assert chat["replicas"] * published.gpus == planned.gpus["chat"]

    for role in ("embedding", "reranking"):
        nim = release.one("NIMService", f"nim-{role}").data["spec"]
        assert nim["replicas"] == planned.gpus[role]

    scaler = release.one("HorizontalPodAutoscaler", "query").data["spec"]
    assert scaler["minReplicas"] == planned.replicas
    (pods,) = [one["pods"] for one in scaler["metrics"] if one["type"] == "Pods"]
    assert pods["target"]["averageValue"] == "7"

    qdrant = release.one("StatefulSet", "qdrant").data["spec"]
    assert qdrant["replicas"] == planned.store_nodes


def test_without_a_chat_model_there_is_nothing_to_deploy() -> None:
    planned = plan(WORKLOAD, Rates(service=3), Prices.load())
    with pytest.raises(DataError, match="no chat model"):
        chart_values(planned, published_throughput()[-1], in_flight=2)
