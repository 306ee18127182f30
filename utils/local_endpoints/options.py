"""What a user can ask of the local servers; shared by the two command lines that start them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

WeightSet = Literal["small", "better"]

# Offsets from the port base.
PORT_OFFSETS = {
    "chat": 0,
    "embedding": 1,
    "reranking": 2,
    "catalog": 3,
    "gradient": 4,
    "notion": 5,
}
# What ends a server's base URL. The clients of NIMs want /v1 in it; Gradient's client takes the
# URL as it is, and Notion's appends /v1 itself.
BASE_PATHS = {"gradient": "/api", "notion": ""}
NIM_BASE_PATH = "/v1"


def base_url(name: str, host: str, port_base: int) -> str:
    """Return the base URL of a server, without a slash at its end.

    Args:
        name: The server, a key of `PORT_OFFSETS`.
        host: Host name or address as it stands in a URL.
        port_base: The chat server's port.
    """
    path = BASE_PATHS.get(name, NIM_BASE_PATH)
    return f"http://{host}:{port_base + PORT_OFFSETS[name]}{path}"


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Options of one start of the local servers.

    Attributes:
        host: Address to bind. Anything but loopback makes every server demand the key.
        port_base: The chat server's port; the others follow (see `PORT_OFFSETS`).
        models: Which set of weights from the registry to serve.
        chat_model: GGUF file, or URL with ``#sha256=HEX``, instead of the registry's chat weights.
        embedding_model: Folder, ONNX file or URLs with hashes, instead of the registry's.
        reranking_model: As `embedding_model`, for the reranker.
        stop_with_stdin: End when standard input closes, so that a child never outlives its parent.
    """

    host: str = "127.0.0.1"
    port_base: int = 8000
    models: WeightSet = "small"
    chat_model: list[str] = field(default_factory=list)
    embedding_model: list[str] = field(default_factory=list)
    reranking_model: list[str] = field(default_factory=list)
    stop_with_stdin: bool = False
