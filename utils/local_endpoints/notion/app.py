"""The API server: routes, JSON of pages, databases and blocks, paging, token, version, errors.

Sources: https://developers.notion.com/reference; errors: /reference/status-codes.
"""

import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from local_endpoints.notion.markdown import Json, plain
from local_endpoints.notion.workspace import BlockNode, Page, Workspace
from local_endpoints.routes import allowed, documented, without_fastapi_errors
from local_endpoints.strict_json import StrictRoute

OLD = "2022-06-28"
NEW = "2025-09-03"  # a database got data sources, which hold its columns and entries
MAX_PAGE = 100


class NotionError(Exception):
    """An error as a client sees it: HTTP status, one of Notion's codes, and a message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Fault(BaseModel):
    """The body of an error, as the OpenAPI document shows it."""

    object: Literal["error"]
    status: int
    code: str
    message: str
    request_id: UUID


def _response(error: NotionError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    body = {"object": "error", "status": error.status, "code": error.code}
    identity = str(uuid.uuid4())
    body |= {"message": error.message, "request_id": identity}
    return JSONResponse(body, error.status, {"x-notion-request-id": identity, **(headers or {})})


def _invalid(error: RequestValidationError) -> NotionError:
    """Return the error of a parameter that has a wrong value or is not supported here."""
    first = error.errors()[0]
    part, where = first["loc"][0], ".".join(map(str, first["loc"]))
    if first["type"] == "json_invalid":
        return NotionError(400, "invalid_json", "Error parsing JSON body.")
    fault = (
        "is not supported by this stand-in, which offers plain reads only"
        if first["type"] == "extra_forbidden"
        else f"is invalid: {first['msg']}"
    )
    return NotionError(400, "validation_error", f"{part} failed validation: {where} {fault}.")


class Paging(BaseModel):
    """The parameters of a list."""

    model_config = ConfigDict(extra="forbid")

    page_size: int = Field(MAX_PAGE, ge=1, le=MAX_PAGE)
    start_cursor: UUID | None = None


class SearchBody(Paging):
    """The body of a search: words of a title."""

    query: str = ""


def _listed(objects: Sequence[Json], paging: Paging) -> Json:
    """Return one page of a list; the cursor is the id that the next page begins with.

    Raises:
        NotionError: The cursor is none of the ids.
    """
    start = 0
    if paging.start_cursor is not None:
        ids = [entry["id"] for entry in objects]
        if str(paging.start_cursor) not in ids:
            raise NotionError(400, "validation_error", "The start_cursor provided is invalid.")
        start = ids.index(str(paging.start_cursor))
    end = start + paging.page_size
    following = objects[end]["id"] if end < len(objects) else None
    return {
        "object": "list",
        "results": list(objects[start:end]),
        "next_cursor": following,
        "has_more": following is not None,
    }


# --- objects ----------------------------------------------------------------------------------


def _history(page: Page) -> Json:
    return {
        "created_time": page.created,
        "last_edited_time": page.edited,
        "created_by": {"object": "user", "id": page.author},
        "last_edited_by": {"object": "user", "id": page.editor},
        "archived": False,
        "in_trash": False,
    }


def _parent(page: Page, version: str) -> Json:
    above = page.parent
    if above is None:
        return {"type": "workspace", "workspace": True}
    if not above.is_database:
        return {"type": "page_id", "page_id": above.id}
    if version == OLD:
        return {"type": "database_id", "database_id": above.id}
    return {
        "type": "data_source_id",
        "data_source_id": above.source_id,
        "database_id": above.id,
    }


def _common(page: Page) -> Json:
    icon = {"type": "emoji", "emoji": page.icon} if page.icon else None
    return {**_history(page), "cover": None, "icon": icon, "url": page.url, "public_url": None}


def _page(page: Page, version: str) -> Json:
    start = {"object": "page", "id": page.id, **_common(page)}
    return {**start, "parent": _parent(page, version), "properties": page.properties}


def _database(page: Page, version: str) -> Json:
    """Return a database: with its columns in 2022-06-28, with its data source since."""
    texts = {"title": plain(page.title), "description": plain(page.description)}
    body = {"object": "database", "id": page.id, **_common(page), **texts}
    body |= {"parent": _parent(page, version), "is_inline": False}
    if version == OLD:
        return {**body, "properties": page.columns}
    return {**body, "data_sources": [{"id": page.source_id, "name": page.title}]}


def _source(page: Page) -> Json:
    """Return the data source of a database."""
    body = _database(page, OLD)
    parent = {"type": "database_id", "database_id": page.id}
    return {**body, "object": "data_source", "id": page.source_id, "parent": parent}


def _found(page: Page, version: str) -> Json:
    """Return the object by which a search lists a page or database."""
    if not page.is_database:
        return _page(page, version)
    return _database(page, version) if version == OLD else _source(page)


def _block(node: BlockNode) -> Json:
    parent = {"type": "page_id", "page_id": node.page.id}
    if node.parent is not None:
        parent = {"type": "block_id", "block_id": node.parent}
    kind, content = node.block.type, node.block.content
    start = {"object": "block", "id": node.id, "parent": parent, **_history(node.page)}
    return {**start, "has_children": bool(node.children), "type": kind, kind: content}


def _child(page: Page, version: str) -> Json:
    """Return the block that shows a subpage on the page above it."""
    kind = "child_database" if page.is_database else "child_page"
    start = {"object": "block", "id": page.id, "parent": _parent(page, version), **_history(page)}
    below = bool(page.blocks) or (not page.is_database and any(c.shared for c in page.children))
    return {**start, "has_children": below, "type": kind, kind: {"title": page.title}}


# --- routes -----------------------------------------------------------------------------------


def _not_found(kind: str, identity: UUID) -> NotionError:
    hint = "Make sure the relevant pages and databases are shared with your integration."
    message = f"Could not find {kind} with ID: {identity}. {hint}"
    return NotionError(404, "object_not_found", message)


Gate = Callable[..., Awaitable[str]]


def _gate(token: str) -> Gate:
    async def gate(
        request: Request,
        bearer: Annotated[
            HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))
        ],
        notion_version: Annotated[
            str | None, Header(description=f"{OLD} or {NEW}; 400 without.")
        ] = None,
    ) -> str:
        """Check the token and return the API version."""
        given = bearer.credentials.strip() if bearer else ""
        if not secrets.compare_digest(given.encode(), token.encode()):
            raise NotionError(401, "unauthorized", "API token is invalid.")
        if notion_version is None:
            raise NotionError(400, "missing_version", "Send the header Notion-Version.")
        if notion_version not in (OLD, NEW):
            message = f"Notion-Version header failed validation: it should be {OLD} or {NEW}."
            raise NotionError(400, "validation_error", message)
        if request.query_params and not request.url.path.endswith("/children"):
            message = f"This stand-in supports no parameters in {request.url.path}."
            raise NotionError(400, "validation_error", message)
        return notion_version

    return gate


def _routes(space: Workspace, gate: Gate) -> APIRouter:
    pages = {page.id: page for page in space.shared()}
    sources = {page.source_id: page for page in pages.values() if page.is_database}
    users = {user["id"]: user for user in (*space.people.values(), space.bot)}
    Version = Annotated[str, Depends(gate)]
    Params = Annotated[Paging, Query()]
    router = APIRouter(
        route_class=StrictRoute,
        prefix="/v1",
        dependencies=[Depends(gate)],
        responses=documented(Fault, 400, 401, 404),
    )

    def get(kind: str, identity: UUID) -> Page:
        """Return a page or database that the integration may read."""
        page = pages.get(str(identity))
        if page is None:
            raise _not_found(kind, identity)
        if page.is_database != (kind == "database"):
            message = f"Provided ID {identity} is not a {kind}."
            raise NotionError(400, "validation_error", message)
        return page

    def demand(version: str, wanted: str) -> None:
        """Refuse an address that the API has in another version only."""
        if version != wanted:
            raise NotionError(400, "invalid_request_url", "Invalid request URL.")

    def entries(database: Page, paging: Paging, version: str) -> Json:
        return _listed([_page(c, version) for c in database.children if c.shared], paging)

    @router.get("/users/{user_id}")
    async def user(user_id: str) -> Json:
        if user_id == "me":
            return space.bot
        if user_id not in users:
            raise NotionError(404, "object_not_found", f"Could not find user with ID: {user_id}.")
        return users[user_id]

    @router.get("/pages/{page_id}")
    async def page(page_id: UUID, version: Version) -> Json:
        return _page(get("page", page_id), version)

    @router.get("/blocks/{block_id}/children")
    async def children(block_id: UUID, paging: Params, version: Version) -> Json:
        page, node = pages.get(str(block_id)), space.blocks.get(str(block_id))
        if page is not None:
            below = [_block(space.blocks[identity]) for identity in page.blocks]
            if not page.is_database:
                below += [_child(child, version) for child in page.children if child.shared]
        elif node is not None and node.page.shared:
            below = [_block(space.blocks[identity]) for identity in node.children]
        else:
            raise _not_found("block", block_id)
        return _listed(below, paging)

    @router.get("/databases/{database_id}")
    async def database(database_id: UUID, version: Version) -> Json:
        return _database(get("database", database_id), version)

    @router.post("/databases/{database_id}/query")
    async def query_database(database_id: UUID, body: Paging, version: Version) -> Json:
        demand(version, OLD)
        return entries(get("database", database_id), body, version)

    @router.get("/data_sources/{source_id}")
    async def source(source_id: UUID, version: Version) -> Json:
        demand(version, NEW)
        if str(source_id) not in sources:
            raise _not_found("data source", source_id)
        return _source(sources[str(source_id)])

    @router.post("/data_sources/{source_id}/query")
    async def query_source(source_id: UUID, body: Paging, version: Version) -> Json:
        demand(version, NEW)
        if str(source_id) not in sources:
            raise _not_found("data source", source_id)
        return entries(sources[str(source_id)], body, version)

    @router.post("/search")
    async def search(body: SearchBody, version: Version) -> Json:
        words = body.query.casefold().split()
        found = [p for p in pages.values() if all(word in p.title.casefold() for word in words)]
        found.sort(key=lambda page: page.edited, reverse=True)
        return _listed([_found(page, version) for page in found], body)

    return router


def _everything_else(gate: Gate) -> APIRouter:
    """Return a route for what no other one is for; Notion answers these methods so, and no 405."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(gate)], include_in_schema=False)

    @router.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def other(request: Request) -> Json:
        asked = f"{request.method} {request.url.path}"
        if request.method != "GET":
            message = f"This stand-in is read-only, so {asked} is refused."
            raise NotionError(403, "restricted_resource", message)
        raise NotionError(400, "invalid_request_url", f"This stand-in does not offer {asked}.")

    return router


