"""The queue: files to be indexed as jobs in NATS JetStream, and the dead letters.

`connect` makes five streams:

- `<name>_JOBS`, a work queue with one subject per document. It holds at most one job of a document:
  a newer version replaces the one that waits.
- `<name>_CLAIMS`: which worker has which document, so that no two write the same one. A claim
  expires when its worker no longer renews it. A key-value bucket would not do: it keeps a marker
  for each deleted claim, and `depth` counts claims.
- `<name>_TRIES`: the tries of a job. JetStream's `max_deliver` would not do: it also counts jobs
  that are given back at a restart, and keeps no reasons.
- `<name>_DEAD`: jobs that failed `TRIES` times, each with its file, hash and reasons, until
  they are sent again or dropped, or a later version of the file is indexed.
- `COOKBOOK_FILES`: which documents refer to which stored file, one record each. All queues of a
  server share it, as they may share a file store.

`python -m rag_service.queue` shows the depth and the dead letters, and sends dead letters again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    Header,
    RawStreamMsg,
    RetentionPolicy,
    StreamConfig,
)

from nim_cookbook.errors import CookbookError, DataError, EndpointUnreachable
from rag_service.files import StoredFile
from rag_service.settings import DEFAULT_NATS_URL, NATS_URL, Settings

CONSUMER = "indexers"
#: Failed tries after which a job is a dead letter.
TRIES = 3
#: Seconds without a sign of life after which another worker gets the job.
ACK_WAIT = 30.0
#: How long the record of failed tries is kept, in seconds.
TRIES_KEPT = 7 * 86_400.0
# JetStream's error codes for "there is another record than the expected one".
_WRONG_SEQUENCE = frozenset({10071, 10164})

Kind = Literal["JOBS", "CLAIMS", "TRIES", "DEAD", "FILES"]


@dataclass(frozen=True, slots=True)
class Job:
    """A document to be brought up to date, or to be removed.

    Attributes:
        document: The document's id; a new version of the file keeps it.
        name: The file's name, with the ending that tells its kind.
        file: Where its content is, by hash; None to remove the document.
        meta: What every chunk carries, such as `title`; JSON values.
        submitted: When it was sent, ISO 8601 in UTC.
    """

    document: str
    name: str = ""
    file: StoredFile | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    submitted: str = ""

    def encoded(self) -> bytes:
        """Return the message's body."""
        return json.dumps(asdict(self), default=str).encode()

    @classmethod
    def decoded(cls, body: bytes) -> Self:
        """Read a message's body.

        Raises:
            DataError: It is no job.
        """
        try:
            values = json.loads(body)
            stored = values.pop("file")
            return cls(**values, file=StoredFile(**stored) if stored else None)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise DataError(f"A message in the queue is no job: {body[:80]!r}.") from None


@dataclass(frozen=True, slots=True)
class Try:
    """One try that did not end well.

    Attributes:
        worker: Who tried.
        began: When, ISO 8601 in UTC.
        reason: What went wrong.
    """

    worker: str
    began: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that was given up.

    Attributes:
        number: By which it is sent again or dropped.
        job: The job, with the file's name and hash.
        reason: Why the last try failed.
        tries: All tries.
    """

    number: int
    job: Job
    reason: str
    tries: tuple[Try, ...]


@dataclass(frozen=True, slots=True)
class Depth:
    """How much there is to do.

    Attributes:
        at: Seconds since the epoch.
        pending: Jobs that wait for a worker.
        working: Documents that a worker has claimed; that of a killed worker counts until its
            claim expires.
        waiting: Jobs given to a worker and not claimed: they wait for their next try, for another
            version of the same document, or for a killed worker's time to run out.
        dead: Dead letters.
    """

    at: float
    pending: int
    working: int
    waiting: int
    dead: int

    @property
    def open(self) -> int:
        """How many jobs are not done."""
        return self.pending + self.working + self.waiting

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"{self.pending} pending, {self.working} being worked on, {self.waiting} waiting for "
            f"another try, {self.dead} dead"
        )


def now() -> str:
    """Return the time as jobs and tries carry it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def place(url: str) -> str:
    """Return a NATS server's address for a message, without token or password."""
    parts = urlsplit(url)
    return f"{parts.scheme or 'nats'}://{parts.netloc.rpartition('@')[2]}"


