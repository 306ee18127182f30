"""Addresses and tokens of two services: Notion, which is read, and Gradient, which trains.

A notebook uses the service itself and the local stand-in in the same way:

    notion = connect_notion()
    pages = NotionPages(Secret.from_env_var(notion.token_variable), base_url=notion.url)
    documents = pages.run(list(notion.pages))["documents"]

With `NOTION_TOKEN` and `NOTION_PAGE_IDS` set it reads the user's own pages at Notion (or at
`NOTION_BASE_URL`); with `GRADIENT_API_URL` it uses that Gradient server. Else both are local.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import httpx

from nim_cookbook import keys, local
from nim_cookbook.endpoints import (
    CALL_TIMEOUT,
    keep_proxies_off_loopback,
    read_env_file,
    shown,
    stand_in,
    url_fault,
)
from nim_cookbook.errors import ConfigurationError, EndpointUnreachable, MissingKeyError
from nim_cookbook.models import Role

NOTION_TOKEN = "NOTION_TOKEN"
NOTION_PAGE_IDS = "NOTION_PAGE_IDS"
NOTION_BASE_URL = "NOTION_BASE_URL"
NOTION_URL = "https://api.notion.com"
# The version that notion-exporter was written for: a database is one table, and is queried itself.
NOTION_VERSION = "2022-06-28"
INTEGRATIONS_PAGE = "https://www.notion.so/profile/integrations"

GRADIENT_API_URL = "GRADIENT_API_URL"
GRADIENT_TOKEN = "GRADIENT_ACCESS_TOKEN"
GRADIENT_WORKSPACE = "GRADIENT_WORKSPACE_ID"
LOCAL_WORKSPACE = "local"

_ID = re.compile(
    r"(?:.*-)?([0-9a-fA-F]{32})|([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"
)


@dataclass(frozen=True, slots=True)
class NotionService:
    """The address and token of a Notion, and the pages to export.

    Attributes:
        url: Base URL without `/v1`, as notion-client wants it.
        token_variable: Name of the environment variable that holds the integration's token.
        pages: Ids of the topmost pages; an export includes the pages below them.
        served_by: The server's name, for captions.
    """

    url: str
    token_variable: str
    pages: tuple[str, ...]
    served_by: str


@dataclass(frozen=True, slots=True)
class GradientService:
    """The address and token of a Gradient server.

    Attributes:
        host: Base URL as the Gradient SDK wants it, without a slash at its end.
        token_variable: Name of the environment variable that holds the access token.
        workspace_variable: Name of the one that holds the workspace's id.
        weights: Descriptions of the served weights by role, for captions.
    """

    host: str
    token_variable: str
    workspace_variable: str
    weights: dict[Role, str]


def connect_notion() -> NotionService:
    """Find the pages to read: the reader's own with `NOTION_TOKEN` set, else the local Notion's.

    Returns:
        A service whose token variable is set in the environment.

    Raises:
        ConfigurationError: A setting is missing or cannot be used.
        MissingKeyError: `NOTION_BASE_URL` is set and `NOTION_TOKEN` is not, or no header can carry
            the token.
        EndpointUnreachable: The local servers do not start.
    """
    read_env_file()
    own_url = os.environ.get(NOTION_BASE_URL, "").strip()
    token = keys.find_key(NOTION_TOKEN)
    if token:
        return _own_notion(token, own_url)
    if own_url:
        raise MissingKeyError(
            f"{NOTION_BASE_URL} is set but {NOTION_TOKEN} is not: set it to the token of your "
            f"integration, or unset {NOTION_BASE_URL} to read the local Notion."
        )
    server = _local_server()
    url = server.urls["notion"]
    return NotionService(
        url, keys.LOCAL_KEY, _top_pages(url, server.key), "the local Notion (stand-in)"
    )


def connect_gradient() -> GradientService:
    """Find the Gradient server: the one of `GRADIENT_API_URL`, else the local one.

    Returns:
        A service whose token and workspace variables are set in the environment.

    Raises:
        ConfigurationError: A setting is missing or cannot be used.
        MissingKeyError: `GRADIENT_API_URL` is set and `GRADIENT_ACCESS_TOKEN` is not.
        EndpointUnreachable: The local servers do not start.
    """
    read_env_file()
    text = os.environ.get(GRADIENT_API_URL, "").strip()
    if text:
        return _own_gradient(text)
    server = _local_server()
    if not os.environ.get(GRADIENT_WORKSPACE, "").strip():
        os.environ[GRADIENT_WORKSPACE] = LOCAL_WORKSPACE
    roles: tuple[Role, ...] = ("chat", "embedding")  # it uses the same weights as these servers
    told = {role: stand_in(server.urls[role], role, server.key) for role in roles}
    return GradientService(
        server.urls["gradient"],
        keys.LOCAL_KEY,
        GRADIENT_WORKSPACE,
        {role: what["weights"] if what else "local weights" for role, what in told.items()},
    )


def notion_id(text: str) -> str:
    """Return the id, with dashes, of a Notion page given by its id or its address.

    Args:
        text: An id with or without dashes, or the URL that Notion's "Copy link" gives.

    Raises:
        ConfigurationError: It is neither.
    """
    text = text.strip()
    candidate = text
    if text.startswith(("http://", "https://")):
        try:
            parts = urlsplit(text)
        except ValueError:
            parts = urlsplit("")
        # A page that is open in a database's side peek is named by the query, not the path.
        candidate = (parse_qs(parts.query).get("p") or [parts.path.rstrip("/").rsplit("/", 1)[-1]])[
            0
        ]
    match = _ID.fullmatch(candidate)
    if match is None:
        raise ConfigurationError(
            f"{shown(text)} is no Notion page: give its id (32 hexadecimal digits) or the link "
            'that "Copy link" gives.'
        )
    return str(UUID(match[1] or match[2]))


def _own_notion(token: str, own_url: str) -> NotionService:
    url = _service_url(own_url, NOTION_BASE_URL, NOTION_URL).removesuffix("/v1")
    where = NOTION_BASE_URL if own_url else NOTION_URL
    keys.check_token(token, url, variable=NOTION_TOKEN, url_variable=where)
    texts = re.split(r"[\s,]+", os.environ.get(NOTION_PAGE_IDS, "").strip(" \t\r\n,"))
    if texts == [""]:
        raise ConfigurationError(
            f"{NOTION_TOKEN} is set but {NOTION_PAGE_IDS} is not: set it to the ids or links of "
            f"the pages to read, or unset {NOTION_TOKEN} to read the local Notion."
        )
    try:
        pages = tuple(dict.fromkeys(map(notion_id, texts)))
    except ConfigurationError as error:
        raise ConfigurationError(f"In {NOTION_PAGE_IDS}, {error}") from None
    os.environ[NOTION_TOKEN] = token
    keep_proxies_off_loopback(url)
    return NotionService(url, NOTION_TOKEN, pages, "Notion" if not own_url else _host(url))


def _own_gradient(text: str) -> GradientService:
    host = _service_url(text, GRADIENT_API_URL, "http://127.0.0.1:8004/api")
    token = keys.find_key(GRADIENT_TOKEN)
    if not token:
        raise MissingKeyError(
            f"{GRADIENT_API_URL} is set but {GRADIENT_TOKEN} is not: set it to that server's "
            f"access token, or unset {GRADIENT_API_URL} to use the local Gradient."
        )
    keys.check_token(token, host, variable=GRADIENT_TOKEN, url_variable=GRADIENT_API_URL)
    if not os.environ.get(GRADIENT_WORKSPACE, "").strip():
        raise ConfigurationError(
            f"{GRADIENT_API_URL} is set but {GRADIENT_WORKSPACE} is not: set it to the id of your "
            "workspace on that server."
        )
    os.environ[GRADIENT_TOKEN] = token
    keep_proxies_off_loopback(host)
    served = f"served by {_host(host)}"
    return GradientService(
        host, GRADIENT_TOKEN, GRADIENT_WORKSPACE, {"chat": served, "embedding": served}
    )


def _service_url(text: str, variable: str, example: str) -> str:
    """Check a service's base URL; return it without a slash at its end, or `example` for none."""
    if not text:
        return example
    fault = url_fault(text)
    if fault:
        raise ConfigurationError(
            f"{variable} is {shown(text)}, {fault}: write the base URL, such as {example}."
        )
    return text.strip().rstrip("/")


