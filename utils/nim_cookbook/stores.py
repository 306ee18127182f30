"""Where Qdrant is: embedded in this process, or a server by URL. Configuration alone decides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dotenv import find_dotenv, load_dotenv
from haystack.utils import Secret

from nim_cookbook.endpoints import url_fault
from nim_cookbook.errors import ConfigurationError

URL = "QDRANT_URL"
KEY = "QDRANT_API_KEY"


def qdrant_location(folder: str | Path) -> dict[str, Any]:
    """Return the arguments that tell `QdrantDocumentStore` where its data is.

    With `QDRANT_URL` set (in the environment or `.env`) that is a server, and `QDRANT_API_KEY` its
    key if it wants one; without, Qdrant runs embedded in this process and keeps its data in
    `folder`, for one process at a time.

    Raises:
        ConfigurationError: `QDRANT_URL` is no such URL.
    """
    load_dotenv(find_dotenv(usecwd=True))
    url = os.environ.get(URL, "").strip()
    if not url:
        return {"path": str(folder)}
    if url_fault(url):
        raise ConfigurationError(
            f"{URL} is not the URL of a Qdrant server: write it like http://localhost:6333, with "
            f"no name or password in it (a key goes into {KEY})."
        )
    return {"url": url, "api_key": Secret.from_env_var(KEY, strict=False)}