class Queue:
    """A connection to the queue; made by `connect`."""

    def __init__(self, client: Client, name: str) -> None:
        """Use a connection; `connect` is what callers want.

        Args:
            client: A connected NATS client.
            name: What the streams' names begin with.
        """
        #: Seconds without a sign of life after which another worker gets a job.
        self.ack_wait = ACK_WAIT
        self.name = name
        self.client = client
        self.stream: JetStreamContext = client.jetstream(timeout=10)
        self._subscription: JetStreamContext.PullSubscription | None = None

    def stream_name(self, kind: Kind) -> str:
        """Return a stream's name."""
        return "COOKBOOK_FILES" if kind == "FILES" else f"{self.name.upper()}_{kind}"

    def subject(self, kind: Kind, key: str) -> str:
        """Return the subject of one document (or job) in a stream."""
        # No index is named like this, as it holds a hyphen.
        return f"cookbook-files.{key}" if kind == "FILES" else f"{self.name}.{kind.lower()}.{key}"

    async def set_up(self, ack_wait: float | None) -> None:
        """Make streams and consumer, or bring them to these settings.

        Args:
            ack_wait: None leaves what there is, and makes `ACK_WAIT` where there is nothing.
        """
        await self._stream("FILES")
        if ack_wait is None:
            with contextlib.suppress(nats.js.errors.NotFoundError):
                there = await self.stream.consumer_info(self.stream_name("JOBS"), CONSUMER)
                self.ack_wait = there.config.ack_wait or ACK_WAIT
                return
        self.ack_wait = ack_wait or ACK_WAIT
        await self._stream("JOBS", retention=RetentionPolicy.WORK_QUEUE)
        await self._stream("CLAIMS", max_age=self.ack_wait)
        await self._stream("TRIES", max_age=TRIES_KEPT)
        await self._stream("DEAD")
        await self.stream.add_consumer(
            self.stream_name("JOBS"),
            ConsumerConfig(
                durable_name=CONSUMER,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=self.ack_wait,
                max_deliver=-1,  # tries are counted apart: a job that is handed on has not failed
                max_ack_pending=10_000,  # jobs that wait for their next try must not block others
                filter_subject=self.subject("JOBS", "*"),
            ),
        )

    async def submit(self, job: Job) -> int:
        """Send a job; it replaces one of the same document that still waits.

        Returns:
            The job's number in the stream.

        Raises:
            EndpointUnreachable: The queue does not take it.
        """
        number = await self._publish("JOBS", subject_key(job.document), job.encoded())
        if job.file:
            await self._publish("FILES", f"{self._owner(job.document)}.{job.file.sha256}")
        return number

    @contextlib.asynccontextmanager
    async def holding(self, sha256: str) -> AsyncIterator[None]:
        """Refer to a file until a job that names it has been sent, so that nobody deletes it.

        Begin before looking whether the file store has it.
        """
        number = await self._publish("FILES", f"{uuid.uuid4().hex}.{sha256}")
        try:
            yield
        except (DataError, OSError):  # no job was sent; after another error one may have been
            await self._let_go(number)
            raise
        await self._let_go(number)

    async def references(self, document: str) -> dict[int, str]:
        """Return the hashes of the files that a document refers to, by the records' numbers."""
        found: dict[int, str] = {}
        number = 0
        while record := await self._next("FILES", f"{self._owner(document)}.*", number):
            number = record.seq or 0
            found[number] = (record.subject or "").rpartition(".")[2]
        return found

    async def refers(self, sha256: str) -> bool:
        """Tell whether any document of any queue refers to a file."""
        return await self._next("FILES", f"*.{sha256}") is not None

    async def names(self, document: str, sha256: str) -> bool:
        """Tell whether an open job or the dead letter of a document names a file."""
        kinds: tuple[Kind, ...] = ("JOBS", "DEAD")  # in the order in which a job goes
        records = [await self._next(kind, subject_key(document)) for kind in kinds]
        return any(sha256.encode() in (record.data or b"") for record in records if record)

    async def forget(self, document: str) -> None:
        """Delete a document's dead letter."""
        await self.stream.purge_stream(
            self.stream_name("DEAD"), subject=self.subject("DEAD", subject_key(document))
        )

    async def depth(self) -> Depth:
        """Return how much there is to do, right now."""
        jobs, consumer, claims, dead = await asyncio.gather(
            self.stream.stream_info(self.stream_name("JOBS")),
            self.stream.consumer_info(self.stream_name("JOBS"), CONSUMER),
            self.stream.stream_info(self.stream_name("CLAIMS")),
            self.stream.stream_info(self.stream_name("DEAD")),
        )
        given, working = consumer.num_ack_pending or 0, claims.state.messages
        return Depth(
            at=time.time(),
            # The consumer notices a new job a moment after the stream has it.
            pending=max(consumer.num_pending or 0, jobs.state.messages - given),
            working=working,
            waiting=max(0, given - working),
            dead=dead.state.messages,
        )

    async def depths(self, every: float = 0.5) -> AsyncIterator[Depth]:
        """Yield the depth again and again, for a live plot.

        Args:
            every: Seconds between two looks.
        """
        while True:
            yield await self.depth()
            await asyncio.sleep(every)

    async def until_done(self, limit: float = 600.0, every: float = 0.2) -> list[Depth]:
        """Wait until no job is open.

        Args:
            limit: Seconds to wait at most.
            every: Seconds between two looks.

        Returns:
            The depths on the way, the last with nothing open.

        Raises:
            EndpointUnreachable: Jobs were still open when the time was up.
        """
        history: list[Depth] = []
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        while loop.time() < end:
            with contextlib.suppress(nats.errors.Error):  # the server may be back in time
                history.append(await self.depth())
                if not history[-1].open:
                    return history
            await asyncio.sleep(every)
        raise EndpointUnreachable(
            f"After {limit:.0f} s the queue still has {history[-1] if history else 'open jobs'}: "
            "see whether workers run."
        )

    async def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters, oldest first."""
        number = 0
        letters: list[DeadLetter] = []
        while message := await self._next("DEAD", "*", number):
            number = message.seq or 0
            values = json.loads(message.data or b"{}")
            job = Job.decoded(json.dumps(values["job"]).encode())
            tries = tuple(Try(**one) for one in values["tries"])
            letters.append(DeadLetter(number, job, values["reason"], tries))
        return letters

    async def send_again(self, letter: DeadLetter) -> int:
        """Make a job of a dead letter, with all its tries before it; return the job's number."""
        file = letter.job.file
        async with self.holding(file.sha256) if file else contextlib.nullcontext():
            number = await self.submit(letter.job)
        await self.drop(letter)
        return number

    async def drop(self, letter: DeadLetter) -> None:
        """Forget a dead letter."""
        with contextlib.suppress(nats.js.errors.APIError):
            await self.stream.delete_msg(self.stream_name("DEAD"), letter.number)

    async def take(self, timeout: float = 1.0) -> Msg | None:
        """Return the next job's message, or None when there is none within some seconds."""
        if self._subscription is None:
            self._subscription = await self.stream.pull_subscribe_bind(
                consumer=CONSUMER, stream=self.stream_name("JOBS")
            )
        try:
            return (await self._subscription.fetch(1, timeout=timeout))[0]
        except nats.errors.TimeoutError:
            return None

    async def put_if(
        self, kind: Literal["CLAIMS", "TRIES"], key: str, body: bytes, last: int
    ) -> int | None:
        """Write a record unless another worker has.

        Args:
            kind: The stream.
            key: The record's name.
            body: Its content.
            last: Number of the record that it replaces; 0 when there must be none.

        Returns:
            The new record's number; None when there was another than `last`.
        """
        headers = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(last)}
        try:
            return (await self.stream.publish(self.subject(kind, key), body, headers=headers)).seq
        except nats.js.errors.APIError as error:
            if error.err_code in _WRONG_SEQUENCE:
                return None
            raise

    async def delete(self, kind: Literal["CLAIMS", "TRIES", "FILES"], number: int) -> None:
        """Delete one record, if it is still there and has not been replaced."""
        with contextlib.suppress(nats.js.errors.APIError):
            await self.stream.delete_msg(self.stream_name(kind), number)

    async def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await self.client.close()

    async def _let_go(self, number: int) -> None:
        with contextlib.suppress(nats.errors.Error, TimeoutError):  # then the file is kept
            await self.delete("FILES", number)

    def _owner(self, document: str) -> str:
        return subject_key(f"{self.name} {document}")

    async def _next(self, kind: Kind, key: str, after: int = 0) -> RawStreamMsg | None:
        """Return the first record of some subjects after a number, if there is one."""
        with contextlib.suppress(nats.js.errors.NotFoundError):
            return await self.stream.get_msg(
                self.stream_name(kind), seq=after + 1, subject=self.subject(kind, key), next=True
            )
        return None

    async def _publish(self, kind: Kind, key: str, body: bytes = b"") -> int:
        try:
            return (await self.stream.publish(self.subject(kind, key), body)).seq
        except (nats.errors.Error, TimeoutError) as error:
            raise EndpointUnreachable(
                f"The queue did not take the job ({error or type(error).__name__}): see whether "
                "the NATS server runs, and send it again."
            ) from None

    async def _stream(
        self,
        kind: Kind,
        retention: RetentionPolicy = RetentionPolicy.LIMITS,
        max_age: float | None = None,
    ) -> None:
        config = StreamConfig(
            name=self.stream_name(kind),
            subjects=[self.subject(kind, "*.*" if kind == "FILES" else "*")],
            retention=retention,
            max_msgs_per_subject=1,
            max_age=max_age,
        )
        try:
            await self.stream.add_stream(config)
        except nats.js.errors.BadRequestError:  # it is there, with other settings
            await self.stream.update_stream(config)


