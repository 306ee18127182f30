"""`NotionPages` around the real exporter and the real client, against the Notion stand-in."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from haystack import Pipeline
from haystack.components.preprocessors import DocumentSplitter
from haystack.core.errors import PipelineRuntimeError
from haystack.utils import Secret

from local_endpoints.notion import Workspace, build_app
from nim_cookbook import keys
from nim_cookbook.errors import ConfigurationError, EndpointUnreachable, MissingKeyError
from nim_cookbook.explain import explain
from nim_cookbook.notion import NotionPages
from nim_cookbook.services import connect_gradient, connect_notion
from tests.notion_server import TOKEN
from tests.support import serving_app

TOP = "engineering"
SEALED = "engineering/runbooks/control-rooms"
DECISIONS = "engineering/decisions"


@pytest.fixture(scope="module")
def everything(wiki: Workspace, url: str) -> list[dict]:
    """The whole wiki, as dictionaries of documents."""
    return exported(url, wiki.by_path(TOP).id)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of Notion's or Gradient's from outside, and none left behind."""
    for name in ("NOTION_TOKEN", "NOTION_PAGE_IDS", "NOTION_BASE_URL", "GRADIENT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRADIENT_WORKSPACE_ID", "")
    monkeypatch.chdir(tmp_path)


def component(url: str, **more) -> NotionPages:
    return NotionPages(Secret.from_token(TOKEN), url, **more)


def exported(url: str, *ids: str, **more) -> list[dict]:
    found = component(url, **more).run(list(ids))
    assert found["skipped"] == []
    return [document.to_dict() for document in found["documents"]]


class Watched:
    """The stand-in with a middleware that counts requests, and may answer in its place.

    Attributes:
        seen: Requests by path.
        times: When each request came, in seconds.
        most: Most requests at a time.
        answers: Answers by path, or by the number of the request, from 1.
        faults: How many requests for each path are answered 503.
    """

    def __init__(self, wiki: Workspace) -> None:
        self.app: FastAPI = build_app(wiki, TOKEN)
        self.seen: Counter[str] = Counter()
        self.times: list[float] = []
        self.most = self.now = self.faults = 0
        self.answers: dict[str | int, JSONResponse] = {}

        @self.app.middleware("http")
        async def watch(request: Request, proceed):
            path = request.url.path
            self.seen[path] += 1
            self.times.append(time.monotonic())
            number = len(self.times)
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await asyncio.sleep(0.005)
                if self.seen[path] <= self.faults:
                    return PlainTextResponse("later", status_code=503)
                return self.answers.get(path) or self.answers.get(number) or await proceed(request)
            finally:
                self.now -= 1


def refusal(status: int, code: str) -> JSONResponse:
    body = {"object": "error", "status": status, "code": code, "message": "no"}
    return JSONResponse(body, status, {"Retry-After": "1"} if status == 429 else None)


# --- what is exported -------------------------------------------------------------------------


def test_all_shared_pages_with_their_places(wiki, everything):
    pages = {page.id: page for page in wiki.shared()}
    assert {document["page_id"] for document in everything} == set(pages)
    for document in everything:
        page = pages[document["page_id"]]
        names = page.path.split("/")
        above = [wiki.by_path("/".join(names[:n])).title for n in range(1, len(names) + 1)]
        assert document["path"] == " / ".join(above)
        assert (document["title"], document["url"]) == (page.title, page.url)
        assert document["last_edited_time"].startswith(page.edited[:10])
    assert [d["path"] for d in everything] == sorted(d["path"] for d in everything)


def test_a_database_and_its_rows(wiki, everything):
    (table,) = [d for d in everything if d["page_id"] == wiki.by_path(DECISIONS).id]
    assert "|Alarms leave the main database|accepted|2025-03-14|" in table["content"]
    rows = [d for d in everything if d["path"].startswith(f"{table['path']} / ")]
    assert len(rows) == 6
    assert all("Status: " in row["content"] for row in rows)


