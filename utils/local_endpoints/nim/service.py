"""What one role has behind it: the ids it answers to, its engine once loaded, its true weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from local_endpoints.nim.errors import ApiError
from local_endpoints.weights import ResolvedWeights
from nim_cookbook.models import CatalogModel, Role

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """A LoRA adapter that a role serves beside its base model.

    Attributes:
        name: The model id that chooses it.
        created: When its weights were written, in seconds since 1970.
        file: Name of its weights file.
        sha256: Hash of that file.
    """

    name: str
    created: int
    file: str
    sha256: str


class RoleService(Generic[E]):
    """A role (chat, embedding, reranking) of the local servers.

    Args:
        role: The role.
        catalog: Catalogue ids that the role answers to; the first is listed first, since clients
            without a model take the first of ``/v1/models``.
    """

    def __init__(self, role: Role, catalog: list[CatalogModel]) -> None:
        self.role = role
        self.catalog = {model.id: model for model in catalog}
        self.engine: E | None = None
        self.weights: ResolvedWeights | None = None
        self.adapters: Mapping[str, ServedAdapter] = {}
        self.created = int(time.time())

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self.engine is not None

    def load(self, engine: E, weights: ResolvedWeights) -> None:
        """Make the role ready."""
        self.weights = weights
        self.engine = engine

    def ids(self) -> list[str]:
        """Return all ids this role answers to, the true name of the local weights last."""
        return [*self.catalog, *([self.weights.local_id] if self.weights else [])]

    def require_engine(self) -> E:
        """Return the engine.

        Raises:
            ApiError: 503 while the model is loading.
        """
        if self.engine is None:
            raise ApiError(503, f"The {self.role} model is still loading; try again in a moment.")
        return self.engine

    def check(self, model: str) -> CatalogModel | None:
        """Return the catalogue entry of an id, None for the true local name.

        Raises:
            ApiError: 404 for an id that this role does not serve.
        """
        if model in self.catalog:
            return self.catalog[model]
        if model in self.ids():
            return None
        raise ApiError(
            404,
            f"The {self.role} model '{model}' does not exist here; GET /v1/models lists what does.",
        )

    def listing(self) -> list[dict[str, Any]]:
        """Return the role's entries of ``/v1/models``; `root` equals `id` for base models."""
        return [
            {
                "id": model,
                "object": "model",
                "created": self.created,
                "owned_by": "local-stand-in",
                "root": model,
                "parent": None,
            }
            for model in self.ids()
        ]

    def adapter_listing(self) -> list[dict[str, Any]]:
        """Return the adapters' entries of a NIM's ``/v1/models``, to be listed after the base."""
        base = self.ids()[0]
        return [
            {
                "id": adapter.name,
                "object": "model",
                "created": adapter.created,
                "owned_by": "local-stand-in",
                "root": base,
                "parent": base,
            }
            for adapter in self.adapters.values()
        ]

    def adapter_provenance(self) -> list[dict[str, Any]]:
        """Return the files of the adapters, and the weights that they are laid over."""
        base = self.weights.local_id if self.weights else ""
        return [
            {"name": adapter.name, "base": base, "file": adapter.file, "sha256": adapter.sha256}
            for adapter in self.adapters.values()
        ]

    def provenance(self) -> list[dict[str, Any]]:
        """Return the weights that really answer, one entry a file."""
        if self.weights is None:
            return []
        return [
            {
                "role": self.role,
                "localId": self.weights.local_id,
                "description": self.weights.description,
                "file": name,
                "sha256": sha256,
                "licence": self.weights.licence,
                "engine": self.weights.engine,
                **({"system": self.weights.system} if self.weights.system else {}),
                **(
                    {"refusalLogit": self.weights.refusal_logit}
                    if self.weights.refusal_logit is not None
                    else {}
                ),
            }
            for name, sha256 in self.weights.files
        ]
