"""Reads a workspace of Markdown files: pages, databases, people and blocks.

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
from typing import Any, Literal
from urllib.parse import unquote

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from local_endpoints.notion.markdown import Block, Json, Target, blocks, plain
from nim_cookbook.errors import DataError

CHOICES = ("select", "status", "multi_select")
COLUMN_TYPES = ("title", *CHOICES, "checkbox", "date", "people")
COLOURS = ("gray", "blue", "green", "yellow", "red", "purple", "orange", "pink", "brown")

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)(.*)", re.DOTALL | re.MULTILINE)


class _FrontMatter(BaseModel):
    """The keys of data/notion/README.md."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    title: str = Field(min_length=1)
    created: datetime.datetime
    edited: datetime.datetime | None = None
    author: str | None = None
    editor: str | None = None
    icon: str | None = None
    order: float = 1000
    shared: bool = True
    type: Literal["page", "database"] = "page"
    description: str = ""
    properties: dict[str, Any] = {}


class _Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    email: str


class _Settings(BaseModel):
    """The content of workspace.toml."""

    model_config = ConfigDict(extra="forbid")

    id: uuid.UUID
    name: str
    integration: str
    people: dict[str, _Person] = Field(min_length=1)


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
        author, editor: Ids of people.
        order: Place among its siblings.
        parent: The page or database above, None at the top.
        children: Subpages, or a database's entries, in their order.
        columns: A database's columns by name, as the API writes them; None for a page.
        description: A database's description.
        properties: A page's properties by name, as the API writes them.
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
    columns: dict[str, Json] | None = None
    description: str = ""
    properties: dict[str, Json] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=list)

    @property
    def is_database(self) -> bool:
        """Whether it is a database."""
        return self.columns is not None

    @property
    def source_id(self) -> str:
        """The id of the database's one data source, for the API from 2025-09-03 on."""
        return str(uuid.uuid5(uuid.UUID(self.id), "data source"))

    @property
    def url(self) -> str:
        """The address that Notion would give it; no server answers there."""
        words = "" if self.is_database else re.sub(r"\W+", "-", self.title).strip("-") + "-"
        return f"https://www.notion.so/{words}{self.id.replace('-', '')}"


@dataclass(frozen=True, slots=True)
class BlockNode:
    """A block on its page: its parent block if it is nested, and the ids of nested blocks."""

    id: str
    block: Block
    page: Page
    parent: str | None
    children: tuple[str, ...]


@dataclass(slots=True)
class Workspace:
    """All of a workspace.

    Attributes:
        id: UUID of the workspace; all other ids derive from it.
        name: Its name.
        bot: The integration, a user object.
        people: The people by slug, as user objects.
        pages: Pages and databases by id, in the order of the tree.
        blocks: Blocks by id.
    """

    id: str
    name: str
    bot: Json
    people: dict[str, Json]
    pages: dict[str, Page] = field(default_factory=dict)
    blocks: dict[str, BlockNode] = field(default_factory=dict)

    def by_path(self, path: str) -> Page:
        """Return the page of a path such as `platform/on-call`; KeyError for an unknown one."""
        return {page.path: page for page in self.pages.values()}[path]

    def shared(self) -> Iterator[Page]:
        """Yield the pages and databases that the integration may read."""
        return (page for page in self.pages.values() if page.shared)


# --- a database's columns and its entries' values ---------------------------------------------
# Sources: https://developers.notion.com/reference/property-object, /page-property-values.


def _short_id(*parts: str) -> str:
    """Return an id that depends on `parts` alone, as short as Notion's of columns and options."""
    return uuid.uuid5(uuid.NAMESPACE_OID, "\x1f".join(parts)).hex[:6]


