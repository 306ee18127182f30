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
from haystack.utils import Secret
from haystack_integrations.components.generators.nvidia import NvidiaChatGenerator

from nim_cookbook.answering import answer_text
from nim_cookbook.data import Turn
from nim_cookbook.endpoints import Endpoints

#: Earlier turns that are looked at; older ones are forgotten.
TURNS = 3
#: Most characters of their questions together, and of each answer. An embedding model cuts a text
#: at its end, where the new question stands.
CHARACTERS, ANSWER = 1000, 300
#: Longest rewritten question in tokens; the parts of a question together.
MAX_TOKENS = 60

#: The prompt that makes a follow-up understandable alone; takes `turns` and `question`.
REWRITE = [
    ChatMessage.from_user("""Conversation:
{% for turn in turns -%}
Question: {{ turn.question }}
Answer: {{ turn.answer }}
{% endfor -%}
Question: {{ question }}

Write the last question as one full question that somebody understands who has not read the \
conversation. Write only the question.""")
]
#: The prompt that splits a question; takes `question`.
DECOMPOSE = [
    ChatMessage.from_user("""Question: {{ question }}

Which questions have to be looked up to answer it? Write one or two short, complete questions, \
one a line, and nothing else.""")
]


def remembered(turns: Sequence[Turn], room: int = CHARACTERS) -> list[Turn]:
    """Return the latest turns that are looked at, the oldest first.

    Args:
        turns: All earlier turns.
        room: Most characters that their questions may have together, if less than `CHARACTERS`.
    """
    kept: list[Turn] = []
    for turn in reversed(turns[-TURNS:]):
        room_left = min(room, CHARACTERS) - sum(len(t.question) + 1 for t in kept)
        if len(turn.question) + 1 > room_left:
            break
        kept.insert(0, turn)
    return kept


def joined(turns: Sequence[Turn], question: str) -> str:
    """Return the questions of earlier turns and the new one as one text."""
    return " ".join([*(turn.question for turn in turns), question])


def inputs(turns: Sequence[Turn], question: str) -> dict[str, Any]:
    """Return the inputs of the pipeline with `REWRITE`."""
    told = [{"question": turn.question, "answer": turn.answer[:ANSWER]} for turn in turns]
    return {"prompt_builder": {"question": question, "turns": told}}


def lines(result: Mapping[str, Any]) -> list[str]:
    """Return the questions of a run of the pipeline; none when its reply was cut off or empty."""
    text = answer_text(result["generator"]["replies"][0])
    found = (line.strip() for line in text.splitlines())
    return [line for line in found if line]


def pipeline(api: Endpoints, prompt: Sequence[ChatMessage]) -> Pipeline:
    """Return the pipeline that rewrites or splits a question.

    Inputs `prompt_builder.question`, and `prompt_builder.turns` with `REWRITE`. Output
    `generator.replies`.

    Args:
        api: Where the chat model is.
        prompt: `REWRITE` or `DECOMPOSE`.
    """
    made = Pipeline()
    made.add_component("prompt_builder", ChatPromptBuilder(list(prompt), required_variables="*"))
    made.add_component(
        "generator",
        NvidiaChatGenerator(
            model=api.chat.model,
            api_base_url=api.chat.url,
            api_key=Secret.from_env_var(api.chat.key_variable),
            generation_kwargs={
                "temperature": 0,
                "seed": 1,
                "max_tokens": MAX_TOKENS + api.chat.thinking,
                "extra_body": api.chat.extra_body,
            },
        ),
    )
    made.connect("prompt_builder.prompt", "generator.messages")
    return made
