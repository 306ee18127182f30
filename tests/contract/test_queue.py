"""The queue with a real NATS server, a real PostgreSQL, and the real local embedding NIM.

Each test has a queue and a table of its own. Workers run in this process where that is enough, and
as processes where they are killed or stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import numpy as np
import psutil
import psycopg
import pytest
from haystack import Document
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.document_stores.pgvector import PgvectorDocumentStore
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from nim_cookbook import endpoints, indexing
from nim_cookbook.bounded import BoundedPreparation
from nim_cookbook.endpoints import Endpoint
from nim_cookbook.errors import ConfigurationError, DataError
from nim_cookbook.folders import folder_files
from nim_cookbook.indexing import SourceFile
from nim_cookbook.models import load_registry
from rag_service import queue as queue_module
from rag_service.children import end
from rag_service.delivery import Delivery
from rag_service.files import FileStore, StoredFile, digest
from rag_service.indexer import Worker, document_embedder, parser, serve
from rag_service.intake import remove, submit, submit_all
from rag_service.local import LocalServices, Nats, nats_server
from rag_service.queue import Queue, connect
from rag_service.settings import INDEX, NATS_URL
from rag_service.stores import embedding_retriever, open_store
from rag_service.watch import DropFolder
from tests.relay import relay
from tests.unit.embedding_double import HashEmbedder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX signals and sockets")

WIDTH = load_registry().weights_for("embedding").dimensions or 0
QUICK = (0.1, 0.1)
_numbers = itertools.count(1)

Content = dict[str, tuple[str | None, str]]


@pytest.fixture(scope="module")
def services() -> Iterator[LocalServices]:
    # Not below pytest's folders: they are closed to PostgreSQL's user when the tests run as root.
    with LocalServices() as running:
        yield running


@dataclass
class Bench:
    """One test's queue, table and folder of files."""

    services: LocalServices
    index: str
    folder: Path
    endpoint: Endpoint
    #: The file store, if not the services' folder.
    place: str = ""

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def connect(self, ack_wait: float | None = None):
        return connect(self.services.nats_url, name=self.index, ack_wait=ack_wait, wait=60)

    def store(self):
        return open_store(self.services.store_url, dimension=WIDTH, index=self.index)

    @property
    def files(self) -> FileStore:
        return FileStore(self.place or self.services.files)

    def stored(self, name: str) -> StoredFile:
        """Return what one of the folder's files is in the store."""
        return digest(self.folder / name)

    def has(self, stored: StoredFile) -> bool:
        with contextlib.suppress(DataError), self.files.fetched(stored, "file"):
            return True
        return False

    async def submit(self, queue: Queue) -> int:
        return len(await submit_all(queue, self.files, folder_files(self.folder)))

    def worker(self, queue: Queue, store, *, say=print, url: str = "", name: str = "") -> Worker:
        endpoint = self.endpoint if not url else Endpoint("embedding", url, *_rest(self.endpoint))
        return Worker(
            queue,
            self.files,
            store,
            document_embedder(endpoint),
            settings=self.endpoint.weights,
            name=name,
            backoff=QUICK,
            say=say,
        )

    @contextlib.asynccontextmanager
    async def workers(self, queue: Queue, count: int = 1, *, url: str = ""):
        """Run workers in this process; yield what they say."""
        said: list[str] = []
        stores = [self.store() for _ in range(count)]
        made = [
            self.worker(queue, store, say=said.append, url=url, name=f"inside-{number}")
            for number, store in enumerate(stores)
        ]
        tasks = [asyncio.create_task(worker.run()) for worker in made]
        try:
            yield said
        finally:
            for worker in made:
                worker.stop()
            await asyncio.gather(*tasks)
            for store in stores:
                store.close()

    def found(self) -> Content:
        """Return text and metadata of every chunk, by id."""
        return {d.id: (d.content, _meta(d)) for d in self.documents()}

    def texts(self, document: str) -> str:
        of = [d for d in self.documents() if d.meta["document"] == document]
        return " ".join(d.content or "" for d in sorted(of, key=lambda d: d.meta["split_id"]))

    def undisturbed(self) -> Content:
        """Return what the folder gives without queue, workers and PostgreSQL.

        Ids and contents do not depend on the vectors, so hashes do for them.
        """
        store = InMemoryDocumentStore()
        indexing.update(
            store,
            folder_files(self.folder),
            preparation=indexing.preparation(),
            embedder=HashEmbedder(),
            settings=self.endpoint.weights,
        )
        return {d.id: (d.content, _meta(d)) for d in store.filter_documents()}

    def documents(self) -> list[Document]:
        store = self.store()
        try:
            return store.filter_documents()
        finally:
            store.close()