def _column(name: str, given: object) -> Json:
    """Return a column: `given` is its type, or a mapping with `type` and `options`."""
    detail = given if isinstance(given, dict) else {"type": given}
    kind, options = detail.get("type"), detail.get("options", [])
    if (
        kind not in COLUMN_TYPES
        or not isinstance(options, list)
        or (kind in CHOICES) != any(options)
    ):
        raise ValueError(
            f"column {name!r} needs a type of {', '.join(COLUMN_TYPES)}, and 'options' if it is of "
            f"{', '.join(CHOICES)}"
        )
    choices = [
        {"id": _short_id(name, str(o)), "name": str(o), "color": COLOURS[i % len(COLOURS)]}
        for i, o in enumerate(options)
    ]
    identity = "title" if kind == "title" else _short_id(name)
    return {
        "id": identity,
        "name": name,
        "type": kind,
        kind: {"options": choices} if choices else {},
    }


def _property(column: Json, raw: object, title: str, people: Mapping[str, Json]) -> Json:
    """Return an entry's property from the value in its front matter."""
    kind = column["type"]
    content: object
    if kind == "title":
        content = plain(title)
    elif kind == "checkbox":
        content = raw is True
    elif kind == "date":
        if not isinstance(raw, datetime.date | None):
            raise ValueError(f"{column['name']!r} must be a date such as 2026-03-24")
        content = {"start": raw.isoformat(), "end": None, "time_zone": None} if raw else None
    else:
        options = {option["name"]: option for option in column[kind].get("options", ())}
        choices = people if kind == "people" else options
        names = map(str, raw if isinstance(raw, list) else [] if raw is None else [raw])
        try:
            content = [choices[name] for name in names]
        except KeyError as error:
            raise ValueError(f"{column['name']!r} has no choice {error}") from None
        if kind in ("select", "status"):
            content = content[0] if content else None
    return {"id": column["id"], "type": kind, kind: content}


# --- reading ----------------------------------------------------------------------------------


def _fault(error: Exception) -> str:
    """Return the first problem in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'front matter'}: {first['msg']}"
    return (str(error) or type(error).__name__).splitlines()[0]


class _Reader:
    """Reads one workspace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bodies: dict[str, str] = {}
        self.metas: dict[str, _FrontMatter] = {}
        self.by_path: dict[str, Page] = {}

    def read(self) -> Workspace:
        path = self.folder / "workspace.toml"
        try:
            given = _Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read ({_fault(error)}): give a workspace folder."
            ) from None
        space = Workspace(
            str(given.id),
            given.name,
            _user(given, "integration", given.integration, None),
            {
                slug: _user(given, f"user/{slug}", p.name, p.email)
                for slug, p in given.people.items()
            },
        )
        wiki = self.folder / "wiki"
        files = sorted(wiki.rglob("*.md"))
        if not files:
            raise DataError(f"There are no .md files below {wiki}: add a page.")
        for step in (self._page, self._place, self._content):
            for file in files:
                name = file.relative_to(wiki).with_suffix("").as_posix()
                try:
                    step(name, space)
                except (OSError, ValueError, yaml.YAMLError) as error:
                    raise DataError(f"wiki/{name}.md: {_fault(error)}.") from None
            if step == self._place:
                for page in _ordered(p for p in self.by_path.values() if p.parent is None):
                    self._register(page, space)
        return space

    def _page(self, path: str, space: Workspace) -> None:
        """Read a file's front matter."""
        text = (self.folder / "wiki" / f"{path}.md").read_text(encoding="utf-8-sig")
        match = _FRONT_MATTER.fullmatch(text)
        if match is None:
            raise ValueError("the file must begin with front matter between --- lines")
        meta = _FrontMatter.model_validate(yaml.safe_load(match[1]))
        author = meta.author or next(iter(space.people))
        editor = meta.editor or author
        if unknown := {author, editor} - space.people.keys():
            raise ValueError(f"workspace.toml has no person {unknown.pop()!r}")
        self.metas[path], self.bodies[path] = meta, match[2]
        self.by_path[path] = Page(
            id=str(uuid.uuid5(uuid.UUID(space.id), path)),
            path=path,
            title=meta.title,
            icon=meta.icon,
            shared=meta.shared,
            created=_time(meta.created),
            edited=_time(meta.edited or meta.created),
            author=space.people[author]["id"],
            editor=space.people[editor]["id"],
            order=meta.order,
            description=meta.description,
        )
        if meta.type == "database":
            columns = {name: _column(name, raw) for name, raw in meta.properties.items()}
            if [column["type"] for column in columns.values()].count("title") != 1:
                raise ValueError("exactly one column must have the type 'title'")
            self.by_path[path].columns = columns

    def _place(self, path: str, space: Workspace) -> None:
        """Connect a page with the one above it."""
        page, above = self.by_path[path], posixpath.dirname(path)
        if above:
            if above not in self.by_path:
                raise ValueError(f"the folder has no page: add wiki/{above}.md")
            page.parent = self.by_path[above]
            page.parent.children.append(page)

    def _register(self, page: Page, space: Workspace) -> None:
        """Add a page and all below it, parents first."""
        if page.parent is not None:
            page.shared = page.shared and page.parent.shared
        space.pages[page.id] = page
        page.children = _ordered(page.children)
        for child in page.children:
            self._register(child, space)

    def _content(self, path: str, space: Workspace) -> None:
        """Read a page's properties and blocks."""
        page, body = self.by_path[path], self.bodies[path]
        if page.is_database:
            if body.strip():
                raise ValueError("a database holds no text: move it into 'description' or a page")
            return
        columns = (page.parent.columns if page.parent else None) or {
            "title": _column("title", "title")
        }
        given = self.metas[path].properties
        if unknown := given.keys() - columns.keys():
            raise ValueError(f"the database above has no column {unknown.pop()!r}")
        page.properties = {
            name: _property(column, given.get(name), page.title, space.people)
            for name, column in columns.items()
        }
        found = blocks(body, lambda href: self._target(href, page, space))
        page.blocks = [_add_block(space, page, b, None, str(i)) for i, b in enumerate(found)]

    def _target(self, href: str, page: Page, space: Workspace) -> Target:
        scheme, _, slug = href.partition(":")
        if scheme == "user" and slug in space.people:
            user = space.people[slug]
            return Target("user", user["name"], None, {"object": "user", "id": user["id"]})
        path = unquote(href.split("#", 1)[0].split("?", 1)[0])
        there = posixpath.normpath(posixpath.join(posixpath.dirname(page.path), path))
        target = self.by_path.get(there.removesuffix(".md"))
        if target is None or not path.endswith(".md"):
            raise ValueError(f"{href!r} leads to no page and no person: correct the link")
        # Notion hides the title of a page that the integration may not read.
        title = target.title if target.shared else "Untitled"
        url = f"https://www.notion.so/{target.id.replace('-', '')}"
        return Target("database" if target.is_database else "page", title, url, {"id": target.id})


