"""The document store that services share, behind one factory; its URL alone says which.

| `COOKBOOK_STORE_URL` | store | processes |
|---|---|---|
| `postgresql://user:password@host/database` | PostgreSQL with pgvector | many |
| `http://host:6333`, `https://...` | Qdrant, key in `QDRANT_API_KEY` | many |
| `file:///folder` | Qdrant embedded in the process | one |
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from haystack import Document
from haystack.components.retrievers.in_memory import (
    InMemoryBM25Retriever,
    InMemoryEmbeddingRetriever,
)
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DocumentStore
from haystack.utils import Secret

from nim_cookbook.endpoints import shown, url_fault
from nim_cookbook.errors import ConfigurationError, EndpointUnreachable
from rag_service.settings import INDEX, QDRANT_KEY, STORE_URL, Settings

if TYPE_CHECKING:
    from haystack_integrations.document_stores.pgvector import PgvectorDocumentStore
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

Kind = Literal["pgvector", "qdrant", "embedded qdrant"]
Store = TypeVar("Store", bound=Any)

#: Two processes that make the same table at the same time disturb each other; one tries again.
SET_UP_TRIES = 5
# Said at each start, and no reader can do anything about it.
_USUAL = "HNSW index already exists"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
# What PostgreSQL says when it is there and lets nobody in; psycopg has no code for it.
_REFUSED = re.compile(
    r"FATAL: .*(authentication failed|does not exist|no pg_hba|not permitted to log in)"
)


class Retriever(Protocol):
    """What finds documents by an embedding: a Haystack embedding retriever."""

    def run(self, query_embedding: list[float]) -> dict[str, list[Document]]:
        """Return `{"documents": the nearest ones}`."""
        ...


def store_kind(url: str) -> Kind:
    """Return which store a URL means.

    Raises:
        ConfigurationError: None that is known.
    """
    scheme = url.partition(":")[0].lower()
    if scheme in ("postgresql", "postgres"):
        if fault := _postgresql_fault(url):
            raise ConfigurationError(
                f"{STORE_URL} is {shown(url)}, {fault}: write it like "
                "postgresql://user@host:5432/database, with signs in a password as %5B or %25."
            )
        return "pgvector"
    if scheme in ("http", "https"):
        if url_fault(url):
            raise ConfigurationError(
                f"{STORE_URL} is not the URL of a Qdrant server: write it like "
                f"http://localhost:6333, with no name or password in it (a key goes into "
                f"{QDRANT_KEY})."
            )
        return "qdrant"
    if scheme == "file":
        return "embedded qdrant"
    raise ConfigurationError(
        f"{STORE_URL} is {shown(url) if url else 'not set'}: write postgresql://user@host/database "
        "for PostgreSQL, http://host:6333 for Qdrant, or file:///folder for Qdrant in this process."
    )


def _postgresql_fault(url: str) -> str | None:
    """Say what is wrong with an address, without showing it; None if nothing is.

    libpq takes several hosts and ports, with commas between them.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        urlsplit(url)  # for `store_place`
        ports = str(conninfo_to_dict(url).get("port", ""))
    except (ValueError, ProgrammingError):
        return "which is not a URL"
    if all(re.fullmatch("[0-9]{1,5}", p) and 0 < int(p) < 65536 for p in ports.split(",") if p):
        return None
    return "which names no possible port"


