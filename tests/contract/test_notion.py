"""The Notion stand-in over HTTP: with httpx, with notion-client and with notion-exporter."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local_endpoints.notion import RateLimit, Workspace, load_workspace
from nim_cookbook.data import data_path
from tests.notion_server import TOKEN, serving
from tests.support import free_port_block

OLD, NEW = "2022-06-28", "2025-09-03"
SEALED = "engineering/runbooks/control-rooms"
NOBODY = "00000000-0000-4000-8000-000000000000"


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where a client package is not installed."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


def client(url: str, version: str | None = OLD, token: str | None = TOKEN) -> httpx.Client:
    headers = {"Connection": "close"}  # nothing stays open when a test forgets its client
    if version:
        headers["Notion-Version"] = version
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=30)


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """Check an error's documented shape; return its message."""
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert body["object"] == "error"
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-notion-request-id"]
    uuid.UUID(body["request_id"])
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


# Access


@pytest.mark.parametrize("token", [None, "wrong", f"{TOKEN}x", "ö"])
def test_a_missing_or_wrong_token_is_401(url, token):
    headers = {b"Notion-Version": OLD.encode()}
    if token:
        headers[b"Authorization"] = f"Bearer {token}".encode()
    answer = httpx.get(f"{url}/v1/users/me", headers=headers)
    assert refused(answer, 401, "unauthorized") == "API token is invalid."


def test_another_scheme_is_401(url):
    headers = {"Authorization": f"Basic {TOKEN}", "Notion-Version": OLD}
    refused(httpx.get(f"{url}/v1/users/me", headers=headers), 401, "unauthorized")


def test_the_version_header_is_demanded(url):
    refused(client(url, None).get("/users/me"), 400, "missing_version")
    message = refused(client(url, "2019-01-01").get("/users/me"), 400, "validation_error")
    assert OLD in message
    assert NEW in message


def test_the_rate_limit_says_when_to_come_back(wiki):
    with serving(wiki, RateLimit(per_second=0.01, burst=2)) as address, client(address) as api:
        answers = [api.get("/users/me") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    refused(answers[2], 429, "rate_limited")
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 100


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/pages"),
        ("PATCH", "/pages/{page}"),
        ("PATCH", "/blocks/{page}/children"),
        ("PATCH", "/blocks/{page}"),
        ("DELETE", "/blocks/{page}"),
        ("POST", "/databases"),
        ("PATCH", "/databases/{page}"),
        ("POST", "/comments"),
    ],
)
def test_writes_are_refused(url, wiki, version, method, path):
    path = path.format(page=page_id(wiki, "engineering"))
    answer = client(url, version).request(method, path, json={})
    assert "read-only" in refused(answer, 403, "restricted_resource")


def test_what_the_stand_in_lacks_is_refused_by_name(url):
    message = refused(
        client(url).get("/comments", params={"block_id": "x"}), 400, "invalid_request"
    )
    assert "GET /v1/comments" in message


@pytest.mark.parametrize("path", ["/nothing", "/", "/userss"])
def test_an_unknown_address_is_invalid(url, path):
    refused(client(url).get(path), 400, "invalid_request_url")


# Pages, blocks, users


@pytest.mark.parametrize("dashes", [True, False])
def test_a_page_by_either_form_of_its_id(url, wiki, dashes):
    identity = page_id(wiki, "engineering/sluice")
    asked = identity if dashes else identity.replace("-", "")
    page = client(url).get(f"/pages/{asked}").json()
    assert (page["object"], page["id"]) == ("page", identity)
    assert page["parent"] == {"type": "page_id", "page_id": page_id(wiki, "engineering")}
    assert page["properties"]["title"]["title"][0]["plain_text"] == "Sluice"
    assert page["icon"] == {"type": "emoji", "emoji": "🚪"}


