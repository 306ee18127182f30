"""What the query service makes of a model's answer; without any model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import HTTPException
from haystack import Document, Pipeline, component
from haystack.dataclasses import ChatMessage, StreamingChunk

from nim_cookbook.conversations import CHARACTERS, QUESTIONS
from nim_cookbook.endpoints import Endpoint, Endpoints
from rag_service.query import Ask, Reply, Service, source

CHAT = Endpoint("chat", "http://127.0.0.1:9/v1", "some/model", "COOKBOOK_TEST_KEY", "weights")


class Answering:
    """A pipeline whose chat model says this."""

    graph = ("ranker", "prompt_builder", "text_embedder")

    def __init__(self, text: str, finish_reason: str = "stop") -> None:
        self.reply = ChatMessage.from_assistant(text, meta={"finish_reason": finish_reason})
        self.given: dict[str, Any] = {}

    async def run_async(self, given: dict[str, Any], **_: object) -> dict[str, Any]:
        self.given = given
        chunks = [Document(content="The heron sleeps.", score=1.0)]
        return {"ranker": {"documents": chunks}, "generator": {"replies": [self.reply]}}


def asking(pipeline: Any, follow_ups: str = "off") -> Any:
    """Return the wrapper over a pipeline."""
    wrapper: Any = Ask()
    wrapper.service = Service(Endpoints("local", {"chat": CHAT}), Any, lambda *_: None)
    wrapper.pipeline, wrapper.follow_ups = pipeline, follow_ups
    return wrapper


def asked(text: str, finish_reason: str) -> Reply:
    """Return the reply where the chat model says this."""
    wrapper = asking(Answering(text, finish_reason))
    reply: Reply = asyncio.run(wrapper.run_api_async("Does it sleep?"))
    return reply


def test_why_the_model_ended_is_told() -> None:
    reply = asked(" It does.\n", "stop")
    assert (reply.answer, reply.finish_reason, reply.refused) == ("It does.", "stop", False)


@pytest.mark.parametrize("text", ["", "It is"])
def test_of_an_answer_that_was_cut_off_that_is_said_and_the_sources(text: str) -> None:
    """It was a 502, though a long answer to a caller's question is no failure of the model."""
    reply = asked(text, "length")
    assert reply.answer.startswith("some/model used up its tokens before its answer ended")
    assert (reply.finish_reason, reply.refused) == ("length", False)
    assert [one.text for one in reply.sources] == ["The heron sleeps."]


def test_an_empty_answer_is_the_models_failure() -> None:
    with pytest.raises(HTTPException, match="answered with nothing: ask again") as caught:
        asked(" ", "stop")
    assert caught.value.status_code == 502


@component
class Finding:
    @component.output_types(documents=list[Document])
    def run(self, query: str) -> dict[str, Any]:
        return {"documents": [Document(content="The heron sleeps.", meta={"file_path": "a.md"})]}


@component
class CutOff:
    """A chat model that is cut off in the middle of a sentence."""

    @component.output_types(replies=list[ChatMessage])
    def run(self, streaming_callback: Any = None) -> dict[str, Any]:
        raise NotImplementedError

    @component.output_types(replies=list[ChatMessage])
    async def run_async(self, streaming_callback: Any = None) -> dict[str, Any]:
        await streaming_callback(StreamingChunk("It is"))
        reply = ChatMessage.from_assistant("It is", meta={"finish_reason": "length"})
        return {"replies": [reply]}


def test_a_stream_that_was_cut_off_says_so_and_lists_the_sources() -> None:
    pipeline = Pipeline()
    pipeline.add_component("ranker", Finding())
    pipeline.add_component("generator", CutOff())
    wrapper = asking(pipeline)

    async def read() -> list[Any]:
        messages = said("Does it sleep?")
        chunks = await wrapper.run_chat_completion_async("ask", messages, {"stream": True})
        return [chunk.choices[0] async for chunk in chunks]

    *pieces, end = asyncio.run(read())
    half, cut_off, sources = "".join(piece.delta.content for piece in pieces).split("\n\n")
    assert half == "It is"
    assert cut_off.startswith("some/model used up its tokens before its answer ended")
    assert sources == "Sources:\n- [1] a.md"
    assert end.finish_reason == "length"


@pytest.mark.parametrize("title", [1984, {"a": 1}])
def test_a_title_that_is_no_text_is_served_as_text(title: object) -> None:
    """In an index of an earlier version, which took metadata as YAML had read it."""
    chunk = Document(content="The heron sleeps.", meta={"file_path": "a.md", "title": title})
    assert source(chunk).title == str(title)