def _rest(endpoint: Endpoint) -> tuple[str, str, str]:
    return endpoint.model, endpoint.key_variable, endpoint.weights


def _meta(document: Document) -> str:
    return json.dumps(document.meta, sort_keys=True)


@pytest.fixture
def bench(services, servers, tmp_path, monkeypatch) -> Bench:
    monkeypatch.setenv("COOKBOOK_ENDPOINTS", "local")
    folder = tmp_path / "drop"
    folder.mkdir()
    api = endpoints.connect("nim", start=False)
    return Bench(services, f"test_{next(_numbers)}", folder, api.embedding)


def fill(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.write(f"note-{number}.md", f"# Note {number}\n\nThe code of room {number} is blue.")


def long_text(chunks: int) -> str:
    return " ".join(f"Room {number} is blue." for number in range(chunks * 20))


async def until(condition, seconds: float = 300) -> None:
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            await asyncio.sleep(0.02)


def log(bench: Bench, worker: str) -> str:
    return (bench.services.folder / f"{worker}.log").read_text("utf-8")


async def test_files_are_indexed_once(bench):
    fill(bench, 5)
    bench.write("deep/page.html", "<html><title>Page</title><body><p>The lift is slow.</p></body>")
    bench.write("plain.txt", "The stairs are quick.")
    async with bench.connect() as queue, bench.workers(queue, 2) as said:
        assert await bench.submit(queue) == 7
        await queue.until_done(60)
        first = bench.found()
        assert first == bench.undisturbed()
        assert len({json.loads(meta)["document"] for _, meta in first.values()}) == 7
        assert sum("added" in line for line in said) == 7
        await bench.submit(queue)
        await queue.until_done(60)
        assert bench.found() == first
        assert sum("unchanged" in line for line in said) == 7
        assert sum(line.endswith("embedded") for line in said) == 0
        depth = await queue.depth()
        assert (depth.open, depth.dead) == (0, 0)
    embedded = document_embedder(bench.endpoint).run(bench.documents())["documents"]
    for chunk, again in zip(bench.documents(), embedded, strict=True):
        assert np.dot(chunk.embedding, again.embedding) > 0.999


async def test_the_same_content_is_stored_once(bench):
    bench.write("one.txt", f"Twins. {bench.index}")
    bench.write("two.txt", f"Twins. {bench.index}")
    stored = [bench.files.put(bench.folder / name) for name in ("one.txt", "two.txt")]
    assert stored[0] == stored[1]
    async with bench.connect() as queue, bench.workers(queue):
        await bench.submit(queue)
        await queue.until_done(60)
    assert bench.texts("one.txt").endswith(f"Twins. {bench.index}")
    assert bench.texts("two.txt").endswith(f"Twins. {bench.index}")


async def test_a_changed_file_replaces_its_chunks_and_a_removed_one_takes_them_away(bench):
    bench.write("rules.md", "# Rules\n\n" + long_text(4))
    bench.write("stays.md", "# Stays\n\nIt stays.")
    async with bench.connect() as queue, bench.workers(queue):
        await bench.submit(queue)
        await queue.until_done(60)
        before = bench.found()
        bench.write("rules.md", "# Rules\n\nThere is one rule.")
        await bench.submit(queue)
        await queue.until_done(60)
        assert bench.texts("rules.md").split("\n")[-1] == "There is one rule."
        assert len(bench.found()) == 2 < len(before)
        await remove(queue, "rules.md")
        await queue.until_done(60)
        assert bench.texts("rules.md") == ""
        assert bench.texts("stays.md")


@pytest.mark.parametrize("place", ["", "memory://"])
async def test_a_file_leaves_the_store_with_the_last_document_that_has_it(bench, place):
    bench.place = place and place + bench.index
    bench.write("one.txt", f"Twins. {bench.index}")
    bench.write("two.txt", f"Twins. {bench.index}")
    twins = bench.stored("one.txt")
    async with bench.connect() as queue, bench.workers(queue):
        await bench.submit(queue)
        await queue.until_done(60)
        bench.write("one.txt", f"Alone. {bench.index}")
        alone = bench.stored("one.txt")
        await bench.submit(queue)
        await queue.until_done(60)
        assert (bench.has(twins), bench.has(alone)) == (True, True)
        await remove(queue, "two.txt")
        await queue.until_done(60)
        assert (bench.has(twins), bench.has(alone)) == (False, True)
        await remove(queue, "one.txt")
        await queue.until_done(60)
        assert not bench.has(alone)


async def test_the_files_of_versions_that_were_never_begun_leave_too(bench):
    versions = []
    async with bench.connect() as queue:
        for version in range(3):
            bench.write("draft.txt", f"Version {version} of {bench.index}.")
            versions.append(bench.stored("draft.txt"))
            await bench.submit(queue)
        assert all(map(bench.has, versions))
        async with bench.workers(queue):
            await queue.until_done(60)
    assert [bench.has(version) for version in versions] == [False, False, True]


async def test_a_file_stays_while_a_job_of_any_queue_names_it(bench):
    bench.write("one.txt", f"Twins. {bench.index}")
    stored = bench.stored("one.txt")
    async with (
        bench.connect() as queue,
        connect(bench.services.nats_url, name=f"{bench.index}_other") as other,
        bench.workers(queue),
    ):
        await bench.submit(other)
        await bench.submit(queue)
        await queue.until_done(60)
        await remove(queue, "one.txt")
        await queue.until_done(60)
        assert bench.has(stored)
        async with bench.workers(other):
            await other.until_done(60)
            await remove(other, "one.txt")
            await other.until_done(60)
        assert not bench.has(stored)


async def test_a_file_stays_while_a_dead_letter_names_it(bench):
    for name in ("broken.pdf", "copy.pdf"):
        (bench.folder / name).write_bytes(f"%PDF-1.7 and no PDF after it {bench.index}".encode())
    stored = bench.stored("copy.pdf")
    async with bench.connect() as queue, bench.workers(queue):
        await bench.submit(queue)
        await queue.until_done(60)
        await remove(queue, "broken.pdf")
        await queue.until_done(60)
        (letter,) = await queue.dead_letters()
        await queue.send_again(letter)
        await queue.until_done(60)
        (again,) = await queue.dead_letters()
        assert "cannot be read as a PDF" in again.reason
        await remove(queue, "copy.pdf")
        await queue.until_done(60)
        assert not await queue.dead_letters()
    assert not bench.has(stored)


@pytest.mark.parametrize("moment", ["before the file is moved", "after it"])
async def test_a_file_that_is_sent_again_while_it_is_deleted_is_not_lost(
    bench, monkeypatch, moment
):
    bench.write("one.txt", f"Twins. {bench.index}")
    again = SourceFile("again.txt", bench.folder / "one.txt")
    discard, moments = FileStore.discard, []

    async with bench.connect() as queue, bench.connect() as sender, bench.workers(queue):
        loop = asyncio.get_running_loop()

        def send() -> None:
            moments.append(moment)
            work = submit(sender, bench.files, again)
            asyncio.run_coroutine_threadsafe(work, loop).result(10)

        def interrupted(store, sha256, wanted):
            def late() -> bool:
                if moment == "after it":
                    send()
                return wanted()

            if moment != "after it":
                send()
            discard(store, sha256, late)

        await bench.submit(queue)
        await queue.until_done(60)
        monkeypatch.setattr(FileStore, "discard", interrupted)
        await remove(queue, "one.txt")
        await queue.until_done(60)
        assert moments
        assert bench.has(bench.stored("one.txt"))
        assert bench.texts("again.txt")
        assert not await queue.dead_letters()


async def test_a_file_that_is_about_to_be_sent_is_not_deleted(bench, monkeypatch):
    bench.write("one.txt", f"Twins. {bench.index}")
    put = FileStore.put
    async with bench.connect() as queue, bench.connect() as sender, bench.workers(queue):
        loop = asyncio.get_running_loop()
        await bench.submit(queue)
        await queue.until_done(60)

        async def removed() -> None:
            await remove(queue, "one.txt")
            await queue.until_done(60)

        def interrupted(store, path):
            stored = put(store, path)
            asyncio.run_coroutine_threadsafe(removed(), loop).result(60)
            return stored

        monkeypatch.setattr(FileStore, "put", interrupted)
        await submit(sender, bench.files, SourceFile("again.txt", bench.folder / "one.txt"))
        await queue.until_done(60)
        assert not bench.texts("one.txt")
        assert bench.texts("again.txt")
        assert not await queue.dead_letters()


async def test_a_file_that_cannot_be_deleted_does_not_stop_the_worker(bench, monkeypatch):
    def refuse(*_):
        raise PermissionError("Read-only file system")

    monkeypatch.setattr(FileStore, "discard", refuse)
    bench.write("note-0.md", "Content that no other test's queue on this server refers to.")
    async with bench.connect() as queue, bench.workers(queue) as said:
        await bench.submit(queue)
        await queue.until_done(60)
        await remove(queue, "note-0.md")
        await queue.until_done(60)
    assert not bench.found()
    assert "note-0.md: a file stays in the file store (Read-only file system)" in said


async def test_only_the_newest_of_waiting_versions_is_done(bench):
    async with bench.connect() as queue:
        for version in range(4):
            bench.write("draft.txt", f"Version {version}.")
            await bench.submit(queue)
        assert (await queue.depth()).pending == 1
        async with bench.workers(queue) as said:
            await queue.until_done(60)
            assert len(said) == 1
    assert bench.texts("draft.txt").endswith("Version 3.")


async def test_a_newer_version_waits_for_the_worker_that_has_the_older_one(bench, servers):
    async with (
        bench.connect() as queue,
        bench.connect() as other,
        relay(servers.port_base + 1) as nim,
        bench.workers(queue, url=f"http://127.0.0.1:{nim.port}/v1") as slow,
    ):
        await nim.down()
        bench.write("minutes.txt", "The old minutes.")
        await bench.submit(queue)
        await until(lambda: any("waiting for it" in line for line in slow))
        bench.write("minutes.txt", "The new minutes.")
        await bench.submit(queue)
        async with bench.workers(other) as quick:
            await until(lambda: _given_and_waiting(other))
            assert not quick
            await nim.up()
            await queue.until_done(60)
            assert bench.texts("minutes.txt").endswith("The new minutes.")
            assert any("changed" in line for line in quick)


async def test_an_older_version_is_not_begun_after_the_newer_one_is_done(bench):
    bench.write("minutes.txt", "The old minutes.")
    async with bench.connect() as queue:
        await bench.submit(queue)
        message = await queue.take(10)
        assert message is not None
        late = Delivery(queue, message, "late")
        bench.write("minutes.txt", "The new minutes.")
        await bench.submit(queue)
        async with bench.workers(queue):
            await until(lambda: bench.texts("minutes.txt"))
            await queue.until_done(30)
        assert not await late.begin()
        assert (await queue.depth()).open == 0
    assert bench.texts("minutes.txt").endswith("The new minutes.")


async def _given_and_waiting(queue: Queue) -> bool:
    depth = await queue.depth()
    return depth.pending == 0 and depth.working == 1


async def test_a_broken_file_is_given_up_after_three_tries_with_its_reason(bench):
    (bench.folder / "broken.pdf").write_bytes(b"%PDF-1.7 and nothing of a PDF after it")
    fill(bench, 2)
    async with bench.connect() as queue, bench.workers(queue):
        await bench.submit(queue)
        await queue.until_done(60)
        assert (await queue.depth()).dead == 1
        (letter,) = await queue.dead_letters()
        assert letter.job.document == "broken.pdf"
        assert letter.job.file == bench.files.put(bench.folder / "broken.pdf")
        assert "cannot be read as a PDF" in letter.reason
        assert [one.reason for one in letter.tries] == [letter.reason] * 3
        assert len(bench.found()) == 2

        await queue.send_again(letter)  # it is as broken as before
        await queue.until_done(60)
        (again,) = await queue.dead_letters()
        assert len(again.tries) == 3
        assert again.number > letter.number

        pdf = next(Path("data").rglob("*.pdf"))
        (bench.folder / "broken.pdf").write_bytes(pdf.read_bytes())
        await bench.submit(queue)
        await queue.until_done(60)
        assert not await queue.dead_letters()
        assert bench.texts("broken.pdf")


async def test_the_command_gives_up_a_file_that_takes_too_much_to_read(bench, monkeypatch):
    fill(bench, 1)
    for name, value in bench.services.environment(bench.index).items():
        monkeypatch.setenv(name, value)
    # Any file is too much for a byte of memory.
    monkeypatch.setattr(BoundedPreparation.__init__, "__defaults__", (1, 60.0))
    async with bench.connect() as queue:
        await bench.submit(queue)
        await serve(parser().parse_args(["--until-empty", "--backoff", "0.1", "0.1"]))
        (letter,) = await queue.dead_letters()
    assert letter.reason == "it needs more than 0 MB of memory to read"


async def test_a_file_that_is_not_what_was_queued_is_not_indexed(bench):
    bench.write("secret.txt", f"The true text of {bench.index}.")
    async with bench.connect() as queue:
        await bench.submit(queue)
        stored = bench.files.put(bench.folder / "secret.txt")
        place = bench.services.files / stored.sha256[:2] / stored.sha256
        place.write_text("A forged text.", encoding="utf-8")
        async with bench.workers(queue):
            await queue.until_done(60)
        (letter,) = await queue.dead_letters()
        assert "is not what was queued" in letter.reason
    assert not bench.found()


@pytest.mark.long
async def test_an_outage_of_the_nim_is_waited_for(bench, servers):
    fill(bench, 2)
    async with (
        bench.connect(ack_wait=1.5) as queue,
        relay(servers.port_base + 1) as nim,
        bench.workers(queue, 2, url=f"http://127.0.0.1:{nim.port}/v1") as said,
        bench.connect() as other,
    ):
        await nim.down()
        await bench.submit(queue)
        await until(lambda: sum("waiting for it" in line for line in said) == 2)
        # Longer than a job is lent without a sign of life, and nobody else gets one.
        assert await other.take(3) is None
        assert not bench.found()
        assert (await queue.depth()).working == 2
        await nim.up()
        await queue.until_done(60)
        assert not await queue.dead_letters()
        assert not any("failed" in line for line in said)
    assert bench.found() == bench.undisturbed()


async def test_a_queue_and_a_store_that_went_away_are_used_again(bench):
    url = httpx.URL(bench.services.nats_url)
    bench.write("before.txt", "Before.")
    async with bench.connect() as queue, relay(url.port) as nats:
        through = str(url.copy_with(port=nats.port))
        async with connect(through, name=bench.index) as other, bench.workers(other) as said:
            await bench.submit(queue)
            await queue.until_done(60)
            await nats.down()
            with psycopg.connect(bench.services.store_url) as server:
                server.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
            bench.write("after.txt", "After.")
            await bench.submit(queue)
            await asyncio.sleep(1.5)
            assert not bench.texts("after.txt")
            await nats.up()
            await queue.until_done(60)
            assert bench.texts("after.txt")
            assert not any("failed" in line for line in said)
    assert bench.found() == bench.undisturbed()


@pytest.mark.long
async def test_jobs_outlive_a_killed_postgresql(bench):
    """PostgreSQL breaks every connection and recovers when one of its processes is killed."""
    fill(bench, 60)
    async with bench.connect() as queue:
        await bench.submit(queue)
        async with bench.workers(queue, 2) as said:
            await until(lambda: sum("added" in line for line in said) > 10)
            with contextlib.closing(psycopg.connect(bench.services.store_url)) as server:
                os.kill(server.info.backend_pid, signal.SIGKILL)
                with pytest.raises(psycopg.OperationalError):
                    server.execute("SELECT 1")
            assert (await queue.depth()).open
            await queue.until_done(90)
        assert not await queue.dead_letters()
        assert not any("failed" in line for line in said)
        assert sum("waiting for it" in line for line in said)
    assert bench.found() == bench.undisturbed()


@pytest.mark.long
async def test_jobs_outlive_a_killed_nats_server(bench, tmp_path):
    fill(bench, 60)
    folder = tmp_path / "nats"
    server = Nats(folder)
    async with connect(server.url, name=bench.index) as queue:
        await bench.submit(queue)
        async with bench.workers(queue, 2) as said:
            await until(lambda: sum("added" in line for line in said) > 10)
            server.process.kill()
            assert server.process.wait(10) == -9
            assert sum("added" in line for line in said) < 60
            restarted = started_again(server, folder)
            try:
                await queue.until_done(90)
                assert not await queue.dead_letters()
            finally:
                end(restarted)
        assert not any("failed" in line for line in said)
    assert bench.found() == bench.undisturbed()


def started_again(server: Nats, folder: Path) -> subprocess.Popen[bytes]:
    """Start a killed server with its data, token and port."""
    settings = folder / "nats.conf"
    text = settings.read_text("utf-8")
    settings.write_text(text.replace(":-1", f":{urlsplit(server.url).port}", 1), "utf-8")
    return subprocess.Popen([nats_server(), "-c", settings])


async def test_a_killed_workers_job_is_finished_by_another(bench, servers, monkeypatch):
    bench.write("long.txt", long_text(50))
    fill(bench, 3)
    async with relay(servers.port_base + 1) as nim, bench.connect() as queue:
        monkeypatch.setenv("COOKBOOK_ENDPOINTS", "self-hosted")
        monkeypatch.setenv("NIM_EMBEDDING_URL", f"http://127.0.0.1:{nim.port}/v1")
        name = f"{bench.index}-killed"
        worker = bench.services.start_worker("--ack-wait=3", name=name, index=bench.index)
        await until(lambda: "Ready" in log(bench, name))
        nim.hold()  # or the job might be done before it is looked at
        await bench.submit(queue)
        await until(lambda: _long_in_hand(queue, bench))
        worker.send_signal(signal.SIGKILL)
        assert worker.wait(10) == -9
        assert not bench.texts("long.txt")
        assert (await queue.depth()).open
        async with bench.workers(queue) as said:
            await queue.until_done(90)
            assert any(line.startswith("long.txt: added") for line in said)
        assert not await queue.dead_letters()
    assert bench.found() == bench.undisturbed()


async def _long_in_hand(queue: Queue, bench: Bench) -> bool:
    """Tell whether a worker has claimed the long file."""
    try:
        await queue.stream.get_last_msg(
            queue.stream_name("CLAIMS"),
            queue.subject("CLAIMS", queue_module.subject_key("long.txt")),
        )
    except queue_module.nats.js.errors.NotFoundError:
        return False
    return True


async def test_sigterm_gives_the_job_back(bench, servers, monkeypatch):
    async with relay(servers.port_base + 1) as nim:
        monkeypatch.setenv("COOKBOOK_ENDPOINTS", "self-hosted")
        monkeypatch.setenv("NIM_EMBEDDING_URL", f"http://127.0.0.1:{nim.port}/v1")
        name = f"{bench.index}-stopped"
        # Nobody would get the job within this test if it were not given back.
        worker = bench.services.start_worker("--ack-wait=600", name=name, index=bench.index)
        await until(lambda: "Ready" in log(bench, name))
        fill(bench, 1)
        await nim.down()
        async with bench.connect() as queue:
            await bench.submit(queue)
            await until(lambda: "waiting for it" in log(bench, name))
            worker.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait, 30) == 0
            assert "given back" in log(bench, name)
            assert (await queue.depth()).working == 0
            async with bench.workers(queue):
                await queue.until_done(30)
    assert bench.found() == bench.undisturbed()


