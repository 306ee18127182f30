"""One set of local servers for the whole test session, also when xdist splits it over processes.

The controlling process starts them at once and without waiting (they load while tests are
collected) and holds their standard input, so that they end with it. Workers find them through the
environment, as a notebook does.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Servers, free_port_block, start_servers, stop_servers

REPOSITORY = Path(__file__).resolve().parent.parent
KEY_VARIABLE = "COOKBOOK_LOCAL_KEY"
PORT_VARIABLE = "COOKBOOK_PORT_BASE"

_server: subprocess.Popen[bytes] | None = None


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    """Start the session's servers, in the controlling process only."""
    global _server
    unit_only = config.args and all("unit" in Path(name).parts for name in config.args)
    if _is_worker(config) or config.option.collectonly or unit_only:
        return
    # COOKBOOK_ENDPOINTS stays: with hosted or self-hosted, test_recipes.py goes live. All other
    # tests are about the local servers and say so themselves.
    for name in ("NVIDIA_BASE_URL", "NVIDIA_API_URL"):
        os.environ.pop(name, None)
    if not any("notebooks" in Path(name).parts for name in config.args):
        os.environ["COOKBOOK_MODELS"] = "small"  # tests about answers ask for `default_server`
    # Haystack's chat generators read it. Theirs is 30 s, which a busy machine may need.
    os.environ.setdefault("OPENAI_TIMEOUT", "300")
    base = free_port_block()
    log = REPOSITORY / ".pytest_cache" / f"servers-{base}.log"
    os.environ[PORT_VARIABLE] = str(base)
    os.environ[KEY_VARIABLE] = f"nvapi-local-fake-key-for-tests-{base}"
    os.environ["COOKBOOK_TEST_LOG"] = str(log)
    _server = start_servers(base, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers by closing their standard input."""
    if _server is not None and not _is_worker(config):
        stop_servers(_server)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The session's local servers, ready."""
    running = Servers(int(os.environ[PORT_VARIABLE]), os.environ[KEY_VARIABLE])
    running.wait()
    yield running
