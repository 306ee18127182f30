"""A chat model that reasons before it answers, as NVIDIA's newer ones do unless told not to.

The local model really thinks aloud: it is asked to, and to go on when it stops. What it writes is
`reasoning_content`, at most `reasoning_budget` tokens where the request has one. The answer gets
the tokens of `max_tokens` that are left. When none are, `content` is empty and the finish reason is
`length`: what a live reasoning model does with a small `max_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local_endpoints.nim.replay import answers, with_body
from local_endpoints.nim.schemas import DEFAULT_MAX_TOKENS

Json = dict[str, Any]

THINK_ALOUD = (
    "Do not answer yet. First think aloud, at length: what exactly is asked, what each given text "
    "says about it, what could be misunderstood, and which answers are possible."
)
GO_ON = "Go on thinking aloud: check each of these thoughts against what is asked."
# Tokens of thoughts, which take a CPU ten seconds. Live models think longer: nemotron-3.5-lightning
# left none of 512 for an answer (NVIDIA/NemoClaw#8894).
THINKS = 200
# What shapes an answer; thoughts are plain text.
ANSWER_ONLY = (
    *("tools", "tool_choice", "response_format", "stop", "n", "logprobs", "top_logprobs"),
    *("guided_json", "guided_choice", "nvext", "max_completion_tokens"),
)


class _Refused(Exception):
    """The application refused the request; holds what it sent."""


class Reasoning:
    """Thinks with the chat model of an application, then lets it answer.

    Args:
        app: The application, asked at the path of the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send, body: Json) -> None:
        """Answer a request for a chat completion whose body has been read."""
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_MAX_TOKENS
        budget = body.pop("reasoning_budget", None) or limit
        messages = body.get("messages")
        numbers = isinstance(limit, int) and isinstance(budget, int) and min(limit, budget) > 0
        if not numbers or not isinstance(messages, list):
            await self.app(*with_body(scope, json.dumps(body).encode(), receive), send)
            return
        thinking = {name: value for name, value in body.items() if name not in ANSWER_ONLY}
        asked = {"role": "user", "content": THINK_ALOUD}
        thinking |= {"messages": [*messages, asked], "stream": True}
        thinking["max_tokens"] = min(limit, budget, THINKS)
        answering = {**body, "max_completion_tokens": None, "max_tokens": limit}
        reply = self._streamed if body.get("stream") else self._whole
        try:
            await reply(scope, receive, send, answering, thinking)
        except _Refused as refused:
            for message in refused.args[0]:
                await send(message)

    async def _whole(
        self, scope: Scope, receive: Receive, send: Send, body: Json, thinking: Json
    ) -> None:
        reasoning, last = "", Json()
        async for last in self._thoughts(scope, receive, thinking):
            for choice in last["choices"]:
                reasoning += choice["delta"]["reasoning_content"] or ""
        left = body["max_tokens"] - last["usage"]["completion_tokens"]
        if left > 0:
            answer = await self._ask(scope, receive, {**body, "max_tokens": left})
            answer["usage"] = _sum(last["usage"], answer["usage"]["completion_tokens"])
        else:
            message = {"role": "assistant", "content": ""}
            over = {"index": 0, "message": message, "finish_reason": "length"}
            answer = {**last, "object": "chat.completion", "choices": [over]}
        for one in answer["choices"]:
            one["message"]["reasoning_content"] = reasoning
        content = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json")]
        headers += [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _streamed(
        self, scope: Scope, receive: Receive, send: Send, body: Json, thinking: Json
    ) -> None:
        asked_for_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        began = False

        async def tell(chunk: Json | None) -> None:
            nonlocal began
            if not began:
                began = True
                headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            event = b"[DONE]" if chunk is None else json.dumps(chunk).encode()
            more = chunk is not None
            await send(
                {"type": "http.response.body", "body": b"data: %b\n\n" % event, "more_body": more}
            )

        last = Json()
        async for last in self._thoughts(scope, receive, thinking):
            if last["choices"]:
                await tell(last)
        usage = last["usage"]
        left = body["max_tokens"] - usage["completion_tokens"]
        if left > 0:
            async for chunk in self._chunks(scope, receive, {**body, "max_tokens": left}):
                if chunk["choices"]:
                    await tell(chunk)
                else:
                    usage = _sum(usage, chunk["usage"]["completion_tokens"])
        else:
            over = {"index": 0, "delta": {}, "finish_reason": "length"}
            await tell({**last, "choices": [over], "usage": None})
        if asked_for_usage:
            await tell({**last, "choices": [], "usage": usage})
        await tell(None)

    async def _thoughts(
        self, scope: Scope, receive: Receive, thinking: Json
    ) -> AsyncGenerator[Json, None]:
        """Yield chunks of `reasoning_content` until the tokens are used up; the last has the usage.

        Raises:
            _Refused: The application answers with an error.
        """
        said, used, last, usage = "", 0, Json(), Json()
        while used < thinking["max_tokens"]:
            turn = {**thinking, "max_tokens": thinking["max_tokens"] - used}
            if said:
                more = [{"role": "assistant", "content": said}, {"role": "user", "content": GO_ON}]
                turn["messages"] = [*thinking["messages"], *more]
            try:
                async for last in self._chunks(scope, receive, turn):
                    for choice in last["choices"]:
                        thought = choice["delta"].pop("content", None)
                        said += thought or ""
                        choice["delta"]["reasoning_content"] = thought
                        choice["finish_reason"] = None
                    if last["choices"]:
                        yield last
            except _Refused:
                if not said:
                    raise
                break  # there is no room for more in the context
            written = last["usage"]["completion_tokens"]
            used += written
            usage = _sum(usage, written) if usage else last["usage"]
            if not said or not written:
                break
        yield {**last, "choices": [], "usage": usage}

    async def _ask(self, scope: Scope, receive: Receive, body: Json) -> Json:
        """Return the application's whole answer to another body.

        Raises:
            _Refused: It answers with an error.
        """
        answer: Json = json.loads(
            b"".join([part async for part in self._parts(scope, receive, body)])
        )
        return answer

    async def _chunks(
        self, scope: Scope, receive: Receive, body: Json
    ) -> AsyncGenerator[Json, None]:
        """Yield the chunks of the application's stream, the last of which has the usage."""
        body = {**body, "stream_options": {"include_usage": True}}
        rest = b""
        async for part in self._parts(scope, receive, body):
            *events, rest = (rest + part).split(b"\n\n")
            for event in events:
                data = event.removeprefix(b"data: ")
                if data != b"[DONE]":
                    yield json.loads(data)

    async def _parts(
        self, scope: Scope, receive: Receive, body: Json
    ) -> AsyncGenerator[bytes, None]:
        request = with_body(scope, json.dumps(body).encode(), receive)
        refusal: list[Message] = []
        async with aclosing(answers(self.app, *request)) as messages:
            async for message in messages:
                if refusal or message.get("status", 200) != 200:
                    refusal.append(message)
                else:
                    yield message.get("body", b"")
        if refusal:
            raise _Refused(refusal)


def _sum(usage: Json, completion_tokens: int) -> Json:
    """Return the usage of thoughts and answer, by what the model has written."""
    written = usage["completion_tokens"] + completion_tokens
    total = usage["prompt_tokens"] + written
    return {**usage, "completion_tokens": written, "total_tokens": total}