def subject_key(document: str) -> str:
    """Return a document's id as part of a subject; ids may hold any character."""
    return hashlib.sha256(document.encode()).hexdigest()[:32]


@contextlib.asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    name: str | None = None,
    ack_wait: float | None = None,
    wait: float = 5.0,
) -> AsyncIterator[Queue]:
    """Connect to the queue and make its streams where they are missing.

    Args:
        url: The NATS server; None for `COOKBOOK_NATS_URL`.
        name: What the streams' names begin with; None for `COOKBOOK_INDEX`, so that each index has
            a queue of its own.
        ack_wait: Seconds without a sign of life after which another worker gets a job; for all
            workers, from now on. None leaves it as it is, which is `ACK_WAIT` in a new queue.
        wait: Seconds to wait for the server.

    Raises:
        EndpointUnreachable: The server does not answer, or has no JetStream.
    """
    settings = Settings.from_environment()
    url = url or settings.nats_url
    client = await _client(url, wait)
    queue = Queue(client, name or settings.index)
    try:
        try:
            await queue.set_up(ack_wait)
        except (nats.errors.Error, TimeoutError) as error:
            raise EndpointUnreachable(
                f"The NATS server at {place(url)} has no JetStream for us ({error}): start it with "
                "`nats-server -js`."
            ) from None
        yield queue
    finally:
        await queue.close()