def _host(url: str) -> str:
    return httpx.URL(url).netloc.decode("ascii")


def _local_server() -> local.LocalServer:
    server = local.ensure_running()
    os.environ[keys.LOCAL_KEY] = server.key
    keep_proxies_off_loopback()
    return server


def _top_pages(url: str, key: str) -> tuple[str, ...]:
    """Return the shared pages at the top of the local workspace, whose files anybody may change."""
    try:
        pages = tuple(
            str(entry["id"])
            for entry in _search(url, key)
            if entry["object"] == "page" and entry["parent"]["type"] == "workspace"
        )
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        raise EndpointUnreachable(
            f"The local Notion at {url} does not answer a search: run this cell again, or stop the "
            "local endpoints and start them with `nim-cookbook serve`."
        ) from None
    if not pages:
        raise ConfigurationError(
            "The local Notion has no page that is shared: see data/notion/README.md."
        )
    return pages


def _search(url: str, key: str) -> Iterator[dict[str, Any]]:
    """Yield all pages and databases; https://developers.notion.com/reference/post-search."""
    headers = {"Authorization": f"Bearer {key}", "Notion-Version": NOTION_VERSION}
    with httpx.Client(headers=headers, timeout=CALL_TIMEOUT, trust_env=False) as client:
        body: dict[str, str] = {}
        while True:
            answer = client.post(f"{url}/v1/search", json=body)
            answer.raise_for_status()
            found = answer.json()
            yield from found["results"]
            if not found["next_cursor"]:
                return
            body = {"start_cursor": found["next_cursor"]}