def test_a_database_may_be_given_itself(wiki, url):
    found = exported(url, wiki.by_path(DECISIONS).id, wiki.by_path("engineering/glossary").id)
    assert Counter(d["path"].split(" / ")[0] for d in found) == {"Decision log": 7, "Glossary": 1}


def test_only_the_pages_given(wiki, url):
    page = wiki.by_path("engineering/sluice")
    (document,) = exported(url, page.url, page.id, child_pages=False)
    assert document["path"] == document["title"] == "Sluice"


def test_no_page_gives_no_document(url):
    assert component(url).run([]) == {"documents": [], "skipped": []}


# --- where it runs ----------------------------------------------------------------------------


async def test_in_a_running_event_loop_twice(wiki, url, everything):
    pages = component(url)
    for _ in range(2):
        found = pages.run([wiki.by_path(TOP).id])["documents"]
        assert [document.to_dict() for document in found] == everything


def test_no_socket_stays_open(wiki, url):
    exported(url, wiki.by_path("engineering/sluice").id)
    port = int(url.rsplit(":", 1)[1])
    left = [
        connection
        for connection in psutil.Process().net_connections("tcp")
        if connection.raddr and connection.raddr.port == port
    ]
    assert [c for c in left if c.status == psutil.CONN_ESTABLISHED] == []


def test_a_pipeline_survives_yaml(monkeypatch, wiki, url, everything):
    monkeypatch.setenv("NOTION_TOKEN", TOKEN)
    pipeline = Pipeline()
    pipeline.add_component("pages", NotionPages(base_url=f"{url}/v1/", concurrency=2, timeout=9))
    pipeline.add_component("splitter", DocumentSplitter(split_by="word", split_length=2000))
    pipeline.connect("pages.documents", "splitter.documents")
    text = pipeline.dumps()
    assert TOKEN not in text
    again = Pipeline.loads(text, allowed_modules=["haystack.*", "nim_cookbook.*"])
    assert again.dumps() == text
    pages = again.get_component("pages")
    assert (pages.base_url, pages.concurrency, pages.timeout) == (url, 2, 9)
    found = again.run({"pages": {"page_ids": [wiki.by_path(TOP).id]}})
    assert len(found["splitter"]["documents"]) == len(everything)
    assert found["pages"]["skipped"] == []


def test_an_interrupted_export_stops_asking(wiki):
    def interrupt(done: int, total: int) -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    watched = Watched(wiki)
    with serving_app(watched.app) as address, pytest.raises(KeyboardInterrupt):
        component(address, concurrency=1).run([wiki.by_path(TOP).id], interrupt)
    assert sum(watched.seen.values()) < 26


