"""The set-up step of `deploy/compose.yaml`: where the models are, and the service's token.

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

from dotenv import dotenv_values

from nim_cookbook.errors import CookbookError
from rag_service.settings import TOKEN, service_token

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
NAME = ".env"


def write(profile: str, folder: Path) -> Path:
    """Write the settings of a profile; return the file.

    Args:
        profile: A key of `ENDPOINTS`.
        folder: The volume.

    Raises:
        MissingKeyError: `COOKBOOK_SERVICE_TOKEN` is set and cannot be used.
    """
    path = folder / NAME
    held = dotenv_values(path).get(TOKEN) if path.is_file() else None
    given = os.environ.get(TOKEN, "").strip()
    token = service_token() if given else held or secrets.token_hex(32)
    lines = [f"{name}={value}\n" for name, value in ENDPOINTS[profile].items()]
    partial = folder / f"{NAME}.part"
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines([*lines, f"{TOKEN}={token}\n"])
    partial.replace(path)
    return path


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