@pytest.mark.parametrize("path", ["/pages/{}", "/blocks/{}", "/blocks/{}/children"])
def test_what_is_not_shared_looks_like_what_does_not_exist(url, wiki, path):
    sealed = wiki.by_path(SEALED)
    for identity in (sealed.id, page_id(wiki, f"{SEALED}/night-list"), NOBODY):
        message = refused(client(url).get(path.format(identity)), 404, "object_not_found")
        assert identity in message
        assert "shared with your integration" in message
    refused(client(url).get(f"/blocks/{sealed.blocks[0]}"), 404, "object_not_found")


def test_nothing_tells_of_an_unshared_page(url, wiki):
    api = client(url)
    above = page_id(wiki, "engineering/runbooks")
    children = api.get(f"/blocks/{above}/children").json()["results"]
    assert page_id(wiki, SEALED) not in [child["id"] for child in children]
    found = api.post("/search", json={}).text + api.get(f"/blocks/{above}/children").text
    assert "Sealed tab" not in found
    assert "Night list" not in found


@pytest.mark.parametrize("bad", ["seven", "1234", NOBODY + "0", "g" * 32])
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/pages/{}", "page_id"),
        ("/blocks/{}/children", "block_id"),
        ("/databases/{}", "database_id"),
        ("/users/{}", "user_id"),
    ],
)
def test_a_bad_id_is_a_validation_error(url, path, name, bad):
    message = refused(client(url).get(path.format(bad)), 400, "validation_error")
    assert message.startswith(f"path failed validation: path.{name} should be a valid uuid")


def test_pages_and_databases_are_not_mixed_up(url, wiki):
    page, base = page_id(wiki, "engineering"), page_id(wiki, "engineering/decisions")
    refused(client(url).get(f"/pages/{base}"), 400, "validation_error")
    refused(client(url).get(f"/databases/{page}"), 400, "validation_error")
    block = wiki.by_path("engineering").blocks[0]
    refused(client(url).get(f"/pages/{block}"), 400, "validation_error")


def test_children_come_in_pages_of_at_most_a_hundred(long_url):
    url, page = long_url
    api, found, cursor, sizes = client(url), [], None, []
    while True:
        params = {"start_cursor": cursor} if cursor else {}
        answer = api.get(f"/blocks/{page}/children", params=params).json()
        found += [b["paragraph"]["rich_text"][0]["plain_text"] for b in answer["results"]]
        sizes.append(len(answer["results"]))
        cursor = answer["next_cursor"]
        assert answer["has_more"] == (cursor is not None)
        if cursor is None:
            break
    assert sizes == [100, 100, 50]
    assert found == [str(n) for n in range(250)]


@pytest.mark.parametrize("size", ["0", "101", "-1", "ten", "1.5", ""])
def test_a_bad_page_size_is_refused(long_url, size):
    url, page = long_url
    answer = client(url).get(f"/blocks/{page}/children", params={"page_size": size})
    assert "query.page_size" in refused(answer, 400, "validation_error")


@pytest.mark.parametrize("cursor", ["x", NOBODY])
def test_a_bad_cursor_is_refused(long_url, cursor):
    url, page = long_url
    answer = client(url).get(f"/blocks/{page}/children", params={"start_cursor": cursor})
    assert "start_cursor" in refused(answer, 400, "validation_error")


def test_an_unknown_parameter_is_refused(url, wiki):
    answer = client(url).get(f"/blocks/{page_id(wiki, 'engineering')}", params={"depth": 2})
    assert "query.depth" in refused(answer, 400, "validation_error")


def test_every_block_can_be_read_by_itself(url, wiki):
    api = client(url)
    for page in ("engineering/onboarding", "engineering/sluice/retention"):
        waiting = [page_id(wiki, page)]
        while waiting:
            for child in api.get(f"/blocks/{waiting.pop()}/children").json()["results"]:
                alone = api.get(f"/blocks/{child['id']}").json()
                alone.pop("request_id")
                assert alone == child
                if child["has_children"] and child["type"] != "child_page":
                    waiting.append(child["id"])


def test_users(url, wiki):
    api = client(url)
    users = api.get("/users").json()["results"]
    assert [user["type"] for user in users] == ["person"] * len(wiki.people) + ["bot"]
    assert api.get(f"/users/{users[0]['id']}").json()["name"] == "Eszter Kallio"
    me = api.get("/users/me").json()
    assert (me["type"], me["name"]) == ("bot", "Cookbook reader")
    refused(api.get(f"/users/{NOBODY}"), 404, "object_not_found")


