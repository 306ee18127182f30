"""How files get into the queue, and out of the file store.

A file is stored by its hash first, then sent as a job that names it. A record in the queue says
that the document refers to it (`Queue.submit`); another holds the file from before it is looked for
in the store until that one is written (`Queue.holding`). The worker that has replaced or removed a
document deletes the records of its earlier versions, and the files that nothing else refers to. A
file may be left over when a process is killed on the way, and none is deleted that a job names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from nim_cookbook.errors import DataError
from nim_cookbook.folders import SUFFIXES
from nim_cookbook.indexing import SourceFile
from rag_service.files import FileStore, digest
from rag_service.queue import Job, Queue, now


async def submit(queue: Queue, files: FileStore, source: SourceFile) -> Job:
    """Store a file and send a job for it.

    Sending the same file again does no harm: it replaces the job that still waits, or finds
    nothing to do.

    Args:
        queue: The queue.
        files: The file store.
        source: The file, its document's id and metadata (JSON values).

    Raises:
        DataError: The file cannot be read, or there is no converter for it.
        EndpointUnreachable: The queue does not take the job.
        OSError: The file store cannot be written.
    """
    if source.path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{source.path.name} cannot be indexed: send one of {', '.join(sorted(SUFFIXES))}."
        )
    stored = await asyncio.to_thread(digest, source.path)
    async with queue.holding(stored.sha256):
        if await asyncio.to_thread(files.put, source.path) != stored:
            raise DataError(f"{source.path.name} has changed while it was read: send it again.")
        job = Job(source.document, source.path.name, stored, dict(source.meta), now())
        await queue.submit(job)
    return job


async def submit_all(queue: Queue, files: FileStore, sources: Iterable[SourceFile]) -> list[Job]:
    """Store and send some files, one after the other; see `submit`."""
    return [await submit(queue, files, source) for source in sources]


async def remove(queue: Queue, document: str) -> None:
    """Send a job that removes a document's chunks.

    Raises:
        EndpointUnreachable: The queue does not take the job.
    """
    await queue.submit(Job(document, submitted=now()))


async def release(queue: Queue, files: FileStore, job: Job) -> None:
    """Give up dead letter and files of a document's earlier versions, once a job has been done.

    Args:
        queue: The queue.
        files: The file store.
        job: The job; its document is claimed, so that no other job of it is done meanwhile.
    """
    await queue.forget(job.document)
    loop = asyncio.get_running_loop()

    def wanted(sha256: str) -> bool:  # called in a thread
        return asyncio.run_coroutine_threadsafe(queue.refers(sha256), loop).result()

    for number, sha256 in (await queue.references(job.document)).items():
        current = job.file is not None and job.file.sha256 == sha256
        if current or await queue.names(job.document, sha256):
            continue
        await queue.delete("FILES", number)  # unless a job was sent that has replaced it
        if not await queue.refers(sha256):
            await asyncio.to_thread(files.discard, sha256, partial(wanted, sha256))
