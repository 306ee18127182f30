"""Follow-up questions, and questions on two things: what the search is asked in their place.

A search knows nothing of a conversation: "And who approves it?" finds nothing. Either the earlier
questions are put before the new one (`joined`), or the chat model rewrites it so that it can be
understood alone (`pipeline` with `REWRITE`). With `DECOMPOSE` the same pipeline splits a question
on two documents. The wordings were chosen on the questions of dev (recipe 16).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.dataclasses import ChatMessage

from nim_cookbook.answering import answer_text, chat_generator
from nim_cookbook.endpoints import Endpoints

#: Earlier questions that are looked at; older ones are forgotten.
QUESTIONS = 3
#: Most characters that they have together. An embedding model cuts a text at its end, where the new
#: question stands.
CHARACTERS = 1000
#: Longest rewritten question in tokens; the parts of a question together.
MAX_TOKENS = 60

#: The prompt that makes a follow-up understandable alone; takes `earlier`, the questions before it,
#: and `question`. The answers are left out: with them the local model's rewrites were no better.
REWRITE = [
    ChatMessage.from_user("""Conversation:
{% for asked in earlier -%}
Question: {{ asked }}
{% endfor -%}
Question: {{ question }}

Write the last question as one full question that somebody understands who has not read the \
conversation. Write only the question.""")
]
_DECOMPOSED = [
    (
        "How many mounting arms does a depot keep at least, and to what torque are their anchors "
        "tightened on a bridge?",
        "How many mounting arms does a depot keep at least?\n"
        "To what torque are the anchors of a mounting arm tightened on a bridge?",
    ),
    (
        "How much dearer is the RG-5-B than an RG-3 with card?",
        "What does the RG-5-B cost?\nWhat does an RG-3 with card cost?",
    ),
    ("How long is the warranty on an HR-210?", "How long is the warranty on an HR-210?"),
    (
        "Which Lantern pack did Brae Nock receive and what does a winter sleeve for it cost?",
        "Which Lantern pack did Brae Nock receive?\n"
        "What does a winter sleeve for a Lantern pack cost?",
    ),
]

#: The prompt that splits a question; takes `question`. Its examples are of the questions of train.
DECOMPOSE = [
    ChatMessage.from_system(
        "Split the question into the questions that have to be looked up for it, one a line. A "
        "question about one thing stays as it is."
    ),
    *(
        message
        for question, parts in _DECOMPOSED
        for message in (ChatMessage.from_user(question), ChatMessage.from_assistant(parts))
    ),
    ChatMessage.from_user("{{ question }}"),
]


def remembered(earlier: Sequence[str], room: int = CHARACTERS) -> list[str]:
    """Return the latest of the earlier questions, which are looked at, the oldest first.

    Args:
        earlier: All questions before the follow-up.
        room: Most characters that those returned may have together, if less than `CHARACTERS`.
    """
    kept: list[str] = []
    left = min(room, CHARACTERS)
    for question in reversed(earlier[-QUESTIONS:]):
        left -= len(question) + 1
        if left < 0:
            break
        kept.insert(0, question)
    return kept


def joined(earlier: Sequence[str], question: str) -> str:
    """Return earlier questions and the new one as one text."""
    return " ".join([*earlier, question])


def inputs(earlier: Sequence[str], question: str) -> dict[str, Any]:
    """Return the inputs of the pipeline with `REWRITE`."""
    return {"prompt_builder": {"earlier": list(earlier), "question": question}}


def lines(result: Mapping[str, Any]) -> list[str]:
    """Return the questions of a run of the pipeline; none when its reply was cut off or empty."""
    text = answer_text(result["generator"]["replies"][0])
    found = (line.strip() for line in text.splitlines())
    return [line for line in found if line]


def pipeline(api: Endpoints, prompt: Sequence[ChatMessage]) -> Pipeline:
    """Return the pipeline that rewrites or splits a question.

    Inputs `prompt_builder.question`, and `prompt_builder.earlier` with `REWRITE`. Output
    `generator.replies`.

    Args:
        api: Where the chat model is.
        prompt: `REWRITE` or `DECOMPOSE`.
    """
    made = Pipeline()
    made.add_component("prompt_builder", ChatPromptBuilder(list(prompt), required_variables="*"))
    made.add_component("generator", chat_generator(api.chat, MAX_TOKENS))
    made.connect("prompt_builder.prompt", "generator.messages")
    return made
