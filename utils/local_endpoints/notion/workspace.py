"""Reads a workspace of Markdown files: pages, databases, people and every block's id.

A page is `name.md`; its subpages lie in the folder `name/` beside it. A file whose front matter
says `type: database` is a database, and the pages in its folder are its entries.
"""

from __future__ import annotations

import datetime
import posixpath
import re
import tomllib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from local_endpoints.notion.markdown import Block, Target, blocks
from local_endpoints.notion.properties import (
    AUTOMATIC,
    BadValue,
    Property,
    Value,
    read_schema,
    read_value,
)
from nim_cookbook.errors import DataError

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_TREE_KEYS = {"id", "title", "type", "icon", "order", "shared"}
_HISTORY_KEYS = {"created", "edited", "author", "editor"}
_KEYS = _TREE_KEYS | _HISTORY_KEYS | {"properties", "description"}
_USER_KEYS = {"name", "email"}


@dataclass(frozen=True, slots=True)
class User:
    """A person of the workspace, or the integration itself (without `email`)."""

    slug: str
    id: str
    name: str
    email: str | None


@dataclass(slots=True)
class Page:
    """A page or a database.

    Attributes:
        id: UUID with dashes.
        path: Path below the wiki's folder without `.md`, as in `platform/on-call`.
        title: Title.
        icon: Emoji, or None.
        shared: Whether the integration may read it; False also below a page that is not shared.
        created, edited: UTC timestamps, to the minute as in Notion.
        author, editor: Slugs of people.
        parent: The page or database above, None at the top.
        children: Subpages, or a database's entries, in their order.
        schema: A database's columns, None for a page.
        description: A database's description.
        values: An entry's values by column name.
        blocks: Ids of the blocks at the top of the page.
    """

    id: str
    path: str
    title: str
    icon: str | None
    shared: bool
    created: str
    edited: str
    author: str
    editor: str
    order: float
    parent: Page | None = None
    children: list[Page] = field(default_factory=list)
    schema: tuple[Property, ...] | None = None
    description: str = ""
    values: dict[str, Value] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=list)

    @property
    def is_database(self) -> bool:
        """Whether it is a database."""
        return self.schema is not None

    @property
    def source_id(self) -> str:
        """The id of the database's one data source, for the API from 2025-09-03 on."""
        return str(uuid.uuid5(uuid.UUID(self.id), "data source"))

    @property
    def url(self) -> str:
        """The address that Notion would give it; nothing answers there."""
        words = "" if self.is_database else re.sub(r"\W+", "-", self.title).strip("-") + "-"
        return f"https://www.notion.so/{words}{self.id.replace('-', '')}"

    def value(self, column: Property) -> Value:
        """Return an entry's value of a column."""
        automatic: dict[str, Value] = {
            "title": self.title,
            "created_time": self.created,
            "last_edited_time": self.edited,
            "created_by": self.author,
            "last_edited_by": self.editor,
        }
        return automatic.get(column.type, self.values.get(column.name))


@dataclass(frozen=True, slots=True)
class Placed:
    """A block in its place: the page it is on, the block above if any, and the ids below."""

    id: str
    block: Block
    page: Page
    above: str | None
    children: tuple[str, ...]


@dataclass(slots=True)
class Workspace:
    """All of a workspace.

    Attributes:
        id: UUID of the workspace, from which all other ids derive.
        name: Its name.
        bot: The integration.
        people: The people by slug.
        pages: Pages and databases by id, in the order of the tree.
        blocks: Blocks by id.
    """

    id: str
    name: str
    bot: User
    people: dict[str, User]
    pages: dict[str, Page] = field(default_factory=dict)
    blocks: dict[str, Placed] = field(default_factory=dict)

    def by_path(self, path: str) -> Page:
        """Return the page of a path such as `platform/on-call`.

        Raises:
            DataError: There is none.
        """
        for page in self.pages.values():
            if page.path == path:
                return page
        raise DataError(f"The workspace has no page {path!r}: look below its wiki folder.")

    def shared(self) -> Iterator[Page]:
        """Yield the pages and databases that the integration may read."""
        return (page for page in self.pages.values() if page.shared)


def _front_matter(text: str, name: str) -> tuple[dict[str, Any], str]:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    match = _FRONT_MATTER.match(text)
    if match is None:
        raise DataError(f"{name} does not begin with front matter: put a title between --- lines.")
    try:
        meta = yaml.safe_load(match.group(1))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"The front matter of {name} is no YAML ({line}): correct it.") from None
    if not isinstance(meta, dict):
        raise DataError(f"The front matter of {name} must be lines of 'key: value'.")
    unknown = sorted(str(key) for key in meta if key not in _KEYS)
    if unknown:
        raise DataError(
            f"{name} has the unknown front matter key {unknown[0]!r}: "
            f"use {', '.join(sorted(_KEYS))}."
        )
    return meta, text[match.end() :]