def store_place(url: str) -> str:
    """Return a store's address for a message, without name and password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def open_store(
    url: str | None = None, *, dimension: int, index: str | None = None, set_up: bool = True
) -> DocumentStore:
    """Open the document store that the configuration names.

    Args:
        url: Where it is; None for `COOKBOOK_STORE_URL`. A serialised pipeline then names the
            variable, and holds no password.
        dimension: Length of the vectors.
        index: Name of the table or collection; None for `COOKBOOK_INDEX`.
        set_up: Make what is missing (table, collection, indexes) and look whether the store
            answers. Without, the store connects at its first use.

    Raises:
        ConfigurationError: The URL, the name or the store cannot be used; the store holds vectors
            of another length, for example.
        EndpointUnreachable: The store does not answer.
    """
    settings = Settings.from_environment()
    given, url = url, url or settings.require(STORE_URL)
    index = index or settings.index
    if not _NAME.fullmatch(index):
        raise ConfigurationError(
            f"The index {index!r} cannot be used: {INDEX} takes a small letter, then up to 40 "
            "small letters, digits and underscores."
        )
    kind = store_kind(url)
    if kind == "pgvector":
        secret = Secret.from_token(url) if given else Secret.from_env_var(STORE_URL)
        return _opened(
            lambda: _pgvector(secret, index, dimension), _set_up_pgvector if set_up else None, url
        )
    return _opened(
        lambda: _qdrant(kind, url, index, dimension),
        (lambda store: store.count_documents()) if set_up else None,
        url,
    )


def embedding_retriever(store: DocumentStore, top_k: int = 10) -> Retriever:
    """Return the embedding retriever that belongs to a store.

    Args:
        store: From `open_store`.
        top_k: Most documents that it finds.
    """
    shared: Any = store
    if type(store).__name__ == "PgvectorDocumentStore":
        from rag_service.pgvector import LeanEmbeddingRetriever

        return LeanEmbeddingRetriever(document_store=shared, top_k=top_k)
    if isinstance(store, InMemoryDocumentStore):
        return InMemoryEmbeddingRetriever(store, top_k=top_k)
    from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever

    return QdrantEmbeddingRetriever(document_store=shared, top_k=top_k)


def keyword_retriever(store: DocumentStore, top_k: int = 10) -> object:
    """Return the keyword retriever that belongs to a store.

    PostgreSQL ranks by `ts_rank_cd`, which is not BM25: measure such a design again over it.

    Args:
        store: From `open_store`, or in memory.
        top_k: Most documents that it finds.

    Raises:
        ConfigurationError: The store searches by vectors alone.
    """
    shared: Any = store
    if type(store).__name__ == "PgvectorDocumentStore":
        from haystack_integrations.components.retrievers.pgvector import PgvectorKeywordRetriever

        return PgvectorKeywordRetriever(document_store=shared, top_k=top_k)
    if isinstance(store, InMemoryDocumentStore):
        return InMemoryBM25Retriever(store, top_k=top_k)
    raise ConfigurationError(
        "This pipeline searches by keywords, and the index in Qdrant holds vectors alone: use "
        "PostgreSQL, or a pipeline that searches by vectors."
    )


def _pgvector(secret: Secret, index: str, dimension: int) -> PgvectorDocumentStore:
    from haystack_integrations.document_stores.pgvector import PgvectorDocumentStore

    logging.getLogger(PgvectorDocumentStore.__module__).addFilter(_unusual)
    return PgvectorDocumentStore(
        connection_string=secret,
        table_name=index,
        embedding_dimension=dimension,
        search_strategy="hnsw",
        # PostgreSQL index names are unique per schema: the defaults would admit one table only.
        hnsw_index_name=f"{index}_hnsw",
        keyword_index_name=f"{index}_keyword",
    )


def _qdrant(kind: Kind, url: str, index: str, dimension: int) -> QdrantDocumentStore:
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

    where: dict[str, Any] = {"url": url, "api_key": Secret.from_env_var(QDRANT_KEY, strict=False)}
    if kind == "embedded qdrant":
        where = {"path": unquote(urlsplit(url).path)}
    return QdrantDocumentStore(
        **where,
        index=index,
        embedding_dim=dimension,
        progress_bar=False,
        return_embedding=False,
        # Each job looks its document up.
        payload_fields_to_index=None
        if kind == "embedded qdrant"
        else [{"field_name": "meta.document", "field_schema": "keyword"}],
    )


def _unusual(record: logging.LogRecord) -> bool:
    return _USUAL not in record.getMessage()


def _set_up_pgvector(store: PgvectorDocumentStore) -> None:
    """Make the table and an index for looking documents up; compare the vectors' length."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    url = store.connection_string.resolve_value() or ""
    table = Identifier(store.table_name)
    with psycopg.connect(url, autocommit=True) as server:
        encoding = server.info.parameter_status("server_encoding")
        if encoding != "UTF8":  # psycopg gives bytes for texts, and Haystack fails on them
            raise ConfigurationError(
                f"The database at {store_place(url)} has the encoding {encoding}: make one with "
                "`createdb --encoding UTF8 --template template0 NAME`."
            )
        store.count_documents()  # makes table and indexes
        row = server.execute(
            "SELECT atttypmod FROM pg_attribute WHERE attrelid = %s::regclass AND "
            "attname = 'embedding'",
            [store.table_name],
        ).fetchone()
        if row and row[0] not in (-1, store.embedding_dimension):
            raise ConfigurationError(
                f"The table {store.table_name!r} holds vectors of {row[0]} numbers and the "
                f"embedding model gives {store.embedding_dimension}: set {INDEX} to another name."
            )
        server.execute(
            SQL("CREATE INDEX IF NOT EXISTS {} ON {} ((meta->>'document'))").format(
                Identifier(f"{store.table_name}_document"), table
            )
        )


def _opened(make: Callable[[], Store], set_up: Callable[[Store], object] | None, url: str) -> Store:
    """Make a store and set it up; another process may be making the same table.

    A store whose set-up failed is made anew: a Qdrant store checks its collection only once.

    Raises:
        ConfigurationError: The store answers and cannot be used.
        EndpointUnreachable: It does not answer.
    """
    from rag_service.retry import is_outage

    for attempt in range(SET_UP_TRIES):
        store = make()
        try:
            if set_up is not None:
                set_up(store)
            return store
        except Exception as error:  # each client has kinds of its own
            store.close()
            if isinstance(error, ConfigurationError):
                raise
            why = f"The document store at {store_place(url)} {{}} ({_first_line(error)})"
            conflict = getattr(error, "status_code", None) == 409
            if is_outage(error) and not conflict:
                if _REFUSED.search(str(error.__cause__ or error)):
                    raise ConfigurationError(
                        f"{why.format('refuses the connection')}: correct name, password or "
                        f"database in {STORE_URL}."
                    ) from error
                raise EndpointUnreachable(
                    f"{why.format('does not answer')}: start it, or correct {STORE_URL}."
                ) from error
            if isinstance(error, ValueError) or attempt + 1 == SET_UP_TRIES:
                raise ConfigurationError(
                    f"{why.format('cannot be used')}: correct {STORE_URL}, or set {INDEX} to "
                    "another name."
                ) from error
            time.sleep(random.uniform(0.05, 0.3) * (attempt + 1))
    raise AssertionError("the last try returns or raises")


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[0][:200].rstrip(".")
