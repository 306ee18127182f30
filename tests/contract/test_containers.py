"""The images, the Compose file and the chart's pods in a container engine.

The Compose file is brought up, asked, uploaded to and stopped. Of the chart, each container is run
with the command, the environment and the restrictions of its pod.

Where no registry of images can be reached, `tools/offline_engine.sh` makes the engine and the base
images. The store is PostgreSQL with pgvector, which can be had everywhere.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from nim_cookbook.data import data_path
from rag_service import chart

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy" / "compose.yaml"
TOKEN = "fake-token-for-tests-0123456789abcdef"
QUERY = "http://127.0.0.1:1416"
IMAGES = ("service", "chat", "local")
# Megabytes. On the offline base of 395 MB they had 805, 892 and 819; the official base has a third.
LARGEST = {"service": 900, "chat": 1000, "local": 900}


def engine_runs() -> bool:
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False


pytestmark = [
    pytest.mark.container,
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not engine_runs(), reason="no container engine runs here"),
]


def docker(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def images() -> dict[str, dict[str, Any]]:
    """Build the images; return what the engine says of each."""
    made = subprocess.run(
        ["make", "images"], cwd=ROOT, capture_output=True, text=True, timeout=3000
    )
    assert made.returncode == 0, made.stderr[-3000:]
    said = docker("image", "inspect", *(f"nim-rag-cookbook/{target}:0.1.0" for target in IMAGES))
    return dict(zip(IMAGES, json.loads(said.stdout), strict=True))


@pytest.mark.parametrize("target", IMAGES)
def test_an_image_is_small_and_does_not_run_as_root(
    images: dict[str, dict[str, Any]], target: str
) -> None:
    assert images[target]["Size"] < LARGEST[target] * 1_000_000
    assert images[target]["Config"]["User"] == "10001:10001"


class Compose:
    """One project of the Compose file, with the local profile and PostgreSQL."""

    def __init__(self, weights: Path) -> None:
        self.command = [
            str(Path(sysconfig.get_path("scripts"), "docker-compose")),
            *("-f", str(FILE), "-p", "cookbook-test", "--profile", "local"),
        ]
        self.environment = os.environ | {
            "COOKBOOK_STORE": "postgres",
            "COOKBOOK_SERVICE_TOKEN": TOKEN,
        }
        self.weights = weights

    def __call__(
        self, *arguments: str, check: bool = True, timeout: float = 900
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{done.stderr[-2000:]}\n{self.logs()}"
        return done

    def logs(self) -> str:
        return self("logs", "--tail", "20", check=False).stdout[-6000:]


@pytest.fixture(scope="module")
def compose(images: dict[str, dict[str, Any]]) -> Iterator[Compose]:
    from nim_cookbook.local import cache_dir

    project = Compose(cache_dir())
    project("down", "--volumes", "--timeout", "10")
    try:
        project("create", "local-nims")
        # The weights that are here already, so that nothing is fetched again.
        container = project("ps", "-aq", "local-nims").stdout.strip()
        volume = json.loads(docker("inspect", container).stdout)[0]["Mounts"]
        source = next(m["Source"] for m in volume if m["Destination"] == "/cache")
        subprocess.run(["cp", "-r", str(project.weights / "weights"), source], check=True)
        subprocess.run(["chown", "-R", "10001:10001", source], check=True)
        project("up", "-d", "--wait", "--wait-timeout", "600", "query", "chat", "indexer")
        yield project
    finally:
        project("down", "--volumes", "--timeout", "10", check=False)


@pytest.fixture
def client(compose: Compose) -> Iterator[httpx.Client]:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=QUERY, headers=bearer, timeout=180, trust_env=False) as opened:
        yield opened


def until_ready(seconds: float = 180) -> None:
    """Wait until the query service answers; it restarts until its store does."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{QUERY}/health/ready", trust_env=False).status_code == 200:
                return
        time.sleep(1)
    pytest.fail("the query service does not get ready")


def found(client: httpx.Client, question: str, document: str) -> bool:
    answer = client.post("/search/run", json={"question": question})
    assert answer.status_code == 200, answer.text
    return any(document == s["document"] for s in answer.json()["result"]["sources"])


