"""What happens in the chat page; Chainlit loads this file, `rag_service.chat` serves it.

The reader signs in with the query service's token as the password. Questions go to the query
service as any other client's do, with those before them, through OpenAI's client with streaming;
the chunks open beside the answer. Below it stands what was made of a follow-up, and what was
forgotten.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chainlit as cl
import openai

from rag_service.settings import QUERY_URL, service_token

GREETING = "Ask about the documents, or attach a file to have it indexed."
# Seconds; a large model may be slow, and a first answer slower.
_TIMEOUT = 120.0
# Questions that are sent; the service looks at fewer, and takes at most 1 MB.
_QUESTIONS = 100


@cl.password_auth_callback  # type: ignore[untyped-decorator,unused-ignore]
async def sign_in(name: str, password: str) -> cl.User | None:
    """Let in who knows the token."""
    if not hmac.compare_digest(password.strip().encode(), service_token().encode()):
        return None
    return cl.User(identifier=name.strip()[:80] or "reader")


@cl.on_chat_start  # type: ignore[untyped-decorator,unused-ignore]
async def greet() -> None:
    """Say what can be done here."""
    await cl.Message(GREETING).send()


@cl.on_message  # type: ignore[untyped-decorator,unused-ignore]
async def answer(message: cl.Message) -> None:
    """Take attached files in, and answer the question if there is one."""
    async with _client() as client:
        for element in message.elements or ():
            await _upload(client, element)
        if message.content.strip():
            await _answer(client, message.content)


async def _answer(client: openai.AsyncOpenAI, question: str) -> None:
    reply = cl.Message("")
    sources: Sequence[dict[str, Any]] = ()
    followed: dict[str, Any] = {}
    asked: list[str] = [*(cl.user_session.get("asked") or ()), question][-_QUESTIONS:]
    try:
        stream = await client.chat.completions.create(
            model="ask", messages=[{"role": "user", "content": text} for text in asked], stream=True
        )
        async for chunk in stream:
            extra = chunk.model_extra or {}
            if extra.get("sources") is not None:
                # Its text says both once more, for clients without these fields.
                sources, followed = extra["sources"], extra.get("conversation") or {}
            elif chunk.choices:
                await reply.stream_token(chunk.choices[0].delta.content or "")
        cl.user_session.set("asked", asked)
    except openai.OpenAIError as error:
        await reply.stream_token(_sentence(error))
    await reply.stream_token(_understood(question, followed))
    if sources:
        # A name that stands in the text becomes a link that opens the chunk beside it.
        names = [f"Source {n}" for n in range(1, len(sources) + 1)]
        lines = [f"- {name}: {one['citation']}" for name, one in zip(names, sources, strict=True)]
        await reply.stream_token("\n\n" + "\n".join(lines))
        chunks: list[Any] = [
            cl.Text(name=name, content=one["text"], display="side")
            for name, one in zip(names, sources, strict=True)
        ]
        reply.elements = chunks
    await reply.send()


def _understood(question: str, followed: dict[str, Any]) -> str:
    """Return what was made of a follow-up, as text below its answer; empty for a first question."""
    lines = []
    if followed and followed["searched_for"] != question:
        lines.append(f"Searched for: {followed['searched_for']}")
    if followed and followed["forgotten"]:
        lines.append(f"Not considered: {followed['forgotten']} of the earlier questions.")
    return "".join(f"\n\n{line}" for line in lines)


async def _upload(client: openai.AsyncOpenAI, element: Any) -> None:  # noqa: ANN401
    if not getattr(element, "path", None):
        return
    try:
        content = Path(element.path).read_bytes()
        taken = await client.files.create(file=(element.name, content), purpose="assistants")
        said = f"{element.name} is in the queue as {taken.id}; ask about it in a moment."
    except openai.OpenAIError as error:
        said = _sentence(error)
    await cl.Message(said).send()


def _client() -> openai.AsyncOpenAI:
    url = os.environ[QUERY_URL]
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=service_token(), timeout=_TIMEOUT, max_retries=1
    )


def _sentence(error: openai.OpenAIError) -> str:
    """Return what the query service says, or that it says nothing."""
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        return str(body.get("detail") or f"The query service answers {error.status_code}.")
    return "The query service does not answer: try again in a moment."
