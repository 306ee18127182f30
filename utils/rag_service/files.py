"""The files that jobs refer to, stored under the SHA-256 of their content.

Messages stay small, the same content is stored once under whatever names it arrives, and a reader
notices at once when the bytes are not those that were queued. The place is a folder, or whatever
fsspec knows by URL (`s3://bucket/files` with s3fs installed).

A file leaves with the last document that refers to it; `rag_service.intake` knows which do.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import fsspec

from nim_cookbook.errors import ConfigurationError, DataError

CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the store.

    Attributes:
        sha256: Of its bytes, 64 hexadecimal digits; how it is found again.
        size: In bytes.
    """

    sha256: str
    size: int


class FileStore:
    """Files by the hash of their content."""

    def __init__(self, place: str | Path) -> None:
        """Use a place; a missing folder is made.

        Args:
            place: A folder, or an fsspec URL.

        Raises:
            ConfigurationError: The place cannot be used.
        """
        try:
            # A remembered listing would show files that another process has deleted.
            self._system, self._root = fsspec.url_to_fs(str(place), use_listings_cache=False)
            self._system.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigurationError(
                f"The file store {str(place)!r} cannot be used ({error}): set COOKBOOK_FILES to a "
                "folder that you may write, or to a URL whose fsspec package is installed."
            ) from None

    def put(self, path: str | Path) -> StoredFile:
        """Store a file; nothing is written when its content is there already.

        Raises:
            DataError: The file cannot be read.
            OSError: The store cannot be written.
        """
        with _opened(path) as source:
            stored = _stored(source)
            if not self._holds(stored):
                source.seek(0)
                self._write(source, stored)
        return stored

    @contextlib.contextmanager
    def fetched(self, stored: StoredFile, name: str) -> Iterator[Path]:
        """Give a copy of a file, under the name it had, until the context ends.

        The name matters: its ending tells the converter, and chunks carry it.

        Raises:
            DataError: The file is not in the store, or its content has changed.
        """
        with tempfile.TemporaryDirectory(prefix="cookbook-file-") as folder:
            path = Path(folder, Path(name.replace("\\", "/")).name or "file")
            try:
                with (
                    self._open(stored) as source,
                    path.open("wb") as copy,
                ):
                    shutil.copyfileobj(source, copy, CHUNK)
            except FileNotFoundError:
                raise DataError(
                    f"{name} is not in the file store (SHA-256 {stored.sha256[:12]}...): send it "
                    "again."
                ) from None
            with path.open("rb") as copied:
                if _stored(copied) != stored:
                    raise DataError(
                        f"{name} in the file store is not what was queued (its SHA-256 should "
                        f"begin {stored.sha256[:12]}): send it again."
                    )
            yield path

    def discard(self, sha256: str, wanted: Callable[[], bool]) -> None:
        """Delete a file that nothing refers to; it need not be there.

        Whoever is about to refer to it may have seen it a moment ago. So it is moved aside first,
        and put back if it is referred to by now; who looks for it later finds it missing.

        Args:
            sha256: Of its bytes.
            wanted: Tells whether something refers to it.
        """
        path = self._path(sha256)
        aside = f"{path}.{uuid.uuid4().hex}.aside"
        try:
            self._system.mv(path, aside)
        except FileNotFoundError:
            return
        keep = True
        try:
            keep = wanted()
        finally:
            if keep:
                self._system.mv(aside, path)
            else:
                self._system.rm(aside)

    def _open(self, stored: StoredFile) -> IO[bytes]:
        """Open a file at its place, or where `discard` has it in hand or was killed with it."""
        path = self._path(stored.sha256)
        source: IO[bytes]
        try:
            source = self._system.open(path, "rb")
        except FileNotFoundError:
            beside = self._system.ls(path.rpartition("/")[0], detail=False)
            aside = (one for one in beside if stored.sha256 in one and one.endswith(".aside"))
            source = self._system.open(next(aside, path), "rb")
        return source

    def _holds(self, stored: StoredFile) -> bool:
        path = self._path(stored.sha256)
        return bool(self._system.exists(path)) and self._system.size(path) == stored.size

    def _write(self, source: IO[bytes], stored: StoredFile) -> None:
        """Write beside the place and move there, so that no reader gets half a file."""
        path = self._path(stored.sha256)
        partial = f"{path}.{uuid.uuid4().hex}.part"
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            with self._system.open(partial, "wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
            self._system.mv(partial, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._system.rm(partial)
            raise

    def _path(self, sha256: str) -> str:
        if not _SHA256.fullmatch(sha256):
            raise DataError(f"{sha256[:80]!r} is not a SHA-256.")
        return f"{self._root}/{sha256[:2]}/{sha256}"


def digest(path: str | Path) -> StoredFile:
    """Return what `FileStore.put` would, without storing anything.

    Raises:
        DataError: The file cannot be read.
    """
    with _opened(path) as source:
        return _stored(source)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[IO[bytes]]:
    try:
        with Path(path).open("rb") as source:
            yield source
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        if error.filename is not None and Path(error.filename) == Path(path):
            raise DataError(f"{path} cannot be read ({error.strerror}).") from None
        raise


def _stored(source: IO[bytes]) -> StoredFile:
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return StoredFile(digest.hexdigest(), size)