async def test_a_stop_lets_the_job_in_hand_end(bench):
    bench.write("long.txt", long_text(20))
    fill(bench, 1)
    store = bench.store()
    async with bench.connect() as queue:
        await bench.submit(queue)
        worker = bench.worker(queue, store)
        task = asyncio.create_task(worker.run())
        await until(lambda: _in_hand(queue))
        worker.stop()
        assert (await task).done == 1
        assert (await queue.depth()).open == 1
    store.close()


async def _in_hand(queue: Queue) -> bool:
    return (await queue.depth()).working == 1


async def test_a_set_up_job_ends_when_nothing_is_left(bench):
    fill(bench, 2)
    store = bench.store()
    async with bench.connect() as queue:
        await bench.submit(queue)
        count = await bench.worker(queue, store).run(until_empty=True)
        assert (count.done, (await queue.depth()).open) == (2, 0)
    store.close()
    assert bench.found() == bench.undisturbed()


class Killed(BaseException):
    """Ends a worker without any of its clean-up."""


def kill_after(monkeypatch, owner: type, name: str, call: int) -> None:
    """Let a worker die right after a call of a method has done its work."""
    real, calls = getattr(owner, name), itertools.count(1)

    def count(result):
        if next(calls) == call:
            raise Killed
        return result

    async def awaited(*args, **kwargs):
        return count(await real(*args, **kwargs))

    def called(*args, **kwargs):
        return count(real(*args, **kwargs))

    monkeypatch.setattr(owner, name, awaited if asyncio.iscoroutinefunction(real) else called)