def _time(raw: object, name: str) -> str:
    """Return a UTC timestamp with whole minutes from a date or a time."""
    if isinstance(raw, str):
        try:
            raw = datetime.datetime.fromisoformat(raw)
        except ValueError:
            raw = None
    if isinstance(raw, datetime.datetime):
        moment = raw if raw.tzinfo is None else raw.astimezone(datetime.UTC)
    elif isinstance(raw, datetime.date):
        moment = datetime.datetime.combine(raw, datetime.time(9))
    else:
        raise DataError(f"{name} needs 'created' and 'edited' as dates, such as 2026-03-24.")
    return moment.strftime("%Y-%m-%dT%H:%M:00.000Z")


def _uuid(raw: object, name: str) -> str:
    try:
        return str(uuid.UUID(str(raw)))
    except ValueError:
        raise DataError(f"The id in {name} is no UUID: correct it, or leave it out.") from None


class _Reader:
    """Reads one workspace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wiki = folder / "wiki"
        self.bodies: dict[str, str] = {}
        self.metas: dict[str, dict[str, Any]] = {}
        self.by_path: dict[str, Page] = {}

    def read(self) -> Workspace:
        """Return the workspace."""
        space = self._settings()
        self._pages(space)
        self._tree()
        top = [page for page in self.by_path.values() if page.parent is None]
        for page in _ordered(top):
            self._add(space, page)
        for page in space.pages.values():
            self._entry(page, space)
            self._body(page, space)
        return space

    def _settings(self) -> Workspace:
        path = self.folder / "workspace.toml"
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error}): give a workspace folder.") from None
        people = raw.get("people")
        if (
            not isinstance(people, dict)
            or not people
            or not all(
                isinstance(person, dict) and set(person) == _USER_KEYS for person in people.values()
            )
        ):
            raise DataError(f"{path} needs tables [people.SLUG], each with a name and an email.")
        try:
            identity = _uuid(raw["id"], path.name)
            name, bot = str(raw["name"]), str(raw["integration"])
        except KeyError as error:
            raise DataError(f"{path} lacks {error}: add it.") from None
        space = uuid.UUID(identity)
        return Workspace(
            identity,
            name,
            User("", str(uuid.uuid5(space, "integration")), bot, None),
            {
                slug: User(slug, str(uuid.uuid5(space, f"user/{slug}")), who["name"], who["email"])
                for slug, who in people.items()
            },
        )

    def _pages(self, space: Workspace) -> None:
        """Read every file's front matter."""
        files = sorted(self.wiki.rglob("*.md")) if self.wiki.is_dir() else []
        if not files:
            raise DataError(f"There are no .md files below {self.wiki}: add a page.")
        for file in files:
            name = file.relative_to(self.folder).as_posix()
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{name} cannot be read ({error}): save it as UTF-8.") from None
            meta, body = _front_matter(text, name)
            path = file.relative_to(self.wiki).with_suffix("").as_posix()
            self.by_path[path] = self._page(path, meta, name, space)
            self.metas[path], self.bodies[path] = meta, body

    def _page(self, path: str, meta: dict[str, Any], name: str, space: Workspace) -> Page:
        title = meta.get("title")
        if not isinstance(title, str) or not title.strip():
            raise DataError(f"{name} needs a title (in quotes if it is a number or holds a colon).")
        author = str(meta.get("author", next(iter(space.people))))
        editor = str(meta.get("editor", author))
        for slug in (author, editor):
            if slug not in space.people:
                raise DataError(f"{name} names the unknown person {slug!r}: see workspace.toml.")
        order = meta.get("order", 1000)
        shared = meta.get("shared", True)
        if isinstance(order, bool) or not isinstance(order, int | float):
            raise DataError(f"'order' in {name} must be a number.")
        if not isinstance(shared, bool):
            raise DataError(f"'shared' in {name} must be true or false.")
        kind = meta.get("type", "page")
        if kind not in ("page", "database"):
            raise DataError(f"'type' in {name} must be page or database.")
        created = _time(meta.get("created"), name)
        page = Page(
            id=_uuid(meta["id"], name)
            if "id" in meta
            else str(uuid.uuid5(uuid.UUID(space.id), path)),
            path=path,
            title=title.strip(),
            icon=str(meta["icon"]) if meta.get("icon") else None,
            shared=shared,
            created=created,
            edited=_time(meta["edited"], name) if "edited" in meta else created,
            author=author,
            editor=editor,
            order=order,
            description=str(meta.get("description", "")),
        )
        if kind == "database":
            try:
                page.schema = read_schema(meta.get("properties"))
            except BadValue as error:
                raise DataError(f"{name}: {error}.") from None
        return page

    def _tree(self) -> None:
        """Connect pages with those above them."""
        for path, page in self.by_path.items():
            above = posixpath.dirname(path)
            if not above:
                continue
            parent = self.by_path.get(above)
            if parent is None:
                raise DataError(f"The folder wiki/{above} has no page: add wiki/{above}.md.")
            page.parent = parent
            parent.children.append(page)

    def _add(self, space: Workspace, page: Page) -> None:
        """Register a page and all below, parents first."""
        if page.parent is not None:
            page.shared = page.shared and page.parent.shared
        page.children = _ordered(page.children)
        for identity in (page.id, *([page.source_id] if page.is_database else [])):
            twin = space.pages.get(identity)
            if twin is not None:
                raise DataError(f"wiki/{page.path}.md and wiki/{twin.path}.md have the same id.")
        space.pages[page.id] = page
        for child in page.children:
            self._add(space, child)

    def _entry(self, page: Page, space: Workspace) -> None:
        """Read an entry's values."""
        raw = self.metas[page.path].get("properties")
        if page.is_database or raw is None:
            if page.parent is not None and page.parent.schema and not page.is_database:
                raw = {}
            else:
                return
        name = f"wiki/{page.path}.md"
        schema = page.parent.schema if page.parent else None
        if schema is None:
            raise DataError(f"{name} has properties but is in no database: remove them.")
        columns = {c.name: c for c in schema if c.type not in ("title", *AUTOMATIC)}
        if not isinstance(raw, Mapping) or any(key not in columns for key in raw):
            raise DataError(f"The properties of {name} must be among {', '.join(columns)}.")
        try:
            page.values = {n: read_value(c, raw.get(n), space.people) for n, c in columns.items()}
        except BadValue as error:
            raise DataError(f"{name}: {error}.") from None

    def _body(self, page: Page, space: Workspace) -> None:
        """Parse a page's body and give every block its id."""
        body = self.bodies[page.path]
        if page.is_database:
            if body.strip():
                raise DataError(
                    f"wiki/{page.path}.md is a database, which holds no text: move the text into "
                    "its 'description' or into a page."
                )
            return
        found = blocks(body, lambda href: self._resolve(href, page, space))
        page.blocks = [
            _place(space, page, block, None, str(index)) for index, block in enumerate(found)
        ]

    def _resolve(self, href: str, page: Page, space: Workspace) -> Target:
        scheme, _, slug = href.partition(":")
        if scheme == "user":
            user = space.people.get(unquote(slug))
            if user is None:
                raise DataError(f"wiki/{page.path}.md mentions the unknown person {slug!r}.")
            return Target("user", user.id, user.name, None, {"object": "user", "id": user.id})
        path = unquote(href.split("#", 1)[0].split("?", 1)[0])
        there = posixpath.normpath(posixpath.join(posixpath.dirname(page.path), path))
        target = self.by_path.get(there.removesuffix(".md"))
        if target is None or not path.endswith(".md"):
            raise DataError(
                f"wiki/{page.path}.md links to {href!r}, which is no page: correct the link."
            )
        kind = "database" if target.is_database else "page"
        # Notion does not tell the title of what an integration may not read.
        title = target.title if target.shared else "Untitled"
        url = f"https://www.notion.so/{target.id.replace('-', '')}"
        return Target(kind, target.id, title, url, {"id": target.id})


def _ordered(pages: list[Page]) -> list[Page]:
    return sorted(pages, key=lambda page: (page.order, page.path))


def _place(space: Workspace, page: Page, block: Block, above: str | None, where: str) -> str:
    """Register a block and all below; the id depends on the page and on where the block stands."""
    identity = str(uuid.uuid5(uuid.UUID(page.id), f"block/{where}"))
    children = tuple(
        _place(space, page, child, identity, f"{where}/{index}")
        for index, child in enumerate(block.children)
    )
    space.blocks[identity] = Placed(identity, block, page, above, children)
    return identity


def load_workspace(folder: str | Path) -> Workspace:
    """Return the workspace of a folder that holds `workspace.toml` and `wiki/`.

    Raises:
        DataError: A file is missing or malformed; the message names it.
    """
    return _Reader(Path(folder)).read()