def test_search_finds_titles(url):
    api = client(url)
    found = api.post("/search", json={"query": "custom COMPONENT"}).json()["results"]
    titles = [page["properties"]["title"]["title"][0]["plain_text"] for page in found]
    assert titles == ["Creating a custom Haystack component"]
    wanted = {"filter": {"property": "object", "value": "database"}}
    (base,) = api.post("/search", json=wanted).json()["results"]
    assert base["object"] == "database"
    wanted = {"filter": {"property": "object", "value": "data_source"}}
    (source,) = client(url, NEW).post("/search", json=wanted).json()["results"]
    assert source["object"] == "data_source"
    refused(api.post("/search", json=wanted), 400, "validation_error")


def test_search_sorts_by_the_last_edit(url):
    body = {"sort": {"direction": "ascending", "timestamp": "last_edited_time"}}
    found = client(url).post("/search", json=body).json()["results"]
    times = [page["last_edited_time"] for page in found]
    assert times == sorted(times)
    assert len(found) == 26


# Databases


def names(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [p["properties"]["Name"]["title"][0]["plain_text"] for p in answer.json()["results"]]


@pytest.fixture
def queried(url, wiki):
    """Ask the decision log with the body given."""
    path = f"/databases/{page_id(wiki, 'engineering/decisions')}/query"
    return lambda body: client(url).post(path, json=body)


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ({"property": "Status", "status": {"equals": "accepted"}}, 4),
        ({"property": "Status", "status": {"does_not_equal": "accepted"}}, 2),
        ({"property": "Areas", "multi_select": {"contains": "eddy"}}, 2),
        ({"property": "Areas", "multi_select": {"does_not_contain": "eddy"}}, 4),
        ({"property": "Name", "title": {"contains": "SEARCH"}}, 1),
        ({"property": "Name", "title": {"starts_with": "a graph"}}, 1),
        ({"property": "Reversible", "checkbox": {"equals": False}}, 2),
        ({"property": "Decided", "date": {"is_empty": True}}, 1),
        ({"property": "Decided", "date": {"on_or_after": "2025-12-11"}}, 2),
        ({"property": "Decided", "date": {"before": "2025-12-11T00:00:00Z"}}, 3),
        ({"timestamp": "created_time", "created_time": {"after": "2026-01-01"}}, 2),
        (
            {
                "and": [
                    {"property": "Status", "status": {"equals": "accepted"}},
                    {
                        "or": [
                            {"property": "Areas", "multi_select": {"contains": "eddy"}},
                            {"property": "Areas", "multi_select": {"contains": "hosting"}},
                        ]
                    },
                ]
            },
            3,
        ),
    ],
)
def test_filters(queried, condition, count):
    assert len(names(queried({"filter": condition}))) == count


def test_people_are_filtered_by_id(queried, wiki):
    who = wiki.people["tancred-vole"].id
    assert len(names(queried({"filter": {"property": "Owner", "people": {"contains": who}}}))) == 2


