"""What goes wrong on NVIDIA's hosted catalog, as a table; `serve --like hosted --fault NAME`.

The shapes of the answers are those that users of the live hosts report; docs/hosted-catalog.md says
where.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nim_cookbook.errors import ConfigurationError

if TYPE_CHECKING:  # the command line shows the names, and must be quick
    from nim_cookbook.models import Role

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """A way in which the hosted catalog fails.

    Attributes:
        does: What happens, for people.
        status: Status of the answer; 0 where the model answers in the end.
        body: Its body, a JSON object or text; `{model}` and `{id}` in it are filled in.
        headers: Its headers, filled in likewise.
        delay: Seconds before anything is answered.
        reasons: Whether the chat model reasons unless `enable_thinking` is false.
    """

    does: str
    status: int = 0
    body: Json | str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    reasons: bool = False


_BUSY = {"status": 429, "title": "Too Many Requests"}
FAULTS: Mapping[str, Fault] = {
    "busy": Fault("429, and the header Retry-After says when", 429, _BUSY, {"Retry-After": "2"}),
    "busy-silent": Fault("429 without that header", 429, _BUSY),
    "retired": Fault(
        "410, though /v1/models lists the model",
        410,
        {
            "type": "about:blank",
            "title": "Gone",
            "status": 410,
            "detail": "The model '{model}' has reached its end of life on 2026-08-26T09:00:00Z and "
            "is no longer available.",
        },
    ),
    "unknown": Fault("404 in plain text, as for an unknown id", 404, "404 page not found"),
    "withheld": Fault(
        "404, since the account may not use the model that /v1/models lists",
        404,
        {
            "status": 404,
            "title": "Not Found",
            "detail": "Function '{id}': Not found for account 'fake-account-of-the-stand-in'",
        },
    ),
    "asleep": Fault(
        "202 without a result, which would have to be polled under the header NVCF-REQID",
        202,
        "",
        {"NVCF-REQID": "{id}", "NVCF-STATUS": "pending-evaluation"},
    ),
    "unauthorized": Fault(
        "401", 401, {"status": 401, "title": "Unauthorized", "detail": "Authentication failed"}
    ),
    "forbidden": Fault(
        "403", 403, {"status": 403, "title": "Forbidden", "detail": "Authorization failed"}
    ),
    # Longer than LlamaIndex's reranking client waits by default, which is 5 s.
    "slow": Fault("the first token comes after 6 seconds", delay=6.0),
    "reasoning": Fault(
        "the chat model reasons first, at the cost of max_tokens, unless chat_template_kwargs has "
        "enable_thinking false",
        reasons=True,
    ),
}


@dataclass(slots=True)
class Switched:
    """A fault that is on.

    Attributes:
        fault: What happens.
        role: To calls of which role; None for all.
        left: To how many more calls.
    """

    fault: Fault
    role: Role | None = None
    left: float = math.inf

    def strikes(self, role: Role) -> bool:
        """Tell whether it happens to this call, and count it."""
        if self.role not in (None, role) or self.left <= 0:
            return False
        self.left -= 1
        return True


def switched(text: str) -> Switched:
    """Return the fault that `NAME`, `NAME:ROLE` or `NAME:ROLE:CALLS` asks for.

    Raises:
        ConfigurationError: There is no such fault or role, or the number is none.
    """
    from nim_cookbook.models import ROLES

    name, _, rest = text.partition(":")
    role, _, calls = rest.partition(":")
    if name not in FAULTS:
        raise ConfigurationError(f"There is no fault {name[:40]!r}: use {', '.join(FAULTS)}.")
    known: dict[str, Role] = {role: role for role in ROLES}
    if role and role not in known:
        raise ConfigurationError(
            f"The fault {text[:60]!r} names no role: write one of {', '.join(ROLES)} after {name}:"
        )
    if calls and not (calls.isascii() and calls.isdigit()):
        raise ConfigurationError(
            f"The fault {text[:60]!r} has no number of calls: write {name}:{role}:1, or leave "
            "the number out, which means all calls."
        )
    return Switched(FAULTS[name], known.get(role), int(calls) if calls else math.inf)
