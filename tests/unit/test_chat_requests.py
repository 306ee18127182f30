"""Hostile requests, and an engine that stops, at the local servers' applications.

The engine is a double that does what a test cannot bring the real one to do: stop at a chosen
moment, and write its request as httpx does, without a model behind it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import ASGIApp

from local_endpoints.gradient.app import base_model_id
from local_endpoints.gradient.app import build_app as build_gradient
from local_endpoints.gradient.store import AdapterStore
from local_endpoints.loading import make_services
from local_endpoints.nim import chat
from local_endpoints.nim.catalog import build_apps
from local_endpoints.nim.engines.adaptable import AdaptableEngine
from local_endpoints.nim.engines.chat import EngineStopped
from local_endpoints.nim.hosted import HostedCatalog
from local_endpoints.nim.schemas import MAX_TOOLS
from local_endpoints.notion import build_app as build_notion
from local_endpoints.notion import load_workspace
from local_endpoints.weights import ResolvedWeights
from nim_cookbook.data import data_path
from nim_cookbook.models import load_registry

Json = dict[str, Any]
MODEL = load_registry().default("chat").id
KEY = "nvapi-fake-key-for-tests"
HEADERS = {
    "Authorization": f"Bearer {KEY}",
    "Content-Type": "application/json",
    "x-gradient-workspace-id": "any",
    "Notion-Version": "2022-06-28",
}
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
WEIGHTS = ResolvedWeights(
    name="double",
    role="chat",
    description="A double",
    folder=Path(),
    files=(("model.gguf", "0" * 64),),
    licence="unknown",
    source="",
    engine="llama.cpp",
    max_tokens=2048,
)


class Engine:
    """Writes each request as httpx does, answers it, and stops after so many chunks."""

    context = WEIGHTS.max_tokens
    weights = WEIGHTS
    knows_tools = True
    calls_begin = ""

    def __init__(self, chunks: int | None = None) -> None:
        self.chunks = chunks
        self.cancelled = False

    async def complete(self, path: str, body: Json, adapter: str | None = None) -> Json:
        httpx.Request("POST", f"http://llama{path}", json=body)
        if self.chunks is not None:
            raise EngineStopped
        return {"choices": [], "usage": USAGE}

    async def stream(self, path: str, body: Json, adapter: str | None) -> AsyncIterator[Json]:
        for _ in range(self.chunks or 0):
            yield {"choices": [{"index": 0, "delta": {"content": "a"}}]}
        raise EngineStopped

    async def render(self, body: Json) -> str:
        return str(httpx.Request("POST", "http://llama/apply-template", json=body).content)

    async def tokenize(self, text: str, special: bool) -> list[tuple[int, str]]:
        try:
            await asyncio.sleep(30 if text == "slow" else 0)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.chunks is not None:
            raise EngineStopped
        return [(1, "a")]


@cache
def applications(engine: Any) -> dict[str, FastAPI]:
    services = make_services(load_registry())
    services.chat.load(engine, WEIGHTS)
    return build_apps(services, KEY, demand_key_everywhere=False, nim="2")


WELL = Engine()


def post(app: ASGIApp, path: str, body: Json | str) -> httpx.Response:
    text = body if isinstance(body, str) else json.dumps({"model": MODEL, **body})
    client = TestClient(app, raise_server_exceptions=False)
    return client.post(path, content=text, headers=HEADERS)


def nested(levels: int) -> str:
    return '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1)


def refused(answer: httpx.Response, status: int) -> str:
    """Return the sentence of a refusal in the server's form."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    return str(body["error"]["message"] if "error" in body else body["detail"])


ASK = {"messages": [{"role": "user", "content": "hi"}]}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def with_arguments(text: str) -> Json:
    call = {**CALL, "function": {"name": "f", "arguments": text}}
    return {"messages": [*ASK["messages"], {"role": "assistant", "tool_calls": [call]}]}


