"""The drop folder: files that appear or change in it are sent to be indexed.

`python -m rag_service.watch FOLDER` looks at the folder and those below it every second; it
polls, so that network folders work too. A file is sent when it has not changed between two looks.
What was sent is not written down: after a restart everything is sent again, and the workers find
nothing to do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nim_cookbook.errors import CookbookError, DataError
from nim_cookbook.folders import read_folder
from rag_service.files import FileStore
from rag_service.intake import remove, submit
from rag_service.queue import Queue, connect
from rag_service.settings import FILES, NATS_URL, Settings

#: Seconds between two looks at the folder.
EVERY = 1.0

#: Times of the last changes of content and of permissions in nanoseconds, and size in bytes.
State = tuple[int, int, int]
Look = dict[Path, State]


class DropFolder:
    """A folder, and the files of it that were sent."""

    def __init__(
        self,
        folder: str | Path,
        queue: Queue,
        files: FileStore,
        *,
        follow_deletions: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        """Take a folder; nothing is sent yet.

        Args:
            folder: The folder.
            queue: Where jobs go.
            files: Where files go.
            follow_deletions: Remove the documents of files that vanish.
            say: Gets a line for each file.

        Raises:
            DataError: There is no such folder.
        """
        self._folder = Path(folder).expanduser()
        if not self._folder.is_dir():
            raise DataError(f"There is no folder {self._folder}: make it, or name another.")
        self._folder = self._folder.resolve()
        self._queue = queue
        self._files = files
        self._follow_deletions = follow_deletions
        self._say = say
        self._sent: Look = {}
        self._documents: dict[Path, str] = {}

    async def send_all(self) -> int:
        """Send what has changed since it was last sent; return how many jobs that were."""
        return await self._send(await asyncio.to_thread(self._look))

    async def follow(self, every: float = EVERY) -> None:
        """Send files as they appear, change and vanish, without end.

        Args:
            every: Seconds between two looks.
        """
        before: Look = {}
        fault = ""
        while True:
            seen = await asyncio.to_thread(self._look)
            steady = {path: state for path, state in seen.items() if before.get(path) == state}
            vanished = [path for path in self._sent if path not in seen]
            try:
                await self._send(steady)
                for path in vanished:
                    await self._vanish(path)
                fault = ""
            except (CookbookError, OSError) as error:  # the next look tries again
                if str(error) != fault:
                    fault = str(error)
                    self._say(fault)
            before = seen
            await asyncio.sleep(every)

    def _look(self) -> Look:
        seen: Look = {}
        for path in self._folder.rglob("*"):
            parts = path.relative_to(self._folder).parts
            with contextlib.suppress(OSError):  # it has just vanished
                if path.is_file() and not any(part.startswith(".") for part in parts):
                    state = path.stat()
                    seen[path] = (state.st_mtime_ns, state.st_ctime_ns, state.st_size)
        return seen

    async def _send(self, seen: Look) -> int:
        new = {path: state for path, state in seen.items() if self._sent.get(path) != state}
        if not new:
            return 0
        known = {f.path: f for f in (await asyncio.to_thread(read_folder, self._folder)).files}
        jobs = 0
        for path, state in sorted(new.items()):
            source = known.get(path)
            if source is None:
                self._say(f"{path.name}: left out, there is no converter for it")
            else:
                try:
                    await submit(self._queue, self._files, source)
                except DataError as error:  # until the file changes
                    self._say(str(error))
                else:
                    self._documents[path] = source.document
                    jobs += 1
                    self._say(f"{source.document}: sent")
            self._sent[path] = state
        return jobs

    async def _vanish(self, path: Path) -> None:
        document = self._documents.get(path)
        if self._follow_deletions and document:
            await remove(self._queue, document)
            self._say(f"{document}: to be removed")
        self._documents.pop(path, None)
        del self._sent[path]


async def serve(options: argparse.Namespace) -> None:
    """Send the folder's files, once or until the task is cancelled.

    Raises:
        CookbookError: The folder, the queue or the file store cannot be used.
    """
    files = FileStore(Settings.from_environment().require(FILES))
    async with connect(wait=options.wait) as queue:
        folder = DropFolder(
            options.folder,
            queue,
            files,
            follow_deletions=options.follow_deletions,
            say=lambda text: print(text, flush=True),
        )
        if options.once:
            print(f"{await folder.send_all()} files sent.", flush=True)
            return
        task = asyncio.create_task(folder.follow(options.every))
        with contextlib.suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch a folder; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rag_service.watch",
        description="Send the files of a folder to be indexed, as they appear and change.",
        epilog=f"Settings: {NATS_URL}, {FILES}.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--once", action="store_true", help="send what is there, and end")
    parser.add_argument(
        "--follow-deletions", action="store_true", help="remove the documents of files that vanish"
    )
    parser.add_argument(
        "--every",
        type=float,
        default=EVERY,
        metavar="SECONDS",
        help="between two looks (default: %(default)s)",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="for the queue at the start (default: %(default)s)",
    )
    try:
        asyncio.run(serve(parser.parse_args(arguments)))
    except CookbookError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
