"""Routes of the chat NIM: chat completions and text completions, whole or streamed."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from local_endpoints import strict_json
from local_endpoints.nim.answers import ChatAnswer, CompletionAnswer
from local_endpoints.nim.common import FastJSONResponse, until_disconnect
from local_endpoints.nim.dialect import Dialect
from local_endpoints.nim.engines.adaptable import AdaptableEngine
from local_endpoints.nim.engines.chat import (
    EngineRefusal,
    EngineStopped,
    PromptTooLong,
    UnknownAdapter,
)
from local_endpoints.nim.errors import ApiError, vllm_error
from local_endpoints.nim.metrics import Metrics
from local_endpoints.nim.schemas import (
    DEFAULT_MAX_TOKENS,
    Chat,
    Completion,
    Guided,
    Message,
    NamedTool,
    NvExt,
    Sampling,
    VllmSampling,
)
from local_endpoints.nim.service import RoleService
from local_endpoints.strict_json import StrictRoute

Json = dict[str, Any]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Service = RoleService[AdaptableEngine]
# What an engine raises about a request.
ENGINE_ERRORS = (PromptTooLong, EngineRefusal, UnknownAdapter, EngineStopped)

# Bytes of the longest tokens that the models have, runs of spaces.
LONGEST_TOKEN = 128
# Fields that llama.cpp takes under the same name.
PASSED_ON = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "frequency_penalty",
    "presence_penalty",
)


def _guided(body: Sampling) -> tuple[Json | None, list[str] | None]:
    """Return the schema and the choices that guided decoding was asked to follow.

    Raises:
        ApiError: Both were given, or the schema is no JSON object.
    """
    schema, choices, names = _asked(body)
    if schema is not None and choices is not None:
        raise ApiError(400, f"Give {names[0]} or {names[1]}, not both.")
    if isinstance(schema, str):
        try:
            schema = strict_json.loads(schema)
        except json.JSONDecodeError as error:
            raise ApiError(400, f"{names[0]} is not valid JSON: {error}.") from error
    if schema is not None and not isinstance(schema, dict):
        raise ApiError(400, f"{names[0]} must be a JSON schema, that is a JSON object.")
    if choices is not None and (not choices or not all(choices)):
        raise ApiError(400, f"{names[1]} must list at least one choice, none of them empty.")
    return schema, choices


def _asked(body: Sampling) -> tuple[Json | str | None, list[str] | None, tuple[str, str]]:
    """Return schema and choices from where the dialect has them, and what they are called there."""
    if isinstance(body, Guided):
        extension = body.nvext or NvExt()
        schema = body.guided_json if body.guided_json is not None else extension.guided_json
        choices = body.guided_choice if body.guided_choice is not None else extension.guided_choice
        return schema, choices, ("guided_json", "guided_choice")
    shape = body.structured_outputs if isinstance(body, VllmSampling) else None
    names = ("structured_outputs.json", "structured_outputs.choice")
    return (shape.json_, shape.choice, names) if shape else (None, None, names)


def choice_grammar(choices: list[str]) -> str:
    """Return a GBNF grammar that admits exactly the given strings."""
    return "root ::= " + " | ".join(_literal(choice) for choice in choices)


def _literal(text: str) -> str:
    escaped = "".join(
        f"\\x{ord(char):02X}" if ord(char) < 32 else f"\\{char}" if char in '"\\' else char
        for char in text
    )
    return f'"{escaped}"'


def _sampling(body: Sampling, limit: int | None, context: int) -> Json:
    """Return the fields of llama.cpp's request that chat and text completions share."""
    if limit is not None and limit > context:
        raise ApiError(
            422, f"Invalid value at 'max_tokens': {limit} is over this model's {context} tokens."
        )
    request: Json = {
        name: getattr(body, name) for name in PASSED_ON if getattr(body, name) is not None
    }
    request["model"] = body.model
    request["max_tokens"] = limit or min(DEFAULT_MAX_TOKENS, context)
    request["stop"] = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if body.repetition_penalty is not None:
        request["repeat_penalty"] = body.repetition_penalty
    schema, choices = _guided(body)
    # Before a grammar is made of them; a chat's other parts are counted with them later.
    check_size(context, orjson.dumps([body.stop, schema, choices]))
    if schema is not None:
        request["json_schema"] = schema
    if choices is not None:
        request["grammar"] = choice_grammar(choices)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options is only allowed when stream is true.")
    return request


def _message(message: Message) -> Json:
    """Return a message as llama.cpp takes it: text parts joined, OpenAI's newer role mapped."""
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    plain = message.model_dump(exclude_none=True)
    plain["content"] = content or ""
    plain["role"] = "system" if message.role == "developer" else message.role
    return plain