def test_the_documents_are_set_up_and_asked_about(compose: Compose, client: httpx.Client) -> None:
    compose("up", "--exit-code-from", "setup", "--no-deps", "setup")
    answer = client.post(
        "/ask/run", json={"question": "On what date is the factory open day 2026 in Pellin Ford?"}
    )
    assert answer.status_code == 200, f"{answer.text}\n{compose.logs()}"
    result = answer.json()["result"]
    assert result["answer"].strip()
    assert "12 September 2026" in "".join(source["text"] for source in result["sources"])


def test_an_upload_is_found_after_a_restart_and_with_two_indexers(
    compose: Compose, client: httpx.Client
) -> None:
    compose("up", "-d", "--no-deps", "--scale", "indexer=2", "indexer")
    pdf = data_path("company/pdf/sheet-hr-210.pdf")
    sent = client.post(
        "/v1/files", files={"file": (pdf.name, pdf.read_bytes())}, data={"purpose": "assistants"}
    )
    assert sent.status_code == 200, sent.text
    document = sent.json()["id"]
    question = "How long is the warranty on an HR-210?"
    limit = time.monotonic() + 120
    while not found(client, question, document) and time.monotonic() < limit:
        time.sleep(1)
    compose("restart", "query", "store")
    until_ready()
    assert found(client, question, document)


def test_the_chat_page_answers(compose: Compose) -> None:
    page = httpx.get("http://127.0.0.1:8080/", trust_env=False, timeout=30, follow_redirects=True)
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]


@pytest.mark.parametrize("service", ["query", "chat", "indexer", "local-nims"])
def test_a_container_is_read_only_and_has_no_privileges(compose: Compose, service: str) -> None:
    for container in compose("ps", "-q", service).stdout.split():
        (said,) = json.loads(docker("inspect", container).stdout)
        assert said["HostConfig"]["ReadonlyRootfs"] and said["HostConfig"]["CapDrop"] == ["ALL"]
        done = compose("exec", service, "id", "-u")
        assert done.stdout.strip() == "10001"


def test_everything_stops_at_once(compose: Compose) -> None:
    """Nothing has to be killed: each ends within its own grace."""
    compose("stop")
    for container in compose("ps", "-aq").stdout.split():
        (said,) = json.loads(docker("inspect", container).stdout)
        assert said["State"]["ExitCode"] in (0, 143), (said["Name"], said["State"], compose.logs())


# --------------------------------------------------------------------------- the chart's containers

NAME = f"{chart.RELEASE}-nim-rag-cookbook"
NETWORK = "cookbook-chart-test"
#: Values of which the chart is rendered: its own, each of its files, and the other store.
RENDERED: dict[str, tuple[str | None, dict[str, Any]]] = {
    "values": (None, {}),
    **{
        file.stem.removeprefix("values-"): (file.stem.removeprefix("values-"), {})
        for file in sorted(chart.chart_dir().glob("values-*.yaml"))
    },
    "postgres": ("local", {"store": {"kind": "postgres"}}),
}
#: Keys in Secrets that the reader of a values file creates.
OWN_SECRETS = {"NVIDIA_API_KEY": "nvapi-fake-key-for-tests"}


def secret(objects: chart.Manifests, name: str) -> dict[str, str]:
    """Return what a Secret holds; `OWN_SECRETS` for one that is not the chart's."""
    for one in objects:
        if (one.kind, one.name) == ("Secret", name):
            return {key: base64.b64decode(text).decode() for key, text in one.data["data"].items()}
    return OWN_SECRETS


def environment_of(objects: chart.Manifests, container: dict[str, Any]) -> dict[str, str]:
    """Return a container's variables, with what ConfigMaps and Secrets hold."""
    made: dict[str, str] = {}
    for source in container.get("envFrom", ()):  # no values file names a Secret there
        made |= objects.one("ConfigMap", source["configMapRef"]["name"]).data["data"]
    for entry in container.get("env", ()):
        if "value" in entry:
            made[entry["name"]] = entry["value"]
        else:
            reference = entry["valueFrom"]["secretKeyRef"]
            made[entry["name"]] = secret(objects, reference["name"])[reference["key"]]
    return made


