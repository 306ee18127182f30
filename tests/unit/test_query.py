"""What the query service makes of a model's answer; without any model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import HTTPException
from haystack import Document
from haystack.dataclasses import ChatMessage

from nim_cookbook.endpoints import Endpoint, Endpoints
from rag_service.query import Ask, Reply, Service, source

CHAT = Endpoint("chat", "http://127.0.0.1:9/v1", "some/model", "COOKBOOK_TEST_KEY", "weights")


class Answering:
    """A pipeline whose chat model says this."""

    graph = ("ranker", "prompt_builder")

    def __init__(self, text: str, finish_reason: str) -> None:
        self.reply = ChatMessage.from_assistant(text, meta={"finish_reason": finish_reason})

    async def run_async(self, *_: object, **__: object) -> dict[str, Any]:
        chunks = [Document(content="The heron sleeps.", score=1.0)]
        return {"ranker": {"documents": chunks}, "generator": {"replies": [self.reply]}}


@pytest.fixture
def asked() -> Callable[[str, str], Reply]:
    wrapper: Any = Ask()
    wrapper.service = Service(Endpoints("local", {"chat": CHAT}), Any, lambda *_: None)

    def ask(text: str, finish_reason: str) -> Reply:
        wrapper.pipeline = Answering(text, finish_reason)
        reply: Reply = asyncio.run(wrapper.run_api_async("Does it sleep?"))
        return reply

    return ask


def test_why_the_model_ended_is_told(asked: Callable[[str, str], Reply]) -> None:
    reply = asked(" It does.\n", "stop")
    assert (reply.answer, reply.finish_reason, reply.refused) == ("It does.", "stop", False)


@pytest.mark.parametrize(
    ("text", "finish_reason", "says"),
    [
        ("", "length", "some/model used up its tokens"),
        ("It is", "length", "used up its tokens before its answer ended"),
        (" ", "stop", "answered with nothing: ask again"),
    ],
)
def test_an_empty_or_cut_off_answer_is_an_error_in_one_sentence(
    asked: Callable[[str, str], Reply], text: str, finish_reason: str, says: str
) -> None:
    with pytest.raises(HTTPException, match=says) as caught:
        asked(text, finish_reason)
    assert caught.value.status_code == 502


@pytest.mark.parametrize("title", [1984, {"a": 1}])
def test_a_title_that_is_no_text_is_served_as_text(title: object) -> None:
    """In an index of an earlier version, which took metadata as YAML had read it."""
    chunk = Document(content="The heron sleeps.", meta={"file_path": "a.md", "title": title})
    assert source(chunk).title == str(title)
