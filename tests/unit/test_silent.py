"""`tools/silent.py` tells whether a command tried to reach another machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "silent.py"
# Addresses of RFC 5737 and RFC 3849, which belong to nobody.
TRIES = {
    "another machine": "socket.create_connection(('192.0.2.1', 443), 2)",
    "another machine, IPv6": "socket.create_connection(('2001:db8::1', 443), 2)",
    "a name": "socket.getaddrinfo('nobody.example', 443)",
    # As systemd-resolved listens; it would ask another machine.
    "a name server on loopback": "socket.create_connection(('127.0.0.53', 53), 2)",
    "a datagram": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))",
}
LOOPBACK = """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname())
"""


def silent(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "silence is not proven" in done.stderr:
        pytest.skip("no network namespace can be made here")
    return done


@pytest.mark.parametrize("what", TRIES)
def test_a_try_is_counted_though_the_command_hides_it(what: str) -> None:
    done = silent(f"import socket\ntry: {TRIES[what]}\nexcept OSError: pass")
    assert done.returncode == 1
    assert "tried to reach another machine" in done.stderr


def test_the_command_is_not_told_that_this_is_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert silent("import os; raise SystemExit('CI' in os.environ)").returncode == 0


def test_loopback_is_no_other_machine_and_the_status_is_the_commands() -> None:
    assert silent(LOOPBACK).returncode == 0
    assert silent(LOOPBACK + "raise SystemExit(7)").returncode == 7
