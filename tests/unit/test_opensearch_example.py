"""The worked example of a managed OpenSearch: its changes apply, and its values suit the chart.

No server is asked anything. What needs `opensearch-haystack` is skipped without it: it is no
dependency of this repository.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.unit.chart_checks import (
    CHECKS,
    OTHERS,
    ROOT,
    Object,
    component,
    find,
    objects_in,
    templated,
    values_of,
)

EXAMPLE = ROOT / "deploy" / "helm" / "opensearch.md"
URL = "opensearch://cookbook:p%40ss@search.example.com:9200"
FACTORY, SIZING, HYBRID = range(3)


def blocks(language: str, text: str | None = None) -> list[str]:
    """Return the code blocks in a language."""
    text = EXAMPLE.read_text("utf-8") if text is None else text
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def values() -> Object:
    (block,) = blocks("yaml")
    loaded: Object = yaml.safe_load(block)
    return {**loaded, "endpoints": values_of("hosted")["endpoints"]}


def changed(folder: Path) -> Path:
    """Return a copy of the services with the example's changes."""
    shutil.copytree(
        ROOT / "utils" / "rag_service",
        folder / "utils" / "rag_service",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    if shutil.which("git") is None:
        pytest.skip("no git, which applies the changes")
    (diff,) = blocks("diff")
    subprocess.run(
        ["git", "apply", "-"],
        input=diff,
        cwd=folder,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
        text=True,
        capture_output=True,
        check=True,
    )
    services = folder / "utils" / "rag_service"
    (services / "opensearch.py").write_text(blocks("python")[FACTORY], "utf-8")
    return folder / "utils"


def said_by(folder: Path, code: str) -> str:
    """Return what code prints that imports the changed services."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_changes_apply_and_the_factory_knows_the_url(tmp_path: Path) -> None:
    folder = changed(tmp_path)
    kinds = f"stores.store_kind({URL!r}), stores.store_kind('postgresql://host/db')"
    code = f"from rag_service import stores; print({kinds})"
    assert said_by(folder, code) == "opensearch pgvector"


def test_the_values_suit_the_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = objects_in(templated(values()))
    monkeypatch.setattr("tests.unit.chart_checks.OTHERS", OTHERS | {"opensearch-store"})
    for check in CHECKS.values():
        check(objects)
    for name in ("query", "indexer", "setup"):
        (entry,) = [
            entry
            for entry in component(objects, name)["env"]
            if entry["name"] == "COOKBOOK_STORE_URL"
        ]
        assert entry["valueFrom"]["secretKeyRef"]["name"] == "opensearch-store"
    assert "COOKBOOK_STORE_URL" not in find(objects, "ConfigMap", "settings")["data"]
    assert not [one for one in objects if one["metadata"]["name"].endswith("-qdrant")]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda held: held["store"].pop("kind"), "two stores"),
        (lambda held: held["store"].pop("existingSecret"), "no store"),
        (lambda held: held.pop("networkPolicy"), "shuts the way"),
        (lambda held: held["store"].update(existingSecrets="x"), "existingSecrets"),
    ],
)
def test_values_that_leave_something_out_are_refused(
    spoil: Callable[[Object], Any], why: str
) -> None:
    held = values()
    spoil(held)
    with pytest.raises(Exception, match=why):
        templated(held)


def test_the_sizes_are_as_the_example_says() -> None:
    names: dict[str, Any] = {}
    exec(blocks("python")[SIZING], names)
    assert names["graphs"] / 1e9 == pytest.approx(18.3, abs=0.05)
    assert names["graphs"] / 2**30 == pytest.approx(17, abs=0.05)
    assert names["instances"] == pytest.approx(2.1, abs=0.05)


# ------------------------------------------------------------------------- with the package at hand


@pytest.fixture
def factory(tmp_path: Path) -> ModuleType:
    pytest.importorskip(
        "haystack_integrations.document_stores.opensearch",
        reason="no OpenSearch: install opensearch-haystack to check the example's code",
    )
    path = tmp_path / "opensearch.py"
    path.write_text(blocks("python")[FACTORY], "utf-8")
    spec = importlib.util.spec_from_file_location("example_opensearch", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_store_is_made_without_a_server_and_shows_no_password(factory: ModuleType) -> None:
    store = factory.open_opensearch(URL, "company", 8)
    data = store.to_dict()
    settings = data["init_parameters"]
    assert settings["hosts"] == "https://search.example.com:9200"
    assert settings["mappings"]["properties"]["embedding"]["dimension"] == 8
    assert "p@ss" not in str(data) and "p%40ss" not in str(data)
    assert store._resolve_http_auth() == ("cookbook", "p@ss")
    assert type(store).from_dict(data).to_dict() == data
    # What the indexer asks of a store.
    for name in ("filter_documents", "write_documents", "delete_documents", "count_documents"):
        assert callable(getattr(store, name))


def test_the_client_takes_the_settings(factory: ModuleType) -> None:
    from opensearchpy import OpenSearch

    store = factory.open_opensearch(URL, "company", 8)
    client = OpenSearch(
        hosts=store._hosts,
        http_auth=store._resolve_http_auth(),
        use_ssl=store._use_ssl,
        verify_certs=store._verify_certs,
        timeout=store._timeout,
        **store._kwargs,
    )
    assert client.transport.max_retries == 0
    (connection,) = client.transport.connection_pool.connections
    assert (connection.host, connection.use_ssl) == ("https://search.example.com:9200", True)


def test_filters_search_while_the_graph_is_walked(factory: ModuleType) -> None:
    store = factory.open_opensearch(URL, "company", 2)
    retriever = factory.opensearch_retriever(store, 3)
    assert callable(retriever.run) and callable(retriever.run_async)
    body = store._prepare_embedding_search_request(
        query_embedding=[1.0, 0.0],
        filters={"field": "meta.document", "operator": "in", "value": ["a"]},
        top_k=3,
        custom_query=None,
        efficient_filtering=retriever.to_dict()["init_parameters"]["efficient_filtering"],
    )
    (knn,) = body["query"]["bool"]["must"]
    assert knn["knn"]["embedding"]["filter"] == {"bool": {"must": {"terms": {"document": ["a"]}}}}


@pytest.mark.long
def test_the_changed_services_open_it(tmp_path: Path, factory: ModuleType) -> None:
    # A server that is away is waited for, a request that is at fault is not.
    said = said_by(
        changed(tmp_path / "services"),
        "from rag_service import stores\n"
        "from rag_service.retry import is_outage\n"
        "import opensearchpy.exceptions as e\n"
        f"store = stores.open_store({URL!r}, dimension=8, set_up=False)\n"
        "print(type(stores.embedding_retriever(store)).__name__,\n"
        "      is_outage(e.ConnectionError('N/A', 'refused', None)),\n"
        "      is_outage(e.TransportError(503, 'busy', None)),\n"
        "      is_outage(e.RequestError(400, 'mapper_parsing_exception', None)))",
    )
    assert said == "OpenSearchEmbeddingRetriever True True False"


def test_the_hybrid_pipeline_is_written_and_read(
    tmp_path: Path, factory: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from haystack import Pipeline

    monkeypatch.setitem(sys.modules, "rag_service.opensearch", factory)
    names: dict[str, Any] = {}
    exec(blocks("python")[HYBRID], names)
    hybrid: Pipeline = names["hybrid"]
    written = hybrid.dumps()
    assert "PASSWORD" not in written and "password@" not in written
    again = Pipeline.loads(written, allowed_modules=["haystack_integrations"])
    held, read = hybrid.to_dict(), again.to_dict()
    assert read["components"] == held["components"]
    assert {"retriever", "keywords", "joiner"} == set(read["components"])
    # In any order.
    assert {tuple(one.items()) for one in read["connections"]} == {
        tuple(one.items()) for one in held["connections"]
    }