#: What a worker writes, in this order.
WRITES = {
    "claim": (Queue, "put_if", 1),
    "try": (Queue, "put_if", 2),
    "chunks": (PgvectorDocumentStore, "write_documents", 1),
    "old chunks": (PgvectorDocumentStore, "delete_documents", 1),
    "dead letters": (JetStreamContext, "purge_stream", 1),
    "reference to the old file": (Queue, "delete", 1),
    "acknowledgement": (Msg, "ack_sync", 1),
    "end of the try": (Queue, "delete", 2),
}


# The two writes between which a job is done but not yet given back.
@pytest.mark.parametrize(
    "write",
    [
        pytest.param(
            write, marks=[] if write in ("chunks", "acknowledgement") else [pytest.mark.long]
        )
        for write in WRITES
    ],
)
async def test_a_worker_that_dies_after_any_write_loses_and_doubles_nothing(
    bench, monkeypatch, write
):
    bench.write("rules.md", "# Rules\n\n" + long_text(4))
    async with bench.connect(ack_wait=1) as queue, bench.connect() as other:
        async with bench.workers(queue):
            await bench.submit(queue)
            await queue.until_done(30)
        bench.write("rules.md", "# Rules\n\nThere is one rule.")
        await bench.submit(queue)
        store = bench.store()
        with monkeypatch.context() as patched:
            kill_after(patched, *WRITES[write])
            with pytest.raises(Killed):
                await bench.worker(queue, store).run()
        store.close()
        async with bench.workers(other):
            await other.until_done(30)
        assert not await other.dead_letters()
    assert bench.found() == bench.undisturbed()