def test_an_error_of_the_callers_own_is_passed_on(wiki, url):
    def progress(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        component(url).run([wiki.by_path(TOP).id], progress)


def test_logging_stays_as_it_was(wiki, url):
    root, client = logging.getLogger(), logging.getLogger("notion_client")
    before = root.level, root.handlers[:], client.handlers[:]
    exported(url, wiki.by_path("engineering/glossary").id)
    assert (root.level, root.handlers, client.handlers) == before


# --- how it asks ------------------------------------------------------------------------------


def test_a_few_requests_at_a_time_and_progress(wiki, everything):
    watched = Watched(wiki)
    shown: list[tuple[int, int]] = []
    with serving_app(watched.app) as address:
        pages = component(address, concurrency=2)
        pages.run([wiki.by_path(TOP).id], lambda done, total: shown.append((done, total)))
    assert watched.most == 2
    assert [done for done, _ in shown] == list(range(1, len(everything) + 1))
    assert shown[-1] == (len(everything), len(everything))
    assert all(done <= total for done, total in shown)


def test_a_rate_limit_is_waited_for(wiki, everything):
    """After a 429 no request is sent before the second that it asks for is over."""
    watched = Watched(wiki)
    watched.answers[6] = refusal(429, "rate_limited")
    with serving_app(watched.app) as address:
        assert exported(address, wiki.by_path(TOP).id, concurrency=1) == everything
    assert watched.times[6] - watched.times[5] >= 0.99


def test_faults_that_pass_are_asked_again(wiki):
    watched = Watched(wiki)
    watched.faults = 1
    page = wiki.by_path("engineering/glossary")
    with serving_app(watched.app) as address:
        (document,) = exported(address, page.id)
    assert document["page_id"] == page.id
    assert min(watched.seen.values()) == 2


# --- what cannot be had -----------------------------------------------------------------------


def test_a_page_that_is_not_shared_is_left_out(wiki, url, caplog):
    sealed, glossary = wiki.by_path(SEALED), wiki.by_path("engineering/glossary")
    with caplog.at_level(logging.WARNING):
        found = component(url).run([sealed.id, glossary.id])
    assert [document.meta["title"] for document in found["documents"]] == ["Glossary"]
    (skipped,) = found["skipped"]
    assert skipped["page_id"] == sealed.id
    assert "not shared" in skipped["reason"]
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "nim_cookbook.notion"]
    assert sealed.id in warning
    assert warning.count("\n") == 0


def test_what_is_listed_but_refused_does_not_end_the_export(wiki, everything):
    page, base = wiki.by_path("engineering/sluice/testing"), wiki.by_path(DECISIONS)
    watched = Watched(wiki)
    for path in (f"/v1/pages/{page.id}", f"/v1/blocks/{page.id}/children"):
        watched.answers[path] = refusal(404, "object_not_found")
    for path in (f"/v1/databases/{base.id}", f"/v1/databases/{base.id}/query"):
        watched.answers[path] = refusal(400, "validation_error")
    with serving_app(watched.app) as address:
        found = component(address).run([wiki.by_path(TOP).id])
    assert {entry["page_id"] for entry in found["skipped"]} == {page.id, base.id}
    left = [d for d in everything if d["page_id"] != page.id and "Decision log" not in d["path"]]
    assert [document.to_dict() for document in found["documents"]] == left


def test_a_block_is_no_page(wiki, url):
    block = wiki.by_path(TOP).blocks[0]
    found = component(url).run([block])
    assert found["documents"] == []
    assert [entry["page_id"] for entry in found["skipped"]] == [block]


def one_sentence(text: str, *words: str) -> None:
    assert all(word in text for word in words), text
    assert "\n" not in text
    assert TOKEN not in text


def test_a_wrong_token_is_one_sentence_in_a_pipeline_too(wiki, url):
    pipeline = Pipeline()
    pipeline.add_component("pages", NotionPages(Secret.from_token("wrong"), url))
    with pytest.raises(PipelineRuntimeError) as caught:
        pipeline.run({"pages": {"page_ids": [wiki.by_path(TOP).id]}})
    cause = caught.value.__cause__
    assert isinstance(cause, MissingKeyError)
    assert explain(caught.value) == str(cause)
    one_sentence(str(cause), url, "refuses the token (401)")


def test_an_integration_that_may_not_read(wiki):
    watched = Watched(wiki)
    top = wiki.by_path(TOP).id
    watched.answers[f"/v1/pages/{top}"] = refusal(403, "restricted_resource")
    with serving_app(watched.app) as address, pytest.raises(ConfigurationError) as caught:
        component(address).run([top])
    one_sentence(str(caught.value), "does not let this integration read (403)")


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_nobody_there_is_one_sentence(wiki):
    with pytest.raises(EndpointUnreachable) as caught:
        component("http://127.0.0.1:9").run([wiki.by_path(TOP).id])
    one_sentence(str(caught.value), "http://127.0.0.1:9 cannot be reached")


