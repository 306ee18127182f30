"""Request bodies of the NIM protocol; unknown fields are refused, never ignored.

The bodies of NIM LLM 2.x, which are vLLM's, ignore them as vLLM does.

Sources: NVIDIA's API reference of the LLM, text embedding and text reranking NIMs, and the OpenAI
API reference for the fields they share; docs/protocol.md has what differs, with dates.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from local_endpoints import strict_json

MAX_INPUTS = 2048
MAX_PASSAGES = 512
DEFAULT_MAX_TOKENS = 1024
# A chat template's work grows with both, and nobody can interrupt it.
MAX_MESSAGES = 2048
MAX_TOOLS = 128


class Body(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(Body):
    """One part of a multi-part message; only text can be served here."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """The call inside a tool call; `arguments` is JSON text, as OpenAI sends it."""

    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_an_object(cls, arguments: str) -> str:
        """Refuse what no chat template could show; OpenAI takes nothing for no arguments."""
        if not isinstance(strict_json.loads(arguments or "{}"), dict):
            raise ValueError("must be the JSON text of an object")
        return arguments or "{}"


class ToolCall(Body):
    """A tool call of an earlier assistant message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    """A chat message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class FunctionSpec(Body):
    """A function that the model may call; `parameters` is a JSON schema of type object."""

    name: str = Field(min_length=1, max_length=64)
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool | None = None


class Tool(Body):
    """A tool as OpenAI describes it."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Body):
    """The function part of a forced tool choice."""

    name: str


class NamedTool(Body):
    """A forced tool choice."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """The schema part of ``response_format: {"type": "json_schema"}``."""

    name: str = "schema"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What shape the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False


Stop = str | list[Annotated[str, Field(min_length=1)]] | None


class Sampling(Body):
    """Fields that chat and text completions share.

    Without a temperature the answer is decoded greedily, so that a class sees the same answers on
    every machine (the hosted catalog's default differs by model, often 0.2). The default of top_p
    is the hosted catalog's.
    """

    model: str
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31 - 1)
    temperature: float = Field(default=0, ge=0, le=2)
    top_p: float = Field(default=0.7, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=1000)
    min_p: float | None = Field(default=None, ge=0, le=1)
    n: int = Field(default=1, ge=1, le=4)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Stop = None
    seed: int | None = Field(default=None, ge=0, le=2**32 - 2)
    frequency_penalty: float = Field(default=0, ge=-2, le=2)
    presence_penalty: float = Field(default=0, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    user: str | None = None


class Chat(Sampling):
    """The fields of ``POST /v1/chat/completions`` in all versions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Completion(Sampling):
    """The fields of ``POST /v1/completions`` in all versions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=64)]
    logprobs: int | None = Field(default=None, ge=0, le=5)


class NvExt(Body):
    """NVIDIA's older place for guided decoding."""

    guided_json: dict[str, Any] | str | None = None
    guided_choice: list[str] | None = None


class Guided(NvExt):
    """Guided decoding of NIM LLM 1.x."""

    nvext: NvExt | None = None


class ChatRequest(Chat, Guided):
    """Body of ``POST /v1/chat/completions`` of NIM LLM 1.x and of the catalog."""


class CompletionRequest(Completion, Guided):
    """Body of ``POST /v1/completions`` of NIM LLM 1.x and of the catalog."""


class StructuredOutputs(Body):
    """vLLM's place for guided decoding."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    choice: list[str] | None = None


# Fields with which vLLM would answer otherwise, and that are not served here.
VLLM_ONLY = (
    *("allowed_token_ids", "bad_words", "best_of", "chat_template", "continue_final_message"),
    *("echo", "ignore_eos", "include_stop_str_in_output", "length_penalty", "logit_bias"),
    *("logits_processors", "min_tokens", "prompt_embeds", "prompt_logprobs", "return_token_ids"),
    *("return_tokens_as_token_ids", "stop_token_ids", "suffix", "thinking_token_budget"),
    *("truncate_prompt_tokens", "use_beam_search"),
)


class VllmBody(Body):
    """A body of NIM LLM 2.x: what vLLM does not know is ignored, what is not served is refused."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_served(cls, body: Any) -> Any:  # noqa: ANN401  not validated yet
        known = VLLM_ONLY if isinstance(body, dict) else ()
        asked = [name for name in known if body.get(name)]
        if asked:
            raise ValueError(f"{', '.join(asked)} is not served here: leave it out.")
        return body


class VllmSampling(VllmBody):
    """What chat and text completions of NIM LLM 2.x share beside `Sampling`."""

    structured_outputs: StructuredOutputs | None = None


class VllmMessage(Message):
    """A chat message of NIM LLM 2.x, such as an answer sent back with all its fields."""

    model_config = ConfigDict(extra="ignore")


class VllmChatRequest(Chat, VllmSampling):
    """Body of ``POST /v1/chat/completions`` of NIM LLM 2.x."""

    model_config = ConfigDict(extra="ignore")

    messages: list[VllmMessage] = Field(  # type: ignore[assignment]
        min_length=1, max_length=MAX_MESSAGES
    )


class VllmCompletionRequest(Completion, VllmSampling):
    """Body of ``POST /v1/completions`` of NIM LLM 2.x."""

    model_config = ConfigDict(extra="ignore")


class TokenizeRequest(VllmBody):
    """Body of ``POST /tokenize``: a text, or a chat in the model's template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[VllmMessage] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    add_special_tokens: bool = True
    add_generation_prompt: Literal[True] = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("Give a prompt or messages, one of both.")
        return self


class EmbeddingRequest(Body):
    """Body of ``POST /v1/embeddings``."""

    model: str
    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[
            list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS)
        ]
    )
    input_type: Literal["query", "passage"] | None = None
    truncate: Literal["NONE", "START", "END"] = "NONE"
    encoding_format: Literal["float", "base64"] = "float"
    embedding_type: Literal["float", "int8", "uint8", "binary", "ubinary"] = "float"
    dimensions: int | None = None
    user: str | None = None


class Text(Body):
    """A query or passage of a ranking request."""

    text: str


class RankingRequest(Body):
    """Body of ``POST /v1/ranking``; clients may send ``"model": null``."""

    model: str | None = None
    query: Text
    passages: list[Text] = Field(min_length=1, max_length=MAX_PASSAGES)
    truncate: Literal["NONE", "END"] = "NONE"
