"""`serve --like hosted`: what NVIDIA's hosts do and a NIM does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local_endpoints.faults import FAULTS, switched
from local_endpoints.nim.hosted import HostedCatalog
from nim_cookbook.models import ROLES, load_registry
from tests.hosted import KEY, forwarding
from tests.support import Servers, serving_app, started_servers

REGISTRY = load_registry()
CHAT = REGISTRY.default("chat").id
RERANKER = REGISTRY.default("reranking")
RANKING_PATH = httpx.URL(RERANKER.hosted_url or "").path.removeprefix("/v1")
CALLS = {
    "chat": ("/chat/completions", {"model": CHAT, "messages": [{"role": "user", "content": "Hi"}]}),
    "embedding": (
        "/embeddings",
        {"model": REGISTRY.default("embedding").id, "input": ["a"], "input_type": "query"},
    ),
    "reranking": (
        RANKING_PATH,
        {"model": RERANKER.id, "query": {"text": "a"}, "passages": [{"text": "b"}]},
    ),
}
INTEGRATE, AI = {"Host": "integrate.api.nvidia.com"}, {"Host": "ai.api.nvidia.com"}
QUESTION = [{"role": "user", "content": "Jean lives in Paris, Giorgio in Rome. Who lives in Rome?"}]
THINK_NOT = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a catalog like the hosted one, whose chat model reasons; busy at first."""
    log: Path = tmp_path_factory.mktemp("hosted") / "log"
    options = ("--like=hosted", "--fault=reasoning", "--fault=busy:embedding:1")
    with (
        started_servers(log, "nvapi-local-fake-key-for-tests", *options) as (servers, _),
        servers.client("catalog") as client,
    ):
        yield client


@pytest.fixture(scope="module")
def failing(servers: Servers) -> Iterator[tuple[HostedCatalog, httpx.Client]]:
    """The session's catalog as the hosted one, and a client of it."""
    catalog = HostedCatalog(forwarding(servers))
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        serving_app(catalog) as address,
        httpx.Client(base_url=f"{address}/v1", headers=headers, timeout=60) as client,
    ):
        yield catalog, client


def call(client: httpx.Client, role: str, **more: object) -> httpx.Response:
    path, body = CALLS[role]
    return client.post(path, json=body, **more)


def ask(client: httpx.Client, **more: object) -> dict[str, object]:
    body = {"model": CHAT, "messages": QUESTION, **more}
    answer = client.post("/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def counted(answer: dict[str, object]) -> dict[str, int]:
    """The usage, without how much of the prompt was read before."""
    return {name: count for name, count in answer["usage"].items() if isinstance(count, int)}


def test_each_role_has_its_host(hosted):
    assert call(hosted, "embedding").status_code == 429  # the fault that strikes once
    assert call(hosted, "embedding", headers=INTEGRATE).status_code == 200
    assert call(hosted, "reranking", headers=AI).json()["rankings"]
    for role, headers in (("embedding", AI), ("chat", AI), ("reranking", INTEGRATE)):
        assert call(hosted, role, headers=headers).status_code == 404
    for path in ("/ranking", "/nothing"):
        assert hosted.post(path, json={}, headers=INTEGRATE).text == "404 page not found"
    assert hosted.get("/metadata", headers=INTEGRATE).status_code == 404
    assert hosted.get("/metadata").json()["localStandIn"] is True


def test_dead_models_are_listed_and_answer_410(hosted):
    listed = {
        entry["id"] for entry in httpx.get(f"{hosted.base_url}models", timeout=60).json()["data"]
    }
    models = [model for role in ROLES for model in REGISTRY.models(role)]
    assert listed == {model.id for model in models}
    for model in models:
        if model.status == "retired":
            path, body = CALLS[model.role]
            gone = hosted.post(path, json={**body, "model": model.id})
            assert gone.status_code == 410
            assert model.id in gone.json()["detail"]


def test_unknown_models_and_wrong_keys(hosted):
    path, body = CALLS["chat"]
    for model in ("nobody/nothing", REGISTRY.weights_for("chat", "small").local_id):
        assert hosted.post(path, json={**body, "model": model}).status_code == 404
    assert call(hosted, "chat", headers={"Authorization": "Bearer no"}).status_code == 403
    assert call(hosted, "chat", headers={"Authorization": ""}).status_code == 401


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.status])
def test_fault(failing, name):
    catalog, client = failing
    catalog.faults = [switched(name)]
    fault = FAULTS[name]
    for role in ROLES:
        answer = call(client, role)
        assert answer.status_code == fault.status
        told = [answer.headers[name] for name in fault.headers]  # and none left to be filled in
        assert all(told) and not any("{" in value for value in told)
        if isinstance(fault.body, dict):
            assert answer.json().keys() == fault.body.keys()
    assert ("Retry-After" in answer.headers) == (name == "busy")
    catalog.faults = [switched(f"{name}:chat:1")]
    assert call(client, "embedding").status_code == 200
    assert [call(client, "chat").status_code for _ in range(2)] == [fault.status, 200]


def test_reasoning_uses_up_a_small_limit(hosted):
    answer = ask(hosted, max_tokens=4)
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == ""
    assert choice["message"]["reasoning_content"]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 4


def test_reasoning_leaves_the_rest_to_the_answer(hosted):
    plain = ask(hosted, max_tokens=40, **THINK_NOT)
    assert "reasoning_content" not in plain["choices"][0]["message"]
    thought = ask(hosted, max_tokens=60, reasoning_budget=10)
    message, usage = thought["choices"][0]["message"], thought["usage"]
    assert message["reasoning_content"]
    assert message["content"] == plain["choices"][0]["message"]["content"]
    assert plain["usage"]["completion_tokens"] < usage["completion_tokens"] <= 60
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("limit", [4, 60])
def test_a_stream_says_the_same(hosted, limit):
    more = {"max_tokens": limit, "reasoning_budget": 10}
    whole = ask(hosted, **more)
    body = {"model": CHAT, "messages": QUESTION, "stream": True, **more}
    body["stream_options"] = {"include_usage": True}
    with hosted.stream("POST", "/chat/completions", json=body) as answer:
        data = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert data.pop() == "[DONE]"
    chunks = [json.loads(line) for line in data]
    assert counted(chunks.pop()) == counted(whole)
    (choice,) = whole["choices"]
    for part in ("content", "reasoning_content"):
        told = "".join(chunk["choices"][0]["delta"].get(part) or "" for chunk in chunks)
        assert told == choice["message"][part]
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert finishes == [None] * (len(chunks) - 1) + [choice["finish_reason"]]


def test_template_arguments_that_nothing_reads_are_ignored(hosted):
    more = {"chat_template_kwargs": {"enable_thinking": False, "nonsense": 1}}
    assert ask(hosted, max_tokens=4, **more)["choices"][0]["message"]["content"]


def test_what_the_model_refuses_is_refused_while_it_reasons(hosted):
    path, body = CALLS["chat"]
    for more in ({"max_tokens": -1}, {"temperature": 9}, {"messages": "hi"}, {"messages": [1]}):
        for stream in (False, True):
            answer = hosted.post(path, json={**body, "stream": stream, **more})
            assert answer.status_code == 422, more
            assert answer.json()["detail"]
