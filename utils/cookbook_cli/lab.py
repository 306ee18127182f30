"""`nim-cookbook lab`: JupyterLab with the local endpoints running beside it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cookbook_cli.connection import Mode, connected
from nim_cookbook.errors import ConfigurationError

STOP_SECONDS = 15


def lab(folder: Path, mode: Mode | None, arguments: Sequence[str]) -> int:
    """Run JupyterLab until it is closed, then stop the endpoints that were started for it.

    Raises:
        CookbookError: JupyterLab is not installed or refuses root, or the endpoints do not start.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise ConfigurationError(
            "JupyterLab is not installed: run `pip install 'nim-rag-cookbook[notebooks]'`."
        )
    _refuse_root(arguments)
    command = [sys.executable, "-m", "jupyterlab", f"--notebook-dir={folder}", *arguments]
    with connected(mode):
        process = subprocess.Popen(command)
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The terminal's Ctrl-C reached JupyterLab too, which asks whether it is meant.
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                return process.wait(STOP_SECONDS)
            raise
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(STOP_SECONDS)


def _refuse_root(arguments: Sequence[str]) -> None:
    """Say what JupyterLab would say, before servers are started for it."""
    is_root = hasattr(os, "getuid") and os.getuid() == 0
    if is_root and not any("allow-root" in a or "allow_root" in a for a in arguments):
        raise ConfigurationError(
            "JupyterLab does not run as root unless it is told to: run "
            "`nim-cookbook lab --allow-root`, or `make lab LAB_ARGS=--allow-root`."
        )
