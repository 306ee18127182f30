"""The endpoints that all recipes of one run share, and what to call their answers by."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from rich.console import Console

if TYPE_CHECKING:
    from nim_cookbook.endpoints import Endpoints


# The libraries log what a command's own report says better.
_NOISY = ("haystack", "haystack_integrations", "pypdf", "trafilatura")
# Where the endpoints are: the values of COOKBOOK_ENDPOINTS.
Mode = Literal["local", "hosted", "self-hosted"]


@contextlib.contextmanager
def connected(mode: Mode | None = None) -> Iterator[Endpoints]:
    """Connect once for all recipes; the kernels inherit the settings through the environment.

    Local servers that already run are used as they are; otherwise they are started here and stopped
    at the end. In hosted mode the key is asked for now, not in the middle of a recipe.

    Raises:
        CookbookError: A setting is wrong, a key is missing, or the servers do not start.
    """
    from nim_cookbook import endpoints  # what it imports is slow, and `--help` needs none of it

    if mode is not None:
        os.environ["COOKBOOK_ENDPOINTS"] = mode
    connection = endpoints.connect()
    try:
        if connection.mode == "local":
            # The block of ports may not be the one that was asked for; the kernels must find it.
            os.environ["COOKBOOK_PORT_BASE"] = str(port_base(connection))
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def asking(
    console: Console, mode: Mode | None, *, as_json: bool
) -> Iterator[tuple[Endpoints, Console]]:
    """Connect for a command that asks the models itself, and explain their errors.

    Yields the endpoints and where to show what is not the result: with `as_json` standard output
    is for that alone, whoever prints.
    """
    with contextlib.ExitStack() as stack:
        if as_json:
            console = Console(stderr=True)
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(quiet())
        api = stack.enter_context(connected(mode))
        stack.enter_context(explained())
        yield api, console


def port_base(connection: Endpoints) -> int:
    """Return the chat server's port, on which the other servers' ports are counted; 0 if none."""
    return (urlsplit(connection.chat.url).port or 0) if connection.mode == "local" else 0


def caption(weights: Mapping[str, str], roles: Collection[str]) -> str:
    """Return the line under a table that says which weights answered; empty if none was asked."""
    answered = [f"{role}: {what}" for role, what in weights.items() if role in roles]
    return f"Answered by: {'; '.join(answered)}" if answered else ""


def shown(path: Path) -> str:
    """Return a path as short as it can be named from here."""
    path = path.resolve()
    here = Path.cwd().resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is; what a file holds must not steer the terminal."""
    safe = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    console.print(safe, style=style, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn errors of an endpoint into one sentence.

    Raises:
        EndpointUnreachable: With that sentence.
    """
    from nim_cookbook.errors import CookbookError, EndpointUnreachable
    from nim_cookbook.explain import explain

    try:
        yield
    except CookbookError:
        raise
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise EndpointUnreachable(sentence) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' log lines away: what matters of them is in the report."""
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