def _response_format(body: Chat) -> Json | None:
    asked = body.response_format
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_schema" and asked.json_schema is None:
        raise ApiError(422, "Invalid value at 'response_format': json_schema is missing.")
    if _guided(body) != (None, None):
        raise ApiError(400, "Give response_format or guided decoding, not both.")
    return asked.model_dump(by_alias=True, exclude_none=True)


def _tools(body: Chat) -> tuple[list[Json], bool]:
    """Return the tools that the model may call and whether it must.

    llama.cpp knows no choice by name: then the named tool is the only one.

    Raises:
        ApiError: 400 for a choice without tools, or of one that is not among them.
    """
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
    choice = body.tool_choice
    if choice is None or choice == "none":
        return ([] if choice else tools), False
    if not tools:
        raise ApiError(400, "tool_choice is only allowed when tools are given.")
    if not isinstance(choice, NamedTool):
        return tools, choice == "required"
    name = choice.function.name
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise ApiError(400, f"tool_choice names '{name}', which is not among the tools.")
    return named, True


class ChatTranslator:
    """Turns one chat request into llama.cpp's, and llama.cpp's answer into the one to send."""

    def __init__(self, body: Chat, engine: AdaptableEngine) -> None:
        limit = body.max_completion_tokens or body.max_tokens
        self.alternatives: int | None = None
        self.request = _sampling(body, limit, engine.context)
        shape = _response_format(body)
        if shape is not None:
            self.request["response_format"] = shape
        if body.logprobs:
            # llama.cpp leaves logprobs out when none of the alternatives are asked for.
            self.request.update(logprobs=True, top_logprobs=body.top_logprobs or 1)
            self.alternatives = body.top_logprobs or 0
        elif body.top_logprobs is not None:
            raise ApiError(400, "top_logprobs is only allowed when logprobs is true.")
        if body.chat_template_kwargs:
            # A key that the template does not read is ignored, as vLLM does.
            self.request["chat_template_kwargs"] = body.chat_template_kwargs
        self._add_messages(body, engine)

    def _add_messages(self, body: Chat, engine: AdaptableEngine) -> None:
        messages = [_message(message) for message in body.messages]
        tools, required = _tools(body)
        check_size(engine.context, orjson.dumps([messages, tools, self.request]))
        if engine.weights.system and all(message["role"] != "system" for message in messages):
            messages.insert(0, {"role": "system", "content": engine.weights.system})
        self.request["messages"] = messages
        used = any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
        if (tools or used) and not engine.knows_tools:
            raise ApiError(
                400,
                "This model's chat template knows no tools: start the servers with --models "
                "default.",
            )
        if not tools:
            return
        if self.request.keys() & {"response_format", "grammar", "json_schema"}:
            raise ApiError(400, "Give tools or a response format, not both at once.")
        one = isinstance(body.tool_choice, NamedTool)
        self.request.update(tools=tools, parallel_tool_calls=body.parallel_tool_calls and not one)
        if required:
            self.request["tool_choice"] = "required"
            if engine.calls_begin:
                # llama.cpp lets the model write text before its calls, and this one may never end.
                messages.append({"role": "assistant", "content": engine.calls_begin})

    def whole(self, answer: Json) -> Json:
        """Return the answer, or the chunk of one, to send."""
        if self.alternatives == 0:
            for choice in answer["choices"]:
                for entry in (choice.get("logprobs") or {}).get("content") or []:
                    entry["top_logprobs"] = []
        return answer


def check_size(context: int, text: bytes) -> None:
    """Refuse what cannot fit before any template or tokenizer works on it."""
    if len(text) > context * LONGEST_TOKEN:
        raise ApiError(
            400,
            f"This model's maximum context length is {context} tokens, but the input has "
            f"{len(text):,} bytes; shorten it.",
        )


def api_error(error: Exception, context: int) -> ApiError:
    """Return what a client should see of one of `ENGINE_ERRORS`."""
    if isinstance(error, PromptTooLong):
        return ApiError(
            400,
            f"This model's maximum context length is {context} tokens, but the input has "
            f"{error.tokens}; shorten it.",
        )
    if isinstance(error, UnknownAdapter):
        return ApiError(404, f"The adapter '{error}' has just been removed; GET /v1/models again.")
    if isinstance(error, EngineStopped):
        return ApiError(503, "The chat model's engine has stopped: start the servers anew.")
    return ApiError(400, f"The model's engine cannot do that: {error}.")


