"""The index of one folder, kept in the cache: where it is, whose vectors it holds, who uses it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from nim_cookbook import local
from nim_cookbook.errors import ConfigurationError, DataError

FORMAT = "2"  # another one means another index
LOCK, VECTORS = "lock", "qdrant"


@dataclass(frozen=True, slots=True)
class FolderIndex:
    """An index that is open."""

    store: QdrantDocumentStore  # its chunks; embedded Qdrant, for this process alone
    place: Path  # its folder in the cache
    documents: tuple[str, ...]  # ids of the documents that it holds


def place_of(folder: Path, embedding: str, dimensions: int) -> Path:
    """Return where an index is kept: the folder's name, and a hash of all that it rests on.

    Vectors of other weights are of no use, so that each embedding model has an index of its own.
    """
    name = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:40] or "folder"
    rests_on = (os.fsdecode(os.fsencode(folder)), embedding, str(dimensions), FORMAT)
    digest = hashlib.sha256(os.fsencode("\0".join(rests_on))).hexdigest()[:12]
    return local.cache_dir() / "indexes" / f"{name}-{digest}"


@contextlib.contextmanager
def opened(
    folder: Path, embedding: str, dimensions: int, *, rebuild: bool = False
) -> Iterator[FolderIndex]:
    """Open the index of a folder, or begin an empty one.

    Args:
        folder: The folder that is indexed, resolved.
        embedding: Name of the weights that embed.
        dimensions: Width of their vectors.
        rebuild: Begin an empty one in any case.

    Raises:
        DataError: Another process uses the index, or it is damaged.
        ConfigurationError: It cannot be written.
    """
    place = place_of(folder, embedding, dimensions)
    with _locked(place):
        if rebuild:
            shutil.rmtree(place / VECTORS, ignore_errors=True)
        store = QdrantDocumentStore(
            path=str(place / VECTORS), embedding_dim=dimensions, progress_bar=False
        )
        try:
            with _sound(place):
                names, _ = store.get_metadata_field_unique_values("document", size=sys.maxsize)
            yield FolderIndex(store, place, tuple(map(str, names)))
        finally:
            store.close()


def damaged(place: Path, error: Exception) -> DataError:
    """Return the error to raise about an index that cannot be read or written."""
    cause = str(error).splitlines()[0][:200].rstrip(".") if str(error) else type(error).__name__
    return DataError(
        f"The index {place} is damaged ({cause}): make it anew with --rebuild; your files are not "
        "touched."
    )


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Make the folder and hold its lock."""
    lock = FileLock(place / LOCK)
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):
            raise PermissionError(13, "permission denied")
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(
            f"The index {place} is in use by another nim-cookbook ask: wait until it has ended, or "
            "end it."
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"The index folder {place} cannot be written ({error.strerror}): set "
            "COOKBOOK_CACHE_DIR to a folder that you may write."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _sound(place: Path) -> Iterator[None]:
    """Take whatever goes wrong while the vectors are loaded as damage.

    Embedded Qdrant reads JSON, SQLite and pickles, and lets through whatever these raise.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its advice on many points is for developers
            yield
    except Exception as error:
        raise damaged(place, error) from None
