"""What was computed, kept under the hash of what it was made from."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nim_cookbook import local
from nim_cookbook.errors import DataError


class Cache:
    """Values under the hash of what they were made from, in a file that survives a kill."""

    def __init__(self, folder: Path) -> None:
        """Open it, or make it.

        Raises:
            DataError: The file is no such cache.
        """
        self.path = local.made(folder) / "sweep.sqlite"
        try:
            self._file = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, value BLOB)"
            )
        except sqlite3.Error as error:
            raise DataError(f"The cache {self.path} cannot be used ({error}): delete it.") from None

    def get(self, name: str) -> Any:  # noqa: ANN401  JSON
        """Return a value, or None."""
        row = self._file.execute("SELECT value FROM kept WHERE name = ?", [name]).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, values: Mapping[str, object]) -> None:
        """Keep some values, all or none of them."""
        rows = [(name, json.dumps(value)) for name, value in values.items()]
        with self._file:
            self._file.execute("BEGIN")
            self._file.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def name_of(*parts: object) -> str:
    """Return a hash of some values, for `Cache`."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