def restrictions(pod: dict[str, Any]) -> list[str]:
    """Return a pod's security context, and its first container's, as options of the engine."""
    container = pod["containers"][0]
    context = pod["securityContext"] | container["securityContext"]
    assert context["runAsNonRoot"] and not context["allowPrivilegeEscalation"]
    return [
        *("--user", f"{context['runAsUser']}:{context['runAsGroup']}"),
        *(["--read-only"] if context["readOnlyRootFilesystem"] else []),
        *(f"--cap-drop={name}" for name in context["capabilities"]["drop"]),
        *("--security-opt", "no-new-privileges"),
        *("--memory", container["resources"]["limits"]["memory"].removesuffix("i").lower()),
    ]


def mounts(objects: chart.Manifests, pod: dict[str, Any], folder: Path) -> list[str]:
    """Return a pod's volumes as options of the engine.

    Claims are memory too, and all belong to the pod's user: the engine gives them the mode of the
    folder below, so that what `fsGroup` does for a group cannot be had.

    Args:
        objects: The rendering.
        pod: Its specification.
        folder: Where files of ConfigMaps are written to.
    """
    volumes = {one["name"]: one for one in pod.get("volumes", ())}
    options = []
    for mount in pod["containers"][0].get("volumeMounts", ()):
        volume = volumes.get(mount["name"], {})
        if "configMap" in volume:
            files = objects.one("ConfigMap", volume["configMap"]["name"]).data["data"]
            place = folder / mount["name"]
            place.mkdir(mode=0o755)
            for name, text in files.items():
                (place / name).write_text(text, encoding="utf-8")
            options += ["--volume", f"{place}:{mount['mountPath']}:ro"]
        else:
            size = volume.get("emptyDir", {}).get("sizeLimit", "1Gi").removesuffix("i").lower()
            owner = pod["securityContext"]
            held = f"exec,size={size},uid={owner['runAsUser']},gid={owner['fsGroup']}"
            options += ["--tmpfs", f"{mount['mountPath']}:{held}"]
    return options


