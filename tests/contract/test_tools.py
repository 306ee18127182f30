"""Tool calls of the default chat model, through openai, Haystack and LlamaIndex."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.tools import create_tool_from_function
from haystack.utils import Secret
from haystack_integrations.components.generators.nvidia import NvidiaChatGenerator
from llama_index.core.llms import ChatMessage as LlamaMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.nvidia import NVIDIA

from nim_cookbook.models import load_registry
from tests.support import Servers

MODEL = load_registry().default("chat").id


def function(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as OpenAI describes it, all of whose arguments are required."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    described = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": described}


WEATHER = function("weather", "Get the weather in a city.", city={"type": "string"})
ADD = function("add", "Add two integers.", a={"type": "integer"}, b={"type": "integer"})
SEARCH = function("search", "Search the company's documents.", query={"type": "string"})
ORDER = function("order_status", "Look up an order.", order_id={"type": "string"})
PARIS = "What's the weather in Paris?"


@pytest.fixture(scope="module")
def client(default_server: Servers) -> openai.OpenAI:
    url = default_server.url("chat")
    return openai.OpenAI(base_url=url, api_key="not-needed", max_retries=0)


def ask(client: openai.OpenAI, question: str | list[Any], tools: list[Any], **more: Any) -> Any:
    """Return the answer's one choice."""
    asked = [{"role": "user", "content": question}] if isinstance(question, str) else question
    more = {"max_tokens": 200, **more}
    answer = client.chat.completions.create(model=MODEL, messages=asked, tools=tools, **more)
    return answer.choices[0]


def calls(choice: Any) -> list[tuple[str, Any]]:
    """Return what is called with what; the arguments are JSON."""
    return [
        (call.function.name, json.loads(call.function.arguments))
        for call in choice.message.tool_calls or []
    ]


def test_the_right_tool_is_called_with_the_right_arguments(client):
    cases = [
        (PARIS, [WEATHER, ADD], ("weather", {"city": "Paris"})),
        ("What is 17 plus 25?", [WEATHER, ADD], ("add", {"a": 17, "b": 25})),
        ("What is the sum of 5 and 6?", [SEARCH, ADD], ("add", {"a": 5, "b": 6})),
        ("Search for the travel policy.", [SEARCH, ADD], ("search", {"query": "travel policy"})),
        ("Where is my order B-77?", [ORDER, SEARCH], ("order_status", {"order_id": "B-77"})),
    ]
    made = [calls(ask(client, question, tools)) for question, tools, _ in cases]
    right = sum(calls == [expected] for calls, (*_, expected) in zip(made, cases, strict=True))
    print(f"{right} of {len(cases)} answers are the right call and no other: {made}")
    assert right >= 4


@pytest.mark.long
def test_an_answer_is_a_call_or_a_text(client):
    choice = ask(client, PARIS, [WEATHER, ADD])
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    choice = ask(client, "Hello, how are you?", [WEATHER, ADD])
    assert choice.message.tool_calls is None
    assert choice.message.content
    assert choice.finish_reason == "stop"


@pytest.mark.long
def test_the_result_of_a_call_is_read(client):
    choice = ask(client, PARIS, [WEATHER])
    (call,) = choice.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 22 degrees"}
    called = choice.message.model_dump(exclude_none=True)
    talk = [{"role": "user", "content": PARIS}, called, result]
    for choosing in ("auto", "none"):
        second = ask(client, talk, [WEATHER], tool_choice=choosing)
        assert "22" in second.message.content
        assert second.message.tool_calls is None


def test_several_calls_in_one_answer_unless_forbidden(client):
    question = "What's the weather in Paris and in Rome?"
    both = [("weather", {"city": "Paris"}), ("weather", {"city": "Rome"})]
    assert calls(ask(client, question, [WEATHER])) == both
    assert calls(ask(client, question, [WEATHER], parallel_tool_calls=False)) == both[:1]


@pytest.mark.long
def test_required_calls_whatever_was_said(client):
    for question in ("Hello, how are you?", PARIS):
        choice = ask(client, question, [WEATHER, ADD], tool_choice="required")
        assert choice.finish_reason == "tool_calls"
        schemas = {tool["function"]["name"]: tool["function"] for tool in (WEATHER, ADD)}
        for name, arguments in calls(choice):
            jsonschema.validate(arguments, schemas[name]["parameters"])


