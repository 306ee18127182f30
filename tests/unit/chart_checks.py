"""Readers of the rendered Helm chart: each check is a function that returns objections.

`test_chart.py` shows each of them the chart and bad examples.
"""

from __future__ import annotations

import base64
import copy
import functools
import importlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nim_cookbook.keys import NVIDIA_KEY, SELF_HOSTED_KEY
from rag_service import app, compose, counting, guard, indexer, metrics, queue, serving
from rag_service.chart import manifests, values_file
from rag_service.settings import INDEX

helm = pytest.importorskip("helm_python", reason="no Helm: install helm-python-sdk")
kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="no Kubernetes schemas: install kubernetes-validate"
)
# It reads a file of megabytes again for each object.
kubernetes_validate.utils.schema_contents = functools.cache(
    kubernetes_validate.utils.schema_contents
)

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "nim-rag-cookbook"
RELEASE, NAMESPACE = "rag", "demo"
NAME = "rag-nim-rag-cookbook"
#: Definitions of KEDA's and the NIM Operator's objects; `make crds` fetches them.
CRDS = Path(os.environ.get("CRD_DIR") or ROOT / "build" / "crds")
CRD_FILES = (
    "keda.sh_scaledobjects.yaml",
    "apps.nvidia.com_nimcaches.yaml",
    "apps.nvidia.com_nimservices.yaml",
)
#: The oldest Kubernetes that the chart admits, and the newest known.
KUBERNETES = ("1.30", "1.37")

Object = dict[str, Any]
Objects = list[Object]
Check = Callable[[Objects], list[str]]
Path_ = tuple[str | int, ...]

ROLES = ("chat", "embedding", "reranking")
ELSEWHERE = [{"to": [{"namespaceSelector": {}}], "ports": [{"port": 443}]}]
#: Values beyond those of the files, so that every branch of the templates is rendered.
FURTHER: dict[str, Object] = {
    "managed": {
        "endpoints": {
            "mode": "self-hosted",
            "existingSecret": "nim-key",
            "urls": {role: f"https://{role}.example.com/v1" for role in ROLES},
        },
        "auth": {"existingSecret": "our-token", "tokenKey": "token"},
        "qdrant": {"enabled": False, "existingSecret": "qdrant-key"},
        "store": {"url": "https://qdrant.example.com:6333"},
        "nats": {"enabled": False},
        "queue": {"existingSecret": "nats-url", "monitoring": "nats.example.com:8222"},
        "files": {"url": "s3://bucket/files", "existingSecret": "s3-keys"},
        "setup": {"existingClaim": "our-documents"},
        "otlpEndpoint": "http://collector:4318",
        "networkPolicy": {"extraEgress": ELSEWHERE},
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
}
FILES_OF_VALUES = ("local", "hosted", "gpu")
SETS = ("default", *FILES_OF_VALUES, *FURTHER)


def values_of(name: str) -> Object:
    if name == "default":
        return {}
    if name in FURTHER:
        return copy.deepcopy(FURTHER[name])
    return values_file(name)


@functools.cache
def chart() -> Any:
    return helm.Chart.load(CHART)


def templated(values: Object) -> dict[str, str]:
    made: dict[str, str] = chart().render(values, name=RELEASE, namespace=NAMESPACE)
    return made


def objects_in(made: dict[str, str]) -> Objects:
    return [one.data for one in manifests(made)]


@functools.cache
def _rendered(name: str) -> Objects:
    return objects_in(templated(values_of(name)))


def rendered(name: str) -> Objects:
    """Return the objects of a set of values, for the caller to change."""
    return copy.deepcopy(_rendered(name))


# ----------------------------------------------------------------------------- finding and changing


def title(one: Object) -> str:
    return f"{one['kind']} {one['metadata']['name'].removeprefix(f'{NAME}-')}"


def find(objects: Objects, kind: str, suffix: str = "") -> Object:
    found = [
        one
        for one in objects
        if one["kind"] == kind
        and one["metadata"]["name"] in (NAME, f"{NAME}-{suffix}", suffix)
        and (not suffix or one["metadata"]["name"] != NAME)
    ]
    assert len(found) == 1, (kind, suffix, [title(one) for one in objects])
    return found[0]


def parts(path: str | Path_) -> Path_:
    if isinstance(path, tuple):
        return path
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))


def change(kind: str, suffix: str, path: str | Path_, value: Any) -> Callable[[Objects], None]:
    """Return what changes one place of one object; a value of `...` takes it away."""

    def changed(objects: Objects) -> None:
        place: Any = find(objects, kind, suffix)
        *way, last = parts(path)
        for step in way:
            place = place[step]
        if value is ...:
            del place[last]
        else:
            place[last] = value

    return changed


def without(kind: str, suffix: str) -> Callable[[Objects], None]:
    return lambda objects: objects.remove(find(objects, kind, suffix))


def pods(objects: Objects) -> Iterator[tuple[Object, Object, Object]]:
    """Yield each object that makes pods, with the pods' labels and what is in them."""
    for one in objects:
        template: Object | None = None
        if one["kind"] in ("Deployment", "StatefulSet", "Job"):
            template = one["spec"]["template"]
        elif one["kind"] == "CronJob":
            template = one["spec"]["jobTemplate"]["spec"]["template"]
        elif one["kind"] == "Pod":
            template = one
        if template is not None:
            yield one, template["metadata"].get("labels", {}), template["spec"]


