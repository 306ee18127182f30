"""Training, seen from the server: the worker process, and the queue before it.

The worker starts with the first adapter that is made or trained and ends with the server. One step
runs at a time; others wait in the order in which they came.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from local_endpoints.nim.adapters import base_name
from local_endpoints.nim.engines.chat import default_threads
from local_endpoints.weights import ResolvedWeights

Json = dict[str, Any]
T = TypeVar("T")

MAX_WAITING = 16
PACKAGES = ("torch", "peft", "transformers")  # the extra `finetune`
WORKER = "local_endpoints.gradient.worker"
STOP_SECONDS = 2.0


class QueueFull(Exception):
    """Too many trainings wait already."""


class WorkerDied(Exception):
    """The worker process ended before it answered."""


class TrainingFailed(Exception):
    """The worker answered with an error.

    Attributes:
        kind: `sample`, `disk` or `failed`.
        message: What it said.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def missing_packages() -> list[str]:
    """Return what of the extra `finetune` is not installed, without importing any of it."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def worker_command(weights: ResolvedWeights) -> list[str]:
    """Return the command of the worker, on all cores: it is nice to whatever else runs.

    -P: a file in the working folder shadows no module.
    """
    base = weights.folder / weights.files[0][0]
    return [
        sys.executable,
        "-P",
        "-m",
        WORKER,
        str(base),
        base_name(weights),
        str(default_threads()),
    ]


class Worker:
    """The process that trains, started again whenever it is needed and not there.

    Args:
        command: Its command line.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process that runs now, if one does."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process else None

    async def ask(self, request: Json) -> Json:
        """Send one request and return the answer; not for two callers at once.

        Raises:
            TrainingFailed: The worker refused, or could not do it.
            WorkerDied: It ended meanwhile; the next call starts another.
        """
        try:
            process = await self._running()
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
            return await self._answer(process)
        except (ConnectionError, OSError) as error:
            await self.close()
            raise WorkerDied from error
        except asyncio.CancelledError:
            # An answer that nobody awaits would be taken for that of the next request.
            await self.close()
            raise

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe
            )
            try:
                await self._answer(self._process)  # that its model is loaded
            except TrainingFailed:
                await self.close()
                raise
        return self._process

    async def _answer(self, process: asyncio.subprocess.Process) -> Json:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the worker ended")
        answer: Json = json.loads(line)
        if "error" in answer:
            raise TrainingFailed(str(answer["error"]), str(answer["message"]))
        return dict(answer["ok"])

    async def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:  # it is busy outside Python; its files are not current anyway
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class TrainingQueue:
    """Runs one job at a time, in order; at most `MAX_WAITING` wait."""

    def __init__(self) -> None:
        self._closed = False
        self._waiting = 0
        self._turn = asyncio.Lock()  # fair: first come, first served
        self._jobs: set[asyncio.Task[Any]] = set()

    async def run(self, job: Callable[[], Awaitable[T]]) -> T:
        """Run `job` when its turn comes, and return what it returns.

        A caller that is cancelled while its job waits takes it out of the queue; a job that has
        begun runs to its end, since a step is whole or not at all.

        Raises:
            QueueFull: Too many wait already.
        """
        if self._waiting >= MAX_WAITING:
            raise QueueFull
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        if self._closed:
            self._turn.release()
            raise QueueFull

        async def to_the_end() -> T:
            try:
                return await job()
            finally:
                self._turn.release()

        task = asyncio.create_task(to_the_end())
        self._jobs.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone; asyncio would complain in the log

    async def close(self) -> None:
        """Cancel the running job, and let no other begin."""
        self._closed = True
        for task in list(self._jobs):
            task.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
