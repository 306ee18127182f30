"""What holds for every rendering of the Helm chart; each `check_...` asserts one subject.

What only a cluster can tell (scheduling, volumes, KEDA and the autoscaler really scaling) is not
tested here.
"""

from __future__ import annotations

import base64
import copy
import functools
import importlib
import importlib.util
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from rag_service import app, guard, indexer, queue, settings
from rag_service.chart import manifests, values_file

helm = pytest.importorskip("helm_python", reason="no Helm: install helm-python-sdk")
kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="no Kubernetes schemas: install kubernetes-validate"
)
# It reads a file of megabytes again for each object.
kubernetes_validate.utils.schema_contents = functools.cache(
    kubernetes_validate.utils.schema_contents
)

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "nim-rag-cookbook"
RELEASE, NAMESPACE = "rag", "demo"
NAME = "rag-nim-rag-cookbook"
#: Definitions of KEDA's and the NIM Operator's objects; `make crds` fetches them.
CRDS = Path(os.environ.get("CRD_DIR") or ROOT / "build" / "crds")
CRD_FILES = (
    "keda.sh_scaledobjects.yaml",
    "apps.nvidia.com_nimcaches.yaml",
    "apps.nvidia.com_nimservices.yaml",
)
#: Modules with models of custom resources, by group.
MODELS = {
    "keda.sh": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com": "cloudcoil.models.prometheus_operator.v1",
}
#: The oldest Kubernetes that the chart admits, and the newest known.
KUBERNETES = ("1.30", "1.37")
#: Secrets and volumes that the reader of a values file creates.
OTHERS = {
    "nvidia-api-key", "nim-key", "our-token", "qdrant-key", "nats-url", "s3-keys", "our-documents",
    "registry", "rag-tls", "ngc-api-secret", "ngc-secret",
}  # fmt: skip

Object = dict[str, Any]
Objects = list[Object]

ROLES = ("chat", "embedding", "reranking")
#: Values beyond those of the files, so that every branch of the templates is rendered.
FURTHER: dict[str, Object] = {
    "managed": {
        "endpoints": {
            "mode": "self-hosted",
            "existingSecret": "nim-key",
            "urls": {role: f"https://{role}.example.com/v1" for role in ROLES},
        },
        "auth": {"existingSecret": "our-token", "tokenKey": "token"},
        "qdrant": {"existingSecret": "qdrant-key"},
        "store": {"kind": "external", "url": "https://qdrant.example.com:6333"},
        "nats": {"enabled": False},
        "queue": {"existingSecret": "nats-url", "monitoring": "nats.example.com:8222"},
        "files": {"url": "s3://bucket/files", "existingSecret": "s3-keys"},
        "setup": {"existingClaim": "our-documents"},
        "otlpEndpoint": "http://collector:4318",
        "networkPolicy": {
            "extraEgress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": 443}]}]
        },
        "chat": {"enabled": False},
        "imagePullSecrets": [{"name": "registry"}],
    },
    "still": {
        "query": {"autoscaling": {"enabled": False}, "disruptionBudget": False},
        "indexer": {"autoscaling": {"enabled": False}},
        "setup": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "qdrant": {
            "existingSecret": "qdrant-key",
            "nodeSelector": {"disk": "fast"},
            "extraEnv": [{"name": "QDRANT__LOG_LEVEL", "value": "WARN"}],
        },
        "fullnameOverride": NAME,
        "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    },
    "postgres": {
        "store": {"kind": "postgres"},
        "postgres": {"disruptionBudget": True, "nodeSelector": {"disk": "fast"}},
        "metrics": {"serviceMonitor": {"enabled": True}, "rules": {"enabled": True}},
    },
}
FILES_OF_VALUES = ("local", "hosted", "gpu")
SETS = ("default", *FILES_OF_VALUES, *FURTHER)


def values_of(name: str) -> Object:
    if name == "default":
        return {}
    return copy.deepcopy(FURTHER[name]) if name in FURTHER else values_file(name)


@functools.cache
def chart() -> Any:
    return helm.Chart.load(CHART)