def _user(given: _Settings, key: str, name: str, email: str | None) -> Json:
    """Return a user object; without an email it is the integration's."""
    kind: Json = (
        {"type": "person", "person": {"email": email}}
        if email
        else {
            "type": "bot",
            "bot": {
                "owner": {"type": "workspace", "workspace": True},
                "workspace_name": given.name,
            },
        }
    )
    identity = str(uuid.uuid5(given.id, key))
    return {"object": "user", "id": identity, "name": name, "avatar_url": None, **kind}


def _time(moment: datetime.datetime) -> str:
    utc = moment.astimezone(datetime.UTC) if moment.tzinfo else moment
    return utc.strftime("%Y-%m-%dT%H:%M:00.000Z")


def _ordered(pages: Iterator[Page] | list[Page]) -> list[Page]:
    return sorted(pages, key=lambda page: (page.order, page.path))


def _add_block(space: Workspace, page: Page, block: Block, parent: str | None, place: str) -> str:
    """Add a block and those nested in it; an id depends on the page and the place on it."""
    identity = str(uuid.uuid5(uuid.UUID(page.id), f"block/{place}"))
    children = tuple(
        _add_block(space, page, child, identity, f"{place}/{index}")
        for index, child in enumerate(block.children)
    )
    space.blocks[identity] = BlockNode(identity, block, page, parent, children)
    return identity


def load_workspace(folder: str | Path) -> Workspace:
    """Return the workspace of a folder that holds `workspace.toml` and `wiki/`.

    Raises:
        DataError: A file is missing or malformed; the message names it.
    """
    return _Reader(Path(folder)).read()