def test_another_kind_of_server_is_one_sentence(wiki):
    app = FastAPI()
    with serving_app(app) as address, pytest.raises(EndpointUnreachable) as caught:
        component(address).run([wiki.by_path(TOP).id])
    one_sentence(str(caught.value), "answers 404")


def test_no_token_is_one_sentence(monkeypatch, wiki, url):
    monkeypatch.delenv("NOTION_TOKEN", raising=False)
    with pytest.raises(MissingKeyError) as caught:
        NotionPages(base_url=url).run([wiki.by_path(TOP).id])
    one_sentence(str(caught.value), "set NOTION_TOKEN")


def test_an_nvidia_key_is_not_sent(wiki):
    watched = Watched(wiki)
    with serving_app(watched.app) as address:
        pages = NotionPages(Secret.from_token("nvapi-fake-key-for-tests"), address)
        with pytest.raises(ConfigurationError, match="nothing was sent"):
            pages.run([wiki.by_path(TOP).id])
    assert not watched.seen


@pytest.mark.parametrize(
    "settings", [{"base_url": "notion"}, {"concurrency": 0}, {"timeout": 0}, {"timeout": -1}]
)
def test_settings_that_cannot_be_used(settings):
    with pytest.raises(ConfigurationError):
        NotionPages(**settings)


# --- through connect_notion() -----------------------------------------------------------------


@pytest.mark.usefixtures("own", "servers")
def test_the_local_notion(wiki, everything):
    notion = connect_notion()
    assert notion.pages == (wiki.by_path(TOP).id,)
    assert notion.token_variable == keys.LOCAL_KEY
    pages = NotionPages(Secret.from_env_var(notion.token_variable), notion.url)
    found = pages.run(list(notion.pages))["documents"]
    assert [document.to_dict() for document in found] == everything


@pytest.mark.usefixtures("own")
def test_the_readers_own_pages(monkeypatch, wiki, url, everything):
    monkeypatch.setenv("NOTION_TOKEN", TOKEN)
    monkeypatch.setenv("NOTION_BASE_URL", url)
    sluice = wiki.by_path("engineering/sluice")
    monkeypatch.setenv(
        "NOTION_PAGE_IDS", f"{sluice.url}, {wiki.by_path('engineering/glossary').id}"
    )
    notion = connect_notion()
    pages = NotionPages(Secret.from_env_var(notion.token_variable), notion.url)
    found = pages.run(list(notion.pages))["documents"]
    below = [d["title"] for d in everything if " / Sluice" in d["path"]]
    assert sorted(d.meta["title"] for d in found) == sorted([*below, "Glossary"])


@pytest.mark.usefixtures("own")
def test_the_local_gradient(servers):
    gradient = connect_gradient()
    assert gradient.host == servers.url("gradient")
    assert os.environ[gradient.token_variable] == servers.key
    assert os.environ[gradient.workspace_variable] == "local"
    assert all("stand-in" in weights for weights in gradient.weights.values())


# --- what Notion answers and the stand-in does not --------------------------------------------

PAGE, BASE, ROW, NOTE = (f"0000000{n}-0000-4000-8000-000000000000" for n in range(4))
USER = {"object": "user", "id": PAGE}


def runs(*texts: str) -> list[dict]:
    plain = {"bold": False, "italic": False, "strikethrough": False, "underline": False}
    marks = {**plain, "code": False, "color": "default"}
    return [
        {
            "type": "text",
            "text": {"content": text, "link": None},
            "plain_text": text,
            "annotations": marks,
            "href": None,
        }
        for text in texts
    ]


def thing(kind: str, identity: str, parent: dict, **more) -> dict:
    when = {"created_by": USER, "last_edited_by": USER, "last_edited_time": "2026-01-02T00:00Z"}
    url = f"https://www.notion.so/{identity}"
    return {"object": kind, "id": identity, "parent": parent, "url": url, **when, **more}


