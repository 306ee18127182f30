"""The Notion stand-in over HTTP: with httpx, with notion-client and with notion-exporter."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import httpx
import pytest
from notion_client import APIResponseError, AsyncClient, Client
from notion_client.helpers import collect_paginated_api
from notion_exporter import NotionExporter

from local_endpoints.notion import Workspace, load_workspace
from nim_cookbook.data import data_path
from tests.notion_server import TOKEN, serving

OLD, NEW = "2022-06-28", "2025-09-03"
SEALED = "engineering/runbooks/control-rooms"
DECISIONS = "engineering/decisions"
NOBODY = "00000000-0000-4000-8000-000000000000"


def client(url: str, version: str | None = OLD, token: str | None = TOKEN) -> httpx.Client:
    headers = {"Connection": "close"}  # no socket stays open when a test forgets its client
    if version:
        headers["Notion-Version"] = version
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=30)


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """Check an error's documented shape; return its message."""
    body = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code), body
    assert body["object"] == "error"
    assert body["request_id"] == answer.headers["x-notion-request-id"]
    return str(body["message"])


@pytest.fixture(scope="module")
def long_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A workspace with one page of 250 paragraphs; its address and the page's id."""
    folder = tmp_path_factory.mktemp("long")
    settings = data_path("notion/workspace.toml").read_text(encoding="utf-8")
    (folder / "workspace.toml").write_text(settings, encoding="utf-8")
    (folder / "wiki").mkdir()
    text = "---\ntitle: Long\ncreated: 2026-01-02\n---\n" + "\n\n".join(map(str, range(250)))
    (folder / "wiki" / "long.md").write_text(text, encoding="utf-8")
    space = load_workspace(folder)
    with serving(space) as address:
        yield address, space.by_path("long").id


def page_id(wiki: Workspace, path: str) -> str:
    return wiki.by_path(path).id


@pytest.mark.parametrize("token", [None, "wrong", f"{TOKEN}x"])
def test_a_missing_or_wrong_token_is_401(url, token):
    refused(client(url, token=token).get("/users/me"), 401, "unauthorized")


def test_the_version_header_is_demanded(url):
    refused(client(url, None).get("/users/me"), 400, "missing_version")
    message = refused(client(url, "2019-01-01").get("/users/me"), 400, "validation_error")
    assert OLD in message and NEW in message


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/pages"), ("PATCH", "/pages/{}"), ("DELETE", "/blocks/{}"), ("POST", "/comments")],
)
def test_writes_are_refused(url, wiki, method, path):
    answer = client(url).request(method, path.format(page_id(wiki, "engineering")), json={})
    assert "read-only" in refused(answer, 403, "restricted_resource")


def test_reads_that_no_client_here_sends_are_refused_by_name(url, wiki):
    api, base = client(url), page_id(wiki, DECISIONS)
    entry = page_id(wiki, f"{DECISIONS}/hybrid-search")
    assert "/comments" in refused(api.get("/comments"), 400, "invalid_request_url")
    for path, name in ((f"/databases/{base}/query", "filter"), ("/search", "sort")):
        assert f"body.{name} is not" in refused(
            api.post(path, json={name: {}}), 400, "validation_error"
        )
    answer = api.get(f"/pages/{entry}", params={"filter_properties": "title"})
    assert "parameters" in refused(answer, 400, "validation_error")


def test_a_page_by_either_form_of_its_id(url, wiki):
    identity = page_id(wiki, "engineering/sluice")
    pages = [client(url).get(f"/pages/{i}").json() for i in (identity, identity.replace("-", ""))]
    assert pages[0] == pages[1]
    assert (pages[0]["object"], pages[0]["id"]) == ("page", identity)
    assert pages[0]["parent"] == {"type": "page_id", "page_id": page_id(wiki, "engineering")}
    assert pages[0]["properties"]["title"]["title"][0]["plain_text"] == "Sluice"


@pytest.mark.parametrize("path", ["/pages/{}", "/blocks/{}/children"])
def test_an_unshared_page_looks_like_a_missing_one(url, wiki, path):
    for identity in (page_id(wiki, SEALED), page_id(wiki, f"{SEALED}/night-list"), NOBODY):
        message = refused(client(url).get(path.format(identity)), 404, "object_not_found")
        assert identity in message
        assert "shared with your integration" in message


def test_no_answer_mentions_an_unshared_page(url, wiki):
    above = page_id(wiki, "engineering/runbooks")
    shown = client(url).post("/search", json={}).text
    shown += client(url).get(f"/blocks/{above}/children").text
    assert page_id(wiki, SEALED) not in shown
    assert "Sealed tab" not in shown and "Night list" not in shown


@pytest.mark.parametrize("path", ["/pages/{}", "/blocks/{}/children", "/databases/{}"])
def test_a_bad_id_is_a_validation_error(url, path):
    refused(client(url).get(path.format("seven")), 400, "validation_error")


def test_pages_and_databases_are_told_apart(url, wiki):
    """The export component asks for a page first, and takes this error for a database."""
    page, base = page_id(wiki, "engineering"), page_id(wiki, DECISIONS)
    refused(client(url).get(f"/pages/{base}"), 400, "validation_error")
    refused(client(url).get(f"/databases/{page}"), 400, "validation_error")


