"""Outages are waited for; only errors of the file itself count as failed tries.

When the embedding NIM or the store is away, every file would fail, and three quick tries would
carry the whole queue to the dead letters. So the worker keeps the job in hand and asks again until
there is an answer. An endpoint that answers small requests and keeps failing on this one fails it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

import httpx
import requests
from haystack import Document
from haystack.document_stores.types import DocumentStore, DuplicatePolicy

from nim_cookbook.errors import causes
from nim_cookbook.indexing import BATCH, Embedder

T = TypeVar("T")

#: Status codes that are about the request itself; all others are waited for, a refused key too.
FAULTS = frozenset({400, 413, 415, 422})
#: Times that a call may fail although its endpoint answers small ones.
TRIES = 3
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0  # seconds


class Interrupted(Exception):
    """The work in hand is given up: the worker stops, or has lost its claim on the document."""


class RetryPolicy:
    """Calls what may be away for a while."""

    def __init__(
        self,
        interrupted: threading.Event,
        say: Callable[[str], None] = lambda text: None,
        hurried: threading.Event | None = None,
    ) -> None:
        """Wait until told otherwise.

        Args:
            interrupted: When set, waiting and calling end with `Interrupted`.
            say: Told once when an outage begins, and once when it ends.
            hurried: When set, calls go on and waiting ends with `Interrupted`.
        """
        self._interrupted = interrupted
        self._hurried = hurried or interrupted
        self._say = say

    def check(self) -> None:
        """Raise `Interrupted` if the work is to be given up."""
        if self._interrupted.is_set():
            raise Interrupted

    def call(self, what: str, function: Callable[[], T], probe: Callable[[], object]) -> T:
        """Call a function, as often as outages make it necessary.

        Args:
            what: Who is called, to say when it is away.
            function: The call; doing it twice must be the same as doing it once.
            probe: A small call to the same endpoint.

        Raises:
            Interrupted: The work is to be given up.
            Exception: What the function raises, if that is no outage, or if it failed three times
                while the probe did not.
        """
        failures = 0
        while True:
            self.check()
            try:
                return function()
            except Exception as error:
                if not is_outage(error) or failures + 1 >= TRIES:
                    raise
                failures += self._until_it_answers(what, error, probe)

    def _until_it_answers(self, what: str, error: Exception, probe: Callable[[], object]) -> bool:
        """Wait for an endpoint; return whether it answered the first small call."""
        wait, asked = FIRST_WAIT, 0
        self._say(f"{what} fails ({reason(error)}): waiting for it.")
        while True:
            if self._hurried.wait(wait) or self._interrupted.is_set():
                raise Interrupted
            asked += 1
            try:
                probe()
            except Exception as again:
                if not is_outage(again):
                    raise
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                self._say(f"{what} answers again.")
                return asked == 1


class RetryingEmbedder:
    """Embeds batch by batch, so that an outage or a stop costs one batch and not a long file."""

    def __init__(self, embedder: Embedder, policy: RetryPolicy) -> None:
        """Take an embedder, and what waits for it."""
        self._embedder = embedder
        self._policy = policy

    def run(self, documents: list[Document]) -> Mapping[str, Any]:
        """Return `{"documents": documents with an embedding each}`."""
        embedded: list[Document] = []
        for start in range(0, len(documents), BATCH):
            some = documents[start : start + BATCH]
            embedded += self._policy.call(
                "The embedding endpoint",
                lambda some=some: list(self._embedder.run(documents=some)["documents"]),  # type: ignore[misc]
                lambda: self._embedder.run(documents=[Document(content="Are you there?")]),
            )
        return {"documents": embedded}


class RetryingStore:
    """A document store that is waited for; what `nim_cookbook.indexing.update` needs of one."""

    def __init__(self, store: DocumentStore, policy: RetryPolicy) -> None:
        """Take a store, and what waits for it."""
        self._store = store
        self._policy = policy

    def count_documents(self) -> int:
        """Return how many documents the store holds."""
        return self._call(self._store.count_documents)

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Return the documents that match."""
        return self._call(lambda: self._store.filter_documents(filters))

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents; with any policy but `OVERWRITE` a second try may find the first's."""
        return self._call(lambda: self._store.write_documents(documents, policy))

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete documents by their ids."""
        self._call(lambda: self._store.delete_documents(document_ids))

    def to_dict(self) -> dict[str, Any]:
        """Return the store as a dictionary."""
        return self._store.to_dict()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Refuse: the wrapper lives as long as one job."""
        raise NotImplementedError

    def _call(self, function: Callable[[], T]) -> T:
        return self._policy.call("The document store", function, self._store.count_documents)


def is_outage(error: BaseException) -> bool:
    """Tell a server that is away, overloaded or refuses the key from a request that is at fault."""
    return any(_is_outage(cause) for cause in causes(error))


def reason(error: BaseException) -> str:
    """Say in a few words what went wrong, without keys or whole requests."""
    for cause in causes(error):
        if isinstance(cause, requests.HTTPError) and cause.response is not None:
            said = " ".join(cause.response.text.split())[:200]
            return f"{cause.response.url} answered {cause.response.status_code}: {said}"
        if isinstance(cause, requests.RequestException) and cause.request is not None:
            late = isinstance(cause, requests.Timeout)
            fault = "did not answer in time" if late else "cannot be reached"
            return f"{cause.request.url!s} {fault}"
    words = " ".join(str(error).split())[:300].rstrip(".")
    return words or type(error).__name__


def _is_outage(error: BaseException) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response is None or error.response.status_code not in FAULTS
    if isinstance(error, requests.ConnectionError | requests.Timeout | httpx.TransportError):
        return True
    return isinstance(error, _store_outages()) or _status(error) not in (None, *FAULTS)


def _store_outages() -> tuple[type[BaseException], ...]:
    """Return the outages that the store's client knows, if it is in use at all."""
    kinds: list[type[BaseException]] = []
    if psycopg := sys.modules.get("psycopg"):
        kinds += [psycopg.OperationalError, psycopg.InterfaceError]
    if qdrant := sys.modules.get("qdrant_client.http.exceptions"):
        kinds += [qdrant.ResponseHandlingException]
    return tuple(kinds)


def _status(error: BaseException) -> int | None:
    """Return the status of an answer that Qdrant's client did not expect."""
    qdrant = sys.modules.get("qdrant_client.http.exceptions")
    if qdrant and isinstance(error, qdrant.UnexpectedResponse):
        return int(error.status_code or 500)
    return None
