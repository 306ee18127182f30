"""Binding the servers' ports, with an error that names who holds a busy one."""

from __future__ import annotations

import errno
import os
import socket

import psutil

from nim_cookbook.errors import ConfigurationError, PortInUseError


def holder(port: int) -> str:
    """Return who listens on a TCP port, as ``"python (process 123)"``, or an empty string.

    Other users' processes can stay unknown: the operating system hides them.
    """
    try:
        listeners = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return ""
    for connection in listeners:
        local = connection.laddr
        if connection.status == psutil.CONN_LISTEN and local and local.port == port:
            try:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
            except (psutil.Error, TypeError, ValueError):
                return ""
    return ""


def bind(host: str, port: int, name: str) -> socket.socket:
    """Return a listening socket for one server.

    Args:
        host: Address to bind.
        port: TCP port.
        name: The server's name, for the error.

    Raises:
        PortInUseError: Somebody else listens there.
        ConfigurationError: The address is not one of this machine's, or the port is out of range.
    """
    if not host.strip():  # which would mean every address
        raise ConfigurationError("--host is empty: give an address, such as 127.0.0.1.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it the second part of an
    # answer waits for the client's acknowledgement, which Linux delays by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":  # on Windows the option would let two programs share the port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            by = holder(port)
            raise PortInUseError(
                f"Port {port} for the {name} server is already in use"
                f"{f' by {by}' if by else ''}: stop that program, or choose another block of "
                f"ports with --port-base."
            ) from error
        raise ConfigurationError(
            f"Cannot bind the {name} server to {host}:{port} ({error.strerror}): choose an "
            "address of this machine with --host and a free port with --port-base."
        ) from error
    except OverflowError as error:
        listener.close()
        raise ConfigurationError(
            f"Port {port} does not exist: choose a --port-base between 1024 and 65530."
        ) from error
    return listener
