"""The worker: takes jobs from the queue, and brings the document store up to date.

`python -m rag_service.indexer` runs one; more of them share the work. It fetches the file by
its hash, converts and splits it as recipe 03 does, embeds it through the embedding NIM, writes the
chunks with ids made from their content, deletes those of an older version and its file, and only
then acknowledges the job. So a worker may be killed at any moment: the job comes again, and doing
it twice is the same as doing it once.

On SIGTERM or SIGINT it finishes the job in hand within `--grace` seconds, or gives it back. A
second signal makes it give the job back at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

import nats.errors
from haystack import Document
from haystack.document_stores.types import DocumentStore
from haystack.utils import Secret
from haystack_integrations.components.embedders.nvidia import NvidiaDocumentEmbedder
from nats.aio.msg import Msg

from nim_cookbook import endpoints, indexing
from nim_cookbook.bounded import BoundedPreparation
from nim_cookbook.endpoints import Endpoint
from nim_cookbook.errors import CookbookError, DataError, EndpointUnreachable
from nim_cookbook.indexing import Embedder, SourceFile
from rag_service.children import OPTION, stop_with_stdin
from rag_service.counting import Count, expose
from rag_service.delivery import BACKOFF, Delivery
from rag_service.files import FileStore
from rag_service.intake import release
from rag_service.local import READY
from rag_service.queue import Job, Queue, connect
from rag_service.retry import (
    Interrupted,
    RetryingEmbedder,
    RetryingStore,
    RetryPolicy,
    is_outage,
    reason,
)
from rag_service.settings import FILES, STORE_URL, Settings
from rag_service.stores import open_store

#: Seconds to wait at the start for the queue, the NIM and the store.
START_WAIT = 60.0
#: Seconds that the job in hand has to end after a SIGTERM; Kubernetes kills after 30.
GRACE = 20.0
# What a thread in the middle of a call gets to notice that it should stop, in seconds.
_LAST_CALL = 2.0

Say = Callable[[str], None]


class Worker:
    """Takes jobs one by one."""

    def __init__(
        self,
        queue: Queue,
        files: FileStore,
        store: DocumentStore,
        embedder: Embedder,
        *,
        settings: str,
        name: str = "",
        grace: float = GRACE,
        backoff: tuple[float, ...] = BACKOFF,
        say: Say = print,
        preparation: BoundedPreparation | None = None,
    ) -> None:
        """Take everything that is needed; nothing is started.

        Args:
            queue: Where jobs come from.
            files: Where their files are.
            store: What is brought up to date.
            embedder: Embeds chunks.
            settings: What else decides the vectors, above all the embedding model.
            name: Of this worker, for logs and dead letters.
            grace: Seconds that the job in hand has to end after `stop`.
            backoff: Seconds before each further try of a job that failed.
            say: Gets a line for each job.
            preparation: Reads the files in a process of its own; None for this one.
        """
        self.count = Count()
        self._queue = queue
        self._files = files
        self._store = store
        self._embedder = embedder
        self._settings = settings
        self._name = name or f"{socket.gethostname()}-{os.getpid()}"
        self._grace = grace
        self._backoff = backoff
        self._say = say
        self._preparation = preparation or indexing.preparation()
        self._stopping = threading.Event()
        self._hurry = asyncio.Event()

    def stop(self) -> None:
        """End after the job in hand; called again, give it back at once. For signal handlers."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def run(self, *, until_empty: bool = False) -> Count:
        """Work until `stop`.

        Args:
            until_empty: Or until no job is open, with any worker.
        """
        away = False
        while not self._stopping.is_set():
            try:
                message = await self._queue.take()
                away = False
                if message is not None:
                    await self._receive(message)
                elif until_empty and not (await self._queue.depth()).open:
                    break
            except (nats.errors.Error, TimeoutError) as error:
                if not away:
                    self._say(f"The queue does not answer ({error or type(error).__name__}).")
                away = True
                await asyncio.sleep(0.5)
        return self.count

    async def _receive(self, message: Msg) -> None:
        """Do one job, and say how it ended."""
        try:
            delivery = Delivery(self._queue, message, self._name, self._backoff)
        except DataError as error:  # no worker can do it
            self._say(str(error))
            await message.term()
            return
        try:
            if await delivery.begin(self._stopping):
                await self._do_and_tell(delivery)
        finally:
            await delivery.close()

    async def _do_and_tell(self, delivery: Delivery) -> None:
        began = time.monotonic()
        job = delivery.job
        try:
            note = await self._thread(delivery)
        except Interrupted:
            self.count.released += 1
            await delivery.release()
            self._say(f"{job.document}: given back")
        except Exception as error:  # whatever it is, the worker goes on with the next job
            self.count.failed += 1
            why = str(error) if isinstance(error, CookbookError) else reason(error)
            dead = await delivery.failed(why)
            self.count.dead += dead
            self._say(
                f"{job.document}: try {delivery.tries} failed ({why})"
                f"{'; given up, it is a dead letter now' if dead else ''}"
            )
        else:
            await self._release(job)
            await delivery.done()
            self.count.done += 1
            self._say(f"{job.document}: {note} ({time.monotonic() - began:.2f} s)")

    async def _release(self, job: Job) -> None:
        """Delete the files of earlier versions; one that cannot be deleted stays."""
        try:
            await release(self._queue, self._files, job)
        except (nats.errors.Error, TimeoutError):
            raise  # the job comes again
        except Exception as error:  # each kind of file store has errors of its own
            self._say(f"{job.document}: a file stays in the file store ({reason(error)})")

    async def _thread(self, delivery: Delivery) -> str:
        """Do the job in a thread, while this one answers JetStream and signals.

        Raises:
            Interrupted: The job is to be given back.
        """
        interrupted = threading.Event()
        policy = RetryPolicy(interrupted, self._say, hurried=self._stopping)
        task = asyncio.create_task(asyncio.to_thread(self._do, delivery.job, policy))
        task.add_done_callback(_seen)
        watch = asyncio.create_task(self._interrupt(delivery, interrupted))
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=_LAST_CALL)
            if not task.done():  # in the middle of a long conversion
                if isinstance(self._preparation, BoundedPreparation):
                    self._preparation.close()
                else:
                    self._preparation = indexing.preparation()  # a pipeline runs one job at a time
                raise Interrupted
            return task.result()
        finally:
            watch.cancel()

    async def _interrupt(self, delivery: Delivery, interrupted: threading.Event) -> None:
        """Return when the thread has been told to give up."""
        left = self._grace
        while not delivery.lost.is_set() and not self._hurry.is_set() and left > 0:
            await asyncio.sleep(0.05)
            if self._stopping.is_set():
                left -= 0.05
        interrupted.set()

    def _do(self, job: Job, policy: RetryPolicy) -> str:
        """Bring the store up to date with one job.

        Returns:
            What became of the document.

        Raises:
            DataError: The file cannot be read.
        """
        if job.file is None:
            self._update(policy, [], [job.document])
            return "removed"
        with self._files.fetched(job.file, job.name) as path:
            source = SourceFile(job.document, path, job.meta)
            outcome = self._update(policy, [source], []).outcomes[0]
        if outcome.status == "skipped":
            raise DataError(outcome.note)
        return f"{outcome.status}, {outcome.chunks} chunks, {outcome.embedded} embedded"

    def _update(
        self, policy: RetryPolicy, files: list[SourceFile], gone: list[str]
    ) -> indexing.Report:
        policy.check()
        return indexing.update(
            RetryingStore(self._store, policy),
            files,
            gone=gone,
            preparation=self._preparation,
            embedder=RetryingEmbedder(self._embedder, policy),
            settings=self._settings,
        )