@pytest.mark.long
async def test_a_job_that_kills_its_workers_is_given_up(bench):
    fill(bench, 1)
    async with bench.connect(ack_wait=0.5) as queue:
        await bench.submit(queue)
        for number in range(3):  # workers that begin and are never heard of again
            message = await queue.take(10)
            delivery = Delivery(queue, message, f"victim-{number}")
            assert await delivery.begin()
            await delivery.close()
        async with bench.workers(queue):
            await queue.until_done(30)
        (letter,) = await queue.dead_letters()
    assert [one.worker for one in letter.tries] == ["victim-0", "victim-1", "victim-2"]
    assert "ended without a word" in letter.reason


async def another_worker_tries(queue: Queue, message, last: int) -> None:
    """Write the record of a try, as another worker does whose claim is newer."""
    number = str(message.metadata.sequence.stream)
    assert await queue.put_if("TRIES", number, b"[]", last)


async def test_a_claim_that_is_lost_before_the_try_is_recorded_means_no_work(bench, monkeypatch):
    fill(bench, 1)
    async with bench.connect() as queue:
        await bench.submit(queue)
        message = await queue.take(10)
        put = queue.put_if

        async def late(kind, key, body, last):
            if kind == "TRIES":
                monkeypatch.undo()
                await another_worker_tries(queue, message, 0)
            return await put(kind, key, body, last)

        monkeypatch.setattr(queue, "put_if", late)
        delivery = Delivery(queue, message, "late")
        assert not await delivery.begin()
        await delivery.close()
        assert (await queue.depth()).working == 0