def templated(values: Object) -> dict[str, str]:
    made: dict[str, str] = chart().render(values, name=RELEASE, namespace=NAMESPACE)
    return made


def objects_in(made: dict[str, str]) -> Objects:
    return [one.data for one in manifests(made)]


@functools.cache
def rendered(name: str) -> Objects:
    """Return the objects of a set of values; shared, not to be changed."""
    return objects_in(templated(values_of(name)))


# ---------------------------------------------------------------------------------------- look-ups


def title(one: Object) -> str:
    return f"{one['kind']} {one['metadata']['name'].removeprefix(f'{NAME}-')}"


def of_kind(objects: Objects, *kinds: str) -> Objects:
    return [one for one in objects if one["kind"] in kinds]


def find(objects: Objects, kind: str, suffix: str = "") -> Object:
    names = {f"{NAME}-{suffix}", suffix} if suffix else {NAME}
    (found,) = [one for one in of_kind(objects, kind) if one["metadata"]["name"] in names]
    return found


def pods(objects: Objects) -> Iterator[tuple[Object, Object, Object]]:
    """Yield each object that makes pods, with the pods' labels and specification."""
    for one in of_kind(objects, "Deployment", "StatefulSet", "Job", "CronJob", "Pod"):
        template = one
        if one["kind"] == "CronJob":
            template = one["spec"]["jobTemplate"]["spec"]["template"]
        elif one["kind"] != "Pod":
            template = one["spec"]["template"]
        yield one, template["metadata"].get("labels", {}), template["spec"]


def containers(spec: Object) -> Objects:
    return [*spec.get("initContainers", ()), *spec["containers"]]


def components(objects: Objects) -> dict[str, Object]:
    """Return the specification of each component's pods."""
    return {labels.get("app.kubernetes.io/component"): spec for _, labels, spec in pods(objects)}


def component(objects: Objects, name: str) -> Object:
    """Return the only container of a component."""
    (container,) = components(objects)[name]["containers"]
    return dict(container)


def contains(labels: Object, selector: Object) -> bool:
    return all(
        labels.get(name) == value for name, value in selector.get("matchLabels", {}).items()
    ) and not any(
        rule["operator"] == "DoesNotExist" and rule["key"] in labels
        for rule in selector.get("matchExpressions", ())
    )


def environment(objects: Objects, container: Object) -> dict[str, str | None]:
    """Return a container's variables; those from Secrets have no value here."""
    found: dict[str, str | None] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            found |= find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {entry["name"]: entry.get("value") for entry in container.get("env", ())}


def mounted_files(objects: Objects, spec: Object) -> dict[str, str]:
    """Return the files that a pod's first container has from ConfigMaps, by path."""
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    found = {}
    for mount in spec["containers"][0].get("volumeMounts", ()):
        source = volumes.get(mount["name"], {}).get("configMap")
        if source and mount.get("readOnly"):
            held = find(objects, "ConfigMap", source["name"])["data"]
            found |= {f"{mount['mountPath']}/{name}": text for name, text in held.items()}
    return found


# ------------------------------------------------------------------------------------------ schemas


def check_schemas(objects: Objects, version: str = KUBERNETES[-1]) -> None:
    """Validate against Kubernetes' schemas and the operators' models; no field is unknown."""
    for one in objects:
        group = one["apiVersion"].rpartition("/")[0]
        if group in MODELS:
            if _installed(MODELS[group]):
                kept = getattr(importlib.import_module(MODELS[group]), one["kind"])(**one)
                dumped = kept.model_dump(mode="json", by_alias=True, exclude_unset=True)
                assert [*_lost(one, dumped)] == [], title(one)
        elif "." not in group or group.endswith(".k8s.io"):
            kubernetes_validate.validate(one, version, strict=True)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _lost(given: Any, kept: Any, where: str = "") -> Iterator[str]:
    """Yield fields that a model ignored because it does not know them."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            if name in kept:
                yield from _lost(value, kept[name], f"{where}.{name}")
            else:
                yield f"{where}.{name}"
    elif isinstance(given, list):
        for one, other in zip(given, kept, strict=True):
            yield from _lost(one, other, where)


@functools.cache
def _crds() -> dict[tuple[str, str], Object]:
    """Return the CRDs' schemas by kind and API version, closed to unknown fields."""

    def closed(schema: Any) -> Any:
        if isinstance(schema, list):
            return [closed(one) for one in schema]
        if not isinstance(schema, dict):
            return schema
        made = {name: closed(value) for name, value in schema.items()}
        if schema.get("x-kubernetes-int-or-string"):
            made.pop("anyOf", None)
            made["type"] = ["integer", "string"]
        opened = {"x-kubernetes-preserve-unknown-fields", "additionalProperties"} & set(schema)
        if isinstance(schema.get("properties"), dict) and "type" in schema and not opened:
            made["additionalProperties"] = False
        return made

    found = {}
    for name in CRD_FILES:
        for crd in yaml.safe_load_all((CRDS / name).read_text("utf-8")):
            for version in crd["spec"]["versions"]:
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                api = f"{crd['spec']['group']}/{version['name']}"
                found[crd["spec"]["names"]["kind"], api] = schema
    return found


