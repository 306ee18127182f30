"""What the routes answer, for the OpenAPI document alone: engines write the answers themselves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

Json = dict[str, Any]
FinishReason = Literal["stop", "length", "tool_calls"]


class Health(BaseModel):
    """Whether all models are loaded."""

    object: Literal["health.response"]
    message: str
    ready: bool


class Model(BaseModel):
    """A model id that is answered to."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None


class Listing(BaseModel):
    """The model ids; the first is the default."""

    object: Literal["list"]
    data: list[Model]


class Usage(BaseModel):
    """Tokens read, and in all."""

    prompt_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class GenerationUsage(Usage):
    """Tokens read and written."""

    completion_tokens: int = Field(ge=0)


class AnswerMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"]
    content: str | None = None
    tool_calls: list[Json] | None = None


class ChatChoice(BaseModel):
    """One answer to a chat."""

    index: int
    finish_reason: FinishReason
    message: AnswerMessage
    logprobs: Json | None = None


class ChatAnswer(BaseModel):
    """The answer of a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: GenerationUsage


class TextChoice(BaseModel):
    """One continuation of a text."""

    index: int
    finish_reason: FinishReason
    text: str
    logprobs: Json | None = None


class CompletionAnswer(BaseModel):
    """The continuations of some texts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: GenerationUsage


class Tokenized(BaseModel):
    """The tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class EmbeddingEntry(BaseModel):
    """The vector of one text: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(BaseModel):
    """Vectors in the order of the input."""

    object: Literal["list"]
    data: list[EmbeddingEntry]
    model: str
    usage: Usage


class Ranking(BaseModel):
    """A passage's place in the input, and its score."""

    index: int
    logit: float


class Rankings(BaseModel):
    """Each passage once, the best first."""

    rankings: list[Ranking]
    usage: Usage
