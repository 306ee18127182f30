"""Database properties: schemas, values from front matter, and their JSON.

Sources: https://developers.notion.com/reference/property-object, /page-property-values.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from local_endpoints.notion.markdown import Json, plain

CHOICES = ("select", "multi_select", "status")
TEXTS = ("title", "rich_text", "url", "email", "phone_number")
AUTOMATIC = ("created_time", "last_edited_time", "created_by", "last_edited_by")
TYPES = (*TEXTS, *CHOICES, "number", "checkbox", "date", "people", *AUTOMATIC)
COLOURS = ("gray", "blue", "green", "yellow", "red", "purple", "orange", "pink", "brown")
LISTED = ("title", "rich_text", "people")  # property items that come as a list of their parts

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")

# A value as kept: text, number, truth, several names, or the ends of a date (the second may miss).
Value = str | float | int | bool | tuple[str, ...] | tuple[str, str | None] | None


class BadValue(ValueError):
    """A value that does not fit its property; the message says why, without the file."""


def short_id(*parts: str) -> str:
    """Return a short id that depends on `parts` alone, as Notion gives properties and options."""
    return uuid.uuid5(uuid.NAMESPACE_OID, "\x1f".join(parts)).hex[:6]


@dataclass(frozen=True, slots=True)
class Property:
    """A column of a database.

    Attributes:
        name: Its name.
        type: One of `TYPES`.
        options: The names to choose from, for `CHOICES`.
    """

    name: str
    type: str
    options: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The property's id; the title's is `title`, as in Notion."""
        return "title" if self.type == "title" else short_id(self.name)

    def option(self, name: str) -> Json:
        """Return the JSON of one option."""
        colour = COLOURS[self.options.index(name) % len(COLOURS)]
        return {"id": short_id(self.name, name), "name": name, "color": colour}

    def schema(self) -> Json:
        """Return the property's entry in a database or data source."""
        detail: Json = {}
        if self.type in CHOICES:
            detail = {"options": [{**self.option(o), "description": None} for o in self.options]}
        if self.type == "status":
            detail["groups"] = self._groups()
        if self.type == "number":
            detail = {"format": "number"}
        return {
            "id": self.id,
            "name": self.name,
            "description": None,
            "type": self.type,
            self.type: detail,
        }

    def _groups(self) -> list[Json]:
        """Return Notion's three groups: the first option, those between, and the last."""
        first, rest = self.options[:1], self.options[1:]
        groups = (
            ("To-do", "gray", first),
            ("In progress", "blue", rest[:-1]),
            ("Complete", "green", rest[-1:]),
        )
        return [
            {
                "id": short_id(self.name, "group", name),
                "name": name,
                "color": colour,
                "option_ids": [short_id(self.name, option) for option in options],
            }
            for name, colour, options in groups
        ]


def read_schema(raw: object) -> tuple[Property, ...]:
    """Return the columns that a database's front matter declares.

    Args:
        raw: Mapping of name to a type, or to a mapping with `type` and `options`.

    Raises:
        BadValue: It is no such mapping, or there is not exactly one title.
    """
    if not isinstance(raw, Mapping):
        raise BadValue("'properties' must map names to types")
    found = []
    for name, entry in raw.items():
        detail = entry if isinstance(entry, Mapping) else {"type": entry}
        kind, options = detail.get("type"), detail.get("options", [])
        if not isinstance(name, str) or not name or kind not in TYPES:
            raise BadValue(f"property {name!r} needs a type, one of {', '.join(TYPES)}")
        if not isinstance(options, list) or (kind in CHOICES) != bool(options):
            raise BadValue(
                f"property {name!r}: a list of 'options' belongs to {', '.join(CHOICES)}"
            )
        found.append(Property(name, kind, tuple(str(option) for option in options)))
    if sum(column.type == "title" for column in found) != 1:
        raise BadValue("exactly one property must have the type 'title'")
    return tuple(found)


def _date(raw: object) -> str:
    if isinstance(raw, datetime.date | datetime.datetime):
        return raw.isoformat()
    if isinstance(raw, str) and _DAY.match(raw):
        try:
            datetime.datetime.fromisoformat(raw)
        except ValueError:
            pass
        else:
            return raw
    raise BadValue(f"{raw!r} is no date like 2026-03-24")


def read_value(column: Property, raw: object, users: Mapping[str, object]) -> Value:
    """Return a property's value from front matter.

    Args:
        column: The property; neither the title nor an automatic one.
        raw: What YAML gave.
        users: The workspace's people by name in files.

    Raises:
        BadValue: It does not fit the type.
    """
    kind = column.type
    if kind == "checkbox":
        if not isinstance(raw, bool | None):
            raise BadValue(f"{column.name!r} must be true or false")
        return bool(raw)
    if raw is None:
        return () if kind in ("multi_select", "people") else None
    if kind in ("multi_select", "people"):
        names = tuple(str(name) for name in (raw if isinstance(raw, list) else [raw]))
        known = column.options if kind == "multi_select" else tuple(users)
        for name in names:
            _check(column, name, known)
        return names
    if kind in CHOICES:
        return _check(column, str(raw), column.options)
    if kind == "number":
        if isinstance(raw, bool) or not isinstance(raw, int | float):
            raise BadValue(f"{column.name!r} must be a number")
        return raw
    if kind == "date":
        if isinstance(raw, Mapping):
            end = raw.get("end")
            return _date(raw.get("start")), None if end is None else _date(end)
        return _date(raw), None
    return str(raw)


def _check(column: Property, name: str, known: tuple[str, ...]) -> str:
    if name not in known:
        raise BadValue(f"{column.name!r} has no choice {name!r}, only {', '.join(known)}")
    return name


def value_json(column: Property, value: Value, people: Mapping[str, Json]) -> Json:
    """Return what stands under the key of the property's type.

    Args:
        column: The property.
        value: Its value; a timestamp or a user's name for `AUTOMATIC`.
        people: User objects by name in files.
    """
    kind = column.type
    content: Any = value
    if kind in ("title", "rich_text"):
        content = plain(str(value)) if value else []
    elif kind == "multi_select" and isinstance(value, tuple):
        content = [column.option(str(name)) for name in value]
    elif kind == "people" and isinstance(value, tuple):
        content = [people[str(name)] for name in value]
    elif kind in ("created_by", "last_edited_by"):
        content = people[str(value)]
    elif kind in CHOICES and value is not None:
        content = column.option(str(value))
    elif kind == "date" and isinstance(value, tuple):
        content = {"start": value[0], "end": value[1], "time_zone": None}
    return {"id": column.id, "type": kind, kind: content}
