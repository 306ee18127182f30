"""Metadata filters as a caller may send them: Haystack's, on metadata alone and of bounded size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

#: Most levels of conditions within conditions.
DEPTH = 8
#: Most conditions side by side, and most values of a list.
WIDTH = 100


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a text must not hold the character NUL, which PostgreSQL cannot store")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_without_nul)]
Scalar = bool | int | float | Text


class Comparison(BaseModel):
    """A field of the metadata compared with a value, or with a list for `in` and `not in`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    field: Annotated[str, Field(pattern=r"^meta\.\w+$", max_length=100)]
    operator: Literal["==", "!=", ">", ">=", "<", "<=", "in", "not in"]
    value: Annotated[list[Scalar], Field(max_length=WIDTH)] | Scalar | None


class Combination(BaseModel):
    """Conditions of which all must hold, or one."""

    model_config = ConfigDict(extra="forbid")

    operator: Literal["AND", "OR"]
    conditions: Annotated[list[Comparison | Combination], Field(min_length=1, max_length=WIDTH)]


def _shallow(filters: Comparison | Combination) -> Comparison | Combination:
    level: list[Comparison | Combination] = [filters]
    for _ in range(DEPTH):
        level = [c for f in level if isinstance(f, Combination) for c in f.conditions]
        if not level:
            return filters
    raise ValueError(f"conditions may be nested {DEPTH} levels deep")


Filters = Annotated[Comparison | Combination, AfterValidator(_shallow)]


def as_haystack(filters: Filters | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return filters as Haystack wants them; Hayhooks has turned checked ones into a dict."""
    if isinstance(filters, BaseModel):
        return filters.model_dump()
    return dict(filters) if filters else None
