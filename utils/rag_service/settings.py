"""The services' settings, each an environment variable or a line of `.env`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Self

from nim_cookbook.endpoints import read_env_file
from nim_cookbook.errors import ConfigurationError

NATS_URL = "COOKBOOK_NATS_URL"
STORE_URL = "COOKBOOK_STORE_URL"
FILES = "COOKBOOK_FILES"
INDEX = "COOKBOOK_INDEX"

#: Where a NATS server listens that nobody has configured.
DEFAULT_NATS_URL = "nats://127.0.0.1:4222"
DEFAULT_INDEX = "company"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the services find each other.

    Attributes:
        nats_url: The NATS server, with a token before an `@` if it wants one; never shown.
        store_url: The document store; see `rag_service.stores`; never shown.
        files: The file store: a folder, or an fsspec URL such as `s3://bucket/files`.
        index: Name of the table or collection, and of the queue that leads to it.
    """

    nats_url: str = field(repr=False)
    store_url: str = field(repr=False)
    files: str
    index: str

    @classmethod
    def from_environment(cls) -> Self:
        """Read `COOKBOOK_NATS_URL`, `COOKBOOK_STORE_URL`, `COOKBOOK_FILES`, `COOKBOOK_INDEX`."""
        read_env_file()
        return cls(
            nats_url=_text(NATS_URL, DEFAULT_NATS_URL),
            store_url=_text(STORE_URL, ""),
            files=_text(FILES, ""),
            index=_text(INDEX, DEFAULT_INDEX),
        )

    def require(self, variable: str) -> str:
        """Return the value of one variable.

        Raises:
            ConfigurationError: It is not set.
        """
        value = {
            NATS_URL: self.nats_url,
            STORE_URL: self.store_url,
            FILES: self.files,
            INDEX: self.index,
        }[variable]
        if not value:
            raise ConfigurationError(f"{variable} is not set: {_EXAMPLES[variable]}.")
        return value


_EXAMPLES = {
    STORE_URL: "set it to the document store, such as postgresql://user@host/database or "
    "http://localhost:6333 for Qdrant",
    FILES: "set it to the folder where uploaded files are kept, or to a URL such as "
    "s3://bucket/files",
    NATS_URL: f"set it to the NATS server, such as {DEFAULT_NATS_URL}",
    INDEX: f"set it to the name of the table or collection, such as {DEFAULT_INDEX}",
}


def _text(variable: str, default: str) -> str:
    return os.environ.get(variable, "").strip() or default
