"""The workspace's objects as the API writes them, for either version.

Sources: https://developers.notion.com/reference/page, /block, /database, /data-source, /user.
"""

from __future__ import annotations

from collections.abc import Collection

from local_endpoints.notion.markdown import Json, plain
from local_endpoints.notion.properties import LISTED, Property, value_json
from local_endpoints.notion.workspace import Page, Placed, User, Workspace

OLD = "2022-06-28"
NEW = "2025-09-03"  # databases got data sources
VERSIONS = (OLD, NEW)


class Shapes:
    """Writes objects of one workspace in one version of the API."""

    def __init__(self, workspace: Workspace, version: str) -> None:
        self.workspace = workspace
        self.new = version == NEW
        self.people = {slug: self.user(user) for slug, user in workspace.people.items()}

    def user(self, user: User) -> Json:
        """Return a person or the integration."""
        base = {"object": "user", "id": user.id, "name": user.name, "avatar_url": None}
        if user.email is not None:
            return {**base, "type": "person", "person": {"email": user.email}}
        return {
            **base,
            "type": "bot",
            "bot": {
                "owner": {"type": "workspace", "workspace": True},
                "workspace_id": self.workspace.id,
                "workspace_name": self.workspace.name,
            },
        }

    def _partial(self, slug: str) -> Json:
        return {"object": "user", "id": self.workspace.people[slug].id}

    def _history(self, page: Page) -> Json:
        return {
            "created_time": page.created,
            "last_edited_time": page.edited,
            "created_by": self._partial(page.author),
            "last_edited_by": self._partial(page.editor),
        }

    def _parent(self, page: Page) -> Json:
        above = page.parent
        if above is None:
            return {"type": "workspace", "workspace": True}
        if not above.is_database:
            return {"type": "page_id", "page_id": above.id}
        if self.new:
            return {
                "type": "data_source_id",
                "data_source_id": above.source_id,
                "database_id": above.id,
            }
        return {"type": "database_id", "database_id": above.id}

    def _common(self, page: Page) -> Json:
        icon = {"type": "emoji", "emoji": page.icon} if page.icon else None
        return {
            **self._history(page),
            "cover": None,
            "icon": icon,
            "archived": False,
            "in_trash": False,
            "is_locked": False,
            "url": page.url,
            "public_url": None,
        }

    def columns(self, page: Page) -> tuple[Property, ...]:
        """Return the properties that a page has: a database's columns, or the title alone."""
        schema = page.parent.schema if page.parent else None
        return schema or (Property("title", "title"),)

    def page(self, page: Page, only: Collection[str] = ()) -> Json:
        """Return a page; `only` leaves just the properties of these ids or names."""
        columns = [c for c in self.columns(page) if not only or c.id in only or c.name in only]
        return {
            "object": "page",
            "id": page.id,
            **self._common(page),
            "parent": self._parent(page),
            "properties": {c.name: value_json(c, page.value(c), self.people) for c in columns},
        }

    def _titled(self, page: Page) -> Json:
        return {
            **self._common(page),
            "title": plain(page.title),
            "description": plain(page.description),
            "is_inline": False,
        }

    def database(self, page: Page) -> Json:
        """Return a database: with its columns before 2025-09-03, with its data source since."""
        body = {
            "object": "database",
            "id": page.id,
            **self._titled(page),
            "parent": self._parent(page),
        }
        if self.new:
            body["data_sources"] = [{"id": page.source_id, "name": page.title}]
        else:
            body["properties"] = self._schema(page)
        return body

    def source(self, page: Page) -> Json:
        """Return the data source of a database."""
        return {
            "object": "data_source",
            "id": page.source_id,
            **self._titled(page),
            "parent": {"type": "database_id", "database_id": page.id},
            "database_parent": self._parent(page),
            "properties": self._schema(page),
        }

    def _schema(self, page: Page) -> Json:
        return {column.name: column.schema() for column in page.schema or ()}

    def found(self, page: Page) -> Json:
        """Return what a search shows of a page or database."""
        if not page.is_database:
            return self.page(page)
        return self.source(page) if self.new else self.database(page)

    def block(self, placed: Placed) -> Json:
        """Return a block."""
        above: Json = (
            {"type": "page_id", "page_id": placed.page.id}
            if placed.above is None
            else {"type": "block_id", "block_id": placed.above}
        )
        block = placed.block
        return self._block(
            placed.id, placed.page, above, block.type, block.content, bool(placed.children)
        )

    def child(self, page: Page) -> Json:
        """Return the block by which a page or database stands on the page above."""
        kind = "child_database" if page.is_database else "child_page"
        below = not page.is_database and (
            bool(page.blocks) or any(child.shared for child in page.children)
        )
        return self._block(page.id, page, self._parent(page), kind, {"title": page.title}, below)

    def _block(
        self, identity: str, page: Page, parent: Json, kind: str, content: Json, below: bool
    ) -> Json:
        return {
            "object": "block",
            "id": identity,
            "parent": parent,
            **self._history(page),
            "has_children": below,
            "archived": False,
            "in_trash": False,
            "type": kind,
            kind: content,
        }

    def property_items(self, page: Page, column: Property) -> Json | list[Json]:
        """Return a property by itself: one object, or a list for text and people."""
        value = value_json(column, page.value(column), self.people)
        if column.type not in LISTED:
            return {"object": "property_item", **value}
        return [
            {"object": "property_item", "id": column.id, "type": column.type, column.type: part}
            for part in value[column.type]
        ]
