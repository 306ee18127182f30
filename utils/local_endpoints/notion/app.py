"""The API server: routes, paging, token, version and rate limit.

Source: https://developers.notion.com/reference
"""

from __future__ import annotations

import json
import re
import secrets
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from local_endpoints.notion import errors
from local_endpoints.notion.errors import NotionError
from local_endpoints.notion.limits import RateLimit
from local_endpoints.notion.markdown import Json
from local_endpoints.notion.properties import LISTED
from local_endpoints.notion.query import Query
from local_endpoints.notion.shapes import NEW, OLD, VERSIONS, Shapes
from local_endpoints.notion.workspace import Page, Placed, Workspace

MAX_PAGE = 100
MAX_BODY_BYTES = 500 * 1024  # Notion's limit on a request
_READ_BODY = {"start_cursor", "page_size"}
_ID = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_EXISTS = re.compile(  # what Notion offers beside what is here
    r"/v1/(?:pages|blocks|databases|data_sources|users|search|comments|file_uploads|views"
    r"|custom_emojis|oauth)(?:/.*)?"
)


def _uuid(raw: str, where: str) -> str:
    """Return an id with dashes.

    Raises:
        NotionError: `validation_error`: it is no UUID.
    """
    if not _ID.fullmatch(raw):
        raise errors.should(where, "a valid uuid", raw)
    return str(uuid.UUID(raw))


def _page_size(raw: object, where: str) -> int:
    if isinstance(raw, str) and re.fullmatch(r"-?[0-9]{1,9}", raw):
        raw = int(raw)
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise errors.should(where, "a number", raw)
    if raw < 1:
        raise errors.should(where, "≥ `1`", raw)
    if raw > MAX_PAGE:
        raise errors.should(where, f"≤ `{MAX_PAGE}`", raw)
    return raw


def paginate(
    ids: Sequence[str], given: Mapping[str, Any], part: str
) -> tuple[Sequence[str], str | None]:
    """Return one page of ids, and the cursor of the next: the id that it begins with.

    Args:
        ids: All ids, in order.
        given: The query's or body's parameters.
        part: `query` or `body`, for messages.

    Raises:
        NotionError: `validation_error`: a page size outside 1 to 100, or an unknown cursor.
    """
    size = _page_size(given.get("page_size", MAX_PAGE), f"{part}.page_size")
    start = 0
    cursor = given.get("start_cursor")
    if cursor is not None:
        if not isinstance(cursor, str):
            raise errors.should(f"{part}.start_cursor", "a string", cursor)
        identity = _uuid(cursor, f"{part}.start_cursor")
        if identity not in ids:
            raise errors.invalid(f"The start_cursor provided is invalid: {cursor}")
        start = ids.index(identity)
    end = start + size
    return ids[start:end], ids[end] if end < len(ids) else None


def _only(given: Collection[str], allowed: Collection[str], part: str) -> None:
    """Refuse parameters that nothing here reads."""
    for name in given:
        if name not in allowed:
            raise errors.invalid(
                f"{part} failed validation: {part}.{name} should be not present: this stand-in "
                "does not support it."
            )


async def _body(request: Request, allowed: Collection[str]) -> Json:
    """Return a read's JSON body.

    Raises:
        NotionError: It is too long, no JSON, no object, or holds an unknown key.
    """
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise errors.invalid("body failed validation: body should be at most 500 KB.")
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise NotionError(400, "invalid_json", "Error parsing JSON body.") from None
    if not isinstance(body, dict):
        raise errors.should("body", "an object", body)
    _only(body, allowed, "body")
    return body


