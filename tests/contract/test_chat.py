"""The chat NIM, over HTTP and through the openai client.

Its server speaks the protocol of NIM LLM 2.x here, and the catalog that of 1.x.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator

import httpx
import jsonschema
import openai
import pytest

from nim_cookbook.models import load_registry
from tests.support import Servers, started_servers

MODEL = load_registry().default("chat").id
CAPITAL = [{"role": "user", "content": "What's the capital of France"}]
STORY = [{"role": "user", "content": "Tell me a long story about the sea."}]  # over 400 tokens
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Get weather information for a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
FILM = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "rating": {"type": "integer"}},
    "required": ["title", "rating"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[Servers]:
    """Servers that nobody else asks: beside another request llama.cpp rounds differently."""
    log = tmp_path_factory.mktemp("chat") / "servers.log"
    with started_servers(log, os.environ["COOKBOOK_LOCAL_KEY"]) as (running, _):
        yield running


@pytest.fixture(scope="module")
def client(servers) -> openai.OpenAI:
    return openai.OpenAI(base_url=servers.url("chat"), api_key="not-needed", max_retries=0)


def post(servers, path: str = "/chat/completions", server: str = "chat", **body) -> httpx.Response:
    with servers.client(server) as http:
        return http.post(path, json={"model": MODEL, "messages": CAPITAL, **body})


def test_answer_has_openais_shape_and_names_the_weights(client):
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    assert answer.model == MODEL
    assert answer.system_fingerprint.startswith("local/")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_comes_token_by_token_with_usage_when_asked(client):
    stream = client.chat.completions.create(
        model=MODEL,
        messages=CAPITAL,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    whole = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
    assert len(text) > 3
    assert "".join(text) == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.usage for c in chunks[:-1] if c.usage] == []


def test_stream_ends_with_done_and_has_no_usage_unasked(servers):
    with servers.client("chat") as http:
        body = {"model": MODEL, "messages": CAPITAL, "stream": True, "max_tokens": 4}
        lines = [
            line for line in http.post("/chat/completions", json=body).text.split("\n\n") if line
        ]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all("usage" not in event for event in events)
    assert events[-1]["choices"][0]["finish_reason"] == "length"


def test_stop_seed_and_limit(client):
    def ask(**more):
        answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, **more)
        return answer.choices[0]

    assert "France" not in ask(temperature=0, stop=["France"]).message.content
    assert ask(temperature=0, max_tokens=2).finish_reason == "length"
    story = [{"role": "user", "content": "Tell me a story about a fox."}]
    texts = [
        client.chat.completions.create(
            model=MODEL, messages=story, temperature=1.5, top_p=1, seed=seed, max_tokens=24
        )
        .choices[0]
        .message.content
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


REVIEW = "Review: Inception is a well made film. I rate it four stars out of five."
BY_SCHEMA = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": FILM}}
}


@pytest.mark.parametrize(
    ("server", "shape"),
    [
        ("chat", BY_SCHEMA),
        ("catalog", BY_SCHEMA),
        ("chat", {"structured_outputs": {"json": FILM}}),
        ("catalog", {"guided_json": FILM}),
        ("catalog", {"guided_json": json.dumps(FILM)}),
        ("catalog", {"nvext": {"guided_json": FILM}}),
    ],
)
def test_schema_is_obeyed(servers, server, shape):
    asked = [{"role": "user", "content": REVIEW}]
    answer = post(servers, server=server, messages=asked, temperature=0, **shape)
    jsonschema.validate(json.loads(answer.json()["choices"][0]["message"]["content"]), FILM)


@pytest.mark.parametrize(
    "field",
    [
        {"guided_json": FILM},
        {"nvext": {"guided_json": FILM}},
        {"guided_choice": ["yes", "no"]},
        {"nobody_knows": 1},
    ],
    ids=lambda field: next(iter(field)),
)
def test_nim_2_ignores_what_it_does_not_know(servers, field):
    plain, with_field = (post(servers, temperature=0, max_tokens=8, **f) for f in ({}, field))
    assert with_field.status_code == 200
    assert with_field.json()["choices"] == plain.json()["choices"]


def test_json_object(servers):
    ask = [{"role": "user", "content": "Describe Paris as a JSON object with country and river."}]
    answer = post(servers, messages=ask, response_format={"type": "json_object"}, temperature=0)
    assert isinstance(json.loads(answer.json()["choices"][0]["message"]["content"]), dict)


@pytest.mark.parametrize(
    "choices", [["yes", "no"], ['he said "yes"', "back\\slash"], ["né", "ü\n"]]
)
def test_guided_choice_gives_one_of_the_choices(servers, choices):
    answer = post(servers, server="catalog", guided_choice=choices, temperature=0)
    assert answer.json()["choices"][0]["message"]["content"] in choices
    answer = post(servers, structured_outputs={"choice": choices}, temperature=0)
    assert answer.json()["choices"][0]["message"]["content"] in choices


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": "required"},
        {"messages": [*CAPITAL, {"role": "tool", "tool_call_id": "1", "content": "Paris"}]},
    ],
)
def test_a_model_without_tools_refuses_them(servers, body):
    answer = post(servers, **body)
    assert answer.status_code == 400
    assert "start the servers with --models default" in answer.json()["error"]["message"]


@pytest.mark.parametrize("server", ["chat", "catalog"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"max_tokens": 0}, 422),
        ({"max_tokens": -1}, 422),
        ({"max_tokens": 2**31 - 1}, 422),
        ({"max_tokens": 10**6}, 422),
        ({"temperature": -0.1}, 422),
        ({"top_p": 10}, 422),
        ({"messages": []}, 422),
        ({"messages": [{"role": "user", "content": ""}] * 100_000}, 422),
        ({"messages": [{"role": "user", "content": " " * 2_000_000}]}, 400),
        ({"messages": [{"role": "robot", "content": "hi"}]}, 422),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 422),
        ({"model": "something-obviously-wrong"}, 404),
        ({"logit_bias": {"1": 5}}, 400),
        ({"top_logprobs": 2}, 400),
        ({"stream_options": {"include_usage": True}}, 400),
        ({"tool_choice": "required"}, 400),
        ({"messages": [{"role": "user", "content": "hi " * 6000}]}, 400),
    ],
)
def test_what_cannot_be_done_is_refused(servers, server, body, status):
    refused(post(servers, server=server, **body), server, status)


def refused(answer: httpx.Response, server: str, status: int) -> None:
    """See that an error has its dialect's status and body; `status` is that of 1.x."""
    if server == "chat":
        status = 400 if status == 422 else status
        error = answer.json()["error"]
        assert error["code"] == status and error["message"] and error["param"] is None
        assert error["type"] == {400: "BadRequestError", 404: "NotFoundError"}[status]
    else:
        error = answer.json()
        assert error["status"] == status
        assert error["message"] and error["detail"] and error["title"]
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("server", "body"),
    [
        ("catalog", {"guided_regex": "a+"}),
        ("catalog", {"guided_choice": []}),
        ("catalog", {"guided_json": "{"}),
        ("catalog", {"guided_json": FILM, "guided_choice": ["a"]}),
        ("catalog", {"guided_json": {"type": "nonsense"}}),
        ("catalog", {"structured_outputs": {"json": FILM}}),
        ("chat", {"structured_outputs": {"regex": "a+"}}),
        ("chat", {"structured_outputs": {"choice": []}}),
        ("chat", {"structured_outputs": {"json": FILM, "choice": ["a"]}}),
        ("chat", {"structured_outputs": {"json": FILM}, **BY_SCHEMA}),
        ("chat", {"min_tokens": 3}),
    ],
)
def test_what_one_of_both_would_do_and_cannot_is_refused(servers, server, body):
    refused(post(servers, server=server, **body), server, 400)


