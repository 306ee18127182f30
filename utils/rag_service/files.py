"""The files that jobs refer to, stored under the SHA-256 of their content.

Messages stay small, the same content is stored once under whatever names it arrives, and a reader
notices at once when the bytes are not those that were queued. The place is a folder, or whatever
fsspec knows by URL (`s3://bucket/files` with s3fs installed).

Files are not deleted with their documents: another document, a waiting job or a dead letter may
have the same content. Where room is short, delete files older than the oldest open job.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
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
            self._system, self._root = fsspec.url_to_fs(str(place))
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
        try:
            with Path(path).open("rb") as source:
                stored = _stored(source)
                if not self._holds(stored):
                    source.seek(0)
                    self._write(source, stored)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            if error.filename is not None and Path(error.filename) == Path(path):
                raise DataError(f"{path} cannot be read ({error.strerror}).") from None
            raise
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
                    self._system.open(self._path(stored), "rb") as source,
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

    def _holds(self, stored: StoredFile) -> bool:
        path = self._path(stored)
        return bool(self._system.exists(path)) and self._system.size(path) == stored.size

    def _write(self, source: IO[bytes], stored: StoredFile) -> None:
        """Write beside the place and move there, so that no reader gets half a file."""
        path = self._path(stored)
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

    def _path(self, stored: StoredFile) -> str:
        if not _SHA256.fullmatch(stored.sha256):
            raise DataError(f"{stored.sha256[:80]!r} is not a SHA-256.")
        return f"{self._root}/{stored.sha256[:2]}/{stored.sha256}"


def _stored(source: IO[bytes]) -> StoredFile:
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return StoredFile(digest.hexdigest(), size)