class _Api:
    """The answers, for one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.shapes = {name: Shapes(workspace, name) for name in VERSIONS}
        self.sources = {p.source_id: p for p in workspace.pages.values() if p.is_database}

    # Objects by id

    def _shared(self, identity: str) -> Page | None:
        page = self.workspace.pages.get(identity)
        return page if page is not None and page.shared else None

    def _placed(self, identity: str) -> Placed | None:
        placed = self.workspace.blocks.get(identity)
        return placed if placed is not None and placed.page.shared else None

    def page(self, raw: str) -> Page:
        """Return a page that the integration may read."""
        identity = _uuid(raw, "path.page_id")
        page = self._shared(identity)
        if page is None:
            if self._placed(identity):
                raise errors.invalid(f"Provided ID {identity} is a block, not a page.")
            raise errors.not_found("page", identity)
        if page.is_database:
            raise errors.invalid(
                f"Provided ID {identity} is a database, not a page. Use the retrieve database "
                "API instead."
            )
        return page

    def database(self, raw: str) -> Page:
        """Return a database that the integration may read."""
        identity = _uuid(raw, "path.database_id")
        page = self._shared(identity)
        if page is None:
            raise errors.not_found("database", identity)
        if not page.is_database:
            raise errors.invalid(
                f"Provided ID {identity} is a page, not a database. Use the retrieve page API "
                "instead."
            )
        return page

    def source(self, raw: str) -> Page:
        """Return the database of a data source that the integration may read."""
        identity = _uuid(raw, "path.data_source_id")
        page = self.sources.get(identity)
        if page is None or not page.shared:
            raise errors.not_found("data source", identity)
        return page

    # Answers

    def listed(self, kind: str, results: list[Json], following: str | None) -> Json:
        """Return a list object."""
        return {
            "object": "list",
            "results": results,
            "next_cursor": following,
            "has_more": following is not None,
            "type": kind,
            kind: {},
        }

    def users(self, shapes: Shapes, query: Mapping[str, str]) -> Json:
        """Return one page of users, the integration last."""
        users = {u.id: u for u in (*self.workspace.people.values(), self.workspace.bot)}
        ids, following = paginate(list(users), query, "query")
        return self.listed("user", [shapes.user(users[i]) for i in ids], following)

    def user(self, shapes: Shapes, raw: str) -> Json:
        """Return one user."""
        identity = _uuid(raw, "path.user_id")
        for user in (*self.workspace.people.values(), self.workspace.bot):
            if user.id == identity:
                return shapes.user(user)
        raise errors.not_found("user", identity)

    def block(self, shapes: Shapes, raw: str) -> Json:
        """Return a block; a page or database is one too."""
        identity = _uuid(raw, "path.block_id")
        page, placed = self._shared(identity), self._placed(identity)
        if page is not None:
            return shapes.child(page)
        if placed is None:
            raise errors.not_found("block", identity)
        return shapes.block(placed)

    def children(self, shapes: Shapes, raw: str, query: Mapping[str, str]) -> Json:
        """Return one page of the blocks below a page or block, subpages last."""
        identity = _uuid(raw, "path.block_id")
        page, placed = self._shared(identity), self._placed(identity)
        if page is not None:
            subpages = () if page.is_database else (c.id for c in page.children if c.shared)
            below = [*page.blocks, *subpages]
        elif placed is not None:
            below = list(placed.children)
        else:
            raise errors.not_found("block", identity)
        ids, following = paginate(below, query, "query")
        return self.listed("block", [self.block(shapes, i) for i in ids], following)

    def property(self, shapes: Shapes, raw: str, name: str, query: Mapping[str, str]) -> Json:
        """Return one property of a page: an object, or a list for text and people."""
        page = self.page(raw)
        column = next((c for c in shapes.columns(page) if name in (c.id, c.name)), None)
        if column is None:
            raise errors.not_found("property", name)
        found = shapes.property_items(page, column)
        if column.type not in LISTED or isinstance(found, dict):
            _only(query, (), "query")
            assert isinstance(found, dict)
            return found
        space = uuid.UUID(page.id)
        keys = [str(uuid.uuid5(space, f"{column.id}/{i}")) for i in range(len(found))]
        items = dict(zip(keys, found, strict=True))
        ids, following = paginate(keys, query, "query")
        answer = self.listed("property_item", [items[i] for i in ids], following)
        answer["property_item"] = {
            "id": column.id,
            "next_url": None,
            "type": column.type,
            column.type: {},
        }
        return answer

    def query(self, shapes: Shapes, database: Page, body: Json, only: list[str]) -> Json:
        """Return one page of a database's entries."""
        query = Query(self.workspace, database.schema or ())
        entries = [child for child in database.children if child.shared]
        if body.get("archived") or body.get("in_trash") or body.get("result_type") == "data_source":
            entries = []  # nothing here is in the trash, and no data source is an entry
        if body.get("filter") is not None:
            test = query.test(body["filter"])
            entries = [entry for entry in entries if test(entry)]
        if body.get("sorts") is not None:
            entries = query.sort(entries, body["sorts"])
        for name in only:
            query.column(name, "query.filter_properties")
        pages = {entry.id: entry for entry in entries}
        ids, following = paginate(list(pages), body, "body")
        results = [shapes.page(pages[i], only) for i in ids]
        return self.listed(
            "page_or_data_source" if shapes.new else "page_or_database", results, following
        )

    def search(self, shapes: Shapes, body: Json) -> Json:
        """Return one page of the pages and databases whose titles hold the words asked for."""
        words = body.get("query", "")
        if not isinstance(words, str):
            raise errors.should("body.query", "a string", words)
        kinds = self._search_filter(body.get("filter"), "data_source" if shapes.new else "database")
        oldest_first = self._search_sort(body.get("sort"))
        found = [
            page
            for page in self.workspace.shared()
            if page.is_database in kinds
            and all(word in page.title.casefold() for word in words.casefold().split())
        ]
        found.sort(key=lambda page: page.edited, reverse=not oldest_first)
        pages = {
            page.source_id if shapes.new and page.is_database else page.id: page for page in found
        }
        ids, following = paginate(list(pages), body, "body")
        kind = "page_or_data_source" if shapes.new else "page_or_database"
        return self.listed(kind, [shapes.found(pages[i]) for i in ids], following)

    def _search_filter(self, raw: object, other: str) -> tuple[bool, ...]:
        """Return which of (page, database) a search wants, as values of `is_database`."""
        if raw is None:
            return (False, True)
        if not isinstance(raw, dict) or set(raw) != {"property", "value"}:
            raise errors.should("body.filter", "an object with `property` and `value`", raw)
        if raw["property"] != "object":
            raise errors.should("body.filter.property", "`object`", raw["property"])
        if raw["value"] not in ("page", other):
            raise errors.should("body.filter.value", f"`page` or `{other}`", raw["value"])
        return (raw["value"] != "page",)

    def _search_sort(self, raw: object) -> bool:
        """Return whether a search wants the page edited longest ago first."""
        if raw is None:
            return False
        if not isinstance(raw, dict) or set(raw) - {"timestamp", "direction"}:
            raise errors.should("body.sort", "an object with `timestamp` and `direction`", raw)
        if raw.get("timestamp", "last_edited_time") != "last_edited_time":
            raise errors.should("body.sort.timestamp", "`last_edited_time`", raw["timestamp"])
        direction = raw.get("direction", "descending")
        if direction not in ("ascending", "descending"):
            raise errors.should("body.sort.direction", "`ascending` or `descending`", direction)
        return bool(direction == "ascending")