# ---------------------------------------------------------------------------------- follow-ups


def said(*texts: str) -> list[dict[str, Any]]:
    """Return messages of the user and the assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


Follow = Callable[..., tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture
def follow() -> Follow:
    """Ask with a conversation; return the completion and what the pipeline was given."""

    def ask(
        messages: list[dict[str, Any]], how: str = "joined", rewritten: Answering | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        wrapper = asking(Answering("Yes."), how)
        wrapper.rewrite = rewritten
        done = asyncio.run(wrapper.run_chat_completion_async("ask", messages, {}))
        return done.model_dump(), wrapper.pipeline.given

    return ask


TALK = said("Where does the heron sleep?", "In a tree.", "And the otter?")
JOINED = "Where does the heron sleep? And the otter?"


def test_a_first_question_is_asked_as_it_is(follow: Follow) -> None:
    done, given = follow(said("And the otter?"))
    assert given["text_embedder"]["text"] == given["ranker"]["query"] == "And the otter?"
    assert "conversation" not in done
    assert "Not considered" not in done["choices"][0]["message"]["content"]


def test_a_follow_up_is_joined_with_the_questions_before_it(follow: Follow) -> None:
    done, given = follow(TALK)
    assert given["text_embedder"]["text"] == given["ranker"]["query"] == JOINED
    assert given["prompt_builder"]["question"] == "And the otter?"  # the model sees the chunks
    assert done["conversation"] == {"searched_for": JOINED, "looked_at": 1, "forgotten": 0}


def test_a_follow_up_is_rewritten_by_the_chat_model(follow: Follow) -> None:
    rewriting = Answering("Where does the otter sleep?\n")
    done, given = follow(TALK, "rewritten", rewriting)
    assert rewriting.given["prompt_builder"]["earlier"] == ["Where does the heron sleep?"]
    assert given["prompt_builder"]["question"] == "Where does the otter sleep?"
    assert done["conversation"]["searched_for"] == "Where does the otter sleep?"


@pytest.mark.parametrize("useless", [Answering(" \n"), Answering("Where does", "length")])
def test_a_rewrite_that_cannot_be_used_is_replaced_by_joining(
    follow: Follow, useless: Answering
) -> None:
    done, _ = follow(TALK, "rewritten", useless)
    assert done["conversation"]["searched_for"] == JOINED


def test_switched_off_all_earlier_questions_are_forgotten_and_that_is_said(follow: Follow) -> None:
    done, given = follow(TALK, "off")
    assert given["text_embedder"]["text"] == "And the otter?"
    assert done["conversation"] == {
        "searched_for": "And the otter?",
        "looked_at": 0,
        "forgotten": 1,
    }
    assert "Not considered: 1 earlier question." in done["choices"][0]["message"]["content"]


def test_older_questions_are_forgotten_and_that_is_said(follow: Follow) -> None:
    texts = [text for n in range(QUESTIONS + 2) for text in (f"Question {n}?", f"Answer {n}.")]
    done, given = follow(said(*texts, "And now?"))
    asked = "Question 2? Question 3? Question 4? And now?"
    assert given["text_embedder"]["text"] == asked
    assert done["conversation"] == {"searched_for": asked, "looked_at": QUESTIONS, "forgotten": 2}
    assert "Not considered: 2 earlier questions." in done["choices"][0]["message"]["content"]


def test_a_long_question_leaves_no_room_for_earlier_ones(follow: Follow) -> None:
    for first, last in (("x" * CHARACTERS, "And now?"), ("What?", "x" * 3999)):
        done, given = follow(said(first, "So.", last))
        assert given["text_embedder"]["text"] == last
        assert done["conversation"]["forgotten"] == 1


@pytest.mark.parametrize("how", ["joined", "rewritten"])
def test_half_a_character_in_an_earlier_question_is_the_callers_mistake(
    follow: Follow, how: str
) -> None:
    with pytest.raises(HTTPException) as caught:
        follow(said("\ud800?", "So.", "And now?"), how, Answering("never asked"))
    assert caught.value.status_code == 422


def test_only_what_the_user_said_counts(follow: Follow) -> None:
    messages: list[Any] = said("What?", "Yes.", " ", "No.", "And now?")
    messages.insert(0, {"role": "system", "content": "Be kind."})
    messages.insert(2, "no message")
    done, given = follow(messages)
    assert given["text_embedder"]["text"] == "What? And now?"
    assert done["conversation"] == {
        "searched_for": "What? And now?",
        "looked_at": 1,
        "forgotten": 0,
    }
