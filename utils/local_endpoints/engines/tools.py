"""Tool calls for models whose chat template knows none.

The functions are described in a system message, and a JSON schema holds the model to one of two
answers: ``{"tool_calls": [{"name": ..., "arguments": {...}}]}`` or ``{"response": "..."}``. The
choice between them, the function and its arguments are the model's own. llama.cpp's former
"generic" tool handler worked the same way.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

MAX_PARALLEL_CALLS = 4
Json = dict[str, Any]


def select(tools: Sequence[Json], choice: str | Json | None) -> tuple[list[Json], bool]:
    """Return the tools that may be called and whether one of them must be.

    Raises:
        ValueError: The choice names a function that is not among the tools.
    """
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        named = [tool for tool in tools if tool["function"]["name"] == name]
        if not named:
            raise ValueError(f"tool_choice names '{name}', which is not among the tools")
        return named, True
    return list(tools), choice == "required"


def answer_schema(tools: Sequence[Json], required: bool, parallel: bool) -> Json:
    """Return the JSON schema that the answer must follow."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"]["parameters"],
            },
            "required": ["name", "arguments"],
        }
        for tool in tools
    ]
    call_list = {
        "type": "array",
        "items": {"anyOf": calls},
        "minItems": 1,
        "maxItems": MAX_PARALLEL_CALLS if parallel else 1,
    }
    calling = {
        "type": "object",
        "properties": {"tool_calls": call_list},
        "required": ["tool_calls"],
    }
    if required:
        return calling
    answering = {
        "type": "object",
        "properties": {"response": {"type": "string"}},
        "required": ["response"],
    }
    return {"anyOf": [calling, answering]}


def _signature(tool: Json) -> str:
    function = tool["function"]
    names = ", ".join(function["parameters"].get("properties", {}))
    return f"- {function['name']}({names}): {function.get('description', '')}"


def instructions(tools: Sequence[Json]) -> str:
    """Return the system message that tells the model which functions it has."""
    signatures = "\n".join(_signature(tool) for tool in tools)
    return (
        f"You can call these functions:\n{signatures}\n\n"
        'Answer with JSON only. To call functions answer {"tool_calls": [{"name": "<function>", '
        '"arguments": {...}}]}. If no function is of use answer {"response": "<text>"}.'
    )


def _made_calls(calls: Sequence[Json]) -> str:
    made = [
        {
            "name": call["function"]["name"],
            "arguments": json.loads(call["function"]["arguments"] or "{}"),
        }
        for call in calls
    ]
    return json.dumps({"tool_calls": made})


def as_plain_messages(messages: Sequence[Json], tools: Sequence[Json]) -> list[Json]:
    """Rewrite messages with tool calls and results into ones that any chat template takes.

    Where calls may follow, earlier ones are shown in the form that is asked for. Where none may,
    that form is kept out of the conversation, since a small model would imitate it.

    Raises:
        ValueError: The arguments of an earlier call are not JSON.
    """
    names: dict[str, str] = {}
    plain: list[Json] = []
    for message in messages:
        calls = message.get("tool_calls") or []
        if calls:
            names.update({call["id"]: call["function"]["name"] for call in calls})
            content = _made_calls(calls)
            shown = content if tools else message["content"] or "Let me look that up."
            plain.append({"role": "assistant", "content": shown})
        elif message["role"] == "tool":
            name = names.get(message.get("tool_call_id") or "", message.get("name") or "function")
            result = f"Result of {name}: {message['content']}"
            closing = "" if tools else "\nUse it to answer my question."
            plain.append({"role": "user", "content": result + closing})
        else:
            plain.append({"role": message["role"], "content": message["content"] or ""})
    if not tools:
        return plain
    text = instructions(tools)
    if plain and plain[0]["role"] == "system":
        head = {"role": "system", "content": f"{plain[0]['content']}\n\n{text}"}
        return [head, *plain[1:]]
    return [{"role": "system", "content": text}, *plain]


def parse_answer(content: str) -> tuple[str, list[Json]]:
    """Split an answer into its text and its tool calls (OpenAI's shape).

    An answer that was cut off by the token limit is no JSON: it is given back as text.
    """
    try:
        answer = json.loads(content)
    except json.JSONDecodeError:
        return content, []
    if "tool_calls" not in answer:
        return str(answer.get("response", "")), []
    return "", [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
        }
        for call in answer["tool_calls"]
    ]