async def test_a_last_failure_after_the_claim_is_lost_makes_no_dead_letter(bench):
    fill(bench, 1)
    async with bench.connect() as queue:
        await bench.submit(queue)
        message = await queue.take(10)
        tries = json.dumps([{"worker": "w", "began": "", "reason": "bad"}] * 2).encode()
        number = str(message.metadata.sequence.stream)
        assert await queue.put_if("TRIES", number, tries, 0)
        delivery = Delivery(queue, message, "late")
        assert await delivery.begin()
        info = await queue.stream.stream_info(queue.stream_name("TRIES"))
        await another_worker_tries(queue, message, info.state.last_seq)
        assert not await delivery.failed("too late")
        await delivery.close()
        assert not await queue.dead_letters()


@pytest.mark.long
async def test_a_job_that_was_given_up_does_not_share_its_pipeline(bench, monkeypatch):
    held, used = threading.Event(), []
    make = indexing.preparation

    class Slow:
        """Converts; the first conversion takes until the test ends."""

        def __init__(self) -> None:
            self._pipeline = make()
            self.dumps = self._pipeline.dumps

        def run(self, *args, **kwargs):
            used.append(self)
            if len(used) == 1:
                held.wait(60)
            return self._pipeline.run(*args, **kwargs)

    monkeypatch.setattr(indexing, "preparation", Slow)
    monkeypatch.setattr("rag_service.indexer._LAST_CALL", 0.1)
    fill(bench, 1)
    async with bench.connect(ack_wait=1) as queue, bench.workers(queue):
        await bench.submit(queue)
        await until(lambda: used)
        claims = queue.stream_name("CLAIMS")
        await queue.stream.purge_stream(claims)
        assert await queue.put_if("CLAIMS", queue_module.subject_key("note-0.md"), b"other", 0)
        await asyncio.sleep(0.6)  # until the worker renews its claim and finds another
        await queue.stream.purge_stream(claims)
        try:
            await queue.until_done(30)
        finally:
            held.set()
    assert len(used) == 2
    assert used[0] is not used[1]


