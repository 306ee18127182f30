"""Files become chunks in a process of their own, with limits on memory and time.

A few kilobytes of PDF, HTML or YAML can ask for any amount of both. The process gets a line of JSON
for each file on standard input, and answers with one; it ends when its input does. One that takes
too much is killed, and the next file gets a new one.

    python -m nim_cookbook.bounded
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from haystack import Document

from nim_cookbook import indexing
from nim_cookbook.errors import DataError
from nim_cookbook.indexing import Prepared, SourceFile, Unit

#: Most bytes of memory of the process; it has about 300 MB before it reads anything.
MEMORY = 1_500_000_000
#: Most seconds for a file, once the process runs.
SECONDS = 120.0
#: Seconds that the process has to start.
START_SECONDS = 120.0
_LOOK_EVERY = 0.05
_READY = "ready"


class BoundedPreparation:
    """Prepares files as `indexing.prepare` does, in a child process; for one thread.

    The child starts with the first file, or with `start`.

    Args:
        memory: Most bytes that the child may take.
        seconds: Most seconds that a file may take.
    """

    def __init__(self, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        """Take the limits; nothing is started."""
        self._memory, self._seconds = memory, seconds
        self._settings = indexing.preparation().dumps()
        self._ready = False
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._child: subprocess.Popen[bytes] | None = None

    def dumps(self) -> str:
        """Return the settings that decide the chunks."""
        return self._settings

    def prepare(
        self, file: SourceFile, fingerprint: str, splitting: tuple[int, int, Unit] | None = None
    ) -> Prepared:
        """Return the chunks of a file.

        Args:
            file: The file.
            fingerprint: Of this version of the file.
            splitting: What `indexing.preparation` takes, where it is not the usual one.

        Raises:
            DataError: It takes too much memory or time, or the child ends over it.
        """
        child = self.start()
        if not self._ready:
            self._ready = self._answer(child, START_SECONDS, "the converters") == _READY
        asked = {"document": file.document, "path": str(file.path), "meta": dict(file.meta)}
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # said by the missing answer
            child.stdin.write(
                json.dumps([asked, fingerprint, splitting or ()], default=str).encode() + b"\n"
            )
            child.stdin.flush()
        answer = self._answer(child, self._seconds, file.document)
        chunks = tuple(Document.from_dict(chunk) for chunk in answer["chunks"])
        return Prepared(file, fingerprint, chunks, answer["note"])

    def close(self) -> None:
        """End the child; the next file starts another."""
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the child if none runs; it gets ready meanwhile."""
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._ready = False
        self._lines = queue.SimpleQueue()
        child = self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "nim_cookbook.bounded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the parent's
        )
        threading.Thread(target=_read, args=(child, self._lines), daemon=True).start()
        return child

    def _answer(self, child: subprocess.Popen[bytes], seconds: float, what: str) -> Any:  # noqa: ANN401  JSON
        """Wait for a line of the child, and look at its memory meanwhile."""
        lines = self._lines  # one that was given up must not read what a new child answers
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=_LOOK_EVERY)
                if not line:
                    code = child.wait()
                    raise DataError(f"{what}: the process that reads files ended ({code}).")
                return json.loads(line)
            with contextlib.suppress(psutil.Error):
                if psutil.Process(child.pid).memory_info().rss > self._memory:
                    self.close()
                    raise DataError(f"it needs more than {self._memory >> 20} MB of memory to read")
            if time.monotonic() > deadline:
                self.close()
                raise DataError(f"it takes more than {seconds:.0f} seconds to read")


def _read(child: subprocess.Popen[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    assert child.stdout is not None
    with contextlib.suppress(ValueError, OSError):  # closed by the other thread
        for line in child.stdout:
            lines.put(line)
    lines.put(b"")


def main() -> None:
    """Answer the parent until its pipe is closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a converter prints is no answer
    logging.disable()  # what it logs is in the note
    pipelines = functools.cache(indexing.preparation)
    pipelines()

    def send(answer: object) -> None:
        answers.write(json.dumps(answer, default=str).encode() + b"\n")
        answers.flush()

    send(_READY)
    for line in sys.stdin.buffer:
        asked, fingerprint, splitting = json.loads(line)
        file = SourceFile(asked["document"], Path(asked["path"]), asked["meta"])
        prepared = indexing.prepare(file, pipelines(*splitting), fingerprint)
        chunks = [chunk.to_dict(flatten=False) for chunk in prepared.chunks]
        send({"chunks": chunks, "note": prepared.note})


if __name__ == "__main__":
    main()
