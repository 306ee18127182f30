"""The set-up step of `deploy/compose.yaml`: where models and store are, and the service's token.

A profile cannot change what is in the environment of services that it does not name. So one job
per profile writes a `.env` file into a volume, which all services find in their working folder:

    python -m rag_service.compose hosted /settings

The token is made once and kept, unless `COOKBOOK_SERVICE_TOKEN` gives one.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from dotenv import dotenv_values

from nim_cookbook.errors import ConfigurationError, CookbookError
from rag_service.settings import STORE_URL, TOKEN, service_token

#: What each profile of the Compose file means, in the variables of `nim_cookbook.endpoints`.
ENDPOINTS: Mapping[str, Mapping[str, str]] = {
    "hosted": {"COOKBOOK_ENDPOINTS": "hosted"},
    "local": {
        "COOKBOOK_ENDPOINTS": "self-hosted",
        "NIM_CHAT_URL": "http://local-nims:8000/v1",
        "NIM_EMBEDDING_URL": "http://local-nims:8001/v1",
        "NIM_RERANKING_URL": "http://local-nims:8002/v1",
    },
    "nim": {
        "COOKBOOK_ENDPOINTS": "self-hosted",
        "NIM_CHAT_URL": "http://nim-chat:8000/v1",
        "NIM_EMBEDDING_URL": "http://nim-embedding:8000/v1",
        "NIM_RERANKING_URL": "http://nim-reranking:8000/v1",
    },
}
#: What each service of `deploy/stores.yaml` means, by `COOKBOOK_STORE`.
STORES: Mapping[str, str] = {
    "qdrant": "http://store:6333",
    "postgres": "postgresql://cookbook:{password}@store:5432/cookbook",
}
NAME = ".env"


def write(profile: str, folder: Path) -> Path:
    """Write the settings of a profile; return the file.

    Args:
        profile: A key of `ENDPOINTS`.
        folder: The volume.

    Raises:
        MissingKeyError: `COOKBOOK_SERVICE_TOKEN` is set and cannot be used.
        ConfigurationError: `COOKBOOK_STORE` names no store.
    """
    path = folder / NAME
    held = dotenv_values(path).get(TOKEN) if path.is_file() else None
    given = os.environ.get(TOKEN, "").strip()
    token = service_token() if given else held or secrets.token_hex(32)
    settings = {**ENDPOINTS[profile], STORE_URL: _store_url()}
    lines = [f"{name}={value}\n" for name, value in settings.items()]
    partial = folder / f"{NAME}.part"
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines([*lines, f"{TOKEN}={token}\n"])
    partial.replace(path)
    return path


def _store_url() -> str:
    if given := os.environ.get(STORE_URL, "").strip():
        return given
    store = os.environ.get("COOKBOOK_STORE") or "qdrant"
    if store not in STORES:
        raise ConfigurationError(
            f"COOKBOOK_STORE is {store!r}: set it to {' or '.join(STORES)}, or COOKBOOK_STORE_URL "
            "to a store of your own."
        )
    password = quote(os.environ.get("COOKBOOK_POSTGRES_PASSWORD", ""), safe="")
    return STORES[store].format(password=password)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the settings; the command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m rag_service.compose",
        description="Write the settings of a profile of deploy/compose.yaml.",
    )
    parser.add_argument("profile", choices=sorted(ENDPOINTS))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        path = write(options.profile, options.folder)
    except (CookbookError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"Settings for {options.profile} endpoints are in {path}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
