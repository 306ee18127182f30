"""Find, follow and serve LoRA adapters; the Gradient SDK trains them.

The SDK has no call for an adapter's folder and past steps. The local Gradient server adds both to
the answer of `GET /models/{id}`, in the field `localStandIn`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from nim_cookbook.endpoints import CALL_TIMEOUT, Endpoint
from nim_cookbook.errors import ConfigurationError, EndpointUnreachable
from nim_cookbook.services import GradientService

if TYPE_CHECKING:
    from gradientai import Gradient, ModelAdapter

POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Step:
    """One training step of an adapter.

    Attributes:
        tokens: Trainable tokens of its samples.
        loss: Their mean cross-entropy before the step, in nats.
        seconds: Its duration.
    """

    tokens: int
    loss: float
    seconds: float


def find(client: Gradient, name: str) -> ModelAdapter | None:
    """Return the adapter of that name, the one made last if there are several; None without one."""
    models = client.list_models(only_base=False)
    named = [model for model in models if getattr(model, "name", None) == name]
    return named[-1] if named else None  # type: ignore[return-value]


def history(gradient: GradientService, adapter_id: str) -> list[Step]:
    """Return the steps that an adapter has been through, from the local Gradient server.

    Raises:
        EndpointUnreachable: The server does not answer, or has no such adapter.
        ConfigurationError: It is another server, which does not list steps.
    """
    return [
        Step(step["tokens"], step["sumLoss"] / step["tokens"], step["seconds"])
        for step in _local_fields(gradient, adapter_id)["history"]
    ]


def folder(gradient: GradientService, adapter_id: str) -> Path:
    """Return the PEFT folder of an adapter's current weights, on this machine.

    Raises:
        EndpointUnreachable: The server does not answer, or has no such adapter.
        ConfigurationError: It is another server, whose files are elsewhere.
    """
    return Path(_local_fields(gradient, adapter_id)["folder"])


def _local_fields(gradient: GradientService, adapter_id: str) -> dict[str, Any]:
    headers = {
        "Authorization": f"Bearer {os.environ.get(gradient.token_variable, '')}",
        "x-gradient-workspace-id": os.environ.get(gradient.workspace_variable, ""),
    }
    url = f"{gradient.host}/models/{adapter_id}"
    try:
        answer = httpx.get(url, headers=headers, timeout=CALL_TIMEOUT, trust_env=False)
        answer.raise_for_status()
        fields = answer.json().get("localStandIn")
    except (httpx.HTTPError, ValueError) as error:
        raise EndpointUnreachable(
            f"The Gradient server at {gradient.host} does not describe adapter {adapter_id} "
            f"({error}): check that it runs, and that the adapter was not deleted."
        ) from None
    if not isinstance(fields, dict):
        raise ConfigurationError(
            f"The server at {gradient.host} is not the local Gradient server, and lists neither "
            "steps nor files of an adapter: unset GRADIENT_API_URL."
        )
    return fields


def wait_until_served(
    chat: Endpoint, models: Iterable[str], *, seconds: float = 60
) -> list[dict[str, str]]:
    """Wait until a chat NIM has found new adapters in its folder.

    Args:
        chat: The chat endpoint.
        models: The names of the adapters' folders.
        seconds: Longest wait; a NIM scans its folder every `NIM_PEFT_REFRESH_INTERVAL` seconds,
            and only at its start if that is not set.

    Returns:
        The models that it serves: rows with `model` and `base`, an adapter's base model.

    Raises:
        EndpointUnreachable: It does not answer, or has not found them in time.
    """
    wanted = set(models)
    deadline = time.monotonic() + seconds
    while True:
        rows = _served(chat)
        missing = sorted(wanted - {row["model"] for row in rows})
        if not missing:
            return rows
        if time.monotonic() > deadline:
            raise EndpointUnreachable(
                f"The chat NIM at {chat.url} does not serve {', '.join(missing)} after "
                f"{seconds:.0f} s: check that it reads the folder that the adapters were copied "
                "to, that NIM_PEFT_REFRESH_INTERVAL is set, and its log."
            )
        time.sleep(POLL_SECONDS)


def _served(chat: Endpoint) -> list[dict[str, str]]:
    headers = {"Authorization": f"Bearer {chat.key}"} if chat.key else {}
    try:
        answer = httpx.get(f"{chat.url}/models", headers=headers, timeout=CALL_TIMEOUT)
        answer.raise_for_status()
        entries = answer.json()["data"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise EndpointUnreachable(
            f"The chat NIM at {chat.url} does not list its models ({error}): check that it runs."
        ) from None
    return [{"model": entry["id"], "base": entry.get("parent") or ""} for entry in entries]
