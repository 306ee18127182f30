"""The two protocols of NIM LLM: 1.x, and 2.x, which is vLLM's server behind a proxy.

docs/protocol.md says what differs, and where that was read.
"""

from __future__ import annotations

from dataclasses import dataclass

from local_endpoints.nim.errors import PROBLEMS, VLLM_ERRORS, Errors
from local_endpoints.nim.schemas import (
    Chat,
    ChatRequest,
    Completion,
    CompletionRequest,
    VllmChatRequest,
    VllmCompletionRequest,
)
from local_endpoints.options import Nim


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a chat server speaks.

    Attributes:
        nim: The major version of NIM LLM.
        errors: How it writes errors.
        chat: Body of a chat.
        completion: Body of a text completion.
        metrics: What the names of its figures begin with.
    """

    nim: Nim
    errors: Errors
    chat: type[Chat]
    completion: type[Completion]
    metrics: str = ""


NIM_1 = Dialect("1", PROBLEMS, ChatRequest, CompletionRequest)
NIM_2 = Dialect("2", VLLM_ERRORS, VllmChatRequest, VllmCompletionRequest, metrics="vllm:")
DIALECTS = {dialect.nim: dialect for dialect in (NIM_1, NIM_2)}
