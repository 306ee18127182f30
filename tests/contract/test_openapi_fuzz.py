"""Every server against its own OpenAPI document: Schemathesis invents the requests.

No request may be answered with a 5xx, a status, a type or a body that the document does not show.
Each path answers methods that it lacks with 405, and names in Allow those that it has.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.engine import Status, events, from_schema
from schemathesis.generation import GenerationMode

from local_endpoints.notion import load_workspace
from nim_cookbook.data import data_path
from nim_cookbook.models import load_registry
from rag_service.local import LocalServices
from tests.query_service import TOKEN, TestedService, environment, index_documents, running
from tests.support import Servers, started_servers

SEED = 20261127
#: Requests that Schemathesis invents for an operation, beside those that cover its document.
EXAMPLES = 10
#: Seconds after which no more are sent to a server; an idle machine needs a fraction.
SECONDS = 240
#: Most tokens that a request may ask for: they are written at reading speed.
TOKENS = 4
#: Most texts of a request.
ITEMS = 3
NAMES = ("chat", "embedding", "reranking", "catalog", "gradient", "notion")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"}
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


@dataclass(frozen=True)
class Target:
    """A server to be tested.

    Attributes:
        root: Its address.
        headers: What it demands of every request.
        known: Values of path parameters and fields that it knows, by name.
    """

    root: str
    headers: dict[str, str] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        answer = httpx.get(f"{self.root}/openapi.json", headers=self.headers, timeout=120)
        assert answer.status_code == 200
        return answer.json()


def local(servers: Servers, name: str) -> Target:
    """Return one of the local servers."""
    root = servers.url(name).removesuffix("/v1").removesuffix("/api")
    bearer = {"Authorization": f"Bearer {servers.key}"}
    if name == "gradient":
        headers = bearer | {"x-gradient-workspace-id": "any"}
        listed = httpx.get(f"{root}/api/models", headers=headers, timeout=120).json()
        base = listed["models"][0]["id"]
        known = {"identity": base, "baseModelId": base, "slug": "bge-large"}
        return Target(root, headers, known)
    if name == "notion":
        pages = list(load_workspace(data_path("notion")).shared())
        database = next(page for page in pages if page.is_database)
        known = {
            "page_id": next(page.id for page in pages if not page.is_database),
            "block_id": pages[0].id,
            "database_id": database.id,
            "source_id": database.source_id,
            "user_id": "me",
        }
        return Target(root, bearer | {"Notion-Version": "2022-06-28"}, known)
    registry = load_registry()
    models = {
        "chat/completions": registry.default("chat").id,
        "v1/completions": registry.default("chat").id,
        "tokenize": registry.default("chat").id,
        "embeddings": registry.default("embedding").id,
        "ranking": registry.default("reranking").id,
    }
    slug = registry.default("reranking").id.rsplit("/", 1)[-1].replace(".", "_")
    return Target(root, bearer, {"model": models, "model_slug": slug})


def plausible(tested: Target) -> Callable[..., None]:
    """Return a hook that gives valid requests names that the server knows, and bounds all."""

    def before_call(context: object, case: Any, kwargs: dict[str, Any]) -> None:
        body = case.body if isinstance(case.body, dict) else {}
        for name in ("max_tokens", "max_completion_tokens", "maxGeneratedTokenCount"):
            if isinstance(body.get(name), int) and body[name] > TOKENS:
                body[name] = TOKENS
        for name in ("input", "passages", "inputs", "samples", "prompt"):
            if isinstance(body.get(name), list):
                body[name] = body[name][:ITEMS]
        limit = "maxGeneratedTokenCount" if case.path.endswith("/complete") else "max_tokens"
        if case.path.endswith(("/complete", "completions")) and body.get(limit) is None:
            body[limit] = TOKENS
        if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
            return
        for name in case.path_parameters or ():
            if name in tested.known:
                case.path_parameters[name] = tested.known[name]
        for part in (body, body.get("model")):
            if isinstance(part, dict) and "baseModelId" in part and "baseModelId" in tested.known:
                part["baseModelId"] = tested.known["baseModelId"]
        for path, model in tested.known.get("model", {}).items():
            if isinstance(body.get("model"), str) and path in case.path:
                body["model"] = model

    return before_call


def failures(tested: Target, examples: int) -> tuple[dict[str, int], list[str]]:
    """Let Schemathesis test a server; return its answers by status, and the faults."""
    project = {
        "headers": tested.headers,
        "request-timeout": 300.0,
        "generation": {"max-examples": examples, "deterministic": True},
        "phases": {
            "stateful": {"enabled": False},
            "coverage": {"unexpected-methods": []},
        },
        "checks": {"enabled": False} | {name: {"enabled": True} for name in CHECKS},
    }
    config = SchemathesisConfig.from_dict({"seed": SEED, "cache": {"enabled": False}, **project})
    schema = schemathesis.openapi.from_url(
        f"{tested.root}/openapi.json", headers=tested.headers, config=config
    )
    sent: dict[str, int] = {}
    found: dict[Any, str] = {}
    hook = plausible(tested)
    schemathesis.hook("before_call")(hook)
    try:
        stream, limit = from_schema(schema).execute(), time.monotonic() + SECONDS
        for event in stream:
            if time.monotonic() > limit:
                stream.stop()
            if isinstance(event, events.NonFatalError):
                found[event.label, str(event.info)] = f"{event.label}: {event.info}"
            elif isinstance(event, events.FatalError):
                raise event.exception
            elif isinstance(event, events.ScenarioFinished):
                for one in event.recorder.interactions.values():
                    status = str(one.response.status_code) if one.response else "none"
                    sent[status] = sent.get(status, 0) + 1
                found |= {key: said for key, said in failed(event.recorder) if key not in found}
    finally:
        schemathesis.hooks.unregister(hook)
    return sent, list(found.values())


def failed(recorder: Any) -> Iterator[tuple[Any, str]]:
    """Yield the failed checks of a scenario, each with its request and the answer."""
    for case, checks in recorder.checks.items():
        for check in checks:
            if check.status is Status.FAILURE and check.failure_info is not None:
                failure: Failure = check.failure_info.failure
                answer = recorder.interactions[case].response
                text = answer.content[:500] if answer else b""
                yield (
                    (recorder.label, check.name, failure.message[:200]),
                    f"{recorder.label}: {check.name}: {failure.message}\n"
                    f"{check.failure_info.code_sample}\n{text!r}",
                )


# --- the servers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Local servers of this module's own: the session's would train adapters for the user."""
    folder = tmp_path_factory.mktemp("servers")
    with started_servers(
        folder / "log",
        "nvapi-local-fake-key-for-fuzz",
        COOKBOOK_MODELS="small",
        COOKBOOK_ADAPTERS_DIR=str(folder / "adapters"),
    ) as (servers, _):
        yield servers