def test_an_answer_can_be_sent_back_as_it_came(client):
    """With `refusal`, `annotations` and what else the client puts into a message."""
    first = client.chat.completions.create(model=MODEL, messages=CAPITAL, max_tokens=4)
    talk = [*CAPITAL, first.choices[0].message.model_dump(), CAPITAL[0]]
    assert client.chat.completions.create(model=MODEL, messages=talk, max_tokens=4).choices


def test_tokenize_counts_what_a_chat_costs(servers):
    root = servers.url("chat").removesuffix("/v1")
    chat = {"model": MODEL, "messages": CAPITAL}
    counted = httpx.post(f"{root}/tokenize", json=chat, timeout=60).json()
    usage = post(servers, max_tokens=1).json()["usage"]
    assert counted["count"] == len(counted["tokens"]) == usage["prompt_tokens"]
    assert counted["max_model_len"] > 1000 and counted["token_strs"] is None
    text = "Wo die Späne fallen: 木"
    found = httpx.post(
        f"{root}/tokenize", json={"prompt": text, "return_token_strs": True}, timeout=60
    ).json()
    assert "".join(found["token_strs"]).startswith("Wo die Späne fallen: ")
    both = httpx.post(f"{root}/tokenize", json={"prompt": text, **chat}, timeout=60)
    assert both.json()["error"]["message"] == "Give a prompt or messages, one of both."
    unknown = httpx.post(
        f"{root}/tokenize", json={"prompt": text, "model": "nobody/nothing"}, timeout=60
    )
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "NotFoundError")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/detokenize"])
def test_what_only_a_real_nim_2_serves_says_so(servers, path):
    answer = httpx.post(f"{servers.url('chat').removesuffix('/v1')}{path}", json={}, timeout=60)
    assert answer.status_code == 501
    assert f"{path} is not served here" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content", [r'"\ud800"', '"a", "temperature": NaN', "[" * 2000 + "]" * 2000]
)
@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_what_is_no_strict_json_is_refused(servers, path, content):
    body = f'{{"model": "{MODEL}", "prompt": {content}}}'
    headers = {"Content-Type": "application/json"}
    with servers.client("chat") as http:
        answer = http.post(path, content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert "JSON" in answer.json()["error"]["message"]


def test_what_the_template_does_not_read_is_ignored_as_vllm_does(servers):
    kwargs = {"enable_thinking": False, "thinking_of": "nothing"}
    plain, with_kwargs = (
        post(servers, temperature=0, max_tokens=8, **more)
        for more in ({}, {"chat_template_kwargs": kwargs})
    )
    assert with_kwargs.status_code == 200, with_kwargs.text
    assert with_kwargs.json()["choices"] == plain.json()["choices"]


def test_refusals_say_what_to_do(servers):
    regex = post(servers, server="catalog", guided_regex="a")
    assert "'guided_regex'" in regex.json()["detail"]
    assert "min_tokens" in post(servers, min_tokens=3).json()["error"]["message"]
    long = [{"role": "user", "content": "hi " * 6000}]
    assert "maximum context length is" in post(servers, messages=long).json()["error"]["message"]
    streamed = post(servers, messages=long, stream=True)
    assert streamed.status_code == 400


def test_logprobs(servers):
    answer = post(servers, logprobs=True, top_logprobs=2, max_tokens=3, temperature=0)
    content = answer.json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 3
    assert all(entry["logprob"] <= 0 for entry in content)


def test_logprobs_without_alternatives(servers):
    whole = post(servers, logprobs=True, max_tokens=2, temperature=0).json()
    content = whole["choices"][0]["logprobs"]["content"]
    assert len(content) == 2
    assert all(entry["top_logprobs"] == [] for entry in content)


def test_completions(client):
    answer = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=5, temperature=0
    )
    assert "Paris" in answer.choices[0].text
    assert answer.object == "text_completion"
    stream = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=5, temperature=0, stream=True
    )
    text = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
    assert text == answer.choices[0].text


