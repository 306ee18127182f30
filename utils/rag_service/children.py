"""A child process ends when its standard input does, so nothing outlives the notebook above it.

That holds however the notebook ends, also by `kill -9`: the system then closes the pipe.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

#: Seconds that a child has to stop.
STOP_SECONDS = 20.0
#: The option with which a service of ours is started as such a child.
OPTION = "--stop-with-stdin"


def stop_with_stdin(stop: Callable[[], object]) -> None:
    """Call `stop`, from a thread, when standard input ends."""

    def wait() -> None:
        # Not `sys.stdin.read`: its lock would be held, and the interpreter could not end in peace.
        while os.read(sys.stdin.fileno(), 1024):
            pass
        stop()

    threading.Thread(target=wait, daemon=True).start()


def stop_cleanly(with_stdin: bool) -> None:
    """Let SIGTERM raise SystemExit, so that temporary folders are deleted.

    uvicorn ends its server at SIGTERM and then raises the signal anew; without this the process
    would die of it, and leave its temporary folder.

    Args:
        with_stdin: Whether the end of standard input is such a signal, too.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if with_stdin:
        stop_with_stdin(lambda: os.kill(os.getpid(), signal.SIGTERM))


def start(
    module: str,
    *arguments: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    stdout: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a module of ours as a child that ends when its standard input does.

    Args:
        module: Such as `rag_service.app`; it takes `OPTION`.
        *arguments: Its further arguments.
        log: Its output is appended there.
        environment: Variables beside this process's.
        stdout: `subprocess.PIPE` to read its standard output instead.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, OPTION, *arguments],
            stdin=subprocess.PIPE,
            stdout=output if stdout is None else stdout,
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # an interrupted cell does not interrupt it
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a child by closing its input, by a signal, or by force."""
    if process.poll() is None:
        process.terminate()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
