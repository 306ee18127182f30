"""notion-client as notion-exporter needs it today; used by `nim_cookbook.notion`.

The exporter asks for a whole wiki at once and ends with the first refusal. So this client asks a
few things at a time, waits when Notion says so, answers for what cannot be read with an empty
object, and notes what the exporter throws away: title, address and place of each page.

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
from nim_cookbook.services import INTEGRATIONS_PAGE, NOTION_VERSION

Json = dict[str, Any]
Progress = Callable[[int, int], None]

NOT_SHARED = "not shared with the integration, or not there"
NOT_READABLE = "not readable through Notion's API"
REASONS = {"object_not_found": NOT_SHARED, "validation_error": NOT_READABLE}
FAULT_TRIES = 4  # of a request that the server could not answer
WAIT_TRIES = 60  # of a request that came too early; each wait is as long as the server said
LONGEST_WAIT = 60.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Reader(AsyncClient):
    """A client for one export.

    Attributes:
        found: Title, url and last_edited_time of every page and database that was read, by id.
        skipped: Why something could not be read, by id.
        databases_given: Ids among `given` that turned out to be databases.
        failure: Why the export must end; from then on nothing more is asked.
        convertible: Types of properties that the exporter can write; others are left out.
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
            "log_level": logging.ERROR,  # it would print every refusal that is dealt with here
        }
        if any(option.name == "retry" for option in dataclasses.fields(ClientOptions)):
            options["retry"] = False  # done here, for older versions of the client too
        # The exporter opens an event loop of its own at each call; no socket may outlive it.
        limits = httpx.Limits(max_keepalive_connections=0)
        outside = httpx.URL(url).host not in LOOPBACK
        super().__init__(client=httpx.AsyncClient(limits=limits, trust_env=outside), **options)
        # Left out of notion-client since 2.6, though Notion still answers it.
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
        """Prepare for another event loop."""
        self._slots = asyncio.Semaphore(self._concurrency)

    def path(self, identity: str) -> str:
        """Return the titles from the topmost page read down to this one, joined by slashes."""
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
        """Send a request; where there is nothing to be had, return an empty object."""
        kind, _, rest = path.partition("/")
        identity = rest.partition("/")[0]
        # Who wrote a page goes into front matter, which is off: two requests a page saved.
        if kind == "users" or self.failure is not None:
            return _nothing(identity)
        try:
            async with self._slots:
                answer = await self._patiently(path, method, *args, **kwargs)
            self._note(answer, identity)
        except Exception as error:  # the exporter has no way to go on after any
            self._deal_with(error, kind, identity)
            return _nothing(identity)
        return answer

    async def _query(self, database_id: str, **body: object) -> Any:  # noqa: ANN401
        """Ask for the entries of a database, as notion-client 2.5 did."""
        given = {name: value for name, value in body.items() if value is not None}
        return await self.request(f"databases/{database_id}/query", "POST", body=given)

    async def _patiently(self, path: str, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        faults = waits = 0
        while True:
            while self.failure is None and (rest := self._resume - time.monotonic()) > 0:
                await asyncio.sleep(min(rest, 0.2))  # in short naps, so that it can be stopped
            if self.failure is not None:
                return _nothing("")
            try:
                return await super().request(path, method, *args, **kwargs)
            except Exception as error:
                if isinstance(error, httpx.ConnectError) and not self.found:
                    raise  # a wrong address or no network, rather than a moment's fault
                waits += (early := _status(error) == 429)
                faults += (fault := _is_passing_fault(error))
                if not (early or fault) or waits == WAIT_TRIES or faults == FAULT_TRIES:
                    raise
                # All wait, not this request alone: the limit is for the integration.
                self._resume = max(self._resume, time.monotonic() + _delay(error, faults))

    def _note(self, answer: Json, identity: str) -> None:
        """Keep what the documents' metadata need, and mend what the exporter trips over."""
        kind = answer["object"]
        if kind == "list":
            for entry in answer["results"]:
                self._above[entry["id"]] = identity
                if entry.get("type") in ("child_page", "child_database") or "properties" in entry:
                    self._known.add(entry["id"])
                self._mend(entry)
        elif kind in ("page", "database"):
            self._mend(answer)
            self._known.add(answer["id"])
            again = answer["id"] in self.found  # a database is read for its table and its title
            self.found[answer["id"]] = {
                "title": _title(answer),
                "url": answer["url"],
                "last_edited_time": answer["last_edited_time"],
            }
            if not again:
                self._report()

    def _mend(self, entry: Json) -> None:
        if "callout" in entry:
            entry["callout"]["icon"] = entry["callout"].get("icon") or {}  # may be null
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

    def _deal_with(self, error: Exception, kind: str, identity: str) -> None:
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
        except Exception as error:  # the caller's, and not to be taken for Notion's
            self.failure = self.failure or error


def _nothing(identity: str) -> Json:
    """Return an object that the exporter takes for an empty page, database, list or user."""
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
    """Join the runs of a title, of which the exporter reads the first only."""
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


def _is_passing_fault(error: Exception) -> bool:
    """Tell whether the same request may well succeed a moment later."""
    status = _status(error)
    if status is not None:
        return status == 409 or status >= 500
    return isinstance(error, RequestTimeoutError | httpx.TransportError)


def _delay(error: Exception, faults: int) -> float:
    """Return the seconds to wait: what `Retry-After` says, else more with each fault."""
    told = getattr(error, "headers", {}).get("Retry-After", "")
    return min(float(told) if told.isdigit() else 0.5 * 2**faults, LONGEST_WAIT)


def _explained(error: Exception, url: str) -> CookbookError:
    """Return an error of one sentence on why nothing can be read."""
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