def check_crds(objects: Objects) -> None:
    """Validate KEDA's and the NIM Operator's objects against their definitions."""
    for one in objects:
        if one["apiVersion"].startswith(("keda.sh/", "apps.nvidia.com/")):
            jsonschema.validate(one, _crds()[one["kind"], one["apiVersion"]])


# ------------------------------------------------------------------------------------------- wiring


def check_wiring(objects: Objects) -> None:
    """Follow selectors, ports and names to their targets."""
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names)
    assert max(len(name) for _, name in names) <= 63
    made = list(pods(objects))
    running = [one for one in made if one[0]["kind"] in ("Deployment", "StatefulSet")]
    services = {one["metadata"]["name"]: one for one in of_kind(objects, "Service")}
    for one, _, _ in running:
        selector = one["spec"]["selector"]
        assert [title(o) for o, labels, _ in made if contains(labels, selector)] == [title(one)]
        assert one["kind"] != "StatefulSet" or one["spec"]["serviceName"] in services
    for one in services.values():
        selector = {"matchLabels": one["spec"]["selector"]}
        (spec,) = [spec for _, labels, spec in running if contains(labels, selector)]
        named = [port for c in spec["containers"] for port in c.get("ports", ())]
        there = {key for port in named for key in (port["name"], port["containerPort"])}
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= there, title(one)
    for one in objects:
        spec, who = one.get("spec", {}), title(one)
        if one["kind"] == "PodDisruptionBudget":
            assert any(contains(labels, spec["selector"]) for _, labels, _ in running), who
        elif one["kind"] == "NetworkPolicy":
            assert any(contains(labels, spec["podSelector"]) for _, labels, _ in made), who
        elif one["kind"] == "PodMonitor":
            (inside,) = [s for _, labels, s in running if contains(labels, spec["selector"])]
            ports = {port["name"] for c in inside["containers"] for port in c["ports"]}
            assert {end["port"] for end in spec["podMetricsEndpoints"]} <= ports, who
        elif one["kind"] == "ServiceMonitor":
            chosen = [
                s for s in services.values() if contains(s["metadata"]["labels"], spec["selector"])
            ]
            assert len(chosen) == 1, who
            ports = {port["name"] for port in chosen[0]["spec"]["ports"]}
            assert {end["port"] for end in spec["endpoints"]} <= ports, who
        elif one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = spec["scaleTargetRef"]["name"]
            assert ("Deployment", target) in names, who
            # An upgrade would set the number back.
            assert "replicas" not in find(objects, "Deployment", target)["spec"], who
        elif one["kind"] == "Ingress":
            for rule in spec["rules"]:
                assert rule["host"] in [host for tls in spec["tls"] for host in tls["hosts"]]
                (path,) = rule["http"]["paths"]
                to = path["backend"]["service"]
                # Only the services that check a token are open to the world.
                assert to["name"] in (f"{NAME}-query", f"{NAME}-chat"), who
                ports = {port["name"] for port in services[to["name"]]["spec"]["ports"]}
                assert to["port"]["name"] in ports, who
        elif one["kind"] == "NIMService":
            assert ("NIMCache", spec["storage"]["nimCache"]["name"]) in names, who
            assert int(spec["resources"]["limits"]["nvidia.com/gpu"]) > 0, who