class Running:
    """The container of a pod of the chart, on the test's network."""

    def __init__(
        self,
        objects: chart.Manifests,
        part: str,
        folder: Path,
        *options: str,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        (found,) = [
            one
            for one in objects
            if one.kind in ("Deployment", "StatefulSet") and one.name == f"{NAME}-{part}"
        ]
        self.pod = found.data["spec"]["template"]["spec"]
        (self.container,) = self.pod["containers"]
        assert "command" not in self.container  # it would take the entry point's place
        environment = environment_of(objects, self.container) | dict(variables or {})
        self.ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        self.name = f"{NETWORK}-{part}"
        self.remove()
        docker(
            *("run", "--detach", "--name", self.name, "--network", NETWORK),
            *restrictions(self.pod),
            *mounts(objects, self.pod, folder),
            *(f"--env={name}={value}" for name, value in environment.items()),
            *(f"--publish=127.0.0.1::{port}" for port in self.ports.values()),
            *options,
            self.container["image"],
            *self.container.get("args", ()),
        )

    def until(self, probe: str, seconds: float = 300) -> None:
        """Wait until a probe is answered."""
        limit = time.monotonic() + seconds
        while not self._answers(self.container[probe]):
            assert self.state()["Running"], (self.state(), self.logs())
            assert time.monotonic() < limit, self.logs()
            time.sleep(1)

    def stop(self) -> None:
        """Tell it to stop: it must end by itself within its grace, and not by a crash."""
        docker("stop", "--time", str(self.pod["terminationGracePeriodSeconds"]), self.name)
        assert self.state()["ExitCode"] in (0, 143), (self.state(), self.logs())

    def remove(self) -> None:
        subprocess.run(["docker", "rm", "--force", "--volumes", self.name], capture_output=True)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._said()["State"]
        return state

    def _said(self) -> dict[str, Any]:
        (said,) = json.loads(docker("inspect", self.name).stdout)
        return dict(said)

    def logs(self) -> str:
        done = docker("logs", "--tail", "40", self.name)
        return f"{done.stdout}{done.stderr}"[-4000:]

    def _answers(self, probe: dict[str, Any]) -> bool:
        if "exec" in probe:
            command = ["docker", "exec", self.name, *probe["exec"]["command"]]
            return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
        asked = probe["httpGet"]
        published = self._said()["NetworkSettings"]["Ports"]
        for place in published.get(f"{self.ports[asked['port']]}/tcp") or ():
            url = f"http://{place['HostIp']}:{place['HostPort']}{asked['path']}"
            with contextlib.suppress(httpx.TransportError):
                return 200 <= httpx.get(url, trust_env=False, timeout=10).status_code < 400
        return False  # nothing is published of one that has ended


@pytest.fixture(scope="module")
def backends(
    images: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[chart.Manifests, dict[str, Running]]]:
    """Queue, store and models of one rendering, under the names of their Services."""
    from nim_cookbook.local import cache_dir

    values, overrides = RENDERED["postgres"]
    objects = chart.render(values, overrides=overrides)
    weights = f"{cache_dir() / 'weights'}:/cache/weights:ro"  # so that nothing is fetched again
    running: dict[str, Running] = {}
    subprocess.run(["docker", "network", "rm", NETWORK], capture_output=True)
    docker("network", "create", NETWORK)
    try:
        for part in ("nats", "postgres", "local-nims"):
            folder = tmp_path_factory.mktemp(part)
            options = ["--network-alias", f"{NAME}-{part}"]
            if part == "local-nims":
                options += ["--volume", weights]
            running[part] = Running(objects, part, folder, *options)
        for one in running.values():
            one.until("startupProbe", 600)
        yield objects, running
    finally:
        for one in running.values():
            one.remove()
        docker("network", "rm", NETWORK)


def in_place_of_what_is_not_here(values: str, objects: chart.Manifests) -> dict[str, str]:
    """Return the backends' addresses and keys for those that only a cluster or NVIDIA has."""
    if values == "postgres":
        return {}
    password = secret(objects, f"{NAME}-postgres")["POSTGRES_PASSWORD"]
    key = secret(objects, f"{NAME}-local-nims")["COOKBOOK_LOCAL_KEY"]
    models = f"http://{NAME}-local-nims"
    store = {"COOKBOOK_STORE_URL": f"postgresql://cookbook:{password}@{NAME}-postgres/cookbook"}
    if values in ("values", "hosted"):  # of the catalog a start needs the embedding model alone
        moved = {"NVIDIA_EMBEDDINGS_URL": f"{models}:8001/v1", "NVIDIA_EMBEDDINGS_KEY": key}
    else:
        moved = {
            f"NIM_{role}_URL": f"{models}:{8000 + number}/v1"
            for number, role in enumerate(("CHAT", "EMBEDDING", "RERANKING"))
        } | {"NIM_API_KEY": key}
    return store | moved


@pytest.mark.parametrize("part", ["query", "indexer", "chat"])
@pytest.mark.parametrize("values", RENDERED)
def test_a_container_of_the_chart_starts_and_stops(
    backends: tuple[chart.Manifests, dict[str, Running]], values: str, part: str, tmp_path: Path
) -> None:
    name, overrides = RENDERED[values]
    objects = backends[0] if values == "postgres" else chart.render(name, overrides=overrides)
    variables = in_place_of_what_is_not_here(values, backends[0])
    running = Running(objects, part, tmp_path, variables=variables)
    try:
        running.until("startupProbe")
        if (
            part == "query" and "NVIDIA_EMBEDDINGS_URL" not in variables
        ):  # all that it needs is here
            running.until("readinessProbe", 60)
        running.stop()
    finally:
        running.remove()


def test_queue_store_and_models_of_the_chart_stop(
    backends: tuple[chart.Manifests, dict[str, Running]],
) -> None:
    for one in backends[1].values():
        one.stop()
