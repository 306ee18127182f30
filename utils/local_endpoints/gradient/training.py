"""The worker process that trains, seen from the server.

It starts with the first adapter that is made or trained and ends with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import Any

from local_endpoints.gradient.errors import failed, unprocessable
from local_endpoints.nim.adapters import base_name
from local_endpoints.nim.engines.chat import default_threads
from local_endpoints.weights import ResolvedWeights

Json = dict[str, Any]

PACKAGES = ("torch", "peft", "transformers")  # the extra `finetune`
STOP_SECONDS = 2.0


def missing_packages() -> list[str]:
    """Return the packages of the extra `finetune` that are not installed; imports none."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def worker_command(weights: ResolvedWeights) -> list[str]:
    """Return the command of the worker, on all cores."""
    base = weights.folder / weights.files[0][0]
    module = "local_endpoints.gradient.worker"
    # -P: a file in the working folder shadows no module.
    command = [sys.executable, "-P", "-m", module]
    return [*command, str(base), base_name(weights), str(default_threads())]


class Worker:
    """The process that trains; `ask` starts it, also after it has died.

    Args:
        command: Its command line.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, request: Json) -> Json:
        """Send one request and return the answer; one call at a time.

        Raises:
            GradientError: 422 for a sample that cannot be learnt, else 500: the worker failed or
                ended. The next call starts another if need be.
        """
        try:
            process = await self._running()
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
            answer = await self._answer(process)
        except OSError as error:
            await self.close()
            raise failed(
                500,
                "The training process ended, perhaps for lack of memory; the adapter stays as it "
                "was before. Call again: another process starts by itself.",
            ) from error
        except asyncio.CancelledError:
            await self.close()  # or the next request would read this one's answer
            raise
        if "error" not in answer:
            return answer
        if answer["error"] == "sample":
            raise unprocessable(answer["message"])
        if answer["error"] == "start":
            await self.close()
        raise failed(
            500, f"The training failed ({answer['message']}); the adapter stays as it was before."
        )

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe
            )
        return self._process

    async def _answer(self, process: asyncio.subprocess.Process) -> Json:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the worker ended")
        answer: Json = json.loads(line)
        return answer

    async def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:  # busy in native code; a half-written version is never current
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