@pytest.fixture(scope="module")
def service(servers: Servers) -> Iterator[TestedService]:
    """A query service over a few documents."""
    with LocalServices() as services:
        index_documents(services)
        with running(services, environment(services, servers)) as started:
            yield started


def query_service(service: TestedService) -> Target:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    models = {"chat/completions": "ask"}
    return Target(service.url, headers, {"pipeline_name": "ask", "model": models})


# --- methods ----------------------------------------------------------------------------------


def wrong_answers_to_methods(tested: Target) -> list[str]:
    """Ask every path of the document for every method that it does not have."""
    wrong = []
    with httpx.Client(base_url=tested.root, headers=tested.headers, timeout=60) as http:
        for template, item in tested.document()["paths"].items():
            has = {method.upper() for method in item}
            path = template.format_map({**dict.fromkeys(parameters(template), "x"), **tested.known})
            for method in sorted(METHODS - has):
                answer = http.request(method, path)
                allowed = {one.strip() for one in answer.headers.get("allow", "").split(",")}
                if (answer.status_code, allowed - {"HEAD"}) == (405, has):
                    continue
                if method == "HEAD" and answer.status_code in (200, 503) and "GET" in has:
                    continue
                wrong.append(f"{method} {path}: {answer.status_code} {allowed} {answer.text[:100]}")
    return wrong


def parameters(template: str) -> list[str]:
    return [part[1:-1] for part in template.split("/") if part.startswith("{")]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "notion"])
def test_a_method_that_a_path_lacks_is_405_and_allow_names_the_others(
    servers: Servers, name: str
) -> None:
    assert wrong_answers_to_methods(local(servers, name)) == []


def test_notion_refuses_writes_as_notion_does_and_the_rest_with_405(servers: Servers) -> None:
    """Of an integration that may only read; other paths and methods are no 405 there either."""
    statuses = dict.fromkeys(("POST", "PUT", "PATCH", "DELETE"), 403) | {"GET": 400}
    for one in wrong_answers_to_methods(local(servers, "notion")):
        method = one.split()[0]
        assert method in statuses and f": {statuses[method]} " in one, one


@pytest.mark.skipif(sys.platform == "win32", reason="PostgreSQL's socket is POSIX")
@pytest.mark.long
def test_the_query_service_refuses_methods_that_a_path_lacks(service: TestedService) -> None:
    assert wrong_answers_to_methods(query_service(service)) == []


# --- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_document_is_valid_and_shows_what_is_demanded(servers: Servers, name: str) -> None:
    document = local(servers, name).document()
    schemathesis.openapi.from_dict(document).validate()
    keyed = name in ("catalog", "gradient", "notion")
    for path, item in document["paths"].items():
        for operation in item.values():
            is_open = not keyed or "/health/" in path
            assert ("security" in operation, "401" in operation["responses"]) == (
                not is_open,
                not is_open,
            )


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_documented(own_servers: Servers, name: str) -> None:
    check(local(own_servers, name))


@pytest.mark.skipif(sys.platform == "win32", reason="PostgreSQL's socket is POSIX")
@pytest.mark.long
def test_every_answer_of_the_query_service_is_documented(service: TestedService) -> None:
    check(query_service(service))


def check(tested: Target) -> None:
    sent, found = failures(tested, EXAMPLES)
    print(f"{sum(sent.values())} requests: {sent}")
    assert sent.get("200", 0) > 5
    assert not found, "\n\n".join([f"{len(found)} faults", *found])
