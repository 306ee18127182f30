"""The `nim-cookbook` command: a thin layer over the helper package and the local endpoints."""

from __future__ import annotations

import importlib.metadata

DISTRIBUTION = "nim-rag-cookbook"


def version() -> str:
    """Return the installed version, or `unknown` in a folder that was never installed."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