def document_embedder(endpoint: Endpoint) -> NvidiaDocumentEmbedder:
    """Return the embedder for an endpoint."""
    return NvidiaDocumentEmbedder(
        model=endpoint.model,
        api_url=endpoint.url,
        api_key=Secret.from_env_var(endpoint.key_variable, strict=False),
        progress_bar=False,
    )


def dimension(embedder: Embedder, wait: float = START_WAIT) -> int:
    """Return the length of an endpoint's vectors, by asking for one.

    Args:
        embedder: Embeds chunks.
        wait: Seconds to wait for the endpoint.

    Raises:
        EndpointUnreachable: It does not embed.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            answer = embedder.run(documents=[Document(content="How long is a vector?")])
            return len(answer["documents"][0].embedding)
        except Exception as error:
            if is_outage(error) and time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            raise EndpointUnreachable(
                f"The embedding endpoint does not embed ({reason(error)}): start it, or correct "
                "its address and key; `nim-cookbook doctor` looks at them."
            ) from None


async def serve(options: argparse.Namespace) -> Count:
    """Connect to everything and run one worker until it is told to stop.

    Raises:
        CookbookError: Something cannot be reached or is set wrongly.
    """
    settings = Settings.from_environment()
    settings.require(STORE_URL)
    files = FileStore(settings.require(FILES))
    with contextlib.closing(BoundedPreparation()) as preparation:
        preparation.start()  # meanwhile
        return await _serve(options, files, preparation)


async def _serve(
    options: argparse.Namespace, files: FileStore, preparation: BoundedPreparation
) -> Count:
    async with connect(ack_wait=options.ack_wait, wait=options.wait) as queue:
        nim = await asyncio.to_thread(endpoints.connect, start=False, wait=options.wait)
        embedder = document_embedder(nim.embedding)
        length = await asyncio.to_thread(dimension, embedder, options.wait)
        store = await asyncio.to_thread(open_store, dimension=length)
        worker = Worker(
            queue,
            files,
            store,
            embedder,
            settings=nim.embedding.weights,
            name=options.name,
            grace=options.grace,
            backoff=tuple(options.backoff),
            say=_say,
            preparation=preparation,
        )
        _listen(worker.stop, options.stop_with_stdin)
        if options.metrics_port:
            expose(worker.count, options.metrics_host, options.metrics_port)
        _say(f"{READY}chunks are embedded by {nim.embedding.weights}.")
        return await worker.run(until_empty=options.until_empty)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m rag_service.indexer",
        description="Take files from the queue and index them; run more of them to share the work.",
        epilog="Settings: COOKBOOK_NATS_URL, COOKBOOK_STORE_URL, COOKBOOK_FILES, COOKBOOK_INDEX, "
        "and those of the embedding endpoint (COOKBOOK_ENDPOINTS, NVIDIA_API_KEY, ...).",
    )
    made.add_argument("--name", default="", help="of this worker, for logs and dead letters")
    made.add_argument(
        "--until-empty", action="store_true", help="end when no job is open, for a set-up job"
    )
    made.add_argument(
        "--ack-wait",
        type=float,
        metavar="SECONDS",
        help="without a sign of life after which another worker gets a job, for all workers "
        "(default: as it is; 30 in a new queue)",
    )
    made.add_argument(
        "--grace",
        type=float,
        default=GRACE,
        metavar="SECONDS",
        help="that the job in hand has after SIGTERM (default: %(default)s)",
    )
    made.add_argument(
        "--backoff",
        type=float,
        nargs="+",
        default=list(BACKOFF),
        metavar="SECONDS",
        help="before the second try, the third (default: %(default)s)",
    )
    made.add_argument(
        "--wait",
        type=float,
        default=START_WAIT,
        metavar="SECONDS",
        help="for the queue and the endpoint at the start (default: %(default)s)",
    )
    made.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="serve Prometheus metrics there, which also shows that the worker lives",
    )
    made.add_argument("--metrics-host", default="127.0.0.1", help="(default: %(default)s)")
    made.add_argument(OPTION, action="store_true", help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker; return the exit status."""
    options = parser().parse_args(arguments)
    try:
        count = asyncio.run(serve(options))
    except CookbookError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the worker listens to signals
        return 130
    _say(f"Stopped: {count}.")
    return 0


def _seen(task: asyncio.Task[str]) -> None:
    """Retrieve the exception of a task that was given up, or asyncio would log it."""
    if not task.cancelled():
        task.exception()


def _say(text: str) -> None:
    print(text, flush=True)


def _listen(stop: Callable[[], None], stdin: bool) -> None:
    """Stop on SIGTERM and SIGINT, and when standard input ends, if that is asked for."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    if stdin:
        stop_with_stdin(lambda: _from_thread(loop, stop))


def _from_thread(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(stop)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # A thread may still convert a file whose job has been given back.
    os._exit(status)