@pytest.mark.parametrize("several", [{"n": 2}, {"prompt": ["One, two,", "A, B,"]}])
def test_several_completions_stream_side_by_side(client, several):
    asked = {"model": MODEL, "prompt": "One, two,", "max_tokens": 4, "temperature": 0, **several}
    whole = client.completions.create(**asked)
    stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    texts = {choice.index: "" for choice in whole.choices}
    usages = []
    for chunk in stream:
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            assert not usages
            texts[choice.index] += choice.text
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert len(usages) == 1


def running(servers) -> float:
    with servers.client("chat") as http:
        text = http.get("/metrics").text
    lines = [
        line
        for line in text.splitlines()
        if line.startswith('vllm:num_requests_running{role="chat"')
    ]
    return sum(float(line.split()[-1]) for line in lines)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_costing(servers, stream):
    body = {"model": MODEL, "messages": STORY, "max_tokens": 1024, "temperature": 0}
    body["stream"] = stream

    def leave() -> None:
        with (
            servers.client("chat") as http,
            http.stream(
                "POST",
                "/chat/completions",
                json=body,
                timeout=httpx.Timeout(30, read=None if stream else 0.3),
            ) as answer,
        ):
            if stream:
                next(answer.iter_lines())

    try:
        leave()
    except httpx.ReadTimeout:
        assert not stream
    limit = time.monotonic() + 120
    while running(servers):
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_concurrent_requests_are_served_side_by_side(servers):
    """A short answer asked for while long ones run comes before they end."""
    story = {
        "model": MODEL,
        "messages": STORY,
        "max_tokens": 400,
        "temperature": 0,
    }
    ended: list[str] = []

    def ask(name: str, body: dict) -> None:
        with servers.client("chat") as http:
            assert http.post("/chat/completions", json=body).status_code == 200
        ended.append(name)

    long = threading.Thread(target=ask, args=("long", story))
    long.start()
    while not running(servers) and long.is_alive():
        time.sleep(0.01)
    ask("short", {"model": MODEL, "messages": CAPITAL, "max_tokens": 5})
    long.join()
    assert ended == ["short", "long"]
