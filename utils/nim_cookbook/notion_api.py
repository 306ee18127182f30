"""A notion-client for notion-exporter; used by `nim_cookbook.notion`.

notion-exporter requests a whole wiki at once and ends with the first error. So this client limits
the requests at a time, retries after the time that Notion states, returns an empty object for a
page that cannot be read, and keeps title, URL and parent of each page, which the exporter drops.

Source of the objects: https://developers.notion.com/reference; of the limits:
https://developers.notion.com/reference/request-limits
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx
from notion_client import AsyncClient
from notion_client.client import ClientOptions
from notion_client.errors import RequestTimeoutError

from nim_cookbook.errors import (
    ConfigurationError,
    CookbookError,
    EndpointUnreachable,
    MissingKeyError,
)
from nim_cookbook.hosts import is_loopback
from nim_cookbook.services import INTEGRATIONS_PAGE, NOTION_VERSION

Json = dict[str, Any]
Progress = Callable[[int, int], None]

NOT_SHARED = "not shared with the integration, or not there"
NOT_READABLE = "not readable through Notion's API"
REASONS = {"object_not_found": NOT_SHARED, "validation_error": NOT_READABLE}
FAULT_TRIES = 4  # of a request that failed on the server's side
WAIT_TRIES = 60  # of a request that was answered 429
LONGEST_WAIT = 60.0  # seconds


class Reader(AsyncClient):
    """A client for one export.

    Attributes:
        found: Title, url and last_edited_time of every page and database that was read, by id.
        skipped: The reason for each page, database or block that could not be read, by id.
        databases_given: Ids among `given` that belong to databases.
        failure: The error that ends the export; no request is sent after it.
        convertible: Property types that the exporter can write; others are left out.
    """

    def __init__(
        self,
        token: str,
        url: str,
        *,
        given: Iterable[str],
        concurrency: int,
        timeout: float,
        progress: Progress | None = None,
    ) -> None:
        options: Json = {
            "auth": token,
            "base_url": url,
            "notion_version": NOTION_VERSION,
            "timeout_ms": round(timeout * 1000),
            "logger": logging.getLogger(__name__),
            "log_level": logging.ERROR,  # errors are handled here
        }
        if any(option.name == "retry" for option in dataclasses.fields(ClientOptions)):
            options["retry"] = False  # notion-client 2.5 has no retries, so they are done here
        # The exporter runs a new event loop for each call, which cannot use the sockets of another.
        limits = httpx.Limits(max_keepalive_connections=0)
        outside = not is_loopback(httpx.URL(url).host)  # a proxy is for other hosts
        super().__init__(client=httpx.AsyncClient(limits=limits, trust_env=outside), **options)
        # Removed in notion-client 2.6; the exporter calls it.
        self.databases.query = self._query  # type: ignore[attr-defined]
        self.url = url
        self.found: dict[str, dict[str, str]] = {}
        self.skipped: dict[str, str] = {}
        self.databases_given: set[str] = set()
        self.failure: BaseException | None = None
        self.convertible: frozenset[str] = frozenset()
        self._given = frozenset(given)
        self._known = set(self._given)
        self._above: dict[str, str] = {}
        self._concurrency = concurrency
        self._progress = progress
        self._resume = 0.0
        self.renew()

    def renew(self) -> None:
        """Prepare for a new event loop."""
        self._slots = asyncio.Semaphore(self._concurrency)

    def path(self, identity: str) -> str:
        """Return the titles from the topmost exported page to this one, joined by slashes."""
        titles: list[str] = []
        seen: set[str] = set()
        above: str | None = identity
        while above is not None and above not in seen:
            seen.add(above)
            if above in self.found:
                titles.append(self.found[above]["title"])
            above = self._above.get(above)
        return " / ".join(reversed(titles))

    async def request(self, path: str, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Send a request; return an empty object if the answer is an error."""
        kind, _, rest = path.partition("/")
        identity = rest.partition("/")[0]
        # The exporter's front matter, which names authors, is off: save two requests a page.
        if kind == "users" or self.failure is not None:
            return _empty_object(identity)
        try:
            async with self._slots:
                answer = await self._with_retries(path, method, *args, **kwargs)
            self._record(answer, identity)
        except Exception as error:  # notion-exporter ends with any error
            self._record_error(error, kind, identity)
            return _empty_object(identity)
        return answer

    async def _query(self, database_id: str, **body: object) -> Any:  # noqa: ANN401
        """Query a database, as notion-client 2.5 does."""
        given = {name: value for name, value in body.items() if value is not None}
        return await self.request(f"databases/{database_id}/query", "POST", body=given)

    async def _with_retries(self, path: str, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        faults = waits = 0
        while True:
            while self.failure is None and (rest := self._resume - time.monotonic()) > 0:
                await asyncio.sleep(min(rest, 0.2))  # short, so that stop() works
            if self.failure is not None:
                return _empty_object("")
            try:
                return await super().request(path, method, *args, **kwargs)
            except Exception as error:
                if isinstance(error, httpx.ConnectError) and not self.found:
                    raise  # a wrong address or no network: a retry would not help
                waits += (early := _status(error) == 429)
                faults += (fault := _is_temporary(error))
                if not (early or fault) or waits == WAIT_TRIES or faults == FAULT_TRIES:
                    raise
                # The limit counts all requests of the integration, so all wait.
                self._resume = max(self._resume, time.monotonic() + _delay(error, faults))

    def _record(self, answer: Json, identity: str) -> None:
        """Keep the documents' metadata, and change objects that notion-exporter cannot convert."""
        kind = answer["object"]
        if kind == "list":
            for entry in answer["results"]:
                self._above[entry["id"]] = identity
                if entry.get("type") in ("child_page", "child_database") or "properties" in entry:
                    self._known.add(entry["id"])
                self._make_convertible(entry)
        elif kind in ("page", "database"):
            self._make_convertible(answer)
            self._known.add(answer["id"])
            again = answer["id"] in self.found  # the exporter retrieves a database twice
            self.found[answer["id"]] = {
                "title": _title(answer),
                "url": answer["url"],
                "last_edited_time": answer["last_edited_time"],
            }
            if not again:
                self._report()

    def _make_convertible(self, entry: Json) -> None:
        if "callout" in entry:
            entry["callout"]["icon"] = entry["callout"].get("icon") or {}  # null without an icon
        if isinstance(entry.get("title"), list):
            entry["title"] = _one_run(entry["title"])
        properties: Json = entry.get("properties", {})
        for name, value in list(properties.items()):
            if value["type"] not in self.convertible:
                del properties[name]
            elif value["type"] == "title" and isinstance(value["title"], list):
                value["title"] = _one_run(value["title"])
            elif value["type"] == "last_edited_by" and value["last_edited_by"]:
                value["last_edited_by"].setdefault("name", "Unknown")

    def _record_error(self, error: Exception, kind: str, identity: str) -> None:
        reason = next((why for code, why in REASONS.items() if _code(error) == code), None)
        if reason is None:
            self.failure = self.failure or _explained(error, self.url)
        elif kind == "pages" and _code(error) == "validation_error" and identity in self._given:
            self.databases_given.add(identity)
        else:
            self.skipped.setdefault(identity, reason)
            self._report()

    def _report(self) -> None:
        if self._progress is None:
            return
        left_out = len(self.skipped.keys() & self._known)
        try:
            self._progress(len(self.found), max(len(self._known) - left_out, len(self.found)))
        except Exception as error:  # raised by the caller's function: pass it on unchanged
            self.failure = self.failure or error


def _empty_object(identity: str) -> Json:
    """Return an object that notion-exporter reads as an empty page, database, list or user."""
    return {
        "object": "nothing",
        "id": identity,
        "name": "",
        "url": "",
        "last_edited_time": "",
        "created_by": {"id": ""},
        "last_edited_by": {"id": ""},
        "parent": {"type": "workspace", "workspace": True},
        "title": [],
        "description": [],
        "properties": {"title": {"type": "title", "name": "title", "title": []}},
        "results": [],
        "next_cursor": None,
        "has_more": False,
    }


def _one_run(title: list[Json]) -> list[Json]:
    """Join the runs of a title: notion-exporter reads only the first."""
    text = "".join(run["plain_text"] for run in title)
    return [{**title[0], "plain_text": text}] if title else []


def _title(answer: Json) -> str:
    runs = answer.get("title")  # a database's
    if runs is None:
        columns = answer["properties"].values()
        runs = next((c["title"] for c in columns if c["type"] == "title"), [])
    return "".join(run["plain_text"] for run in runs) or "Untitled"


def _code(error: Exception) -> str:
    code = getattr(error, "code", "")
    return str(getattr(code, "value", code))


def _status(error: Exception) -> int | None:
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _is_temporary(error: Exception) -> bool:
    """Return whether a retry may succeed."""
    status = _status(error)
    if status is not None:
        return status == 409 or status >= 500
    return isinstance(error, RequestTimeoutError | httpx.TransportError)


def _delay(error: Exception, faults: int) -> float:
    """Return the seconds to wait: `Retry-After`, else twice as long after each fault."""
    told = getattr(error, "headers", {}).get("Retry-After", "")
    return min(float(told) if told.isdigit() else 0.5 * 2**faults, LONGEST_WAIT)


def _explained(error: Exception, url: str) -> CookbookError:
    """Return the error that the export ends with."""
    status = _status(error)
    if status == 401:
        return MissingKeyError(
            f"{url} refuses the token (401): copy the integration's token again from "
            f"{INTEGRATIONS_PAGE}."
        )
    if status == 403:
        return ConfigurationError(
            f"{url} does not let this integration read (403): give it the capability to read "
            f"content at {INTEGRATIONS_PAGE}."
        )
    if status == 429:
        fault = f"still asks to wait after {WAIT_TRIES} tries"
    elif status is not None:
        fault = f"answers {status}"
    elif isinstance(error, RequestTimeoutError):
        fault = "does not answer in time"
    elif isinstance(error, httpx.HTTPError):
        fault = "cannot be reached"
    else:
        fault = "does not answer as Notion does"
    return EndpointUnreachable(
        f"{url} {fault}: check that address and your network, and run the export again."
    )