def test_sorts_put_empty_values_last(queried):
    for direction in ("ascending", "descending"):
        body = {"sorts": [{"property": "Decided", "direction": direction}]}
        found = names(queried(body))
        assert found[-1] == "A graph database for stations"
        first = {"ascending": "Alarms leave the main database"}.get(
            direction, "Keyword and vector search together"
        )
        assert found[0] == first
    body = {"sorts": [{"property": "Status"}, {"property": "Name", "direction": "descending"}]}
    assert names(queried(body))[:2] == [
        "A graph database for stations",
        "The Sunday scripts move into the scheduler",
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"filter": "x"},
        {"filter": {}},
        {"filter": {"property": "Nothing", "title": {"equals": "x"}}},
        {"filter": {"property": "Name", "number": {"equals": 1}}},
        {"filter": {"property": "Name", "title": {"sounds_like": "x"}}},
        {"filter": {"property": "Name", "title": {"equals": 1}}},
        {"filter": {"property": "Name", "title": {"equals": "x", "contains": "y"}}},
        {"filter": {"property": "Decided", "date": {"past_week": {}}}},
        {"filter": {"property": "Decided", "date": {"before": "yesterday"}}},
        {"filter": {"property": "Decided", "date": {"is_empty": False}}},
        {"filter": {"property": "Reversible", "checkbox": {"equals": "yes"}}},
        {"filter": {"timestamp": "deleted_time", "deleted_time": {"after": "2026-01-01"}}},
        {"filter": {"and": "x"}},
        {"filter": {"and": [{"or": [{"and": []}]}]}},
        {"sorts": {}},
        {"sorts": [{"property": "Nothing"}]},
        {"sorts": [{"direction": "ascending"}]},
        {"sorts": [{"property": "Name", "direction": "sideways"}]},
        {"page_size": 0},
        {"page_size": 101},
        {"page_size": True},
        {"start_cursor": 7},
        {"start_cursor": NOBODY},
        {"group_by": "Status"},
    ],
)
def test_a_query_that_cannot_be_answered_is_refused(queried, body):
    assert refused(queried(body), 400, "validation_error")


def test_a_body_that_is_no_json_is_refused(url, wiki):
    path = f"/databases/{page_id(wiki, 'engineering/decisions')}/query"
    refused(client(url).post(path, content=b"{"), 400, "invalid_json")
    refused(client(url).post(path, content=b"[" * 100_000), 400, "invalid_json")
    refused(client(url).post(path, content=b"[]"), 400, "validation_error")
    refused(client(url).post(path, content=b" " * 600_000), 400, "validation_error")


def test_queries_come_in_pages(queried):
    first = queried({"page_size": 4}).json()
    rest = queried({"page_size": 4, "start_cursor": first["next_cursor"]}).json()
    assert (len(first["results"]), len(rest["results"]), rest["has_more"]) == (4, 2, False)


def test_each_version_has_its_own_way_to_a_database(url, wiki):
    base = page_id(wiki, "engineering/decisions")
    old, new = client(url, OLD), client(url, NEW)
    before, since = old.get(f"/databases/{base}").json(), new.get(f"/databases/{base}").json()
    assert "Status" in before["properties"]
    assert "properties" not in since
    (reference,) = since["data_sources"]
    source = new.get(f"/data_sources/{reference['id']}").json()
    assert source["properties"] == before["properties"]
    assert source["parent"] == {"type": "database_id", "database_id": base}
    entries = new.post(f"/data_sources/{reference['id']}/query", json={})
    assert len(names(entries)) == 6
    assert entries.json()["results"][0]["parent"] == {
        "type": "data_source_id",
        "data_source_id": reference["id"],
        "database_id": base,
    }
    refused(new.post(f"/databases/{base}/query", json={}), 400, "invalid_request_url")
    refused(old.get(f"/data_sources/{reference['id']}"), 400, "invalid_request_url")
    refused(new.get(f"/data_sources/{NOBODY}"), 404, "object_not_found")


def test_properties_one_by_one(url, wiki):
    api, entry = client(url), page_id(wiki, "engineering/decisions/hybrid-search")
    page = api.get(f"/pages/{entry}").json()
    title = api.get(f"/pages/{entry}/properties/title").json()
    assert title["results"][0]["title"]["plain_text"] == "Keyword and vector search together"
    status = api.get(f"/pages/{entry}/properties/{page['properties']['Status']['id']}").json()
    assert (status["object"], status["status"]["name"]) == ("property_item", "accepted")
    owners = page["properties"]["Owner"]["id"]
    first = api.get(f"/pages/{entry}/properties/{owners}", params={"page_size": 1}).json()
    assert first["has_more"]
    refused(api.get(f"/pages/{entry}/properties/none"), 404, "object_not_found")
    only = api.get(f"/pages/{entry}", params={"filter_properties": owners}).json()
    assert list(only["properties"]) == ["Owner"]
    unknown = api.get(f"/pages/{entry}", params={"filter_properties": "none"})
    refused(unknown, 400, "validation_error")


