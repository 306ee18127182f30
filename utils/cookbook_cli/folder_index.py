"""The index of one folder, kept in the cache: where it is, whose vectors it holds, who uses it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from nim_cookbook import local
from nim_cookbook.errors import ConfigurationError, DataError

FORMAT = 1  # another one means that an index of this format is made anew
INFO, LOCK, VECTORS = "index.json", "lock", "qdrant"


@dataclass(frozen=True, slots=True)
class FolderIndex:
    """An index that is open."""

    store: QdrantDocumentStore  # its passages; embedded Qdrant, for this process alone
    place: Path  # its folder in the cache
    documents: tuple[str, ...]  # ids of the documents that it holds
    remark: str = ""  # why it was made anew, in one sentence; empty when it was not


def place_of(folder: Path) -> Path:
    """Return where the index of a folder is kept: a readable name, and a hash of the whole path.

    Raises:
        ConfigurationError: The cache folder cannot be made.
    """
    name = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:40] or "folder"
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return local.cache_dir() / "indexes" / f"{name}-{digest}"


@contextlib.contextmanager
def opened(
    folder: Path, embedding: str, dimensions: int, *, rebuild: bool = False
) -> Iterator[FolderIndex]:
    """Open the index of a folder, or begin an empty one.

    Raises:
        DataError: Another process uses the index, or it is damaged.
        ConfigurationError: It cannot be written.
    """
    place = place_of(folder)
    wanted = {
        "format": FORMAT,
        "folder": os.fsdecode(os.fsencode(folder)),
        "embedding": embedding,
        "dimensions": dimensions,
    }
    with _writable(place), _locked(place):
        remark = _begin(place, wanted, rebuild)
        store = QdrantDocumentStore(
            path=str(place / VECTORS), embedding_dim=dimensions, progress_bar=False
        )
        try:
            with _sound(place):
                names, _ = store.get_metadata_field_unique_values("document", size=sys.maxsize)
            yield FolderIndex(store, place, tuple(map(str, names)), remark)
        finally:
            store.close()


def damaged(place: Path, error: Exception) -> DataError:
    """Return the error to raise about an index that cannot be read or written."""
    cause = str(error).splitlines()[0][:200].rstrip(".") if str(error) else type(error).__name__
    return DataError(
        f"The index {place} is damaged ({cause}): make it anew with --rebuild; your files are not "
        "touched."
    )


def _begin(place: Path, wanted: dict[str, Any], rebuild: bool) -> str:
    """Clear what cannot be used, and note what the index is about to hold.

    The note goes first and comes last, so that a run that is stopped at any moment leaves either a
    true note or none; vectors without a note are cleared.
    """
    held = None if rebuild else _read_info(place)
    if held == wanted:
        return ""
    (place / INFO).unlink(missing_ok=True)
    shutil.rmtree(place / VECTORS, ignore_errors=True)
    partial = place / f"{INFO}.part"
    partial.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    partial.replace(place / INFO)
    if held is None:
        return ""
    if held.get("embedding") != wanted["embedding"]:
        return (
            f"The index was made with {held.get('embedding')}, and {wanted['embedding']} answers "
            "now: everything is indexed again."
        )
    return "The index was made with other settings: everything is indexed again."


def _read_info(place: Path) -> dict[str, Any] | None:
    """Return the note on what the index holds; None if there is no index yet."""
    try:
        info = json.loads((place / INFO).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise damaged(place, error) from None
    if not isinstance(info, dict):
        raise damaged(place, ValueError(f"{INFO} holds no object"))
    return info


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    lock = FileLock(place / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(
            f"The index {place} is in use by another nim-cookbook ask: wait until it has ended, or "
            "end it."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _writable(place: Path) -> Iterator[None]:
    """Make the folder; tell in one sentence when it or something in it cannot be written."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise ConfigurationError(
            f"The index folder {place} cannot be written ({error.strerror}): set "
            "COOKBOOK_CACHE_DIR to a folder that you may write."
        ) from None
    yield


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
