"""The chart's objects as recipe 14 shows them."""

from __future__ import annotations

import pytest
import yaml

from nim_cookbook.errors import ConfigurationError, DataError
from rag_service import chart

pytest.importorskip("helm_python", reason="no Helm: install helm-python-sdk")


def test_it_is_what_helm_renders() -> None:
    objects = chart.render("gpu", release="mine", namespace="there")
    for one in objects:
        assert yaml.safe_load(one.text) == one.data
        assert one.name.startswith("mine-nim-rag-cookbook")
    assert (
        objects.one("ScaledObject")
        .data["spec"]["triggers"][0]["metadata"]["natsServerMonitoringEndpoint"]
        .endswith("-nats.there.svc:8222")
    )
    assert len(objects.kinds()["NIMService"]) == 3


def test_overrides_win_and_leave_the_rest() -> None:
    given = {"query": {"autoscaling": {"requestsInFlight": {"target": "5"}}}}
    scaler = chart.render("gpu", overrides=given).one("HorizontalPodAutoscaler", "query")
    assert 'averageValue: "5"' in scaler.part("spec", "metrics")
    assert scaler.data["spec"]["maxReplicas"] == 16  # of values-gpu.yaml


def test_a_part_is_the_text_with_its_comments() -> None:
    query = chart.render().one("Deployment", "query")
    container = ("spec", "template", "spec", "containers", 0)
    assert query.part(*container, "lifecycle") == "lifecycle:\n  preStop: {sleep: {seconds: 5}}"
    assert query.part(*container, "livenessProbe", "timeoutSeconds") == "timeoutSeconds: 5"
    assert query.part(*container, "ports") == "ports:\n  - {name: http, containerPort: 1416}"
    assert query.part() == query.text
    triggers = chart.render().one("ScaledObject").part("spec", "triggers", 0)
    assert triggers.startswith("- type: nats-jetstream\n  metadata:\n")
    assert "# More than this many open jobs" in triggers


def test_every_part_of_every_kind_can_be_shown() -> None:
    for one in {one.kind: one for one in chart.render("gpu")}.values():
        for key, value in one.data.items():
            assert yaml.safe_load(one.part(key) + "\n") == {key: value}
            for inner, below in value.items() if isinstance(value, dict) else ():
                assert yaml.safe_load(one.part(key, inner) + "\n") == {inner: below}


def test_what_is_not_there_is_said() -> None:
    objects = chart.render("local")
    with pytest.raises(DataError, match="names 0 objects; there are: none"):
        objects.one("Ingress")
    with pytest.raises(DataError, match=r"names 3 objects; there are: .*-chat, .*-local-nims, "):
        chart.Manifests(one for one in objects if "indexer" not in one.name).one("Deployment")
    with pytest.raises(DataError, match=r"has no spec\.replica\."):
        objects.one("StatefulSet", "nats").part("spec", "replica")
    with pytest.raises(DataError, match=r"has no spec\.template\.spec\.containers\.7"):
        objects.one("StatefulSet", "nats").part("spec", "template", "spec", "containers", 7)
    with pytest.raises(ConfigurationError, match=r"the chart has gpu, hosted, local\."):
        chart.render("gpus")


def test_values_that_cannot_work_are_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match="additional properties 'qury' not allowed"):
        chart.render(overrides={"qury": {}})
    with pytest.raises(ConfigurationError) as caught:
        chart.render(overrides={"store": {"kind": "external"}})
    assert str(caught.value) == (
        "The chart refuses these values: there is no store: store.kind external needs "
        "store.url or store.existingSecret"
    )