# The real clients


@needs("notion_client")
def test_notion_client_reads_the_wiki(url, wiki):
    from notion_client import APIResponseError, Client
    from notion_client.helpers import collect_paginated_api

    with Client(auth=TOKEN, base_url=url, notion_version=NEW) as notion:
        top = page_id(wiki, "engineering")
        assert notion.pages.retrieve(top)["url"].endswith(top.replace("-", ""))
        blocks = collect_paginated_api(notion.blocks.children.list, block_id=top, page_size=3)
        assert "child_database" in [block["type"] for block in blocks]
        assert notion.users.me()["type"] == "bot"
        assert len(notion.users.list()["results"]) == 7
        (found,) = notion.search(query="decision log")["results"]
        version = {"sorts": [{"property": "Name", "direction": "ascending"}]}
        if hasattr(notion, "data_sources"):  # since notion-client 2.6
            entries = notion.data_sources.query(found["id"], **version)
        else:
            entries = notion.request(f"data_sources/{found['id']}/query", "POST", body=version)
        assert len(entries["results"]) == 6
        with pytest.raises(APIResponseError) as caught:
            notion.pages.retrieve(page_id(wiki, SEALED))
        assert caught.value.code == "object_not_found"
        with pytest.raises(APIResponseError) as caught:
            notion.pages.update(top, archived=True)
        assert caught.value.code == "restricted_resource"
    with Client(auth="wrong", base_url=url) as notion, pytest.raises(APIResponseError) as caught:
        notion.users.me()
    assert caught.value.code == "unauthorized"


@needs("notion_client")
def test_notion_client_waits_as_long_as_it_is_told(wiki):
    """The rate limit lets the sixth request pass a second later; newer clients wait for it."""
    from notion_client import APIResponseError, Client

    with (
        serving(wiki, RateLimit(per_second=2, burst=2)) as address,
        Client(auth=TOKEN, base_url=address) as notion,
    ):
        codes = []
        for _ in range(6):
            try:
                notion.users.me()
            except APIResponseError as error:
                codes.append(error.code)
        retries = hasattr(notion, "_max_retries")
    assert codes == [] if retries else set(codes) == {"rate_limited"}


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]{3,}", text)


@needs("notion_exporter")
def test_notion_exporter_writes_the_whole_wiki(url, wiki):
    """All shared pages, and in each the words of its source, in order."""
    from notion_client import AsyncClient
    from notion_exporter import NotionExporter

    logging.getLogger("notion_exporter.exporter").setLevel(logging.WARNING)
    exporter = NotionExporter(notion_token="unused", export_child_pages=True)
    notion = AsyncClient(auth=TOKEN, base_url=url, notion_version=OLD)
    if not hasattr(notion.databases, "query"):  # removed in notion-client 2.6

        async def query(database_id, **body):
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
        lost = [word for word in _words(body) if word not in exported]
        assert not lost, page.path
    assert (
        "|Alarms leave the main database|accepted|2025-03-14|"
        in pages[page_id(wiki, "engineering/decisions")]
    )


def test_the_server_alone_starts_and_demands_its_token(tmp_path):
    port = free_port_block(1)
    environment = {**os.environ, "COOKBOOK_LOCAL_KEY": TOKEN}
    command = [sys.executable, "-m", "local_endpoints.notion", f"--port={port}"]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        assert f"http://127.0.0.1:{port}" in server.stderr.readline()
        with client(f"http://127.0.0.1:{port}") as api:
            assert api.get("/users/me").status_code == 200
        with client(f"http://127.0.0.1:{port}", token="wrong") as api:
            refused(api.get("/users/me"), 401, "unauthorized")
    finally:
        server.terminate()
        server.communicate(timeout=20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--workspace=/nowhere"], "workspace folder"), (["--rate-limit=-1"], "--rate-limit")],
)
def test_a_wrong_start_says_so_in_a_sentence(arguments, words, tmp_path: Path):
    command = [sys.executable, "-m", "local_endpoints.notion", "--port=1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
