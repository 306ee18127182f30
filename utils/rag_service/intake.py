"""How files get into the queue: stored by their hash first, then sent as a job that names it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from nim_cookbook.errors import DataError
from nim_cookbook.folders import SUFFIXES
from nim_cookbook.indexing import SourceFile
from rag_service.files import FileStore
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
    """
    if source.path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{source.path.name} cannot be indexed: send one of {', '.join(sorted(SUFFIXES))}."
        )
    stored = await asyncio.to_thread(files.put, source.path)
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