def _reads(body: type[BaseModel]) -> Callable[[Endpoint], Endpoint]:
    """Let FastAPI read an endpoint's body as this model: which one, the dialect says."""

    def read(endpoint: Endpoint) -> Endpoint:
        endpoint.__annotations__["body"] = body
        return endpoint

    return read


def router(
    service: Service, metrics: Metrics, dialect: Dialect, adapters: bool = False
) -> APIRouter:
    """Return the chat routes over `service`; `adapters` if they serve its LoRA adapters, too."""
    refusals = dialect.errors.documented(400, 404, 413, dialect.errors.invalid, 503)
    routes = APIRouter(route_class=StrictRoute, tags=["chat"], responses=refusals)
    streams: Json = {"content": {"text/event-stream": {}}}

    def adapter_of(model: str) -> str | None:
        """Return the adapter that a model id chooses, None for the base model.

        Raises:
            ApiError: 404 for an id that is not served.
        """
        if adapters and model in service.adapters:
            return model
        service.check(model)
        return None

    def count(usage: Json) -> None:
        metrics.prompt_tokens.labels("chat").inc(usage["prompt_tokens"])
        metrics.generated_tokens.inc(usage["completion_tokens"])

    async def whole(request: Request, answer: Coroutine[Any, Any, Json]) -> Response:
        engine = service.require_engine()
        with metrics.request("chat"):
            try:
                result = await until_disconnect(request, answer)
            except ENGINE_ERRORS as error:
                raise api_error(error, engine.context) from error
            count(result["usage"])
        return FastJSONResponse(result)

    async def streamed(request: Request, chunks: AsyncIterator[Json], with_usage: bool) -> Response:
        """Answer with server-sent events.

        An error before the first token is a plain error; a later one is the last event but [DONE].
        """
        engine = service.require_engine()
        began = time.perf_counter()
        try:
            first = await until_disconnect(request, _next(chunks))
        except ENGINE_ERRORS as error:
            metrics.failure.labels("chat").inc()
            raise api_error(error, engine.context) from error
        metrics.first_token.observe(time.perf_counter() - began)

        async def events() -> AsyncIterator[bytes]:
            chunk: Json | None = first
            usage: Json = {}
            try:
                with metrics.request("chat"):
                    while chunk is not None:
                        if "usage" in chunk:  # at each choice's end; told once, at the end of all
                            usage = chunk.pop("usage")
                            count(usage)
                        if chunk["choices"]:
                            yield _event(chunk)
                        last, chunk = chunk, await anext(chunks, None)
                    if with_usage:
                        yield _event({**last, "choices": [], "usage": usage})
            except ENGINE_ERRORS as error:
                # In vLLM's form for both dialects: OpenAI's client looks for no other in a stream.
                refusal = api_error(error, engine.context)
                yield _event(vllm_error(refusal.status, refusal.detail))
            yield b"data: [DONE]\n\n"

        return StreamingResponse(
            events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )

    @routes.post(
        "/v1/chat/completions",
        response_model=None,
        responses={200: {"model": ChatAnswer, **streams}},
    )
    @_reads(dialect.chat)
    async def chat_completions(body: Chat, request: Request) -> Response:
        """Answer a chat, whole or as server-sent events."""
        adapter = adapter_of(body.model)
        engine = service.require_engine()
        translator = ChatTranslator(body, engine)
        path = "/v1/chat/completions"

        async def answer() -> Json:
            return translator.whole(await engine.complete(path, translator.request, adapter))

        if not body.stream:
            return await whole(request, answer())
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        answered = engine.stream(path, translator.request, adapter)
        chunks = (translator.whole(chunk) async for chunk in answered)
        return await streamed(request, chunks, with_usage)

    @routes.post(
        "/v1/completions",
        response_model=None,
        responses={200: {"model": CompletionAnswer, **streams}},
    )
    @_reads(dialect.completion)
    async def completions(body: Completion, request: Request) -> Response:
        """Continue a text, whole or as server-sent events."""
        adapter = adapter_of(body.model)
        engine = service.require_engine()
        translated = _sampling(body, body.max_tokens, engine.context)
        for text in [body.prompt] if isinstance(body.prompt, str) else body.prompt:
            check_size(engine.context, text.encode())
        translated["prompt"] = body.prompt
        if body.logprobs is not None:
            translated["logprobs"] = body.logprobs
        if not body.stream:
            return await whole(request, engine.complete("/v1/completions", translated, adapter))
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        chunks = engine.stream("/v1/completions", translated, adapter)
        return await streamed(request, chunks, with_usage)

    return routes


def _event(chunk: Json) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


async def _next(chunks: AsyncIterator[Json]) -> Json:
    return await anext(chunks)
