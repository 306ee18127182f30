"""What a user can ask of the local servers; shared by the two command lines that start them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from nim_cookbook.errors import ConfigurationError

WeightSet = Literal["default", "better", "small"]
Nim = Literal["1", "2"]
Like = Literal["nim", "hosted"]
MODELS = "COOKBOOK_MODELS"

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


def model_set() -> WeightSet:
    """Return the set of models that `COOKBOOK_MODELS` asks for, `default` if it is not set.

    Raises:
        ConfigurationError: There is no such set.
    """
    chosen = os.environ.get(MODELS, "").strip() or "default"
    for known in get_args(WeightSet):
        if chosen == known:
            return known  # type: ignore[no-any-return]
    raise ConfigurationError(
        f"{MODELS} is {chosen[:40]!r}: set it to {', '.join(get_args(WeightSet)[:-1])} or "
        f"{get_args(WeightSet)[-1]}."
    )


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Options of one start of the local servers.

    Attributes:
        host: Address to bind. Anything but loopback makes every server demand the key.
        port_base: The chat server's port; the others follow (see `PORT_OFFSETS`).
        models: Which set of weights from the registry to serve.
        chat_model: GGUF file to serve instead of the registry's chat weights.
        nim: The major version of NIM LLM whose protocol the chat server speaks. The containers that
            this project starts are 2.x: what works here must work there.
        stop_with_stdin: End when standard input closes, so that a child never outlives its parent.
        like: Whose manners the catalog has: a NIM's, or those of NVIDIA's hosted catalog.
        faults: What goes wrong on a catalog like the hosted one: `NAME`, `NAME:ROLE` or
            `NAME:ROLE:CALLS`, with the names of `faults.FAULTS`.
    """

    host: str = "127.0.0.1"
    port_base: int = 8000
    models: WeightSet = field(default_factory=model_set)
    chat_model: Path | None = None
    nim: Nim = "2"
    stop_with_stdin: bool = False
    like: Like = "nim"
    faults: Sequence[str] = ()
