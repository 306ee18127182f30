"""A Haystack component that exports Notion pages, and all pages below them, as documents.

It wraps `NotionExporter` of notion-haystack, which was written for scripts and notion-client 2.5.
The component also works in Jupyter, with notion-client 3, at any base URL and within Notion's rate
limit; it serialises; and it skips a page that is not shared instead of ending the export.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypedDict

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import Secret, deserialize_secrets_inplace

from nim_cookbook import keys
from nim_cookbook.endpoints import shown, url_fault
from nim_cookbook.errors import ConfigurationError, MissingKeyError
from nim_cookbook.services import NOTION_TOKEN, NOTION_URL, notion_id


@contextlib.contextmanager
def _logging_untouched() -> Iterator[None]:
    """Keep the exporter's `logging.basicConfig` from making all packages log to the notebook."""
    root, client = logging.getLogger(), logging.getLogger("notion_client")
    before = client.handlers[:]
    stopper = logging.NullHandler()  # basicConfig() does nothing if there is a handler
    root.addHandler(stopper)
    try:
        yield
    finally:
        root.removeHandler(stopper)
        client.handlers[:] = before


try:
    with _logging_untouched():
        from notion_haystack import NotionExporter  # type: ignore[import-untyped]

    from nim_cookbook.notion_api import Progress, Reader
except ImportError as error:
    raise ConfigurationError(
        f"Notion pages need the package {error.name or 'notion_haystack'}: run "
        '`pip install "nim-rag-cookbook[finetune]"`.'
    ) from None

logger = logging.getLogger(__name__)


class Skipped(TypedDict):
    """A page, database or block that could not be read."""

    page_id: str
    reason: str


@component
class NotionPages:
    """Exports Notion pages and databases, and all pages below them, as Markdown documents.

    Usage example:

        pages = NotionPages(Secret.from_env_var("NOTION_TOKEN"))
        documents = pages.run(["https://www.notion.so/Engineering-17c307bf7b1b588fa424be032066e22e"])
    """

    def __init__(
        self,
        token: Secret = Secret.from_env_var(NOTION_TOKEN),  # noqa: B008 - Haystack's convention
        base_url: str = NOTION_URL,
        *,
        child_pages: bool = True,
        concurrency: int = 3,
        timeout: float = 60.0,
    ) -> None:
        """Take the settings; no request is sent.

        Args:
            token: The integration's token.
            base_url: Base URL of Notion's API, without `/v1`.
            child_pages: Whether to export the pages below as well.
            concurrency: Requests at a time; Notion allows three a second on average.
            timeout: Seconds to wait for an answer.

        Raises:
            ConfigurationError: The base URL, the concurrency or the timeout cannot be used.
        """
        fault = url_fault(base_url)
        if fault:
            raise ConfigurationError(
                f"base_url is {shown(base_url)}, {fault}: write the base URL, such as {NOTION_URL}."
            )
        if concurrency < 1 or timeout <= 0:
            raise ConfigurationError("concurrency must be at least 1, and timeout above 0 seconds.")
        self.token = token
        self.base_url = base_url.strip().rstrip("/").removesuffix("/v1")
        self.child_pages = child_pages
        self.concurrency = concurrency
        self.timeout = timeout

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a dictionary, with the token's variable and not the token."""
        return default_to_dict(
            self,
            token=self.token.to_dict(),
            base_url=self.base_url,
            child_pages=self.child_pages,
            concurrency=self.concurrency,
            timeout=self.timeout,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NotionPages:
        """Make the component from its dictionary."""
        deserialize_secrets_inplace(data["init_parameters"], keys=["token"])
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document], skipped=list[Skipped])
    def run(self, page_ids: list[str], progress: Progress | None = None) -> dict[str, Any]:
        """Export pages.

        Args:
            page_ids: Ids or links of pages or databases, shared with the integration.
            progress: Called with the number of pages read and of pages known so far.

        Returns:
            `documents`, in order of their paths, with `title`, `path`, `url`, `last_edited_time`
            and `page_id` in their metadata; and `skipped`: pages, databases and blocks that could
            not be read, each with the reason.

        Raises:
            ConfigurationError: An id is malformed, or the integration may not read.
            MissingKeyError: There is no token, or it is refused.
            EndpointUnreachable: Notion does not answer.
        """
        export = self._export(page_ids, progress)
        # asyncio.run() fails in a thread with a running event loop, as a notebook's is. The
        # context tells the progress display its cell.
        with ThreadPoolExecutor(1) as pool:
            try:
                return pool.submit(copy_context().run, export.run).result()
            except BaseException as error:  # KeyboardInterrupt: end the thread as well
                export.stop(error)
                raise

    def _export(self, page_ids: list[str], progress: Progress | None) -> _Export:
        try:
            token = self.token.resolve_value() or ""
        except ValueError:
            token = ""
        if not token:
            raise MissingKeyError(
                f"There is no token for {self.base_url}: set {NOTION_TOKEN}, or give NotionPages "
                "another Secret."
            )
        keys.check_token(token, self.base_url, variable="token", url_variable="base_url")
        given = [notion_id(text) for text in page_ids]
        reader = Reader(
            token,
            self.base_url,
            given=given,
            concurrency=self.concurrency,
            timeout=self.timeout,
            progress=progress,
        )
        return _Export(reader, given, self.child_pages)


class _Export:
    """One run, with its own exporter and client: neither can be used in a second event loop."""

    def __init__(self, reader: Reader, given: list[str], child_pages: bool) -> None:
        with _logging_untouched():
            # The exporter's own clients are replaced, so they get no token.
            exporter = NotionExporter(api_token="unused", export_child_pages=child_pages)
        self.exporter = exporter.notion_exporter
        self.exporter.notion = reader
        reader.convertible = frozenset(self.exporter.property_converter.type_specific_converters)
        self.reader = reader
        self.given = given

    def stop(self, why: BaseException) -> None:
        """Make a running export end without further requests."""
        self.reader.failure = self.reader.failure or why

    def run(self) -> dict[str, Any]:
        """Export; no event loop may run in this thread."""
        try:
            # notion-haystack's run() drops the pages' ids.
            texts = self.exporter.export_pages(page_ids=self.given)
            if self.reader.databases_given:
                self.reader.renew()
                texts |= self.exporter.export_pages(database_ids=self.reader.databases_given)
        finally:
            asyncio.run(self.reader.aclose())
        if self.reader.failure is not None:
            raise self.reader.failure
        documents = [self._document(page, text) for page, text in texts.items()]
        skipped: list[Skipped] = [
            {"page_id": page, "reason": reason}
            for page, reason in sorted(self.reader.skipped.items())
        ]
        if skipped:
            named = ", ".join(f"{s['page_id']} ({s['reason']})" for s in skipped[:5])
            more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
            logger.warning("Notion left out %s%s.", named, more)
        found = [document for document in documents if document is not None]
        found.sort(key=lambda document: (document.meta["path"], document.meta["page_id"]))
        return {"documents": found, "skipped": skipped}

    def _document(self, page: str, text: str) -> Document | None:
        """Return a page's document, None if the page could not be read."""
        if page not in self.reader.found:
            return None
        meta = {**self.reader.found[page], "path": self.reader.path(page), "page_id": page}
        return Document(content=text.strip(), meta=meta)
