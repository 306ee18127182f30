"""One job in a worker's hand: its claim on the document, its tries, and how it ends.

After `Delivery.begin` comes the work, and after it one of `done` (what was to be written is),
`failed` (with the reason), or `release` (another worker may begin; this counts as no try).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from dataclasses import asdict, replace

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg

from rag_service.queue import TRIES, Job, Queue, Try, now, subject_key

#: Seconds before the second try and the third.
BACKOFF = (2.0, 10.0)
#: The reason of a try whose end was not recorded.
KILLED = "its worker ended without a word (killed, or out of memory?)"
# How often a claim and a job are renewed within the time that they hold.
_BEATS = 4


class Delivery:
    """A job that JetStream has given to this worker."""

    def __init__(
        self, queue: Queue, message: Msg, worker: str, backoff: tuple[float, ...] = BACKOFF
    ) -> None:
        """Take a message; nothing is done before `begin`.

        Args:
            queue: Where the message is from.
            message: From `Queue.take`.
            worker: This worker's name.
            backoff: Seconds before each further try; the last one holds for all that follow.

        Raises:
            DataError: The message is no job.
        """
        self.job = Job.decoded(message.data)
        #: Set when another worker may have the job: the work on it should stop.
        self.lost = threading.Event()
        self._queue = queue
        self._message = message
        self._worker = worker
        self._backoff = backoff
        self._number = message.metadata.sequence.stream
        self._key = subject_key(self.job.document)
        self._claim = 0
        self._tries: list[Try] = []
        self._record = 0
        self._beat: asyncio.Task[None] | None = None
        self._renewing = asyncio.Lock()

    async def begin(self, stopping: threading.Event | None = None) -> bool:
        """Claim the document, waiting for a worker that has it.

        Args:
            stopping: When set, the wait is given up and the job goes back.

        Returns:
            Whether there is work: not so for a job that a newer version has replaced, that another
            worker has done meanwhile, or whose tries are used up.
        """
        self._beat = asyncio.create_task(self._keep_alive())
        pause = 0.02
        while not await self._claimed():
            if self.lost.is_set() or (stopping and stopping.is_set()):
                await self.release()
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)
        if not await self._is_current():
            await self._end()
            return False
        await self._read_tries()
        if len(self._tries) >= TRIES:
            await self._bury()
            return False
        if not await self._write_tries([*self._tries, Try(self._worker, now(), KILLED)]):
            await self._end(keep_tries=True)
            return False
        return True

    async def done(self) -> None:
        """Acknowledge the job; what it was to do has been written."""
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await self._message.ack_sync(timeout=5)
        await self._end()

    async def failed(self, reason: str) -> bool:
        """Record a failed try; return whether the job is a dead letter now."""
        tries = [*self._tries[:-1], replace(self._tries[-1], reason=reason)]
        if not await self._write_tries(tries):  # another worker has the job
            await self._end(keep_tries=True)
            return False
        if len(tries) >= TRIES:
            await self._bury()
            return True
        await self._message.nak(delay=self._backoff[min(len(tries), len(self._backoff)) - 1])
        await self._end(keep_tries=True)
        return False

    async def release(self) -> None:
        """Give the job back at once; another worker may begin with it."""
        if self._record:  # refused if another worker has the job by now
            await self._write_tries(self._tries[:-1])
        if not self.lost.is_set():
            await self._message.nak()
            await self._queue.client.flush()
        await self._end(keep_tries=True)

    @property
    def tries(self) -> int:
        """How many tries there were, with the one that runs."""
        return len(self._tries)

    async def _claimed(self) -> bool:
        number = await self._queue.put_if("CLAIMS", self._key, self._worker.encode(), 0)
        self._claim = number or 0
        return bool(number)

    async def _is_current(self) -> bool:
        try:
            await self._queue.stream.get_msg(self._queue.stream_name("JOBS"), self._number)
        except nats.js.errors.NotFoundError:
            return False
        return True

    async def _read_tries(self) -> None:
        with contextlib.suppress(nats.js.errors.NotFoundError):
            found = await self._queue.stream.get_last_msg(
                self._queue.stream_name("TRIES"), self._queue.subject("TRIES", str(self._number))
            )
            self._tries = [Try(**one) for one in json.loads(found.data or b"[]")]
            self._record = found.seq or 0

    async def _write_tries(self, tries: list[Try]) -> bool:
        """Record the tries; return False when another worker has, as the claim had run out."""
        body = json.dumps([asdict(one) for one in tries]).encode()
        number = await self._queue.put_if("TRIES", str(self._number), body, self._record)
        if number is None:
            self.lost.set()
            return False
        self._tries, self._record = tries, number
        return True

    async def _bury(self) -> None:
        """Make a dead letter, then take the job out of the queue."""
        letter = {
            "job": asdict(self.job),
            "reason": self._tries[-1].reason,
            "tries": [asdict(one) for one in self._tries],
        }
        await self._queue.stream.publish(
            self._queue.subject("DEAD", self._key), json.dumps(letter, default=str).encode()
        )
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await self._message.ack_sync(timeout=5)
        await self._end()

    async def close(self) -> None:
        """Give no more signs of life; for a job whose end could not be told to the server."""
        if self._beat:
            async with self._renewing:  # or the number of the last claim would be unknown
                self._beat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._beat

    async def _end(self, keep_tries: bool = False) -> None:
        await self.close()
        if self._record and not keep_tries:
            await self._queue.delete("TRIES", self._record)
        if self._claim:
            await self._queue.delete("CLAIMS", self._claim)

    async def _keep_alive(self) -> None:
        """Tell JetStream that the job is in progress, and renew the claim."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while not self.lost.is_set():
            await asyncio.sleep(self._queue.ack_wait / _BEATS)
            try:
                async with self._renewing:
                    await self._renew()
                last = loop.time()
            except (nats.errors.Error, TimeoutError):  # the server may be back in time
                if loop.time() - last > self._queue.ack_wait:
                    self.lost.set()

    async def _renew(self) -> None:
        await self._message.in_progress()
        if not self._claim:
            return
        claim = self._worker.encode()
        number = await self._queue.put_if("CLAIMS", self._key, claim, self._claim)
        if number is None:
            # This process stood still for too long. Go on if no other worker has the document now,
            # and none has done the job meanwhile.
            number = await self._queue.put_if("CLAIMS", self._key, claim, 0)
            self._claim = number or 0
            if number is None or not await self._is_current():
                self.lost.set()
        else:
            self._claim = number