async def _client(url: str, wait: float) -> Client:
    heard: list[str] = []

    async def note(error: Exception) -> None:
        heard.append(" ".join(str(error).split()))
        # Python 3.11's `wait_for`, which nats-py calls, loses a cancellation that comes together
        # with an error (python/cpython#86296): without this the time-out below could be lost too.
        if deadline.expired():
            raise TimeoutError

    try:
        async with asyncio.timeout(wait) as deadline:
            return await nats.connect(
                url,
                name="cookbook",
                error_cb=note,
                connect_timeout=2,
                reconnect_time_wait=0.2,
                max_reconnect_attempts=-1,
            )
    except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
        why = (heard or [str(error)])[-1].removeprefix("nats: ").strip("'\"") or "no answer"
        raise EndpointUnreachable(
            f"The NATS server at {place(url)} cannot be used ({why}): start it (`python -m "
            f"rag_service.local` does so on this machine), or correct {NATS_URL}."
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Show or change the queue; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rag_service.queue",
        description="Show how much there is to do and what failed.",
        epilog=f"The NATS server is read from {NATS_URL} (default {DEFAULT_NATS_URL}).",
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("status", "dead", "send-again", "drop"),
        default="status",
        help="status: the depth (default); dead: the dead letters as JSON lines; send-again, drop: "
        "what to do with them",
    )
    parser.add_argument("number", nargs="*", type=int, help="dead letters; all when none is named")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_command(options.command, options.number))
    except CookbookError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


async def _command(command: str, numbers: Sequence[int]) -> None:
    async with connect() as queue:
        if command == "status":
            print(await queue.depth())
            return
        for letter in await queue.dead_letters():
            if numbers and letter.number not in numbers:
                continue
            if command == "send-again":
                await queue.send_again(letter)
            elif command == "drop":
                await queue.drop(letter)
            print(json.dumps(asdict(letter), default=str))


if __name__ == "__main__":
    raise SystemExit(main())
