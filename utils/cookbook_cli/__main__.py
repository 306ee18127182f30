"""Entry point: user mistakes become one sentence and exit code 2, the rest keeps its traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import typer

from cookbook_cli.app import app
from nim_cookbook.errors import CookbookError

NAME = "nim-cookbook"
EXIT_USER_MISTAKE = 2
EXIT_INTERRUPTED = 130


def _sentence(error: Exception, given: Sequence[str]) -> str | None:
    """What to show of an error that the user caused; None for an error of ours."""
    if isinstance(error, CookbookError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "the output"
        return f"{where} cannot be written, the disk is full: free some space and start again."
    format_message = getattr(error, "format_message", None)  # Typer's own usage errors
    if format_message is None:
        return None
    message = format_message().replace("Value error, ", "")  # how Typer quotes Pydantic
    return f"{message} (see `{_command(error, given)} --help`)"


def _command(error: Exception, given: Sequence[str]) -> str:
    """Return the command that a usage error is about; Typer does not always tell."""
    context = getattr(error, "ctx", None)
    if context is not None:
        return str(context.command_path)
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    return " ".join([NAME, *given[:1]]) if known.intersection(given[:1]) else NAME


def _stop(number: int, frame: FrameType | None) -> None:
    """Let a polite kill clean up as Ctrl-C does."""
    raise KeyboardInterrupt


def _drop_output() -> None:
    """Discard what is still to be written, which Python would try again at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when all went well, 1 when a recipe or a check failed, 2 for a user mistake, 130 after
        Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # signal() works only in the main thread.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, _stop)
    try:
        code = app(given, prog_name=NAME, standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # `nim-cookbook doctor | head`
        _drop_output()
        return 1
    except Exception as error:
        sentence = _sentence(error, given)
        if sentence is None:
            raise
        if isinstance(error, OSError):
            _drop_output()
        print(f"Error: {sentence}", file=sys.stderr)
        return EXIT_USER_MISTAKE
    if code == EXIT_INTERRUPTED:  # Typer, too, makes this of Ctrl-C
        print("Stopped; everything that this command started is stopped too.", file=sys.stderr)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
