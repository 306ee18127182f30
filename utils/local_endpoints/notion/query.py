"""Filters and sorts of a database query. What is not supported is refused, never ignored.

Sources: https://developers.notion.com/reference/post-database-query-filter and -sort.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from local_endpoints.notion.errors import invalid, should
from local_endpoints.notion.properties import Property, Value
from local_endpoints.notion.workspace import Page, Workspace

Test = Callable[[Page], bool]
Condition = Callable[[Any, Any], bool]

MAX_DEPTH = 2  # and/or inside and/or, as in Notion
_TIMESTAMPS = {"created_time": "created", "last_edited_time": "edited"}

_EMPTY: dict[str, Condition] = {
    "is_empty": lambda value, _: value in (None, "", ()),
    "is_not_empty": lambda value, _: value not in (None, "", ()),
}
_EQUAL: dict[str, Condition] = {
    "equals": lambda value, wanted: bool(value == wanted),
    "does_not_equal": lambda value, wanted: bool(value != wanted),
}
_LIST: dict[str, Condition] = {
    "contains": lambda value, wanted: wanted in (value or ()),
    "does_not_contain": lambda value, wanted: wanted not in (value or ()),
    **_EMPTY,
}


def _folded(test: Callable[[str, str], bool]) -> Condition:
    """Return a test of texts that ignores case."""
    return lambda value, wanted: test(str(value or "").casefold(), str(wanted).casefold())


def _present(test: Callable[[Any, Any], bool]) -> Condition:
    """Return a test that an empty value never passes."""
    return lambda value, wanted: value is not None and test(value, wanted)


_TEXT: dict[str, Condition] = {
    "equals": _folded(lambda value, wanted: value == wanted),
    "does_not_equal": _folded(lambda value, wanted: value != wanted),
    "contains": _folded(lambda value, wanted: wanted in value),
    "does_not_contain": _folded(lambda value, wanted: wanted not in value),
    "starts_with": _folded(str.startswith),
    "ends_with": _folded(str.endswith),
    **_EMPTY,
}
_NUMBER: dict[str, Condition] = {
    **_EQUAL,
    "greater_than": _present(lambda value, wanted: value > wanted),
    "less_than": _present(lambda value, wanted: value < wanted),
    "greater_than_or_equal_to": _present(lambda value, wanted: value >= wanted),
    "less_than_or_equal_to": _present(lambda value, wanted: value <= wanted),
    **_EMPTY,
}
_DATE: dict[str, Condition] = {
    "equals": _present(lambda value, wanted: value == wanted),
    "before": _present(lambda value, wanted: value < wanted),
    "after": _present(lambda value, wanted: value > wanted),
    "on_or_before": _present(lambda value, wanted: value <= wanted),
    "on_or_after": _present(lambda value, wanted: value >= wanted),
    **_EMPTY,
}
# The conditions of each property type, and what a wanted value must be.
_CONDITIONS: dict[str, tuple[dict[str, Condition], tuple[type, ...], str]] = {
    **{kind: (_TEXT, (str,), "a string") for kind in ("title", "rich_text")},
    **{kind: (_TEXT, (str,), "a string") for kind in ("url", "email", "phone_number")},
    **{kind: ({**_EQUAL, **_EMPTY}, (str,), "a string") for kind in ("select", "status")},
    "multi_select": (_LIST, (str,), "a string"),
    "people": (_LIST, (str,), "a string"),
    "created_by": (_LIST, (str,), "a string"),
    "last_edited_by": (_LIST, (str,), "a string"),
    "checkbox": (_EQUAL, (bool,), "a boolean"),
    "number": (_NUMBER, (int, float), "a number"),
    **{
        kind: (_DATE, (str,), "a valid ISO 8601 date string")
        for kind in ("date", "created_time", "last_edited_time")
    },
}


def _moment(text: str) -> datetime.datetime:
    """Return a time, in UTC where the text names no offset."""
    moment = datetime.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


class Query:
    """Filters and sorts of one database.

    Args:
        workspace: For people, whom the API names by id.
        columns: The database's columns.
    """

    def __init__(self, workspace: Workspace, columns: Sequence[Property]) -> None:
        self.columns = columns
        self.user_ids = {slug: user.id for slug, user in workspace.people.items()}

    def column(self, name: object, where: str) -> Property:
        """Return a column by name or id.

        Raises:
            NotionError: There is none.
        """
        if not isinstance(name, str):
            raise should(where, "a string", name)
        for column in self.columns:
            if name in (column.name, column.id):
                return column
        raise invalid(f"Could not find property with name or id: {name}")

    def _comparable(self, column: Property, page: Page) -> Value:
        value = page.value(column)
        if column.type == "people" and isinstance(value, tuple):
            return tuple(self.user_ids[str(slug)] for slug in value)
        if column.type in ("created_by", "last_edited_by"):
            return (self.user_ids[str(value)],)
        return value[0] if column.type == "date" and isinstance(value, tuple) else value

    def test(self, raw: object, where: str = "body.filter", depth: int = 0) -> Test:
        """Return the test that a filter describes.

        Raises:
            NotionError: `validation_error`: it is malformed, or not supported here.
        """
        if not isinstance(raw, Mapping):
            raise should(where, "an object", raw)
        for key, combine in (("and", all), ("or", any)):
            if key in raw:
                return self._compound(raw, key, combine, where, depth)
        if "timestamp" in raw:
            name = raw["timestamp"]
            if name not in _TIMESTAMPS:
                raise should(f"{where}.timestamp", "`created_time` or `last_edited_time`", name)
            return self._single(raw, Property(name, name), "timestamp", where)
        if "property" not in raw:
            raise should(f"{where}.property", "defined", None)
        column = self.column(raw["property"], f"{where}.property")
        return self._single(raw, column, "property", where)

    def _compound(
        self,
        raw: Mapping[str, Any],
        key: str,
        combine: Callable[[list[bool]], bool],
        where: str,
        depth: int,
    ) -> Test:
        parts = raw[key]
        if len(raw) != 1 or not isinstance(parts, list):
            raise should(f"{where}.{key}", "an array, and alone in its object", raw)
        if depth >= MAX_DEPTH:
            raise invalid(f"{where} is nested deeper than two levels, which is not allowed.")
        tests = [self.test(part, f"{where}.{key}[{i}]", depth + 1) for i, part in enumerate(parts)]
        return lambda page: combine([test(page) for test in tests])

    def _single(self, raw: Mapping[str, Any], column: Property, named: str, where: str) -> Test:
        rest = {key: value for key, value in raw.items() if key not in (named, "type")}
        if set(rest) != {column.type}:
            raise invalid(
                f"body failed validation: {where} should hold exactly the condition "
                f"`{column.type}`, the type of {column.name}; instead it held "
                f"{', '.join(f'`{key}`' for key in rest) or 'none'}."
            )
        condition = rest[column.type]
        if not isinstance(condition, Mapping) or len(condition) != 1:
            raise should(f"{where}.{column.type}", "an object with one condition", condition)
        ((name, wanted),) = condition.items()
        known, kinds, expected = _CONDITIONS[column.type]
        if name not in known:
            raise invalid(
                f"body failed validation: {where}.{column.type}.{name} is not supported by this "
                f"stand-in; it knows {', '.join(known)}."
            )
        at = f"{where}.{column.type}.{name}"
        if name in _EMPTY:
            if wanted is not True:
                raise should(at, "`true`", wanted)
        elif not isinstance(wanted, kinds) or (bool not in kinds and isinstance(wanted, bool)):
            raise should(at, expected, wanted)
        if known is _DATE and name not in _EMPTY:
            return self._date(column, known[name], wanted, at)
        return lambda page: known[name](self._comparable(column, page), wanted)

    def _date(self, column: Property, condition: Condition, wanted: str, at: str) -> Test:
        """Return a test of dates: by the day when the wanted date has no time."""
        try:
            moment = _moment(wanted)
        except ValueError:
            raise should(at, "a valid ISO 8601 date string", wanted) from None
        whole_day = len(wanted) == len("2026-03-24")

        def test(page: Page) -> bool:
            text = self._comparable(column, page)
            value = None if text is None else _moment(str(text))
            if whole_day and value is not None:
                return condition(value.date(), moment.date())
            return condition(value, moment)

        return test

    def sort(self, pages: list[Page], raw: object) -> list[Page]:
        """Return pages in the order that `sorts` describes; empty values come last.

        Raises:
            NotionError: `validation_error`: it is malformed.
        """
        if not isinstance(raw, list):
            raise should("body.sorts", "an array", raw)
        for index, entry in reversed(list(enumerate(raw))):
            where = f"body.sorts[{index}]"
            if not isinstance(entry, Mapping):
                raise should(where, "an object", entry)
            named = [key for key in ("property", "timestamp") if key in entry]
            if len(named) != 1 or set(entry) - {named[0], "direction"}:
                raise should(where, "a `property` or a `timestamp` with a `direction`", entry)
            direction = entry.get("direction", "ascending")
            if direction not in ("ascending", "descending"):
                raise should(f"{where}.direction", "`ascending` or `descending`", direction)
            name = entry[named[0]]
            if named[0] == "property":
                column = self.column(name, f"{where}.property")
            elif name in _TIMESTAMPS:
                column = Property(name, name)
            else:
                raise should(f"{where}.timestamp", "`created_time` or `last_edited_time`", name)
            pages = self._sorted(pages, column, direction == "descending")
        return pages

    def _sorted(self, pages: list[Page], column: Property, descending: bool) -> list[Page]:
        filled = [page for page in pages if not _EMPTY["is_empty"](page.value(column), None)]
        empty = [page for page in pages if page not in filled]

        def key(page: Page) -> Any:  # noqa: ANN401 - values of one column compare with each other
            return _key(column, page.value(column))

        filled.sort(key=key, reverse=descending)
        return filled + empty


def _key(column: Property, value: Value) -> object:
    if column.type in ("select", "status"):  # in the order of the options
        return column.options.index(str(value))
    if column.type == "date" and isinstance(value, tuple):
        return _moment(str(value[0]))
    if isinstance(value, tuple):
        return tuple(str(part).casefold() for part in value)
    return value.casefold() if isinstance(value, str) else value