def test_children_come_in_pages_of_at_most_a_hundred(long_url):
    url, page = long_url
    found, cursor, sizes = [], None, []
    while cursor or not sizes:
        params = {"start_cursor": cursor} if cursor else {}
        answer = client(url).get(f"/blocks/{page}/children", params=params).json()
        found += [b["paragraph"]["rich_text"][0]["plain_text"] for b in answer["results"]]
        sizes.append(len(answer["results"]))
        cursor = answer["next_cursor"]
        assert answer["has_more"] == (cursor is not None)
    assert sizes == [100, 100, 50]
    assert found == [str(n) for n in range(250)]


@pytest.mark.parametrize(
    "params", [{"page_size": 0}, {"page_size": 101}, {"page_size": "ten"}, {"start_cursor": NOBODY}]
)
def test_a_bad_page_size_or_cursor_is_refused(long_url, params):
    url, page = long_url
    answer = client(url).get(f"/blocks/{page}/children", params=params)
    assert next(iter(params)) in refused(answer, 400, "validation_error")


def test_a_body_that_is_no_json_is_refused(url):
    headers = {"Content-Type": "application/json"}
    refused(client(url).post("/search", content=b"{", headers=headers), 400, "invalid_json")


def test_each_version_has_its_own_way_to_a_database(url, wiki):
    base = page_id(wiki, DECISIONS)
    old, new = client(url, OLD), client(url, NEW)
    before, since = old.get(f"/databases/{base}").json(), new.get(f"/databases/{base}").json()
    assert "Status" in before["properties"]
    assert "properties" not in since
    source = f"/data_sources/{since['data_sources'][0]['id']}"
    assert new.get(source).json()["properties"] == before["properties"]
    entries = new.post(f"{source}/query", json={}).json()["results"]
    assert entries[0]["parent"]["database_id"] == base
    first = old.post(f"/databases/{base}/query", json={"page_size": 4}).json()
    cursor = {"start_cursor": first["next_cursor"]}
    rest = old.post(f"/databases/{base}/query", json=cursor).json()
    assert [e["id"] for e in first["results"] + rest["results"]] == [e["id"] for e in entries]
    refused(new.post(f"/databases/{base}/query", json={}), 400, "invalid_request_url")
    refused(old.get(source), 400, "invalid_request_url")
    refused(new.get(f"/data_sources/{NOBODY}"), 404, "object_not_found")


# --- the real clients -------------------------------------------------------------------------


def test_notion_client_reads_the_wiki(url, wiki):
    """With the version that notion-client sends by default since 2.6."""
    with Client(auth=TOKEN, base_url=url, notion_version=NEW) as notion:
        top = page_id(wiki, "engineering")
        assert notion.pages.retrieve(top)["url"].endswith(top.replace("-", ""))
        blocks = collect_paginated_api(notion.blocks.children.list, block_id=top, page_size=3)
        assert "child_database" in [block["type"] for block in blocks]
        me = notion.users.me()
        assert me["type"] == "bot" and notion.users.retrieve(me["id"]) == me
        (found,) = notion.search(query="decision LOG")["results"]
        assert len(notion.data_sources.query(found["id"])["results"]) == 6
        for call, code in (
            (lambda: notion.pages.retrieve(page_id(wiki, SEALED)), "object_not_found"),
            (lambda: notion.users.retrieve(NOBODY), "object_not_found"),
            (lambda: notion.pages.update(top, archived=True), "restricted_resource"),
        ):
            with pytest.raises(APIResponseError) as caught:
                call()
            assert caught.value.code == code


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]{3,}", text)


def test_notion_exporter_writes_the_whole_wiki(url, wiki):
    """All shared pages, and in each the words of its source, in order."""
    logging.getLogger("notion_exporter.exporter").setLevel(logging.WARNING)
    exporter = NotionExporter(notion_token="unused", export_child_pages=True)
    limits = httpx.Limits(max_keepalive_connections=0)
    notion = AsyncClient(
        client=httpx.AsyncClient(limits=limits), auth=TOKEN, base_url=url, notion_version=OLD
    )

    async def query(database_id, **body):  # removed in notion-client 2.6
        body = {key: value for key, value in body.items() if value is not None}
        return await notion.request(f"databases/{database_id}/query", "POST", body=body)

    notion.databases.query = query
    exporter.notion = notion
    pages = exporter.export_pages([page_id(wiki, "engineering")])

    shared = {page.id: page for page in wiki.shared()}
    assert set(pages) == set(shared)
    for identity, markdown in pages.items():
        page = shared[identity]
        assert f"# {page.title}" in markdown
        source = data_path(f"notion/wiki/{page.path}.md").read_text(encoding="utf-8")
        body = source.split("---\n", 2)[2]
        body = re.sub(r"<[^>]*>|\]\([^)]*\)|\[!\w+\]|```\w*", " ", body)  # marks, not words
        exported = iter(_words(markdown))
        assert not [word for word in _words(body) if word not in exported], page.path
    table = pages[page_id(wiki, DECISIONS)]
    assert "|Alarms leave the main database|accepted|2025-03-14|Eszter Kallio|" in table