async def test_dead_letters_are_read_one_by_one_over_any_gap(bench):
    async with bench.connect() as queue:
        dead = queue.stream_name("DEAD")
        letter = {"job": {"document": "a", "file": None}, "reason": "bad", "tries": []}
        for key in ("first", *["again"] * 30):
            body = json.dumps(letter | {"reason": key}).encode()
            await queue.stream.publish(queue.subject("DEAD", key), body)
        asked = queue.client.stats["out_msgs"]
        assert [one.reason for one in await queue.dead_letters()] == ["first", "again"]
        assert queue.client.stats["out_msgs"] - asked <= 4
        assert (await queue.stream.stream_info(dead)).state.last_seq == 31


async def test_a_folder_is_followed(bench):
    bench.write("here.md", "# Here\n\nFrom the beginning.")
    bench.write("picture.png", "no text")
    (bench.folder / ".hidden.md").write_text("# Hidden")
    async with bench.connect() as queue, bench.workers(queue):
        said: list[str] = []
        drop = DropFolder(bench.folder, queue, bench.files, follow_deletions=True, say=said.append)
        following = asyncio.create_task(drop.follow(every=0.1))
        try:
            await until(lambda: bench.texts("here.md"))
            bench.write("later.txt", "Dropped later.")
            await until(lambda: bench.texts("later.txt"))
            bench.write("later.txt", "Dropped later, and changed.")
            await until(lambda: "changed" in bench.texts("later.txt"))
            (bench.folder / "here.md").unlink()
            await until(lambda: not bench.texts("here.md"))
        finally:
            following.cancel()
    assert "picture.png: left out, there is no converter for it" in said
    assert not any("hidden" in line for line in said)