def component(objects: Objects, name: str) -> Object:
    """Return the only container of a component."""
    container: Object = component_spec(objects, name)["containers"][0]
    return container


def component_spec(objects: Objects, name: str) -> Object:
    """Return what is in the pods of a component."""
    (spec,) = [
        spec
        for _, labels, spec in pods(objects)
        if labels.get("app.kubernetes.io/component") == name
    ]
    return spec


def contains(labels: Object, selector: Object) -> bool:
    if not all(
        labels.get(name) == value for name, value in selector.get("matchLabels", {}).items()
    ):
        return False
    for rule in selector.get("matchExpressions", ()):
        if rule["operator"] == "DoesNotExist" and rule["key"] in labels:
            return False
    return True


# --------------------------------------------------------------------------------------- the checks


def core_faults(objects: Objects, version: str = KUBERNETES[-1]) -> list[str]:
    """Validate against the schemas of Kubernetes; unknown fields are faults."""
    said = []
    for one in objects:
        if "." in one["apiVersion"].partition("/")[0] and not one["apiVersion"].partition("/")[
            0
        ].endswith(".k8s.io"):
            continue  # a custom resource
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(step) for step in error.path)
            said.append(f"{title(one)}: {where}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError as error:
            said.append(f"{title(one)}: {error.message}")
    return said


def closed(schema: Any) -> Any:
    """Return a CRD's schema in which unknown fields are faults."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(value) for name, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    open_ = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_:
        made["additionalProperties"] = False
    return made


@functools.cache
def crds(folder: str) -> dict[tuple[str, str], Object]:
    """Return the closed schemas of a folder of CRDs, by kind and version of the API."""
    found = {}
    for file in sorted(Path(folder).glob("*.yaml")):
        for crd in yaml.safe_load_all(file.read_text("utf-8")):
            if not crd or crd.get("kind") != "CustomResourceDefinition":
                continue
            for version in crd["spec"]["versions"]:
                api = f"{crd['spec']['group']}/{version['name']}"
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                found[crd["spec"]["names"]["kind"], api] = schema
    return found


def custom_faults(objects: Objects) -> list[str]:
    """Validate custom resources against their definitions."""
    schemas = crds(str(CRDS))
    said = []
    for one in objects:
        schema = schemas.get((one["kind"], one["apiVersion"]))
        if schema is None:
            if one["apiVersion"].startswith(("keda.sh", "apps.nvidia.com")):
                said.append(f"{title(one)}: there is no CRD for {one['apiVersion']}")
            continue
        for error in jsonschema.Draft202012Validator(schema).iter_errors(one):
            where = ".".join(str(step) for step in error.absolute_path)
            said.append(f"{title(one)}: {where}: {error.message[:200]}")
    return said


#: Modules with models of custom resources, by group.
MODELS = {
    "keda.sh": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com": "cloudcoil.models.prometheus_operator.v1",
}


def lost(given: Any, kept: Any, where: str = "") -> Iterator[str]:
    """Yield what a model did not take over: the models ignore fields that they do not know."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            if name in kept:
                yield from lost(value, kept[name], f"{where}.{name}")
            else:
                yield f"{where}.{name}"
    elif isinstance(given, list) and isinstance(kept, list):
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(one, other, f"{where}.{number}")


def model_faults(objects: Objects) -> list[str]:
    """Validate the custom resources of KEDA and of the Prometheus operator against models."""
    said = []
    for one in objects:
        module = MODELS.get(one["apiVersion"].partition("/")[0])
        if module is None:
            continue
        model = getattr(importlib.import_module(module), one["kind"], None)
        if model is None:
            said.append(f"{title(one)}: no such kind")
            continue
        try:
            kept = model.model_validate(one)
        except ValueError as error:
            said.append(f"{title(one)}: {error}")
            continue
        dumped = kept.model_dump(mode="json", by_alias=True, exclude_unset=True)
        said += [f"{title(one)}: {where[1:]} is unknown" for where in lost(one, dumped)]
    return said


def wiring_faults(objects: Objects) -> list[str]:
    """Follow selectors, ports and names to what they should lead to."""
    said = []
    makers = list(pods(objects))
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    said += [
        f"{kind} {name} is there twice"
        for kind, name in set(names)
        if names.count((kind, name)) > 1
    ]
    said += [
        f"{title(one)}: its name is too long"
        for one in objects
        if len(one["metadata"]["name"]) > 63
    ]
    running = [
        (one, labels, spec)
        for one, labels, spec in makers
        if one["kind"] in ("Deployment", "StatefulSet")
    ]
    for one, labels, _ in running:
        selector = one["spec"]["selector"]
        if not contains(labels, selector):
            said.append(f"{title(one)}: its selector does not match its own pods")
        if sum(contains(other, selector) for _, other, _ in makers) > 1:
            said.append(f"{title(one)}: its selector matches the pods of others")
        if one["kind"] == "StatefulSet" and ("Service", one["spec"]["serviceName"]) not in names:
            said.append(f"{title(one)}: there is no Service {one['spec']['serviceName']}")
    services = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Service"}
    for one in services.values():
        chosen = [
            spec
            for _, labels, spec in running
            if contains(labels, {"matchLabels": one["spec"]["selector"]})
        ]
        if len(chosen) != 1:
            said.append(f"{title(one)}: it selects {len(chosen)} workloads")
        for port in one["spec"]["ports"]:
            there = {
                key
                for spec in chosen
                for container in spec["containers"]
                for named in container.get("ports", ())
                for key in (named["name"], named["containerPort"])
            }
            if port["targetPort"] not in there:
                said.append(f"{title(one)}: no container has the port {port['targetPort']}")
    for one in objects:
        spec = one.get("spec", {})
        if one["kind"] in ("PodDisruptionBudget", "PodMonitor") and not any(
            contains(labels, spec["selector"]) for _, labels, _ in running
        ):
            said.append(f"{title(one)}: its selector matches no pod")
        if one["kind"] == "PodMonitor":
            for _, labels, inside in running:
                if contains(labels, spec["selector"]):
                    ports = {port["name"] for c in inside["containers"] for port in c["ports"]}
                    said += [
                        f"{title(one)}: no port {end['port']}"
                        for end in spec["podMetricsEndpoints"]
                        if end["port"] not in ports
                    ]
        if one["kind"] == "NetworkPolicy" and not any(
            contains(labels, spec["podSelector"]) for _, labels, _ in makers
        ):
            said.append(f"{title(one)}: it selects no pod")
        if one["kind"] == "ServiceMonitor":
            chosen = [
                s for s in services.values() if contains(s["metadata"]["labels"], spec["selector"])
            ]
            if len(chosen) != 1:
                said.append(f"{title(one)}: it selects {len(chosen)} Services")
            ports = {port["name"] for s in chosen for port in s["spec"]["ports"]}
            said += [
                f"{title(one)}: no port {e['port']}"
                for e in spec["endpoints"]
                if e["port"] not in ports
            ]
        if one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = spec["scaleTargetRef"]
            wanted = target.get("kind", "Deployment"), target["name"]
            if wanted not in names:
                said.append(f"{title(one)}: there is no {wanted[0]} {wanted[1]}")
            elif (
                "replicas"
                in next(o for o in objects if (o["kind"], o["metadata"]["name"]) == wanted)["spec"]
            ):
                said.append(f"{title(one)}: an upgrade would set its target's replicas back")
        if one["kind"] == "Ingress":
            for rule in spec["rules"]:
                for path in rule["http"]["paths"]:
                    to = path["backend"]["service"]
                    ports = {
                        p["name"]
                        for p in services.get(to["name"], {"spec": {"ports": ()}})["spec"]["ports"]
                    }
                    if to["port"]["name"] not in ports:
                        said.append(
                            f"{title(one)}: no Service {to['name']} with {to['port']['name']}"
                        )
                if rule["host"] not in [
                    host for tls in spec.get("tls", ()) for host in tls["hosts"]
                ]:
                    said.append(f"{title(one)}: {rule['host']} is served without TLS")
        if one["kind"] == "NIMService":
            cache = spec["storage"]["nimCache"]["name"]
            if ("NIMCache", cache) not in names:
                said.append(f"{title(one)}: there is no NIMCache {cache}")
    return said


#: What a reader of the values makes, and the chart does not.
OTHERS = {
    "nvidia-api-key", "nim-key", "our-token", "qdrant-key", "nats-url", "s3-keys", "our-documents",
    "registry", "rag-tls", "ngc-api-secret", "ngc-secret",
}  # fmt: skip


def reference_faults(objects: Objects) -> list[str]:
    """Look whether everything that a pod names is there."""
    said = []
    made = {(one["kind"], one["metadata"]["name"]) for one in objects}
    keys = {
        (one["kind"], one["metadata"]["name"], key)
        for one in objects
        for key in one.get("data", {})
    }
    for one, _, spec in pods(objects):
        claims = [c["metadata"]["name"] for c in one["spec"].get("volumeClaimTemplates", ())]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        wanted = [("ServiceAccount", spec["serviceAccountName"])]
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                wanted.append(
                    ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
                )
            if "configMap" in volume:
                wanted.append(("ConfigMap", volume["configMap"]["name"]))
        mounted = set()
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            mounted |= {mount["name"] for mount in container.get("volumeMounts", ())}
            for source in container.get("envFrom", ()):
                wanted += [
                    ("ConfigMap", ref["name"]) for ref in [source.get("configMapRef")] if ref
                ]
                wanted += [("Secret", ref["name"]) for ref in [source.get("secretRef")] if ref]
            names = [entry["name"] for entry in container.get("env", ())]
            said += [
                f"{title(one)}: {name} is set twice" for name in set(names) if names.count(name) > 1
            ]
            for entry in container.get("env", ()):
                ref = entry.get("valueFrom", {}).get("secretKeyRef")
                if ref:
                    wanted.append(("Secret", ref["name"]))
                    if ("Secret", ref["name"]) in made and (
                        "Secret",
                        ref["name"],
                        ref["key"],
                    ) not in keys:
                        said.append(f"{title(one)}: Secret {ref['name']} has no {ref['key']}")
        there = {*volumes, *claims}
        said += [f"{title(one)}: there is no volume {name}" for name in sorted(mounted - there)]
        said += [f"{title(one)}: nothing mounts {name}" for name in sorted(there - mounted)]
        said += [
            f"{title(one)}: there is no {kind} {name}"
            for kind, name in wanted
            if (kind, name) not in made and name not in OTHERS
        ]
    return said


UNITS = {
    "": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def amount(text: Any) -> float:
    """Return a quantity as a number.

    Raises:
        ValueError: It is none; the API server would refuse it, the schemas do not.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(text))
    if found is None or found[2] not in UNITS:
        raise ValueError(f"{text!r} is no quantity")
    return float(found[1]) * UNITS[found[2]]


def resource_faults(objects: Objects) -> list[str]:
    """Look at requests, limits and sizes."""
    said = []
    for one, _, spec in pods(objects):
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            where = f"{title(one)}/{container['name']}"
            held = container.get("resources", {})
            for name in ("cpu", "memory"):
                sizes = {}
                for side in ("requests", "limits"):
                    try:
                        sizes[side] = amount(held[side][name])
                    except KeyError:
                        said.append(f"{where}: no {side} of {name}")
                    except ValueError as error:
                        said.append(f"{where}: {side} of {name}: {error}")
                if len(sizes) == 2 and sizes["requests"] > sizes["limits"]:
                    said.append(f"{where}: it requests more {name} than its limit")
            said += [
                f"{where}: /tmp has no limit"
                for volume in spec.get("volumes", ())
                if volume["name"] == "tmp" and "sizeLimit" not in volume.get("emptyDir", {})
            ]
    for one in objects:
        claims = (
            [one]
            if one["kind"] == "PersistentVolumeClaim"
            else one.get("spec", {}).get("volumeClaimTemplates", ())
        )
        for claim in claims:
            try:
                amount(claim["spec"]["resources"]["requests"]["storage"])
            except ValueError as error:
                said.append(f"{title(one)}: {error}")
        if one["kind"] == "NIMService":
            limits = one["spec"]["resources"]["limits"]
            if not int(limits.get("nvidia.com/gpu", 0)):
                said.append(f"{title(one)}: it asks for no GPU")
            for name, value in one["spec"]["resources"]["requests"].items():
                if name in limits and amount(value) > amount(limits[name]):
                    said.append(f"{title(one)}: it requests more {name} than its limit")
    return said


def hardening_faults(objects: Objects) -> list[str]:
    """Look whether each container may do as little as it needs, and is watched."""
    said = []
    for one, _, spec in pods(objects):
        around = spec.get("securityContext", {})
        if not (around.get("runAsNonRoot") and around.get("runAsUser") == 10001):
            said.append(f"{title(one)}: it may run as root")
        if around.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            said.append(f"{title(one)}: no seccomp profile")
        if spec.get("automountServiceAccountToken") is not False:
            said.append(f"{title(one)}: it gets a token of the cluster")
        if spec.get("enableServiceLinks") is not False:
            said.append(f"{title(one)}: Services become variables")
        if spec.get("hostNetwork") or spec.get("hostPID") or spec.get("hostIPC"):
            said.append(f"{title(one)}: it shares the host's")
        said += [
            f"{title(one)}: it sees the host's files"
            for v in spec.get("volumes", ())
            if "hostPath" in v
        ]
        lasting = one["kind"] in ("Deployment", "StatefulSet")
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            where = f"{title(one)}/{container['name']}"
            held = container.get("securityContext", {})
            if held.get("runAsNonRoot") is not True or held.get("runAsUser", 1) == 0:
                said.append(f"{where}: it may run as root")
            if held.get("allowPrivilegeEscalation") is not False or held.get("privileged"):
                said.append(f"{where}: it may gain rights")
            if held.get("readOnlyRootFilesystem") is not True:
                said.append(f"{where}: its root file system can be written")
            if held.get("capabilities") != {"drop": ["ALL"]}:
                said.append(f"{where}: it has capabilities")
            if re.search(r":[^:/]*\d[^:/]*$", container["image"]) is None:
                said.append(f"{where}: its image is not pinned")
        for container in spec["containers"] if lasting else ():
            said += [
                f"{title(one)}/{container['name']}: no {probe}"
                for probe in ("startupProbe", "readinessProbe", "livenessProbe")
                if probe not in container
            ]
    return said


SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
SECRET_VALUE = re.compile(r"nvapi-|://[^/\s]*@|-----BEGIN|[A-Za-z0-9+/]{60,}")


def secret_faults(objects: Objects) -> list[str]:
    """Look for what should be in Secrets only."""
    said = []
    held = {
        base64.b64decode(value).decode()
        for one in objects
        if one["kind"] == "Secret"
        for value in one.get("data", {}).values()
    }
    for one in objects:
        if one["kind"] == "ConfigMap":
            for name, value in one["data"].items():
                if SECRET_NAME.search(name) or (SECRET_VALUE.search(value) and "\n" not in value):
                    said.append(f"{title(one)}: {name} belongs in a Secret")
        if one["kind"] != "Secret":
            text = json.dumps(one)
            said += [f"{title(one)}: it shows a secret" for value in held if value in text]
    for one, _, spec in pods(objects):
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            for entry in container.get("env", ()):
                plain = entry.get("value")
                if plain and (SECRET_NAME.search(entry["name"]) or SECRET_VALUE.search(plain)):
                    said.append(f"{title(one)}: {entry['name']} belongs in a Secret")
            for word in [*container.get("command", ()), *container.get("args", ())]:
                if re.search(r"--?(api-?key|token|password)[= ]", word):
                    said.append(f"{title(one)}: a secret on the command line")
    return said


def open_faults(objects: Objects) -> list[str]:
    """Look whether what an Ingress leads to has the token that it has to ask for."""
    said = []
    services = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Service"}
    for one in objects:
        if one["kind"] != "Ingress":
            continue
        for rule in one["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = services[path["backend"]["service"]["name"]]
                behind = [
                    container
                    for _, labels, spec in pods(objects)
                    if contains(labels, {"matchLabels": service["spec"]["selector"]})
                    for container in spec["containers"]
                ]
                for container in behind:
                    if container["name"] not in ("query", "chat"):
                        said.append(f"{title(one)}: {container['name']} asks for no token")
                    elif not any(
                        entry["name"] == serving.TOKEN and "secretKeyRef" in entry["valueFrom"]
                        for entry in container["env"]
                    ):
                        said.append(f"{title(one)}: {container['name']} has no token to ask for")
        if "ingress-nginx" in json.dumps(one) or any(
            name.startswith("nginx.ingress.kubernetes.io/")
            for name in one["metadata"].get("annotations", {})
        ):
            said.append(f"{title(one)}: it is for ingress-nginx, which nobody maintains")
        for name in one["metadata"].get("annotations", {}):
            if name.endswith(("/enable-cors", "/cors-allow-origin")):
                said.append(f"{title(one)}: {name} answers for the service, which has its own CORS")
    return said


def patience_faults(objects: Objects) -> list[str]:
    """Compare probes and times to stop with those of the services."""
    said = []
    for one, labels, spec in pods(objects):
        name = labels.get("app.kubernetes.io/component")
        if one["kind"] not in ("Deployment", "StatefulSet"):
            continue
        (container,) = spec["containers"]
        needed = (
            container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        )
        start = container["startupProbe"]
        patience = start["failureThreshold"] * start.get("periodSeconds", 10)
        if name == "query":
            needed += app.GRACE
            (wait,) = [e["value"] for e in container["env"] if e["name"] == serving.START_WAIT]
            if patience <= int(wait):
                said.append(f"{title(one)}: it is killed while it waits for models")
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                path = container[probe]["httpGet"]["path"]
                if path not in guard.OPEN:
                    said.append(f"{title(one)}: {path} wants a token")
            if container["livenessProbe"]["httpGet"]["path"] != "/health/live":
                said.append(f"{title(one)}: it is killed while a model is away")
            if container["readinessProbe"]["httpGet"]["path"] != "/health/ready":
                said.append(f"{title(one)}: it is ready while a model is away")
            if not needed - app.GRACE:
                said.append(f"{title(one)}: it stops while requests are still sent to it")
        if name == "indexer":
            options = indexer.parser().parse_args([str(w) for w in container["args"][3:]])
            needed = options.grace + indexer._LAST_CALL
            if patience <= 3 * options.wait:
                said.append(f"{title(one)}: it is killed while it waits for models")
            if options.metrics_port not in [p["containerPort"] for p in container["ports"]]:
                said.append(f"{title(one)}: its probes ask another port")
            if options.metrics_host != "0.0.0.0":
                said.append(f"{title(one)}: nobody reaches its metrics")
        if spec.get("terminationGracePeriodSeconds", 30) <= needed:
            said.append(f"{title(one)}: it is killed before it has ended its work")
    return said


def served_metrics() -> dict[str, set[str]]:
    """Return the names of the metrics of query service and indexer, with the names of labels."""
    found: dict[str, set[str]] = {}
    for collector in (metrics._requests, metrics._seconds, metrics._in_flight):
        (family,) = collector.collect()
        labels = set(getattr(collector, "_labelnames", ()))
        if family.type == "counter":
            found[f"{family.name}_total"] = labels
        elif family.type == "histogram":
            found |= {f"{family.name}_{end}": labels | {"le"} for end in ("bucket", "sum", "count")}
        else:
            found[family.name] = labels
    registry = CollectorRegistry()
    registry.register(counting._Jobs(counting.Count()))
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def scaling_faults(objects: Objects) -> list[str]:
    """Compare what KEDA, the autoscaler and Prometheus ask for with what is there."""
    said = []
    index = find(objects, "ConfigMap", "settings")["data"][INDEX]
    stream = queue.Queue.stream_name(_named(index), "JOBS")
    routes = {"/metrics"}
    asked: list[tuple[str, str]] = []
    for one in objects:
        if one["kind"] == "ScaledObject":
            if not one["spec"].get("fallback", {}).get("replicas"):
                said.append(f"{title(one)}: nobody works while the queue's depth cannot be read")
            for trigger in one["spec"]["triggers"]:
                held = trigger["metadata"]
                wanted = {"account": "$G", "stream": stream, "consumer": queue.CONSUMER}
                said += [
                    f"{title(one)}: {key} is {held.get(key)} and not {value}"
                    for key, value in wanted.items()
                    if held.get(key) != value
                ]
                known = {*wanted, "natsServerMonitoringEndpoint", "lagThreshold",
                         "activationLagThreshold", "useHttps"}  # fmt: skip
                said += [f"{title(one)}: KEDA knows no {key}" for key in held if key not in known]
                said += [
                    f"{title(one)}: {key} is no text"
                    for key, v in held.items()
                    if not isinstance(v, str)
                ]
                said += _endpoint_faults(objects, one, held.get("natsServerMonitoringEndpoint", ""))
        if one["kind"] == "HorizontalPodAutoscaler":
            for metric in one["spec"]["metrics"]:
                if metric["type"] == "Pods":
                    asked.append((title(one), metric["pods"]["metric"]["name"]))
                    if amount(metric["pods"]["target"]["averageValue"]) <= 1:
                        said.append(f"{title(one)}: an idle pod shows 1 already")
        if one["kind"] in ("ServiceMonitor", "PodMonitor"):
            for end in one["spec"].get("endpoints", one["spec"].get("podMetricsEndpoints")):
                if end["path"] not in routes:
                    said.append(f"{title(one)}: there are no metrics at {end['path']}")
                if one["metadata"]["name"].endswith("-query") and "authorization" not in end:
                    said.append(f"{title(one)}: metrics want the token")
        if one["kind"] == "PrometheusRule":
            asked += [(title(one), r["expr"]) for g in one["spec"]["groups"] for r in g["rules"]]
        if one["kind"] == "ConfigMap" and one["metadata"]["name"].endswith("-dashboard"):
            for text in one["data"].values():
                asked += [
                    (title(one), target["expr"])
                    for panel in json.loads(text)["panels"]
                    for target in panel["targets"]
                ]
    there = served_metrics()
    for who, text in asked:
        for name, labels in re.findall(r"\b(cookbook_\w+)(?:\{([^}]*)\})?", text):
            if name not in there:
                said.append(f"{who}: nobody serves {name}")
                continue
            given = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)) - {"namespace", "pod"}
            said += [f"{who}: {name} has no label {label}" for label in given - there[name]]
    return said


def _named(index: str) -> Any:
    class Named:
        name = index

    return Named


def _endpoint_faults(objects: Objects, one: Object, endpoint: str) -> list[str]:
    host, _, port = endpoint.rpartition(":")
    name, _, rest = host.partition(".")
    if not rest.startswith(NAMESPACE):
        return (
            []
            if rest.endswith("example.com")
            else [f"{title(one)}: {host} is not found from KEDA's namespace"]
        )
    ports = [
        entry["port"]
        for service in objects
        if service["kind"] == "Service" and service["metadata"]["name"] == name
        for entry in service["spec"]["ports"]
    ]
    return [] if int(port) in ports else [f"{title(one)}: no Service answers at {endpoint}"]


def durability_faults(objects: Objects) -> list[str]:
    """Look for what an acknowledgement, a copy or an alert promises and does not hold."""
    said = []
    for one, labels, spec in pods(objects):
        if labels.get("app.kubernetes.io/component") == "nats":
            (container,) = spec["containers"]
            files = mounted_files(objects, spec)
            words = [*container["args"], "", ""]
            text = files.get(words[words.index("--config") + 1] if "--config" in words else "")
            if text is None:
                said.append(f"{title(one)}: it reads no configuration of the chart's")
            elif not re.search(r"^\s*sync_interval: always$", text, re.M):
                said.append(f"{title(one)}: it acknowledges jobs that are not on the disk")
            if "checksum/config" not in one["spec"]["template"]["metadata"].get("annotations", {}):
                said.append(f"{title(one)}: a change of its configuration starts no new pod")
        lasting = one["kind"] in ("Deployment", "StatefulSet")
        for rule in spec.get("topologySpreadConstraints", ()) if lasting else ():
            strict = rule["whenUnsatisfiable"] == "DoNotSchedule"
            copies = one["spec"].get("replicas", 1)
            wanted = (
                labels.get("app.kubernetes.io/component") == "qdrant"
                and rule["topologyKey"] == "kubernetes.io/hostname"
                and copies > 1
            )
            if wanted and not (strict and rule.get("minDomains") == copies):
                said.append(f"{title(one)}: copies of a shard may be on one node")
            if strict and not wanted:
                said.append(f"{title(one)}: it does not start where it cannot be spread")
    for one in objects:
        if one["kind"] == "PrometheusRule":
            said += _alert_faults(one)
    return said


def _alert_faults(one: Object) -> list[str]:
    said = []
    for rule in (rule for group in one["spec"]["groups"] for rule in group["rules"]):
        said += [
            f"{title(one)}: {rule['alert']} has no {name}"
            for name in ("summary", "description")
            if not rule["annotations"].get(name)
        ]
        success = "kube_cronjob_status_last_successful_time"
        if success in rule["expr"] and not re.search(
            rf"kube_cronjob_created.*\bunless\b.*{success}", rule["expr"]
        ):
            said.append(f"{title(one)}: {rule['alert']} is silent where nothing ever succeeded")
    return said


def mounted_files(objects: Objects, spec: Object) -> dict[str, str]:
    """Return the files that a pod's first container has from ConfigMaps, by path."""
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    found = {}
    for mount in spec["containers"][0].get("volumeMounts", ()):
        source = volumes.get(mount["name"], {}).get("configMap")
        if source and mount.get("readOnly"):
            (held,) = [
                one["data"]
                for one in objects
                if (one["kind"], one["metadata"]["name"]) == ("ConfigMap", source["name"])
            ]
            found |= {f"{mount['mountPath']}/{name}": text for name, text in held.items()}
    return found


# ------------------------------------------------------------------------- ways through the network

INTERNET = "the internet"


def admits(peers: Any, labels: Object | None, namespace: str) -> bool:
    for peer in peers:
        if "ipBlock" in peer:
            if namespace == INTERNET:
                return True
            continue
        if namespace == INTERNET:
            continue
        where = peer.get("namespaceSelector")
        if where is None and namespace != NAMESPACE:
            continue
        if where is not None and not contains({"kubernetes.io/metadata.name": namespace}, where):
            continue
        if "podSelector" not in peer or contains(labels or {}, peer["podSelector"]):
            return True
    return False


def opens(rule: Object, port: int) -> bool:
    ports = rule.get("ports")
    return not ports or any(p["port"] <= port <= p.get("endPort", p["port"]) for p in ports)


def way(objects: Objects, source: str, target: str, port: int) -> bool:
    """Tell whether the policies let a component, or `namespace:NAME`, reach another's port."""

    def place(name: str) -> tuple[Object | None, str]:
        if name == INTERNET:
            return None, INTERNET
        if name.startswith("namespace:"):
            return None, name.partition(":")[2]
        if name.startswith("nim-"):
            return {"app": f"{NAME}-{name}"}, NAMESPACE
        for _, labels, _ in pods(objects):
            if labels.get("app.kubernetes.io/component") == name:
                return labels, NAMESPACE
        raise LookupError(name)

    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    here, there = place(source), place(target)
    for inside, other, kind, side in (
        (here, there, "Egress", "to"),
        (there, here, "Ingress", "from"),
    ):
        labels, namespace = inside
        if labels is None or namespace != NAMESPACE:
            continue
        chosen = [
            p for p in policies if kind in p["policyTypes"] and contains(labels, p["podSelector"])
        ]
        if not chosen:
            continue  # nothing shuts it
        if not any(
            (side not in rule or admits(rule[side], *other)) and opens(rule, port)
            for policy in chosen
            for rule in policy.get(kind.lower(), ())
        ):
            return False
    return True


def needed_ways(objects: Objects) -> Iterator[tuple[str, str, int]]:
    """Yield who has to reach whom."""
    parts_ = {labels.get("app.kubernetes.io/component") for _, labels, _ in pods(objects)}
    data = find(objects, "ConfigMap", "settings")["data"]
    for source in {"query", "indexer", "setup"} & parts_:
        if "qdrant" in parts_:
            yield source, "qdrant", 6333
        if "nats" in parts_:
            yield source, "nats", 4222
        if data["COOKBOOK_ENDPOINTS"] == "hosted":
            yield source, INTERNET, 443
        for role in ROLES:
            address = urlsplit(data.get(f"NIM_{role.upper()}_URL", ""))
            if (address.hostname or "").startswith(NAME):
                yield source, str(address.hostname).removeprefix(f"{NAME}-"), address.port or 0
    for source in sorted(parts_):
        yield source, "namespace:kube-system", 53
    yield "test", "query", app.PORT
    if "chat" in parts_:
        yield "chat", "query", app.PORT
        yield "test", "chat", 8080
    if "qdrant" in parts_:
        yield "qdrant", "qdrant", 6335
    if "snapshots" in parts_:
        yield "snapshots", "qdrant", 6333
    if "local-nims" in parts_:
        yield "local-nims", INTERNET, 443
    for one in objects:
        if one["kind"] == "ScaledObject" and "nats" in parts_:
            yield "namespace:keda", "nats", 8222
        if one["kind"] == "Ingress":
            for rule in one["spec"]["rules"]:
                to = rule["http"]["paths"][0]["backend"]["service"]["name"].removeprefix(f"{NAME}-")
                yield "namespace:traefik", to, {"query": app.PORT, "chat": 8080}[to]
        if one["kind"] in ("ServiceMonitor", "PodMonitor"):
            to = one["metadata"]["name"].removeprefix(f"{NAME}-")
            yield (
                "namespace:monitoring",
                to,
                {"query": app.PORT, "indexer": 9100, "qdrant": 6333}[to],
            )


#: Who has no business with whom.
SHUT = (
    ("chat", "qdrant", 6333),
    ("chat", "nats", 4222),
    ("chat", INTERNET, 443),
    ("qdrant", INTERNET, 443),
    ("nats", INTERNET, 443),
    ("namespace:keda", "nats", 4222),
    ("namespace:other", "query", app.PORT),
    ("namespace:other", "qdrant", 6333),
    ("namespace:other", "nats", 8222),
    ("test", "nats", 4222),
)


def network_faults(objects: Objects) -> list[str]:
    """Follow the ways that are needed through the policies, and try those that should be shut."""
    if not any(one["kind"] == "NetworkPolicy" for one in objects):
        return []
    said = [
        f"{a} does not reach {b}:{p}"
        for a, b, p in needed_ways(objects)
        if not way(objects, a, b, p)
    ]
    parts_ = {labels.get("app.kubernetes.io/component") for _, labels, _ in pods(objects)}
    known = {*parts_, INTERNET}
    for source, target, port in SHUT:
        if (
            target in known
            and (source in known or ":" in source)
            and way(objects, source, target, port)
        ):
            said.append(f"{source} reaches {target}:{port}")
    return said


# -------------------------------------------------------------------------- the Compose file's twin


def compose_file() -> Object:
    """Return the services, with the text of their configuration files by path."""
    loaded: Object = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    services: Object = loaded["services"]
    for service in services.values():
        if "configs" in service:
            service["configs"] = {
                one["target"]: loaded["configs"][one["source"]]["content"]
                for one in service["configs"]
            }
    return services


def default_of(text: str) -> str:
    """Return the default of `${NAME:-default}`."""
    found = re.fullmatch(r"\$\{\w+:-(.*)\}", text)
    return found[1] if found else text


def image_commands() -> dict[str, list[str]]:
    """Return the command of each image that the Dockerfile makes."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    return {
        name: json.loads(command)
        for name, command in re.findall(r"^FROM base AS (\w+)\n(?:.+\n)*?CMD (\[.*\])$", text, re.M)
    }


#: Compose service and component of the chart.
TWINS = {
    "query": "query", "indexer": "indexer", "setup": "setup", "chat": "chat", "qdrant": "qdrant",
    "queue": "nats", "local-nims": "local-nims",
}  # fmt: skip
PROFILES = {"hosted": "hosted", "local": "local", "gpu": "nim"}
#: What Compose leaves at the services' defaults, and the chart sets by values.
ONLY_CHART = {serving.UPLOAD_MB, serving.START_WAIT}


def environment(objects: Objects, container: Object) -> dict[str, str | None]:
    """Return a container's variables; those from Secrets have no value here."""
    found: dict[str, str | None] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            name = source["configMapRef"]["name"].removeprefix(f"{NAME}-")
            found |= find(objects, "ConfigMap", name)["data"]
    found |= {entry["name"]: entry.get("value") for entry in container.get("env", ())}
    return found


def sized(command: list[str]) -> list[str]:
    """Return a command without its number of processes: a chart has pods, Compose one container."""
    return [
        "N" if number and command[number - 1] == "--workers" else word
        for number, word in enumerate(command)
    ]


def expected_names(service: str, composed: Object, profile: str) -> set[str]:
    """Return the variables that Compose gives a service, less what the chart rightly leaves out."""
    names = set(composed[service].get("environment", ()))
    # The settings job of the profile writes these into the volume that all services read.
    if any(str(v).startswith("settings:/settings") for v in composed[service].get("volumes", ())):
        if service in ("query", "indexer", "setup"):
            names |= set(compose.ENDPOINTS[profile])
        if service in ("query", "chat"):  # the others answer nobody
            names |= {serving.TOKEN}
    # Each key only where its mode wants it; NIMs of the operator want none.
    if profile != "hosted":
        names -= {NVIDIA_KEY}
    if profile != "local":
        names -= {SELF_HOSTED_KEY}
    return names


def disagreements(objects: Objects, composed: Object, profile: str) -> list[str]:
    """Compare images, ports, environment, commands and folders with those of the Compose file."""
    said = []
    commands = image_commands()
    for service, name in TWINS.items():
        if service == "local-nims" and profile != "local":
            continue
        spec = component_spec(objects, name)
        container = spec["containers"][0]
        twin = composed[service]
        if container["image"] != twin["image"]:
            said.append(f"{service}: image {twin['image']} and {container['image']}")
        has = environment(objects, container)
        if service not in ("qdrant", "queue"):
            wanted = expected_names(service, composed, profile)
            said += [f"{service}: the chart lacks {n}" for n in sorted(wanted - set(has))]
            extra = set(has) - wanted - (ONLY_CHART if service == "query" else set())
            said += [f"{service}: Compose lacks {n}" for n in sorted(extra)]
        values = {**twin.get("environment", {}), **compose.ENDPOINTS[profile]}
        for variable, mine in has.items():
            text = default_of(str(values.get(variable, ""))) if variable in values else None
            if mine is None or text is None:
                continue
            ours, theirs = urlsplit(mine), urlsplit(text)
            same = (
                (ours.scheme, ours.port, ours.path) == (theirs.scheme, theirs.port, theirs.path)
                if theirs.netloc
                else mine == text
            )
            if not same:
                said.append(f"{service}: {variable} is {text} and {mine}")
        published = {int(str(p).rpartition(":")[2]) for p in twin.get("ports", ())}
        ports = {p["containerPort"] for p in container.get("ports", ())}
        said += [f"{service}: the chart has no port {p}" for p in sorted(published - ports)]
        command = [str(w) for w in [*container.get("command", ()), *container.get("args", ())]]
        theirs_ = [
            str(w)
            for w in twin.get("command")
            or commands.get(twin["image"].split("/")[-1].split(":")[0], [])
        ]
        if (
            service in ("query", "chat", "local-nims", "queue")
            and profile != "local"
            and sized(command) != sized(theirs_)
        ):
            said.append(f"{service}: command {theirs_} and {command}")
        if service == "indexer" and command[:3] != theirs_[:3]:
            said.append(f"{service}: command {theirs_} and {command}")
        if service == "setup" and re.findall(r"-m (\S+)", command[-1]) != re.findall(
            r"-m (\S+)", theirs_[-1]
        ):
            said.append(f"{service}: command {theirs_} and {command}")
        files = {path: text.strip() for path, text in mounted_files(objects, spec).items()}
        theirs_files = {path: text.strip() for path, text in twin.get("configs", {}).items()}
        if files != theirs_files:
            said.append(f"{service}: files {theirs_files} and {files}")
        folders = {
            str(v).split(":")[1] for v in twin.get("volumes", ()) if not str(v).startswith("${")
        }
        folders = (folders | set(twin.get("tmpfs", ()))) - {"/settings"}
        mounts = {m["mountPath"] for m in container.get("volumeMounts", ())}
        if service == "local-nims":
            folders -= {"/files"}
        said += [f"{service}: the chart mounts no {f}" for f in sorted(folders - mounts)]
    for role in ROLES if profile == "nim" else ():
        image = find(objects, "NIMService", f"nim-{role}")["spec"]["image"]
        ours_ = f"{image['repository']}:{image['tag']}"
        if ours_ != default_of(composed[f"nim-{role}"]["image"]):
            said.append(f"nim-{role}: image {composed[f'nim-{role}']['image']} and {ours_}")
    return said
