"""The query service as a real process: two workers over PostgreSQL, NATS and the local NIMs."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from nim_cookbook.answering import REFUSAL, TOP_K
from nim_cookbook.data import data_path
from rag_service.files import FileStore
from rag_service.local import LocalServices, Module
from rag_service.queue import Job, connect
from rag_service.stores import embedding_retriever, open_store
from tests.query_service import (
    TOKEN,
    Tap,
    TestedService,
    environment,
    index_documents,
    running,
)
from tests.support import Servers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="PostgreSQL's socket is POSIX")

QUESTION = "Under which number are hand warmers ordered?"
ANSWER = "WX-77"
ORIGIN = "https://chat.example.com"


class Collector:
    """An OpenTelemetry collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.arrived = threading.Event()
        keep = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                keep.bodies.append(body)
                if b"haystack.component.run" in body:
                    keep.arrived.set()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def services(servers: Servers) -> Iterator[LocalServices]:
    # Not below pytest's folders: they are closed to PostgreSQL's user when the tests run as root.
    with LocalServices() as local:
        index_documents(local)
        yield local


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    kept = Collector()
    yield kept
    kept.server.shutdown()


@pytest.fixture(scope="module")
def service(
    services: LocalServices,
    servers: Servers,
    chat_tap: Tap,
    collector: Collector,
) -> Iterator[TestedService]:
    settings = environment(
        services,
        servers,
        NIM_CHAT_URL=f"http://127.0.0.1:{chat_tap.port}/v1",
        COOKBOOK_SERVICE_ORIGINS=ORIGIN,
        COOKBOOK_UPLOAD_MB="1",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="200",
        OPENAI_MAX_RETRIES="1",  # Haystack's chat generators read it
    )
    with running(services, settings, "--workers", "2") as started:
        yield started


@pytest.fixture
def client(service: TestedService) -> Iterator[httpx.Client]:
    with service.client() as opened:
        yield opened


@pytest.fixture
def chat(service: TestedService) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=TOKEN, max_retries=0)


def test_a_question_is_answered_with_its_source(client: httpx.Client) -> None:
    answer = client.post("/ask/run", json={"question": QUESTION})
    assert answer.status_code == 200, answer.text
    result = answer.json()["result"]
    assert result["answer"].strip()  # the small model's; test_answers.py judges answers
    assert not result["refused"]
    assert len(result["sources"]) == TOP_K
    assert result["sources"][0]["document"] == "handbook-021"
    assert ANSWER in result["sources"][0]["text"]
    assert all("local stand-in" in name for name in result["weights"].values())


def test_a_question_on_another_subject_is_refused_without_a_source(client: httpx.Client) -> None:
    question = "Who won the football world cup in 1998, and who scored in the final?"
    result = client.post("/ask/run", json={"question": question}).json()["result"]
    assert result["refused"]
    assert (result["answer"], result["sources"]) == (REFUSAL, [])


def test_many_first_searches_at_once_do_not_use_up_the_connections(services: LocalServices) -> None:
    retriever: Any = embedding_retriever(open_store(services.store_url, dimension=4, index="burst"))

    async def burst() -> list[Any]:
        asked = (retriever.run_async(query_embedding=[1.0] * 4) for _ in range(150))
        return await asyncio.gather(*asked)  # PostgreSQL has a hundred connections

    assert asyncio.run(burst()) == [{"documents": []}] * 150