async def test_the_command_shows_and_sends_dead_letters(bench, monkeypatch, capsys):
    (bench.folder / "empty.txt").write_bytes(b"")
    monkeypatch.setenv(NATS_URL, bench.services.nats_url)
    monkeypatch.setenv(INDEX, bench.index)
    async with bench.connect() as queue:
        await bench.submit(queue)
        async with bench.workers(queue):
            await queue.until_done(30)
        assert await asyncio.to_thread(queue_module.main, ["dead"]) == 0
        letter = json.loads(capsys.readouterr().out)
        assert letter["reason"] == "the file is empty"
        assert letter["job"]["file"]["size"] == 0
        assert await asyncio.to_thread(queue_module.main, ["send-again"]) == 0
        capsys.readouterr()
        assert await asyncio.to_thread(queue_module.main, ["status"]) == 0
        assert capsys.readouterr().out.startswith("1 pending")


def test_a_table_with_vectors_of_another_length_is_refused(bench):
    bench.store().close()
    with pytest.raises(ConfigurationError, match=f"holds vectors of {WIDTH} numbers"):
        open_store(bench.services.store_url, dimension=WIDTH + 1, index=bench.index)


def test_a_database_that_cannot_be_used_is_no_outage(bench):
    url = urlsplit(bench.services.store_url)
    with psycopg.connect(bench.services.store_url, autocommit=True) as server:
        server.execute("DROP DATABASE IF EXISTS ascii")
        server.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    for name, sentence in (("ascii", "encoding SQL_ASCII"), ("absent", "does not exist")):
        with pytest.raises(ConfigurationError, match=sentence):
            open_store(urlunsplit(url._replace(path=f"/{name}")), dimension=WIDTH)


async def test_the_retriever_of_the_store_finds(bench, tmp_path):
    bench.write("lift.txt", "The lift to the tower is out of order.")
    bench.write("menu.txt", "Today the kitchen serves lentil soup.")
    embedder = document_embedder(bench.endpoint)
    for url in (bench.services.store_url, f"file://{tmp_path}/qdrant"):
        store = open_store(url, dimension=WIDTH, index=bench.index)
        indexing.update(
            store,
            folder_files(bench.folder),
            preparation=indexing.preparation(),
            embedder=embedder,
        )
        question = embedder.run([Document(content="elevator broken")])["documents"][0].embedding
        best = embedding_retriever(store, top_k=1).run(query_embedding=question)["documents"]
        assert [d.meta["document"] for d in best] == ["lift.txt"]
        store.close()


@pytest.mark.long
def test_the_servers_end_with_a_killed_parent(tmp_path):
    program = (
        "import json, psutil\n"
        "from rag_service.local import LocalServices\n"
        "services = LocalServices().start()\n"
        "children = psutil.Process().children(recursive=True)\n"
        "pid = (services.folder / 'postgres' / 'postmaster.pid').read_text().split()[0]\n"
        "pids = [*[child.pid for child in children], int(pid)]\n"
        "print(json.dumps([str(services.folder), *pids]), flush=True)\n"
        "input()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None and parent.stdout is not None
    folder, *pids = json.loads(parent.stdout.readline())
    assert len(set(pids)) >= 3  # their parent, NATS, PostgreSQL
    try:
        parent.kill()
        parent.wait()
        limit = time.monotonic() + 30
        while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < limit:
            time.sleep(0.05)
        assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    finally:
        parent.stdin.close()
        parent.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
async def test_five_hundred_files_and_a_killed_worker(bench):
    fill(bench, 500)
    names = [f"{bench.index}-{number}" for number in (1, 2)]
    workers = [
        bench.services.start_worker("--ack-wait=3", name=name, index=bench.index) for name in names
    ]
    async with bench.connect() as queue:
        await bench.submit(queue)
        await until(lambda: "added" in log(bench, names[0]) and "added" in log(bench, names[1]))
        await until(lambda: log(bench, names[0]).count("added") > 50)
        os.kill(workers[0].pid, signal.SIGKILL)
        assert (await queue.depth()).open
        await queue.until_done(120)
        assert not await queue.dead_letters()
    found = bench.found()
    documents = [json.loads(meta)["document"] for _, meta in found.values()]
    assert sorted(documents) == sorted(f"note-{number}.md" for number in range(500))
    assert found == bench.undisturbed()
