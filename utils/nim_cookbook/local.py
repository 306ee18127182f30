"""Finding, starting and stopping the local endpoints, which run as a child process.

The child ends when its standard input closes, so it never outlives this process, however this
process ends. It writes a state file when it serves; whoever finds that file and gets an answer
uses the same servers.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx
import platformdirs
from filelock import FileLock, Timeout

from nim_cookbook import keys
from nim_cookbook.data import validated
from nim_cookbook.errors import ConfigurationError, DataError, EndpointUnreachable

SERVERS = ("chat", "embedding", "reranking", "catalog", "gradient", "notion")
DEFAULT_PORT_BASE = 8000
PORTS = 6  # the block that they share; the Gradient stand-in is +4, Notion's +5

# -P: a file of the reader's beside the notebook must not shadow a module.
SERVER_COMMAND = (sys.executable, "-P", "-m", "local_endpoints")

QUIET_SECONDS = (
    3.0  # with cached weights the servers are ready by then, and need no lines of progress
)
STALL_SECONDS = 600.0  # without a new line in the log
STOP_SECONDS = 10.0

_lock = threading.RLock()
_child: _Child | None = None
_users: weakref.WeakSet[object] = weakref.WeakSet()  # connections that are not closed


@dataclass(frozen=True, slots=True)
class LocalServer:
    """Local endpoints that answer.

    Attributes:
        urls: Base URL by server: chat, embedding, reranking, catalog, gradient, notion.
        key: The key that they accept (never shown).
        port_base: The first port.
        pid: The process that serves.
        lasting: Whether they serve until somebody stops them, rather than until the notebook
            that started them ends.
        peft_source: The folder from which the chat server loads adapters, where it told one.
        models: Which set of models it serves.
    """

    urls: Mapping[str, str]
    key: str = field(repr=False)
    port_base: int
    pid: int = 0
    lasting: bool = True
    peft_source: str | None = None
    models: str = "default"


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    log: Path
    owner: int


def cache_dir() -> Path:
    """Return the cache folder: `COOKBOOK_CACHE_DIR`, or the system's place for caches.

    Raises:
        ConfigurationError: The folder cannot be made or written.
    """
    chosen = os.environ.get("COOKBOOK_CACHE_DIR", "").strip()
    folder = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("nim-cookbook")
    return made(folder.absolute())


def made(folder: Path, mode: int = 0o777) -> Path:
    """Make a folder of the cache; return it.

    Raises:
        ConfigurationError: It cannot be made.
    """
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {folder} cannot be made ({error.strerror}): set COOKBOOK_CACHE_DIR to a "
            "folder that you may write."
        ) from None
    return folder


def run_dir() -> Path:
    """Return the folder of state files and logs, which only this user may read.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    folder = made(cache_dir() / "run", 0o700)
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"The folder {folder} cannot be written: set COOKBOOK_CACHE_DIR to a folder that you "
            "may write."
        )
    return folder


