"""Runs all local servers in one process: one event loop, one listener a server, shared engines."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from local_endpoints import loading, ports, state
from local_endpoints.access import choose_key
from local_endpoints.downloads import Cancellation
from local_endpoints.faults import switched
from local_endpoints.gradient.app import build_app as build_gradient
from local_endpoints.gradient.store import AdapterStore, adapters_dir
from local_endpoints.nim import peft_source
from local_endpoints.nim.catalog import build_apps
from local_endpoints.nim.hosted import HostedCatalog
from local_endpoints.notion import build_app as build_notion
from local_endpoints.notion import load_workspace
from local_endpoints.options import PORT_OFFSETS, ServeOptions, base_url
from nim_cookbook import hosts
from nim_cookbook.data import data_path
from nim_cookbook.errors import ConfigurationError, CookbookError
from nim_cookbook.impatient import ImpatientProtocol
from nim_cookbook.models import load_registry

# These demand the key also on loopback, as the services do for which they stand.
KEYED = ("catalog", "gradient", "notion")
EXIT_USER_MISTAKE = 2
#: Seconds that open requests have, and then the engines, so that a stop takes five at most.
GRACE_SECONDS = 3
CLOSE_SECONDS = 1.0


def say(line: str) -> None:
    """Print one line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


class _Listener(uvicorn.Server):
    """A uvicorn server that leaves signals to us, since several share the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listeners(apps: Mapping[str, FastAPI]) -> dict[str, _Listener]:
    return {
        name: _Listener(
            uvicorn.Config(
                app,
                http=ImpatientProtocol,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
                server_header=False,
            )
        )
        for name, app in apps.items()
    }


def _stop_with_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Set `stop` at the first SIGINT or SIGTERM; the second ends the process at once."""
    told_before = False

    def told(number: int) -> None:
        nonlocal told_before
        if told_before:
            os._exit(128 + number)
        told_before = True
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, told, number)
        except NotImplementedError:  # Windows has no such loop hook
            signal.signal(number, lambda n, _: loop.call_soon_threadsafe(told, n))


def _stop_with_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Set `stop` when standard input ends, which it does when our parent ends."""

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            while sys.stdin.buffer.read(1024):
                pass
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait, name="stdin-watch", daemon=True).start()


class Start:
    """One start of the servers, from bound ports to a clean end."""

    def __init__(self, options: ServeOptions) -> None:
        """Bind all ports.

        Raises:
            PortInUseError: One is taken; none stays bound.
            ConfigurationError: The address, the key, the folder of adapters or a fault cannot be
                used.
            DataError: The Notion workspace cannot be read.
        """
        self.options = options
        self.key = choose_key("nvapi-local")
        self.registry = load_registry()
        self.peft = peft_source.settings(options.port_base)
        self.services = loading.make_services(self.registry)
        self.off_loopback = not hosts.is_loopback(options.host)
        self.contents: dict[str, str] = {"catalog": "all three roles"}
        self.apps = self._build_apps()
        self.watcher: asyncio.Task[None] | None = None
        self.fetching = Cancellation()
        self.sockets: dict[str, socket.socket] = {}
        try:
            for name in self.apps:
                port = options.port_base + PORT_OFFSETS[name]
                self.sockets[name] = ports.bind(options.host, port, name)
        except CookbookError:
            self.release()
            raise
        # 0.0.0.0 and :: listen on every address and are none to connect to.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)
        shown = f"[{host}]" if ":" in host else host
        self.urls = {name: base_url(name, shown, options.port_base) for name in self.apps}

    def _build_apps(self) -> dict[str, FastAPI]:
        """Return the applications by name, in the order of their ports."""
        apps = build_apps(self.services, self.key, self.off_loopback, self.options.nim)
        faults = [switched(text) for text in self.options.faults]
        if self.options.like == "hosted":
            apps["catalog"].add_middleware(HostedCatalog, faults=faults)
            self.contents["catalog"] = " and ".join(["like NVIDIA's hosts", *self.options.faults])
        elif faults:
            raise ConfigurationError(
                "A NIM has none of the hosted catalog's faults: add --like hosted, or leave out "
                "--fault."
            )
        adapters = AdapterStore(adapters_dir())
        apps["gradient"] = build_gradient(
            self.services.chat, self.services.embedding, self.key, adapters
        )
        self.contents["gradient"] = f"adapters in {adapters.folder}"
        wiki = load_workspace(data_path("notion"))
        apps["notion"] = build_notion(wiki, self.key)
        self.contents["notion"] = f"{wiki.name}, {sum(1 for _ in wiki.shared())} pages"
        return {name: apps[name] for name in PORT_OFFSETS if name in apps}

    def release(self) -> None:
        """Close the sockets."""
        for listener in self.sockets.values():
            listener.close()

    async def run(self) -> int:
        """Serve until a signal, the end of standard input or a failure; return the exit code."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        _stop_with_signals(loop, stop)
        if self.options.stop_with_stdin:
            _stop_with_stdin(loop, stop)
        listeners = _listeners(self.apps)
        serving = [
            asyncio.create_task(listener.serve(sockets=[self.sockets[name]]))
            for name, listener in listeners.items()
        ]
        state_file = self._announce({})
        loader = asyncio.create_task(self._load())
        stopper = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({loader, stopper}, return_when=asyncio.FIRST_COMPLETED)
            if loader.done() and not loader.result():
                return EXIT_USER_MISTAKE
            await stopper
            return 0
        finally:
            self.fetching.set()
            loader.cancel()
            stopper.cancel()
            if self.watcher is not None:
                self.watcher.cancel()
            state.remove(state_file)
            for listener in listeners.values():
                listener.should_exit = True
            await asyncio.gather(*serving, return_exceptions=True)
            closing = asyncio.create_task(loading.close(self.services))
            await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
            peft_source.tidy(self.peft)
            if not closing.done() or not closing.result():
                self.release()
                os._exit(0)

    def _announce(self, weights: Mapping[str, str]) -> Path:
        """Write the state file, by which notebooks find these servers."""
        lasting = not self.options.stop_with_stdin
        return state.write(
            self.options.port_base,
            self.key,
            self.urls,
            weights,
            lasting,
            self.peft.folder,
            self.options.models,
        )

    async def _load(self) -> bool:
        """Load the models; return False after a user's mistake, which has been printed."""
        try:
            source = await loading.load(
                self.services, self.options, self.registry, self.peft, say, self.fetching
            )
        except CookbookError as error:
            say(f"Error: {error}")
            return False
        roles = (self.services.chat, self.services.embedding, self.services.reranking)
        names: dict[str, str] = {
            s.role: s.weights.description for s in roles if s.weights is not None
        }
        self._announce(names)
        gc.collect()
        gc.freeze()  # the garbage collector need not walk through all that stays
        self.watcher = asyncio.create_task(source.run())
        for name, url in self.urls.items():
            what = names.get(name) or self.contents.get(name, "")
            keyed = "; key required" if name in KEYED or self.off_loopback else ""
            say(f"ready: {name:<10} {url:<32} {what}{keyed}")
        say("Local stand-ins: small models answer under catalogue ids. Stop with Ctrl-C.")
        return True


def main(options: ServeOptions) -> int:
    """Run the servers in the foreground.

    Returns:
        0 after a clean stop, 2 after a user's mistake, which is printed as one sentence.
    """
    try:
        start = Start(options)
    except CookbookError as error:
        say(f"Error: {error}")
        return EXIT_USER_MISTAKE
    try:
        return asyncio.run(start.run())
    finally:
        start.release()