# Text inside a body that is strict JSON itself.
BAD_TEXTS = [nested(9_000), nested(300), '{"minimum": NaN}', '{"const": "\\ud800"}', "{1}"]


@pytest.mark.parametrize("text", BAD_TEXTS, ids=["9000", "300", "nan", "surrogate", "no-json"])
@pytest.mark.parametrize(
    ("server", "path", "place"),
    [
        ("chat", "chat/completions", lambda text: {"structured_outputs": {"json": text}, **ASK}),
        ("chat", "chat/completions", with_arguments),
        ("catalog", "chat/completions", lambda text: {"guided_json": text, **ASK}),
        ("catalog", "completions", lambda text: {"nvext": {"guided_json": text}, "prompt": "a"}),
    ],
)
def test_json_in_a_string_is_read_as_strictly_as_the_body(server, path, place, text):
    answer = post(applications(WELL)[server], f"/v1/{path}", place(text))
    bad_arguments = place is with_arguments and server == "catalog"
    assert refused(answer, 422 if bad_arguments else 400)


DEEP: dict[str, Json] = {
    "tools": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": "DEEP"}}],
        **ASK,
    },
    "response_format": {
        "response_format": {"type": "json_schema", "json_schema": {"schema": "DEEP"}},
        **ASK,
    },
    "structured_outputs": {"structured_outputs": {"json": "DEEP"}, **ASK},
    "chat_template_kwargs": {"chat_template_kwargs": "DEEP", **ASK},
}


@pytest.mark.parametrize("field", DEEP)
def test_what_is_nested_too_deeply_is_refused_and_what_is_not_reaches_the_engine(field):
    for levels, status in ((1_000, 400), (260, 400), (240, 200)):
        text = json.dumps({"model": MODEL, **DEEP[field]}).replace('"DEEP"', nested(levels))
        answer = post(applications(WELL)["chat"], "/v1/chat/completions", text)
        assert answer.status_code == status, (levels, answer.text)
        if status == 400:
            assert "levels" in refused(answer, 400)
            if field == "tools":
                tokenized = post(applications(WELL)["chat"], "/tokenize", text)
                assert "levels" in refused(tokenized, 400)


def gradient(engine: Any, folder: Path) -> FastAPI:
    services = make_services(load_registry())
    services.chat.load(engine, WEIGHTS)
    services.embedding.weights = WEIGHTS
    return build_gradient(services.chat, services.embedding, KEY, AdapterStore(folder))


def test_the_other_servers_have_the_same_limit(tmp_path: Path) -> None:
    apps: dict[str, Any] = {**applications(WELL), "gradient": gradient(WELL, tmp_path)}
    apps["notion"] = build_notion(load_workspace(data_path("notion")), KEY)
    apps["hosted"] = HostedCatalog(apps["catalog"])
    body = {**ASK, "model": MODEL, "chat_template_kwargs": "DEEP"}
    text = json.dumps(body).replace('"DEEP"', nested(300))
    for server, path, status, said in (
        ("embedding", "/v1/embeddings", 422, "levels"),
        ("reranking", "/v1/ranking", 422, "levels"),
        ("catalog", "/v1/embeddings", 422, "levels"),
        ("hosted", "/v1/chat/completions", 422, "levels"),
        ("gradient", "/api/embeddings/bge-large", 400, "must be a JSON object"),
        ("notion", "/v1/search", 400, "invalid_json"),
    ):
        answer = post(apps[server], path, text)
        assert answer.status_code == status, (server, answer.text)
        assert said in answer.text, server


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("server", ["chat", "catalog"])
def test_an_engine_that_has_stopped_is_503(server, stream):
    app = applications(Engine(chunks=0))[server]
    answer = post(app, "/v1/chat/completions", {"stream": stream, **ASK})
    assert "engine has stopped" in refused(answer, 503)
    assert "engine has stopped" in refused(
        post(app, "/v1/completions", {"stream": stream, "prompt": "a"}), 503
    )


