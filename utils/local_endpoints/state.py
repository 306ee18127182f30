"""The state file of a running start: where its servers are, under which key, with which weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from nim_cookbook.local import state_path


def write(
    port_base: int,
    key: str,
    urls: Mapping[str, str],
    weights: Mapping[str, str],
    lasting: bool,
    peft_source: Path | None = None,
    models: str = "default",
) -> Path:
    """Write the state file, readable by this user only, and return its path.

    Args:
        port_base: The first port.
        key: The key of this start.
        urls: Base URL by server; `/health/ready` below each tells whether it is ready.
        weights: What really answers, by role; empty while loading.
        lasting: Whether the servers outlive the process that started them.
        peft_source: The folder from which the chat server loads LoRA adapters, if it does.
        models: Which set of models it is.
    """
    path = state_path(port_base)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "key": key,
        "urls": dict(urls),
        "weights": dict(weights),
        "lasting": lasting,
        "models": models,
        "peft_source": str(peft_source) if peft_source else None,
    }
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(state, file, indent=2)
    os.replace(draft, path)
    return path


def remove(path: Path) -> None:
    """Remove our state file, unless another start has replaced it meanwhile."""
    try:
        if json.loads(path.read_text(encoding="utf-8"))["pid"] == os.getpid():
            path.unlink()
    except (OSError, ValueError, KeyError):
        pass
