"""Run a command with loopback as its only network, and fail if it asks for more.

    python tools/silent.py make test-recipes

In a network namespace without a route the kernel counts each packet that has nowhere to go
(`OutNoRoutes` in /proc/net/snmp and /proc/net/snmp6, RFC 4293): a connection to another machine and
a question to a name server both raise it. So the count says whether anything in the command, or in
any process that it started, tried to reach another machine, whatever library it used. Of loopback
only 127.0.0.1 to 127.0.0.7 and ::1 are there: a name server on another address of it, such as
systemd-resolved's, asks other machines.

Needs Linux and the right to make a namespace (`unshare`, of util-linux); without them the command
runs as it is, and a line says that nothing was proven. Exits with the command's status, or with 1
when the command passed and packets were counted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

INSIDE = "--inside"
UNSHARE = ["unshare", "--net"]
#: For a user who is not root: a user namespace as well, with the same name and the right to set up
#: the network.
UNSHARE_AS_USER = [*UNSHARE, "--map-current-user", "--keep-caps"]
SIOCSIFFLAGS, SIOCSIFNETMASK = 0x8914, 0x891C  # netdevice(7)
IFF_UP = 1


def main(arguments: list[str]) -> int:
    """Run the command; return its status."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    if arguments[0] == INSIDE:
        return inside(arguments[1:])
    unshare = namespace()
    if not unshare:
        print("No network namespace can be made here: silence is not proven.", file=sys.stderr)
    run = [*unshare, sys.executable, __file__, INSIDE, *arguments] if unshare else arguments
    os.execvp(run[0], run)


def namespace() -> list[str]:
    """Return the command that makes a network namespace; empty where none can be made."""
    command = UNSHARE if hasattr(os, "getuid") and os.getuid() == 0 else UNSHARE_AS_USER
    works = (
        shutil.which("unshare")
        and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    )
    return command if works else []


def inside(command: list[str]) -> int:
    """Run the command in this namespace, whose loopback is down at first."""
    import fcntl  # POSIX has it, as it has namespaces

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
        mask = struct.pack(
            "16sHH4s8x", b"lo", socket.AF_INET, 0, socket.inet_aton("255.255.255.248")
        )
        fcntl.ioctl(control, SIOCSIFNETMASK, mask)
    before = lost()
    # Some libraries report nothing where CI is set, which would prove nothing for other machines.
    process = subprocess.Popen(command, env={k: v for k, v in os.environ.items() if k != "CI"})
    while process.poll() is None:
        with contextlib.suppress(KeyboardInterrupt):  # the command gets it, too
            process.wait()
    status = process.returncode
    tried = lost() - before
    if tried:
        print(
            f"Something tried to reach another machine: {tried} packets had no route.",
            file=sys.stderr,
        )
    else:
        print("Nothing tried to reach another machine.", file=sys.stderr)
    return (status if status >= 0 else 128 - status) or int(tried > 0)


def lost() -> int:
    """Return how many packets had no route so far, of both versions of IP."""
    names, values = (
        line.split()
        for line in Path("/proc/net/snmp").read_text().splitlines()
        if line.startswith("Ip:")
    )
    total = int(values[names.index("OutNoRoutes")])
    six = Path("/proc/net/snmp6")
    if six.exists():
        total += sum(
            int(line.split()[1])
            for line in six.read_text().splitlines()
            if line.startswith("Ip6OutNoRoutes")
        )
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