def odd_notion() -> FastAPI:
    """A page with a title of two runs, a callout without an icon, and a table of odd columns."""
    app = FastAPI()
    title = {"id": "title", "type": "title", "title": runs("Plans: ", "2026")}
    page = thing(
        "page", PAGE, {"type": "workspace", "workspace": True}, properties={"title": title}
    )
    row = thing(
        "page",
        ROW,
        {"type": "database_id", "database_id": BASE},
        properties={
            "Name": {"id": "title", "type": "title", "title": runs("First ", "row")},
            "ID": {"id": "u", "type": "unique_id", "unique_id": {"prefix": "X", "number": 1}},
            "By": {"id": "b", "type": "last_edited_by", "last_edited_by": dict(USER)},
        },
    )
    columns = {"Name": "title", "ID": "unique_id", "By": "last_edited_by"}
    schema = {n: {"id": n, "name": n, "type": kind, kind: {}} for n, kind in columns.items()}
    parent = {"type": "page_id", "page_id": PAGE}
    base = thing("database", BASE, parent, title=runs("Table"), description=[], properties=schema)
    block = {"object": "block", "has_children": False, "parent": parent}
    callout = {"rich_text": runs("Mind the gap"), "icon": None, "color": "default"}
    blocks = [
        {**block, "id": NOTE, "type": "callout", "callout": callout},
        {**block, "id": BASE, "type": "child_database", "child_database": {"title": "Table"}},
    ]
    empty = {"object": "list", "next_cursor": None, "has_more": False}
    answers = {
        f"/v1/pages/{PAGE}": page,
        f"/v1/pages/{ROW}": row,
        f"/v1/databases/{BASE}": base,
        f"/v1/databases/{BASE}/query": {**empty, "results": [row]},
        f"/v1/blocks/{PAGE}/children": {**empty, "results": blocks},
        f"/v1/blocks/{ROW}/children": {**empty, "results": []},
    }

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    def answer(path: str) -> dict:
        return answers[f"/{path}"]

    return app


def test_objects_that_the_exporter_alone_would_end_on():
    with serving_app(odd_notion()) as address:
        first, table, row = exported(address, PAGE)
    assert first["title"] == "Plans: 2026"
    assert first["content"].startswith("# Plans: 2026")
    assert "Mind the gap" in first["content"]
    assert "|First row|Unknown|" in table["content"]
    assert row["path"] == "Plans: 2026 / Table / First row"
    assert "unique_id" not in row["content"]


# --- another notion-client --------------------------------------------------------------------

OLDER = "2.5.0"
EXPORT = """
import json, sys
from importlib.metadata import version
from haystack.utils import Secret
from nim_cookbook.notion import NotionPages
url, *pages = sys.argv[1:]
found = NotionPages(Secret.from_env_var("NOTION_TOKEN"), url).run(pages)
print(json.dumps([version("notion-client"), found["skipped"],
    [document.to_dict() for document in found["documents"]]]))
"""


@pytest.mark.long
def test_an_older_client_exports_the_same(wiki, everything, tmp_path):
    """An environment of its own for notion-client 2.5.0, the last one with `databases.query`."""
    folder = tmp_path / "older"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", f"--target={folder}", f"notion-client=={OLDER}"]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if installed.returncode:
        pytest.skip(f"notion-client {OLDER} cannot be fetched: {installed.stderr[-200:]}")
    sealed = wiki.by_path(SEALED).id
    watched = Watched(wiki)
    watched.answers[6] = refusal(429, "rate_limited")
    with serving_app(watched.app) as address:
        done = subprocess.run(
            [sys.executable, "-c", EXPORT, address, wiki.by_path(TOP).id, sealed],
            env=os.environ | {"PYTHONPATH": str(folder), "NOTION_TOKEN": TOKEN},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    version, skipped, documents = json.loads(done.stdout)
    assert version == OLDER
    assert [entry["page_id"] for entry in skipped] == [sealed]
    assert documents == everything