def _gate(token: str, limit: RateLimit | None) -> Callable[[Request], Awaitable[None]]:
    """Return what every request must pass: token, rate limit, version."""

    async def gate(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = secrets.compare_digest(given.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not right:
            raise errors.unauthorized()
        if limit is not None and (wait := limit.take()):
            raise errors.rate_limited(wait)
        asked = request.headers.get("notion-version")
        if asked is None:
            raise errors.missing_version()
        if asked not in VERSIONS:
            known = " or ".join(f'`"{name}"`' for name in VERSIONS)
            raise errors.should("Notion-Version header", known, asked)

    return gate


def _refuse(request: Request) -> NoReturn:
    """Raise the error of a request that no route answers."""
    method, path = request.method, request.url.path
    if not _EXISTS.fullmatch(path):
        raise errors.invalid_url()
    reads = path == "/v1/search" or path.endswith("/query")
    if method in ("PATCH", "DELETE", "PUT") or (method == "POST" and not reads):
        raise errors.read_only(method, path)
    raise errors.unsupported(method, path)


def _routes(api: _Api) -> APIRouter:
    router = APIRouter(prefix="/v1")

    def shapes(request: Request) -> Shapes:
        return api.shapes[request.headers["notion-version"]]

    def answer(request: Request, body: Json) -> JSONResponse:
        identity = errors.request_id(request)
        return JSONResponse(
            {**body, "request_id": identity}, headers={errors.REQUEST_ID_HEADER: identity}
        )

    def query_of(request: Request, *allowed: str) -> dict[str, str]:
        _only(request.query_params.keys(), allowed, "query")
        return dict(request.query_params)

    def selected(request: Request) -> list[str]:
        _only(request.query_params.keys(), ("filter_properties", "filter_properties[]"), "query")
        return [value for _, value in request.query_params.multi_items()]

    @router.get("/users")
    async def users(request: Request) -> JSONResponse:
        query = query_of(request, "start_cursor", "page_size")
        return answer(request, api.users(shapes(request), query))

    @router.get("/users/me")
    async def me(request: Request) -> JSONResponse:
        query_of(request)
        return answer(request, shapes(request).user(api.workspace.bot))

    @router.get("/users/{user_id}")
    async def user(request: Request, user_id: str) -> JSONResponse:
        query_of(request)
        return answer(request, api.user(shapes(request), user_id))

    @router.post("/search")
    async def search(request: Request) -> JSONResponse:
        query_of(request)
        body = await _body(request, {*_READ_BODY, "query", "filter", "sort"})
        return answer(request, api.search(shapes(request), body))

    @router.get("/pages/{page_id}")
    async def page(request: Request, page_id: str) -> JSONResponse:
        only, found = selected(request), api.page(page_id)
        query = Query(api.workspace, shapes(request).columns(found))
        for name in only:
            query.column(name, "query.filter_properties")
        return answer(request, shapes(request).page(found, only))

    @router.get("/pages/{page_id}/properties/{property_id:path}")
    async def page_property(request: Request, page_id: str, property_id: str) -> JSONResponse:
        query = query_of(request, "start_cursor", "page_size")
        return answer(request, api.property(shapes(request), page_id, property_id, query))

    @router.get("/blocks/{block_id}")
    async def block(request: Request, block_id: str) -> JSONResponse:
        query_of(request)
        return answer(request, api.block(shapes(request), block_id))

    @router.get("/blocks/{block_id}/children")
    async def children(request: Request, block_id: str) -> JSONResponse:
        query = query_of(request, "start_cursor", "page_size")
        return answer(request, api.children(shapes(request), block_id, query))

    @router.get("/databases/{database_id}")
    async def database(request: Request, database_id: str) -> JSONResponse:
        query_of(request)
        return answer(request, shapes(request).database(api.database(database_id)))

    @router.post("/databases/{database_id}/query")
    async def query_database(request: Request, database_id: str) -> JSONResponse:
        if request.headers["notion-version"] != OLD:
            raise errors.invalid_url()  # queries moved to data sources
        only = selected(request)
        body = await _body(request, {*_READ_BODY, "filter", "sorts", "archived", "in_trash"})
        found = api.query(shapes(request), api.database(database_id), body, only)
        return answer(request, found)

    @router.get("/data_sources/{data_source_id}")
    async def source(request: Request, data_source_id: str) -> JSONResponse:
        if request.headers["notion-version"] != NEW:
            raise errors.invalid_url()
        query_of(request)
        return answer(request, shapes(request).source(api.source(data_source_id)))

    @router.post("/data_sources/{data_source_id}/query")
    async def query_source(request: Request, data_source_id: str) -> JSONResponse:
        if request.headers["notion-version"] != NEW:
            raise errors.invalid_url()
        only = selected(request)
        known = {*_READ_BODY, "filter", "sorts", "archived", "in_trash", "result_type"}
        body = await _body(request, known)
        return answer(request, api.query(shapes(request), api.source(data_source_id), body, only))

    return router


def _release() -> str:
    try:
        return version("nim-rag-cookbook")
    except PackageNotFoundError:  # run from a clone without an installation
        return "0"


def build_app(workspace: Workspace, token: str, limit: RateLimit | None = None) -> FastAPI:
    """Return the API server.

    Args:
        workspace: What it serves.
        token: The integration's token, demanded as `Authorization: Bearer <token>`.
        limit: Answers 429 beyond it; None for no limit.
    """
    if not token:
        raise ValueError("the Notion stand-in needs a token")
    app = FastAPI(
        title="Notion API (local stand-in)",
        version=_release(),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(_gate(token, limit))],
    )
    errors.install_handlers(app)
    app.include_router(_routes(_Api(workspace)))

    async def ready(_: Request) -> JSONResponse:
        return JSONResponse({"ready": True})

    # Not Notion's: who starts the local servers asks for it, and has no token. `add_route` leaves
    # out the gate.
    app.add_route("/health/ready", ready)

    async def other(request: Request) -> JSONResponse:
        _refuse(request)

    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    app.add_api_route("/{path:path}", other, methods=methods, include_in_schema=False)
    return app