def check_references(objects: Objects) -> None:
    """Everything that a pod names exists, and every volume is mounted."""
    made = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    for one, _, spec in pods(objects):
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        claims = [c["metadata"]["name"] for c in one["spec"].get("volumeClaimTemplates", ())]
        wanted = [("ServiceAccount", spec["serviceAccountName"], "")]
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                wanted.append(("PersistentVolumeClaim", claim, ""))
            if "configMap" in volume:
                wanted.append(("ConfigMap", volume["configMap"]["name"], ""))
        mounted = set()
        for container in containers(spec):
            mounted |= {mount["name"] for mount in container.get("volumeMounts", ())}
            for source in container.get("envFrom", ()):
                for kind in ("configMap", "secret"):
                    if ref := source.get(f"{kind}Ref"):
                        wanted.append((kind[0].upper() + kind[1:], ref["name"], ""))
            names = [entry["name"] for entry in container.get("env", ())]
            assert len(set(names)) == len(names), title(one)
            for entry in container.get("env", ()):
                if ref := entry.get("valueFrom", {}).get("secretKeyRef"):
                    wanted.append(("Secret", ref["name"], ref["key"]))
        assert mounted == {*volumes, *claims}, title(one)
        for kind, name, key in wanted:
            if name not in OTHERS:
                assert (kind, name) in made, title(one)
                assert not key or key in made[kind, name]["data"], title(one)


UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def amount(text: Any) -> float:
    """Return a quantity as a number."""
    number, unit = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def check_security(objects: Objects) -> None:
    """Pods may do as little as they need; requests and limits bound them; images are pinned."""
    for one, _, spec in pods(objects):
        around = spec["securityContext"]
        assert around["runAsNonRoot"] and around["runAsUser"] == 10001, title(one)
        assert around["seccompProfile"] == {"type": "RuntimeDefault"}, title(one)
        assert spec["automountServiceAccountToken"] is False, title(one)
        assert spec["enableServiceLinks"] is False, title(one)
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), title(one)
        for volume in spec.get("volumes", ()):
            assert "hostPath" not in volume, title(one)
            assert volume["name"] != "tmp" or "sizeLimit" in volume["emptyDir"], title(one)
        for container in containers(spec):
            where = f"{title(one)}/{container['name']}"
            assert container["securityContext"] == {
                "runAsNonRoot": True,
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, where
            assert re.search(r":[^:/]*\d[^:/]*$", container["image"]), where
            held = container["resources"]
            for name in ("cpu", "memory"):
                assert amount(held["requests"][name]) <= amount(held["limits"][name]), where
        if one["kind"] in ("Deployment", "StatefulSet"):
            probes = {"startupProbe", "readinessProbe", "livenessProbe"}
            assert all(probes <= set(container) for container in spec["containers"]), title(one)


SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
# The name of PostgreSQL's user is no secret.
SECRET_VALUE = re.compile(r"nvapi-|://(?!cookbook@)[^/\s]*@|-----BEGIN|[A-Za-z0-9+/]{60,}")


def check_secrets(objects: Objects) -> None:
    """Keys, tokens and passwords are in Secrets only."""
    secrets = [
        base64.b64decode(value).decode()
        for one in of_kind(objects, "Secret")
        for value in one.get("data", {}).values()
    ]
    for one in objects:
        if one["kind"] != "Secret":
            assert not any(value in json.dumps(one) for value in secrets), title(one)
        plain = one["data"] if one["kind"] == "ConfigMap" else {}
        for name, value in plain.items():
            assert not SECRET_NAME.search(name), title(one)
            assert "\n" in value or not SECRET_VALUE.search(value), (title(one), name)
    for one, labels, spec in pods(objects):
        if labels["app.kubernetes.io/component"] in ("query", "chat"):
            (env,) = [container["env"] for container in spec["containers"]]
            (token,) = [entry for entry in env if entry["name"] == settings.TOKEN]
            assert "secretKeyRef" in token["valueFrom"], title(one)
        for container in containers(spec):
            for entry in container.get("env", ()):
                if entry.get("value"):
                    assert not SECRET_NAME.search(entry["name"]), title(one)
                    assert not SECRET_VALUE.search(entry["value"]), title(one)


def check_times(objects: Objects) -> None:
    """Probes and grace periods leave the services the time that they take."""
    for one, labels, spec in pods(objects):
        if one["kind"] not in ("Deployment", "StatefulSet"):
            continue
        (container,) = spec["containers"]
        start = container["startupProbe"]
        patience = start["failureThreshold"] * start["periodSeconds"]
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        needed = sleep.get("seconds", 0)
        name = labels["app.kubernetes.io/component"]
        if name == "query":
            assert needed  # requests still arrive after SIGTERM
            needed += app.GRACE
            assert patience > int(environment(objects, container)[settings.START_WAIT] or 0)
            ready, live = (
                container[f"{kind}nessProbe"]["httpGet"]["path"] for kind in ("readi", "live")
            )
            assert (ready, live) == ("/health/ready", "/health/live")
            assert {ready, live} <= guard.OPEN
        if name == "indexer":
            options = indexer.parser().parse_args([str(word) for word in container["args"][3:]])
            needed = options.grace + indexer._LAST_CALL
            assert patience > 3 * options.wait
            assert options.metrics_port in [port["containerPort"] for port in container["ports"]]
            assert options.metrics_host == "0.0.0.0"
        assert spec.get("terminationGracePeriodSeconds", 30) > needed, title(one)


def check_scaling(objects: Objects) -> None:
    """KEDA reads the stream and the consumer that the services make, at an address that answers."""
    index = find(objects, "ConfigMap", "settings")["data"][settings.INDEX]
    for one in of_kind(objects, "ScaledObject"):
        assert one["spec"]["fallback"]["replicas"]
        (trigger,) = one["spec"]["triggers"]
        held = trigger["metadata"]
        assert all(isinstance(value, str) for value in held.values())
        assert set(held) <= {
            *("account", "stream", "consumer", "natsServerMonitoringEndpoint", "useHttps"),
            *("lagThreshold", "activationLagThreshold"),
        }
        assert held["account"] == "$G"
        assert held["stream"] == f"{index.upper()}_JOBS"
        assert held["consumer"] == queue.CONSUMER
        host, _, port = held["natsServerMonitoringEndpoint"].rpartition(":")
        name, _, rest = host.partition(".")
        if rest != "example.com":
            assert rest == f"{NAMESPACE}.svc"
            ports = [entry["port"] for entry in find(objects, "Service", name)["spec"]["ports"]]
            assert int(port) in ports
    for one in of_kind(objects, "ServiceMonitor", "PodMonitor"):
        for end in one["spec"].get("endpoints", one["spec"].get("podMetricsEndpoints")):
            assert end["path"] == "/metrics"
            assert "authorization" in end or not one["metadata"]["name"].endswith("-query")


# ------------------------------------------------------------------------------------------ network

INTERNET = "the internet"
DNS = "namespace:kube-system"
WORKING = ("query", "indexer", "setup")
#: Sources, targets and ports that must be open, where both are part of a rendering.
NEEDED = (
    (WORKING, ("qdrant",), (6333,)),
    (WORKING, ("postgres",), (5432,)),
    (WORKING, ("nats",), (4222,)),
    (WORKING, (INTERNET,), (443,)),
    (WORKING, ("nim-chat", "nim-embedding", "nim-reranking"), (8000,)),
    (WORKING, ("local-nims",), (8000, 8001, 8002)),
    ((*WORKING, "chat", "qdrant", "nats", "snapshots", "local-nims", "test"), (DNS,), (53,)),
    (("test", "chat", "namespace:traefik", "namespace:monitoring"), ("query",), (app.PORT,)),
    (("test", "namespace:traefik"), ("chat",), (8080,)),
    (("qdrant",), ("qdrant",), (6335,)),
    (("snapshots", "namespace:monitoring"), ("qdrant",), (6333,)),
    (("namespace:keda",), ("nats",), (8222,)),
    (("namespace:monitoring",), ("indexer",), (9100,)),
)
#: Connections that no policy may allow.
SHUT = (
    ("chat", "qdrant", 6333),
    ("chat", "nats", 4222),
    ("chat", INTERNET, 443),
    ("qdrant", INTERNET, 443),
    ("nats", INTERNET, 443),
    ("namespace:keda", "nats", 4222),
    ("namespace:other", "query", app.PORT),
    ("namespace:other", "qdrant", 6333),
    ("chat", "postgres", 5432),
    ("nats", "postgres", 5432),
    ("test", "postgres", 5432),
    ("namespace:other", "postgres", 5432),
    ("namespace:monitoring", "postgres", 5432),
    ("postgres", INTERNET, 443),
    ("postgres", "nats", 4222),
    ("namespace:other", "nats", 8222),
    ("test", "nats", 4222),
)


def way(objects: Objects, source: str, target: str, port: int) -> bool:
    """Tell whether the policies let one component reach another.

    Args:
        objects: A rendering.
        source: A component, `nim-<role>`, `namespace:<name>`, or INTERNET.
        target: The same.
        port: The target's port.

    Raises:
        KeyError: There is no such component.
    """
    labels_of = {
        labels.get("app.kubernetes.io/component"): labels for _, labels, _ in pods(objects)
    }

    def place(name: str) -> tuple[Object | None, str]:
        if name == INTERNET:
            return None, INTERNET
        if name.startswith("namespace:"):
            return None, name.partition(":")[2]
        if name.startswith("nim-"):
            return {"app": f"{NAME}-{name}"}, NAMESPACE
        return labels_of[name], NAMESPACE

    def admits(peer: Object, labels: Object | None, namespace: str) -> bool:
        if "ipBlock" in peer or namespace == INTERNET:
            return "ipBlock" in peer and namespace == INTERNET
        where = peer.get("namespaceSelector", {"matchLabels": {_METADATA: NAMESPACE}})
        return contains({_METADATA: namespace}, where) and (
            "podSelector" not in peer or contains(labels or {}, peer["podSelector"])
        )

    def opens(rule: Object) -> bool:
        return "ports" not in rule or any(
            one["port"] <= port <= one.get("endPort", one["port"]) for one in rule["ports"]
        )

    here, there = place(source), place(target)
    for (labels, namespace), other, kind, side in (
        (here, there, "Egress", "to"),
        (there, here, "Ingress", "from"),
    ):
        policies = [
            one["spec"]
            for one in of_kind(objects, "NetworkPolicy")
            if labels is not None
            and namespace == NAMESPACE
            and kind in one["spec"]["policyTypes"]
            and contains(labels, one["spec"]["podSelector"])
        ]
        if policies and not any(
            opens(rule) and (side not in rule or any(admits(p, *other) for p in rule[side]))
            for policy in policies
            for rule in policy.get(kind.lower(), ())
        ):
            return False
    return True


_METADATA = "kubernetes.io/metadata.name"


def check_network(objects: Objects) -> None:
    """The policies allow the connections of NEEDED, and none of SHUT."""
    if not of_kind(objects, "NetworkPolicy"):
        return
    there = {*components(objects), DNS}
    there |= {title(one).partition(" ")[2] for one in of_kind(objects, "NIMService")}
    if find(objects, "ConfigMap", "settings")["data"]["COOKBOOK_ENDPOINTS"] == "hosted":
        there.add(INTERNET)
    if of_kind(objects, "ScaledObject"):
        there.add("namespace:keda")
    if of_kind(objects, "Ingress"):
        there.add("namespace:traefik")
    if of_kind(objects, "ServiceMonitor"):
        there.add("namespace:monitoring")
    for sources, targets, ports in NEEDED:
        for source, target, port in itertools.product(sources, targets, ports):
            if {source, target} <= there:
                assert way(objects, source, target, port), (source, target, port)
    for source, target, port in SHUT:
        if {source, target} <= there | {"namespace:other", INTERNET}:
            assert not way(objects, source, target, port), (source, target, port)


CHECKS: dict[str, Callable[[Objects], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_") and name != "check_crds"
}
