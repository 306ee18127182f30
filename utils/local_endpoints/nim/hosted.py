"""The catalog's application made like NVIDIA's hosted one: two hosts, dead models, and faults.

Asked under its own address, the server still tells what it is (`/v1/metadata`, `/v1/health`).
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from local_endpoints import strict_json
from local_endpoints.faults import FAULTS, Fault, Switched
from local_endpoints.nim.common import MAX_BODY_BYTES
from local_endpoints.nim.reasoning import Reasoning
from local_endpoints.nim.replay import body_of, with_body
from nim_cookbook.models import ROLES, CatalogModel, Role, load_registry

Json = dict[str, Any]

CHAT_PATH = "/v1/chat/completions"
ROLE_OF: Mapping[str, Role] = {
    CHAT_PATH: "chat",
    "/v1/completions": "chat",
    "/v1/embeddings": "embedding",
}
RERANKING_PATH = "/v1/retrieval/"
#: Which roles NVIDIA serves on which host; under any other name all are served.
HOSTS: Mapping[str, Sequence[Role]] = {
    "integrate.api.nvidia.com": ("chat", "embedding"),
    "ai.api.nvidia.com": ("reranking",),
}
CREATED = 735790403  # of every model in the live listing


class HostedCatalog:
    """ASGI middleware that makes the catalog's application like NVIDIA's hosts.

    Args:
        app: The application.
        faults: What goes wrong; may be changed while it serves.
    """

    def __init__(self, app: ASGIApp, faults: Sequence[Switched] = ()) -> None:
        self.app = app
        self.faults = list(faults)
        self.models = {m.id: m for role in ROLES for m in load_registry().models(role)}
        self._reasoning = Reasoning(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the live hosts do, with what the application answers where all is well."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").partition(":")[0]
        path = scope["path"]
        role = "reranking" if path.startswith(RERANKING_PATH) else ROLE_OF.get(path)
        if role is not None and role in HOSTS.get(host, ROLES):
            await self._serve(role, scope, receive, send)
        elif path == "/v1/models" and "chat" in HOSTS.get(host, ROLES):
            await JSONResponse(self._listing())(scope, receive, send)
        elif host in HOSTS or path == "/v1/ranking":  # which only a self-hosted NIM has
            await _answer(FAULTS["unknown"], "")(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _listing(self) -> Json:
        """Return what the live listing has, the dead models among the others; it needs no key."""
        return {
            "object": "list",
            "data": [
                {
                    "id": model,
                    "object": "model",
                    "created": CREATED,
                    "owned_by": model.partition("/")[0],
                }
                for model in self.models
            ],
        }

    async def _serve(self, role: Role, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await body_of(receive, MAX_BODY_BYTES)
        body = _parsed(raw)
        model = str(body.get("model") or "")
        dead = self._dead(role, model)
        struck = [dead] if dead else [s.fault for s in self.faults if s.strikes(role)]
        await asyncio.sleep(sum(fault.delay for fault in struck))
        refusal = next((fault for fault in struck if fault.status), None)
        if refusal is not None:
            await _answer(refusal, model)(scope, receive, send)
            return
        # The live hosts ignore template arguments that no template reads; the local models'
        # templates read none.
        arguments = body.pop("chat_template_kwargs", None)
        off = isinstance(arguments, dict) and arguments.get("enable_thinking") is False
        if scope["path"] == CHAT_PATH and not off and any(fault.reasons for fault in struck):
            await self._reasoning(scope, receive, send, body)
            return
        budget = body.pop("reasoning_budget", None)
        if (arguments, budget) != (None, None):
            raw = json.dumps(body).encode()
        await self.app(*with_body(scope, raw, receive), send)

    def _dead(self, role: Role, model: str) -> Fault | None:
        """Return what asking for a model that is not there gives; the application checks others."""
        known: CatalogModel | None = self.models.get(model)
        if known is not None and known.status == "retired":
            return FAULTS["retired"]
        return FAULTS["unknown"] if model and (known is None or known.role != role) else None


def _parsed(raw: bytes) -> Json:
    """Return the JSON object of a body; an empty one where the application will refuse it."""
    try:
        body = strict_json.loads(raw)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _answer(fault: Fault, model: str) -> Response:
    """Return a fault's answer about a model."""
    request = str(uuid.uuid4())

    def filled(text: Any) -> Any:  # noqa: ANN401 - any value of JSON
        if not isinstance(text, str):
            return text
        return text.replace("{model}", model).replace("{id}", request)

    headers = {name: filled(value) for name, value in fault.headers.items()}
    if isinstance(fault.body, str):
        kind = "text/plain" if fault.body else None
        return Response(fault.body, fault.status, headers, media_type=kind)
    return JSONResponse({k: filled(v) for k, v in fault.body.items()}, fault.status, headers)