def test_search_finds_chunks_in_order_and_asks_no_chat_model(client: httpx.Client) -> None:
    found = client.post("/search/run", json={"question": QUESTION, "top_k": 3}).json()["result"]
    scores = [source["score"] for source in found["sources"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert found["sources"][0]["document"] == "handbook-021"


def test_filters_choose_what_may_be_found(client: httpx.Client) -> None:
    only = {"field": "meta.document", "operator": "==", "value": "handbook-017"}
    body = {"question": QUESTION, "filters": only}
    found = client.post("/search/run", json=body).json()["result"]["sources"]
    assert {source["document"] for source in found} == {"handbook-017"}


@pytest.mark.parametrize("question", ["", "   ", "x" * 4001])
def test_an_empty_or_endless_question_is_the_callers_mistake(
    client: httpx.Client, question: str
) -> None:
    answer = client.post("/ask/run", json={"question": question})
    assert answer.status_code == 422
    assert "1 to 4000 characters" in answer.json()["detail"]


KIND = {"field": "meta.kind", "operator": "==", "value": "handbook"}
NESTED: dict[str, Any] = KIND
for _ in range(300):
    NESTED = {"operator": "AND", "conditions": [NESTED]}


@pytest.mark.parametrize(
    "filters",
    [
        "kind",
        [KIND],
        {"field": "meta.kind"},
        {"operator": "AND"},
        {"operator": "AND", "conditions": []},
        {"operator": "AND", "conditions": ["kind"]},
        {"operator": "NOR", "conditions": [KIND]},
        {"operator": "AND", "conditions": [KIND] * 101},
        NESTED,
        KIND | {"operator": "~"},
        KIND | {"operator": ">"},  # of a text that is no date
        KIND | {"value": "a\0b"},
        KIND | {"value": "\ud800"},
        KIND | {"value": {"a": 1}},
        KIND | {"value": [["a"]]},
        KIND | {"value": 5},  # the kinds are words
        KIND | {"operator": "in"},
        KIND | {"value": 10**30},
        KIND | {"field": "embedding"},
        KIND | {"field": "meta.kind' OR 1=1 --"},
        KIND | {"field": 5},
    ],
    ids=lambda filters: json.dumps(filters)[:60],
)
def test_a_wrong_filter_is_the_callers_mistake(client: httpx.Client, filters: Any) -> None:
    body = json.dumps({"question": QUESTION, "filters": filters})
    for path in ("/search/run", "/ask/run"):
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, answer.text
        assert answer.json()["detail"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["hello"],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": ["hello"]}],
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": ["user"], "content": "hello"}],
        [{"role": "assistant", "content": "hello"}],
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_message_is_the_callers_mistake(
    client: httpx.Client, messages: Any, stream: bool
) -> None:
    body = json.dumps({"model": "ask", "messages": messages, "stream": stream})
    answer = client.post(
        "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "null", '{"question": 5}', '{"question": "\\ud800"}']
)
def test_a_body_that_is_no_question_is_the_callers_mistake(client: httpx.Client, text: str) -> None:
    answer = client.post("/search/run", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text


def test_the_openai_client_lists_the_models(chat: openai.OpenAI) -> None:
    assert "ask" in [model.id for model in chat.models.list()]


def test_the_openai_client_gets_an_answer_with_its_source(chat: openai.OpenAI) -> None:
    done = chat.chat.completions.create(
        model="ask", messages=[{"role": "user", "content": QUESTION}]
    )
    text = done.choices[0].message.content or ""
    assert "[1] handbook-021" in text
    assert done.choices[0].finish_reason == "stop"
    assert done.model_extra and done.model_extra["sources"][0]["document"] == "handbook-021"


def test_the_openai_client_streams_an_answer_with_its_source(chat: openai.OpenAI) -> None:
    chunks = list(
        chat.chat.completions.create(
            model="ask", messages=[{"role": "user", "content": QUESTION}], stream=True
        )
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    whole = chat.chat.completions.create(
        model="ask", messages=[{"role": "user", "content": QUESTION}]
    )
    assert len([text for text in texts if text]) > 3  # in pieces, and not at once
    # A word of the answer may differ: llama.cpp rounds differently beside another request.
    answer, told = "".join(texts).split("\n\n", 1)
    assert answer
    assert told == (whole.choices[0].message.content or "").split("\n\n", 1)[1]
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-2].model_extra
    assert chunks[-2].model_extra["sources"][0]["document"] == "handbook-021"


FIRST = "How thick must clear ice on a reservoir be before anyone walks on it?"
TALK: Any = [
    {"role": "user", "content": FIRST},
    {"role": "assistant", "content": "14 cm.\n\nSources:\n- [1] handbook-021.md"},
    {"role": "user", "content": QUESTION},
]


def test_what_is_found_for_a_follow_up_is_what_the_joined_questions_find(
    chat: openai.OpenAI, client: httpx.Client
) -> None:
    done = chat.chat.completions.create(model="ask", messages=TALK)
    both = f"{FIRST} {QUESTION}"
    assert done.model_extra
    assert done.model_extra["conversation"] == {
        "searched_for": both, "looked_at": 1, "forgotten": 0,
    }  # fmt: skip
    found = client.post("/search/run", json={"question": both, "top_k": TOP_K}).json()["result"]
    assert [one["text"] for one in done.model_extra["sources"]] == [
        one["text"] for one in found["sources"]
    ]


def test_what_is_forgotten_of_a_streamed_conversation_is_said(chat: openai.OpenAI) -> None:
    older: Any = [
        {"role": role, "content": text}
        for n in range(3)
        for role, text in (("user", f"What is said of ice, part {n}?"), ("assistant", "Nothing."))
    ]
    stream = chat.chat.completions.create(model="ask", messages=[*older, *TALK], stream=True)
    chunks = list(stream)
    texts = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "Not considered: 1 earlier question." in texts
    assert chunks[-2].model_extra
    assert chunks[-2].model_extra["conversation"]["looked_at"] == 3
    assert chunks[-2].model_extra["conversation"]["forgotten"] == 1


def test_a_follow_up_is_rewritten_where_that_is_set(
    services: LocalServices, default_server: Servers
) -> None:
    settings = environment(services, default_server, COOKBOOK_FOLLOW_UPS="rewritten")
    with running(services, settings) as rewriting:
        asked = openai.OpenAI(base_url=f"{rewriting.url}/v1", api_key=TOKEN, max_retries=0)
        done = asked.chat.completions.create(model="ask", messages=TALK)
    assert done.model_extra
    made = done.model_extra["conversation"]
    assert made["looked_at"] == 1
    assert made["searched_for"].strip()
    assert "\n" not in made["searched_for"]


def test_a_stream_without_a_question_is_refused_before_it_begins(chat: openai.OpenAI) -> None:
    for messages in ([{"role": "system", "content": "Hello"}], [{"role": "user", "content": ""}]):
        with pytest.raises(openai.UnprocessableEntityError):
            chat.chat.completions.create(model="ask", messages=messages, stream=True)  # type: ignore[call-overload]


def test_a_streamed_refusal_is_text_too(chat: openai.OpenAI) -> None:
    question = "Who won the football world cup in 1998, and who scored in the final?"
    chunks = chat.chat.completions.create(
        model="ask", messages=[{"role": "user", "content": question}], stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == REFUSAL


@pytest.mark.parametrize(
    "path",
    [
        "/ask/run", "/v1/chat/completions", "/chat/completions", "/v1/models", "/v1/files",
        "/metrics", "/openapi.json", "/deploy_files", "/nothing",
    ],
)  # fmt: skip
def test_without_the_token_nothing_is_answered(service: TestedService, path: str) -> None:
    with service.client(token=None) as stranger:
        for method in ("GET", "POST"):
            answer = stranger.request(method, path, json={"question": QUESTION})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header",
    [
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"X-Api-Key": TOKEN},
    ],
)
def test_another_token_is_refused(service: TestedService, header: dict[str, str]) -> None:
    with service.client(token=None) as stranger:
        answer = stranger.post("/ask/run", headers=header, json={"question": QUESTION})
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/status"])
def test_probes_need_no_token(service: TestedService, path: str) -> None:
    with service.client(token=None) as stranger:
        assert stranger.get(path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/deploy_files", "/deploy-yaml", "/undeploy/ask", "/deploy", "/draw/ask"]
)
def test_nobody_deploys_code(client: httpx.Client, path: str) -> None:
    files = {"pipeline_wrapper.py": "raise SystemExit"}
    assert client.post(path, json={"name": "mine", "files": files}).status_code == 404
    assert "mine" not in client.get("/status").json()["pipelines"]


@pytest.mark.parametrize("path", ["/responses", "/v1/responses"])
def test_the_responses_api_is_not_offered(client: httpx.Client, path: str) -> None:
    """Hayhooks has its routes, and answers 501 where no pipeline has the method."""
    assert client.post(path, json={"model": "ask", "input": QUESTION}).status_code == 404
    assert path not in client.get("/openapi.json").json()["paths"]


def test_no_route_of_the_openapi_document_deploys(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "/ask/run" in paths
    assert not [path for path in paths if "deploy" in path]


def test_only_the_named_origin_may_call_from_a_browser(service: TestedService) -> None:
    asked = {"Access-Control-Request-Method": "POST"}
    with service.client(token=None) as browser:
        named = browser.options("/ask/run", headers={"Origin": ORIGIN, **asked})
        other = browser.options("/ask/run", headers={"Origin": "https://evil.example", **asked})
        refused = browser.post("/ask/run", headers={"Origin": ORIGIN}, json={"question": "?"})
    assert named.status_code == 200
    assert named.headers["access-control-allow-origin"] == ORIGIN
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers
    # The page can read why it was refused.
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN


def test_an_uploaded_file_is_stored_and_queued(
    client: httpx.Client, services: LocalServices, tmp_path: Path
) -> None:
    content = b"# Parking\n\nBicycles are parked behind the boiler house."
    answer = client.post(
        "/v1/files",
        files={"file": ("../../parking.md", content, "text/markdown")},
        data={"purpose": "assistants"},
    )
    assert answer.status_code == 200, answer.text
    assert (answer.json()["filename"], answer.json()["bytes"]) == ("parking.md", len(content))
    job = asyncio.run(next_job(services))
    assert (job.document, job.name) == (answer.json()["id"], "parking.md")
    assert job.file is not None
    with FileStore(services.files).fetched(job.file, job.name) as path:
        assert path.read_bytes() == content


def test_an_uploaded_pdf_is_asked_about_a_moment_later(
    client: httpx.Client, services: LocalServices
) -> None:
    pdf = data_path("company/pdf/sheet-hr-210.pdf")
    sent = {"file": (pdf.name, pdf.read_bytes(), "application/pdf")}
    answer = client.post("/v1/files", files=sent, data={"purpose": "assistants"})
    assert (answer.status_code, answer.json()["status"]) == (200, "uploaded")
    worker = services.start_worker("--until-empty")
    assert worker.wait(300) == 0
    asked = client.post("/ask/run", json={"question": "How long is the warranty on an HR-210?"})
    result = asked.json()["result"]
    assert "30 months" in result["answer"]
    assert result["sources"][0]["citation"] == "sheet-hr-210.pdf, p. 1"


def upload(chat: openai.OpenAI, name: str, text: str) -> str:
    return chat.files.create(file=(name, text.encode()), purpose="assistants").id


def found(client: httpx.Client, question: str, *documents: str) -> list[dict[str, Any]]:
    """Return what is found in some documents."""
    only = {"field": "meta.document", "operator": "in", "value": documents}
    answer = client.post("/search/run", json={"question": question, "filters": only})
    sources: list[dict[str, Any]] = answer.json()["result"]["sources"]
    return sources


def work(services: LocalServices) -> None:
    assert services.start_worker("--until-empty").wait(300) == 0


def stored_files(services: LocalServices, text: str) -> list[Path]:
    name = hashlib.sha256(text.encode()).hexdigest()
    return [path for path in services.files.rglob("*") if name in path.name]


def test_uploads_of_one_name_are_two_documents_and_both_are_found(
    client: httpx.Client, chat: openai.OpenAI, services: LocalServices
) -> None:
    texts = ("The kiln of hall 3 opens at six.", "The kiln of hall 3 has a yellow door.")
    one, other = (upload(chat, "kiln.md", text) for text in texts)
    assert upload(chat, "kiln.md", texts[0]) == one != other
    work(services)
    sources = found(client, "What is known about the kiln of hall 3?", one, other)
    assert {(source["document"], source["text"]) for source in sources} == {
        (one, texts[0]),
        (other, texts[1]),
    }
    assert [source["citation"] for source in sources] == ["kiln.md"] * 2


def test_an_upload_is_replaced_by_deleting_the_old_one(
    client: httpx.Client, chat: openai.OpenAI, services: LocalServices
) -> None:
    old, new = "The saw stands in hall 5.", "The saw stands in hall 6."
    first, second = upload(chat, "saw.md", old), upload(chat, "saw.md", new)
    twin = upload(chat, "copy.md", new)
    work(services)
    assert chat.files.delete(first).deleted
    chat.files.delete(second)
    work(services)
    sources = found(client, "Where does the saw stand?", first, second, twin)
    assert [source["document"] for source in sources] == [twin]
    assert not stored_files(services, old)
    assert stored_files(services, new)  # the copy's
    with pytest.raises(openai.NotFoundError, match="There is no file"):
        chat.files.delete(first)
    assert upload(chat, "saw.md", old) == first
    chat.files.delete(first)  # it waits still
    work(services)
    assert not found(client, "Where does the saw stand?", first)
    assert not stored_files(services, old)


@pytest.mark.parametrize(
    "name",
    [
        "file-" + "0" * 32, "file-" + "0" * 33, "file-" + "0" * 31 + "G", "handbook-021", "*", ">",
        "file-*", "%00", "%ff", "..%2fparking.md", "file-" + "0" * 32 + "%0a", "x" * 5000,
    ],
)  # fmt: skip
def test_a_file_that_is_no_upload_cannot_be_deleted(client: httpx.Client, name: str) -> None:
    answer = client.delete(f"/v1/files/{name}")
    assert answer.status_code in (404, 422), answer.text
    assert answer.json()["detail"]
    assert name not in answer.text or name == "file-" + "0" * 32
    assert found(client, QUESTION, "handbook-021")


def test_nobody_deletes_a_file_without_the_token(service: TestedService) -> None:
    with service.client(token=None) as stranger:
        assert stranger.delete(f"/v1/files/file-{'0' * 32}").status_code == 401


async def next_job(services: LocalServices) -> Job:
    async with connect(services.nats_url) as queue:
        message = await queue.take(timeout=60)
        assert message is not None
        await message.ack()
        return Job.decoded(message.data)


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [("tool.exe", b"MZ", 415), ("empty.md", b"", 422), ("big.txt", b"x" * 1_100_000, 413)],
)
def test_what_cannot_be_indexed_is_not_taken(
    client: httpx.Client, name: str, content: bytes, status: int
) -> None:
    answer = client.post("/v1/files", files={"file": (name, content)}, data={"purpose": "x"})
    assert answer.status_code == status, answer.text


def test_a_question_of_more_than_a_megabyte_is_not_read(client: httpx.Client) -> None:
    answer = client.post("/ask/run", json={"question": "x" * 1_100_000})
    assert answer.status_code == 413, answer.text


def test_a_body_of_unknown_size_is_not_taken(client: httpx.Client) -> None:
    answer = client.post("/ask/run", content=iter([b'{"question": "?"}']))
    assert answer.status_code == 411


def test_metrics_count_requests_of_all_workers(client: httpx.Client) -> None:
    def count(text: str) -> float:
        line = 'cookbook_requests_total{method="POST",route="/search/run",status="200"}'
        found = [row for row in text.splitlines() if row.startswith(line)]
        return float(found[0].split()[-1]) if found else 0.0

    before = count(client.get("/metrics").text)
    for _ in range(8):  # several connections, so that both workers get some
        with httpx.Client(base_url=client.base_url, headers=client.headers, timeout=60) as another:
            another.post("/search/run", json={"question": QUESTION}).raise_for_status()
    only_this = "cookbook_requests_in_flight 1.0"
    limit = time.monotonic() + 60  # a request is counted just after its answer has been sent
    while count(text := client.get("/metrics").text) < before + 8 or only_this not in text:
        assert time.monotonic() < limit, text
    assert count(text) == before + 8
    assert 'cookbook_request_seconds_bucket{le="+Inf",route="/search/run"}' in text


def test_traces_reach_the_collector(client: httpx.Client, collector: Collector) -> None:
    client.post("/search/run", json={"question": QUESTION}).raise_for_status()
    assert collector.arrived.wait(30)
    sent = b"".join(collector.bodies)
    assert b"haystack.pipeline.run" in sent
    assert b"cookbook-query" in sent
    assert TOKEN.encode() not in sent


def test_not_ready_while_a_nim_is_down(
    service: TestedService, chat_tap: Tap, client: httpx.Client
) -> None:
    chat_tap.turn(on=False)
    try:
        expected = {
            "chat": "not ready",
            "embedding": "ready",
            "reranking": "ready",
            "store": "ready",
        }
        limit = time.monotonic() + 60  # under load a check of a part that is well may end late
        while (checks := service.wait_for("/health/ready", 503).json()["checks"]) != expected:
            assert time.monotonic() < limit, checks
        assert client.get("/health/live").status_code == 200
        asked = client.post("/ask/run", json={"question": QUESTION})
        assert asked.status_code == 502
        assert "cannot be reached" in asked.json()["detail"]
    finally:
        chat_tap.turn(on=True)
    service.wait_for("/health/ready", 200)


def test_no_start_with_a_token_that_is_not_safe(services: LocalServices, servers: Servers) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "rag_service.app", "--port", "0"],
        env=environment(services, servers) | {"COOKBOOK_SERVICE_TOKEN": "short"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 2
    assert "shorter than 32 characters" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("module", [pytest.param("app", marks=pytest.mark.long), "chat"])
def test_a_stopped_service_leaves_no_folder(
    module: Module, services: LocalServices, servers: Servers, tmp_path: Path
) -> None:
    settings = environment(services, servers, TMPDIR=str(tmp_path))
    with running(services, settings, module=module):
        assert list(tmp_path.glob("cookbook-*"))
    assert not list(tmp_path.glob("cookbook-*"))