@pytest.mark.long
def test_a_named_tool_is_called_once(client):
    named = {"type": "function", "function": {"name": "add"}}
    choice = ask(client, PARIS, [WEATHER, ADD], tool_choice=named)
    ((name, arguments),) = calls(choice)
    assert name == "add"
    jsonschema.validate(arguments, ADD["function"]["parameters"])


@pytest.mark.long
def test_none_forbids_calls(client):
    choice = ask(client, PARIS, [WEATHER], tool_choice="none")
    assert choice.message.tool_calls is None
    assert choice.message.content


@pytest.mark.parametrize("choosing", ["auto", pytest.param("required", marks=pytest.mark.long)])
def test_streamed_calls_add_up_to_the_whole_ones(client, choosing):
    question = "What's the weather in Paris and in Rome?"
    whole = ask(client, question, [WEATHER], tool_choice=choosing)
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        tools=[WEATHER],
        tool_choice=choosing,
        max_tokens=200,
        stream=True,
    )
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    streamed: dict[int, tuple[str, str]] = {}
    for delta in (delta for choice in choices for delta in choice.delta.tool_calls or []):
        if delta.index not in streamed:
            assert delta.id and delta.type == "function"
            streamed[delta.index] = (delta.function.name, "")
        name, arguments = streamed[delta.index]
        streamed[delta.index] = (name, arguments + (delta.function.arguments or ""))
    assert [(name, json.loads(text)) for name, text in streamed.values()] == calls(whole)
    assert choices[-1].finish_reason == "tool_calls"
    assert not any(choice.delta.content for choice in choices)


BROKEN = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{nope"}}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"tools": [], "tool_choice": "required"}, 400),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, 400),
        ({"response_format": {"type": "json_object"}}, 400),
        ({"structured_outputs": {"choice": ["a"]}}, 400),
        ({"logprobs": True, "stream": True}, 400),
        ({"tools": [function("f", "", a={"type": "nonsense"})]}, 400),
        ({"messages": [{"role": "assistant", "tool_calls": [BROKEN]}]}, 400),
    ],
)
def test_what_cannot_be_done_is_refused(default_server, body, status):
    asked = [{"role": "user", "content": PARIS}]
    with default_server.client("chat") as http:
        request = {"model": MODEL, "messages": asked, "tools": [WEATHER], **body}
        answer = http.post("/chat/completions", json=request)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def weather(city: str) -> str:
    """Get the weather in a city."""
    return f"Sunny in {city}, 22 degrees"


@pytest.mark.parametrize("streaming", [False, True])
def test_haystack_calls_and_reads_the_result(default_server, streaming):
    tool = create_tool_from_function(weather)
    chunks: list[StreamingChunk] = []
    generator = NvidiaChatGenerator(
        model=MODEL,
        api_base_url=default_server.url("chat"),
        api_key=Secret.from_token("not-needed"),
        tools=[tool],
        streaming_callback=chunks.append if streaming else None,
        generation_kwargs={"max_tokens": 200},
    )
    question = ChatMessage.from_user(PARIS)
    called = generator.run([question])["replies"][0]
    (call,) = called.tool_calls
    assert (call.tool_name, call.arguments) == ("weather", {"city": "Paris"})
    assert called.meta["finish_reason"] == "tool_calls"
    assert bool(chunks) == streaming
    result = ChatMessage.from_tool(tool.invoke(**call.arguments), origin=call)
    assert "22" in generator.run([question, called, result])["replies"][0].text


def test_llama_index_calls(default_server):
    llm = NVIDIA(
        model=MODEL,
        base_url=default_server.url("chat"),
        api_key="not-needed",
        is_chat_model=True,
        is_function_calling_model=True,
    )
    tool = FunctionTool.from_defaults(weather)
    answer = llm.chat_with_tools([tool], chat_history=[LlamaMessage(role="user", content=PARIS)])
    (call,) = llm.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("weather", {"city": "Paris"})