@pytest.mark.parametrize("server", ["chat", "catalog"])
def test_an_engine_that_stops_within_a_stream_is_told_in_it(server):
    app = applications(Engine(chunks=2))[server]
    answer = post(app, "/v1/chat/completions", {"stream": True, **ASK})
    *chunks, error, done = [e.removeprefix("data: ") for e in answer.text.split("\n\n") if e]
    assert [json.loads(chunk)["choices"][0]["delta"]["content"] for chunk in chunks] == ["a"] * 2
    assert json.loads(error)["error"]["code"] == 503
    assert "engine has stopped" in json.loads(error)["error"]["message"]
    assert done == "[DONE]"
    figures = TestClient(app).get("/v1/metrics", headers=HEADERS).text
    assert 'request_failure_total{role="chat"} 1.0' in figures


def test_tokenize_says_that_the_engine_has_stopped():
    answer = post(applications(Engine(chunks=0))["chat"], "/tokenize", {"prompt": "a"})
    assert "engine has stopped" in refused(answer, 503)


def test_gradient_says_that_the_engine_has_stopped(tmp_path, monkeypatch):
    async def nothing(self: AdaptableEngine) -> None:
        return

    async def stopped(*_: object, **__: object) -> None:
        raise EngineStopped

    monkeypatch.setattr(AdaptableEngine, "start", nothing)
    monkeypatch.setattr(AdaptableEngine, "complete", stopped)
    path = f"/api/models/{base_model_id(WEIGHTS)}/complete"
    answer = post(gradient(Engine(), tmp_path), path, '{"query": "a"}')
    assert answer.status_code == 503, answer.text
    assert answer.json()["type"] == "failed"
    assert "engine has stopped" in answer.json()["message"]
    assert answer.headers["Retry-After"]


def test_tools_are_bounded():
    tool = {"type": "function", "function": {"name": "f"}}
    app = applications(WELL)["chat"]
    for count, status in ((MAX_TOOLS, 200), (MAX_TOOLS + 1, 400)):
        for path in ("/v1/chat/completions", "/tokenize"):
            answer = post(app, path, {"tools": [tool] * count, **ASK})
            assert answer.status_code == status, answer.text
    assert str(MAX_TOOLS) in refused(answer, 400)


LONG = "a" * (WEIGHTS.max_tokens * chat.LONGEST_TOKEN)


@pytest.mark.parametrize(
    ("server", "more"),
    [
        ("chat", {"stop": LONG}),
        ("chat", {"stop": [LONG]}),
        ("chat", {"chat_template_kwargs": {"a": LONG}}),
        ("chat", {"structured_outputs": {"choice": [LONG]}}),
        ("chat", {"structured_outputs": {"json": {"const": LONG}}}),
        (
            "chat",
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": LONG}}}},
        ),
        ("catalog", {"guided_choice": [LONG]}),
        ("catalog", {"guided_json": json.dumps({"const": LONG})}),
    ],
)
def test_all_that_the_engine_reads_counts_to_the_size(server, more):
    app = applications(WELL)[server]
    assert "maximum context length" in refused(
        post(app, "/v1/chat/completions", {**ASK, **more}), 400
    )
    if not more.keys() & {"chat_template_kwargs", "response_format"}:
        body = {"prompt": "a", **more}
        assert "maximum context length" in refused(post(app, "/v1/completions", body), 400)


async def test_a_client_that_leaves_ends_its_tokenizing():
    engine = Engine()
    sent = [{"type": "http.request", "body": b'{"prompt": "slow"}', "more_body": False}]
    left: Json = {"type": "http.disconnect"}

    async def receive() -> Json:
        return sent.pop(0) if sent else left

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/tokenize",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "app": SimpleNamespace(),
    }
    async with asyncio.timeout(10):
        await applications(engine)["chat"](scope, receive, send)
    await asyncio.sleep(0)
    assert engine.cancelled