def state_path(port_base: int) -> Path:
    """Return the state file of servers on the block of ports that starts at `port_base`.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    return run_dir() / f"{port_base}.json"


def port_base() -> int:
    """Return the first port to use: `COOKBOOK_PORT_BASE`, or 8000.

    Raises:
        ConfigurationError: The value is not a port that leaves room for the others.
    """
    text = os.environ.get("COOKBOOK_PORT_BASE", "").strip()
    base = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else None
    if not text:
        return DEFAULT_PORT_BASE
    if base is None or not 1024 <= base <= 65536 - PORTS:
        raise ConfigurationError(
            f"COOKBOOK_PORT_BASE is {text[:40]!r}: set it to a number from 1024 to {65536 - PORTS}."
        )
    return base


def find_running() -> LocalServer | None:
    """Return local endpoints that are ready, or None.

    With `COOKBOOK_MODELS` set, servers of another set of models do not count. With
    `COOKBOOK_PORT_BASE` set whoever serves on that block of ports is taken. Otherwise every
    state file of this user is looked at, and servers that another notebook started for itself are
    left alone: they end with it, in the middle of our work.
    """
    first = port_base()
    bases = [first]
    wanted = os.environ.get("COOKBOOK_MODELS", "").strip()
    named = bool(os.environ.get("COOKBOOK_PORT_BASE", "").strip())
    if not named:
        others = (path.stem for path in sorted(run_dir().glob("*.json")))
        bases += [int(stem) for stem in others if stem.isdigit() and int(stem) != first]
    for base in bases:
        server = _read_state(base)
        if server is None or wanted not in ("", server.models):
            continue
        if (named or server.lasting or _is_ours(server)) and _ready(server):
            return server
    return None


def _is_ours(server: LocalServer) -> bool:
    return _child is not None and _child.process.pid == server.pid


def ensure_running(*, start: bool = True) -> LocalServer:
    """Return local endpoints that are ready; start them when none are.

    Safe to call often, from several threads and from several notebooks at the same time. Servers
    that `nim-cookbook serve` or `lab` runs are shared by all; without them each notebook starts
    its own.

    Args:
        start: With False nothing is started.

    Raises:
        EndpointUnreachable: None are running and `start` is False, or they do not become ready;
            the message carries the servers' own last sentence.
        ConfigurationError: A setting is wrong.
    """
    global _child
    keys.check_local_key()
    with _lock:
        server = find_running()
        if server is not None:
            return server
        if not start:
            raise EndpointUnreachable(
                "No local endpoints are running: start them with `nim-cookbook serve`."
            )
        stop()
        with _start_lock():
            server = find_running()
            if server is not None:
                return server
            base = _free_block(port_base())
            _child = _spawn(base)
            try:
                return _wait(_child, base)
            except BaseException:
                stop()
                raise


def use(connection: object) -> None:
    """Keep the servers until this connection is released or garbage-collected."""
    _users.add(connection)


def release(connection: object) -> None:
    """Stop the servers if this was the last connection that uses them; may be called twice."""
    if connection in _users:
        _users.discard(connection)
        if not _users:
            stop()


def stop() -> None:
    """Stop the servers that this process started; does nothing when there are none."""
    global _child
    with _lock:
        child, _child = _child, None
        if child is None or child.owner != os.getpid():
            return
        if child.process.stdin is not None:
            child.process.stdin.close()
        if child.process.poll() is None:
            child.process.terminate()
        try:
            child.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


atexit.register(stop)


def _read_state(base: int) -> LocalServer | None:
    try:
        state = json.loads(state_path(base).read_text("utf-8")) | {"port_base": base}
        server = validated(LocalServer, state, "state")
    except (OSError, ValueError, TypeError, DataError):
        return None  # absent, half written, or left by another version
    return server if set(SERVERS) <= set(server.urls) else None


def _ready(server: LocalServer) -> bool:
    # Without the environment's proxies, which cannot reach loopback. Absent servers refuse at once;
    # busy ones may need seconds, and a second set of servers beside them would make that worse.
    with httpx.Client(timeout=30.0, trust_env=False) as client:
        try:
            return all(
                client.get(f"{url}/health/ready").status_code == 200 for url in server.urls.values()
            )
        except (httpx.HTTPError, httpx.InvalidURL):
            return False


def _start_lock() -> AbstractContextManager[object]:
    """Hold the lock file under which servers are started, telling why when it takes long."""
    lock = FileLock(run_dir() / "start.lock")
    try:
        return lock.acquire(timeout=1.0)
    except Timeout:
        print("Another notebook is starting the local endpoints: waiting for it.", flush=True)
        return lock.acquire()


def _free_block(first: int) -> int:
    for base in range(first, 65536 - PORTS, 10):
        if all(_is_free(base + offset) for offset in range(PORTS)):
            return base
    raise EndpointUnreachable(
        f"No {PORTS} free ports in a row were found from {first} on: set COOKBOOK_PORT_BASE to "
        "where there are some."
    )


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # elsewhere this option would allow a port that is taken
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _spawn(base: int) -> _Child:
    log = run_dir() / f"{base}.log"
    # Nobody answers there, so the file was left by a start that was killed; its key is not ours.
    state_path(base).unlink(missing_ok=True)
    with _private(log) as output:
        process = subprocess.Popen(
            [*SERVER_COMMAND, "--port-base", str(base), "--stop-with-stdin"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_child_environment(),
            # Interrupting a cell signals the kernel's whole process group; the servers are not
            # part of the cell.
            start_new_session=True,
        )
    print(f"Starting the local endpoints on ports {base} to {base + PORTS - 1}.", flush=True)
    return _Child(process, log, os.getpid())


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _child_environment() -> dict[str, str]:
    # The stand-ins need no real key, so they get none.
    return {name: value for name, value in os.environ.items() if not keys.is_real_key(value)}


def _wait(child: _Child, base: int) -> LocalServer:
    began = last_news = last_shown = time.monotonic()
    seen = 0
    while child.process.poll() is None:
        server = _read_state(base)
        if server is not None and _ready(server):
            print(f"The local endpoints are ready ({time.monotonic() - began:.1f} s).", flush=True)
            return server
        now, size = time.monotonic(), child.log.stat().st_size
        if size != seen:
            seen, last_news = size, now
            if now - began > QUIET_SECONDS and now - last_shown > 1.0:
                print(f"  {_last_line(child.log)}", flush=True)
                last_shown = now
        if now - last_news > STALL_SECONDS:
            raise EndpointUnreachable(
                f"The local endpoints have said nothing for {STALL_SECONDS:.0f} s (last: "
                f"{_last_line(child.log)}): run this cell again, or see {child.log}."
            )
        time.sleep(0.1)
    raise EndpointUnreachable(
        f"The local endpoints stopped while starting: {_last_line(child.log)}"
    )


def _last_line(log: Path) -> str:
    text = log.read_text("utf-8", errors="replace")
    lines = [line.strip() for line in text.split("\n") if line.strip()] or ["no output"]
    # Roles load side by side, so one may still report progress after another's failure.
    last = next((line for line in reversed(lines) if line.startswith("Error: ")), lines[-1])
    return last.removeprefix("Error: ")[:500]
