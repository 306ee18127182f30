"""`nim-cookbook doctor`: what is installed, reachable and missing, in one screen."""

from __future__ import annotations

import getpass
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cookbook_cli import version
from cookbook_cli.connection import Mode
from cookbook_cli.fetch import of_set
from cookbook_cli.results import CORE, versions
from local_endpoints import ports
from local_endpoints import weights as store
from local_endpoints.options import PORT_OFFSETS, model_set
from nim_cookbook import data, endpoints, keys, local
from nim_cookbook.errors import CookbookError
from nim_cookbook.explain import missing_extras
from nim_cookbook.models import ROLES, Weights

NEEDED = (*CORE, "nbclient", "ipykernel")
INSTALL = "pip install 'nim-rag-cookbook[notebooks]'"
START = "nim-cookbook serve"
FETCH = "nim-cookbook fetch"
# What the local servers are that play no single role.
LOCAL_SERVICES = {
    "catalog": "all three",
    "gradient": "fine-tuning, completion and embeddings",
    "notion": "the company's engineering wiki",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the screen."""

    area: str  # what it is about
    text: str  # what was found; never a key
    mend: str = ""  # the command or the step that mends it; empty when all is well
    blocking: bool = False  # whether it keeps the recipes from running


def examine(console: Console, mode: Mode | None = None) -> int:
    """Show all findings.

    Returns:
        0 when the recipes can run, 1 when something is missing.
    """
    findings = _findings(mode)
    table = Table(title=f"nim-cookbook {version()}", show_header=False, title_justify="left")
    table.add_column("state", no_wrap=True)
    table.add_column("area", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        mend = f"\n-> {finding.mend}" if finding.mend else ""
        state = ("missing", "red") if finding.blocking else ("note", "yellow")
        state = state if mend else ("ok", "green")
        found = Text.assemble(finding.text, (mend, "bold"))
        table.add_row(Text(*state), finding.area, found)
    console.print(table)
    blocking = [finding for finding in findings if finding.blocking]
    if blocking:
        missing = ", ".join(dict.fromkeys(finding.area for finding in blocking))
        console.print(f"Missing: {missing}. The lines that begin with -> say how to mend it.")
    else:
        console.print("Nothing is missing: the recipes can run (`nim-cookbook run`).")
    return 1 if blocking else 0


def in_one_line(mode: Mode | None = None) -> int:
    """Print whether this person can begin, for the one who teaches; return 0 or 1."""
    blocking = [finding for finding in _findings(mode) if finding.blocking]
    try:
        who = f"{getpass.getuser()} on {platform.node()}"
    except (OSError, KeyError):  # a container's user may have no name
        who = platform.node()
    if blocking:
        todo = "; ".join(f"{one.text} -> {one.mend}" for one in blocking)
        print(f"{who}: not ready: {' '.join(todo.split())}")
        return 1
    lacks = missing_extras()
    recipes = [one for one in data.recipes() if not lacks.intersection(one.get("extras", ()))]
    rest = f'; for the others pip install "nim-rag-cookbook[{",".join(sorted(lacks))}]"'
    able = ", ".join(one["number"] for one in recipes)
    print(f"{who}: ready for {able}{rest if lacks else ''}")
    return 0


def _findings(mode: Mode | None) -> list[Finding]:
    """Return what was found; several looks stumble over the same wrong setting, told once."""
    if mode is not None:
        os.environ["COOKBOOK_ENDPOINTS"] = mode
    return list(dict.fromkeys(finding for look in LOOKS for finding in _guarded(look)))


def _guarded(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Turn a wrong setting into a line of the screen, so that the other lines still come."""
    try:
        yield from look()
    except CookbookError as error:
        yield Finding("settings", str(error), "see the sentence itself", blocking=True)


def _python() -> Iterator[Finding]:
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    mend = "" if supported else "use Python 3.11, 3.12 or 3.13"
    yield Finding("Python", f"{platform.python_version()} in {sys.prefix}", mend, not supported)


def _packages() -> Iterator[Finding]:
    found = versions(NEEDED)
    listed = [f"{name} {number}" for name, number in found.items()]
    yield Finding("packages", ", ".join(listed) or "none of those needed")
    missing = [name for name in NEEDED if name not in found]
    if missing:
        yield Finding("packages", f"not installed: {', '.join(missing)}", INSTALL, blocking=True)


def _mode() -> Iterator[Finding]:
    mode = endpoints.mode()
    is_set = os.environ.get("COOKBOOK_ENDPOINTS", "").strip()
    yield Finding("mode", f"{mode} ({'COOKBOOK_ENDPOINTS' if is_set else 'default'})")
    ignored = [f"NIM_{role.upper()}_URL" for role in ROLES]
    ignored = [name for name in ignored if os.environ.get(name, "").strip()]
    if mode == "local" and ignored:
        text = f"set, but not used in local mode: {', '.join(ignored)}"
        yield Finding("mode", text, "COOKBOOK_ENDPOINTS=self-hosted, if they are to be used")


def _keys() -> Iterator[Finding]:
    needed = endpoints.mode() == "hosted"
    key = keys.find_key(keys.NVIDIA_KEY)
    state = "is not set" if key is None else "is set (not shown)"
    if key is not None and not keys.is_real_key(key):
        state = "is set, but not to a key of NVIDIA's (not shown)"
    usable = key is not None and keys.is_real_key(key)
    mend = f"put a key from {keys.KEY_PAGE} into it" if needed and not usable else ""
    yield Finding("key", f"{keys.NVIDIA_KEY} {state}", mend, needed and not usable)


def _weights() -> Iterator[Finding]:
    needed = endpoints.mode() == "local"
    for weights in of_set(model_set()):
        yield _weights_finding(weights, needed)


def _weights_finding(weights: Weights, needed: bool) -> Finding:
    folder = store.folder_of(weights)
    if not all((folder / file.name).is_file() for file in weights.files):
        return Finding("weights", f"{weights.description}: not fetched yet", FETCH, needed)
    try:
        store.ensure(weights, report=lambda line: None)
    except CookbookError as error:
        return Finding("weights", str(error), f"{FETCH} --force", needed)
    return Finding("weights", f"{weights.description}: in the cache and verified")


def _servers() -> Iterator[Finding]:
    if endpoints.mode() == "local":
        yield from _local_servers()
    else:
        yield from _other_servers()


def _local_servers() -> Iterator[Finding]:
    server = local.find_running()
    if server is None:
        yield from _ports(local.port_base())
        return
    os.environ["COOKBOOK_PORT_BASE"] = str(server.port_base)
    found = endpoints.connect(start=False)
    for role, weights in found.weights.items():
        yield Finding("servers", f"{role} at {server.urls[role]}: {weights}")
    for name, what in LOCAL_SERVICES.items():
        if name in server.urls:
            yield Finding("servers", f"{name} at {server.urls[name]}: {what}, with a key")


def _ports(base: int) -> Iterator[Finding]:
    taken = [
        f"{port} by {ports.holder(port) or 'somebody'}"
        for port in (base + offset for offset in PORT_OFFSETS.values())
        if not local._is_free(port)
    ]
    if taken:
        text = f"not running, and ports are taken: {', '.join(taken)}"
        yield Finding("servers", text, f"{START} --port-base {base + 1000}")
    else:
        text = f"not running; started when needed, ports {base} to {base + local.PORTS - 1}"
        yield Finding("servers", f"{text} are free")


def _other_servers() -> Iterator[Finding]:
    key = keys.find_key(keys.NVIDIA_KEY) or ""
    if endpoints.mode() == "hosted" and not keys.is_real_key(key):
        return  # said already; and nobody is asked for a key here
    check = endpoints.connect(start=False).check()
    for row in check.frame.to_dict("records"):
        works = row["ready"] == "yes"
        text = f"{row['role']} at {row['url']}: {row['model id']}, ready: {row['ready']}"
        mend = "" if works else "correct the setting, or start that server"
        yield Finding("servers", text, mend, blocking=not works)


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _mode,
    _keys,
    _weights,
    _servers,
)