def build_app(workspace: Workspace, token: str) -> FastAPI:
    """Return the API server.

    Args:
        workspace: Its content.
        token: The integration's token, demanded as `Authorization: Bearer <token>`.
    """
    if not token:
        raise ValueError("the Notion stand-in needs a token")
    app = FastAPI(
        title="Notion (local stand-in)",
        version=version("nim-rag-cookbook"),
        docs_url=None,
        redoc_url=None,
    )
    without_fastapi_errors(app)
    gate = _gate(token)
    app.include_router(_routes(workspace, gate))

    @app.get("/health/ready")  # not Notion's: the launcher asks for it without a token
    async def ready() -> dict[str, Any]:
        return {"ready": True}

    served: list[BaseRoute] = list(app.router.routes)
    app.include_router(_everything_else(gate))

    @app.exception_handler(NotionError)
    async def _notion(request: Request, error: NotionError) -> JSONResponse:
        return _response(error)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return _response(_invalid(error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        """Answer what Starlette refuses: methods of no route, unknown paths outside /v1, bodies."""
        if error.status_code not in (404, 405):
            return _response(NotionError(error.status_code, "validation_error", str(error.detail)))
        methods = allowed(served, request)
        if not methods:
            return _response(NotionError(404, "invalid_request_url", "Invalid request URL."))
        message = f"{request.method} is not offered here: use {methods}."
        return _response(NotionError(405, "invalid_request_url", message), {"Allow": methods})

    return app
