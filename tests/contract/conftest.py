"""Which files begin first; what modules share: the wiki, its server, a way to the chat model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local_endpoints.notion import Workspace, load_workspace
from nim_cookbook.data import data_path
from nim_cookbook.models import load_registry
from tests.notion_server import serving
from tests.query_service import Tap
from tests.support import Servers, started_servers

# xdist begins with these files, so that no long one is left for the end. Those that compute stand
# beside those that wait for other processes.
LONGEST_FIRST = (
    "test_gradient",
    "test_openapi_fuzz",
    "test_queue",
    "test_adapter_agreement",
    "test_query_service",
    "test_interrupted_index",
    "test_ask",
    "test_peft_source",
    "test_chat_page",
    "test_servers",
    "test_scaling_numbers",
    "test_vendor_suite",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each file's tests in one process, and put the files that take longest first."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="module")
def wiki() -> Workspace:
    """The company's wiki, as `data/notion` has it."""
    return load_workspace(data_path("notion"))


@pytest.fixture(scope="module")
def url(wiki: Workspace) -> Iterator[str]:
    """The address of a local Notion that serves it."""
    with serving(wiki) as address:
        yield address


@pytest.fixture(scope="session")
def default_server() -> Iterator[Servers]:
    """Servers with the default models, for tests about what the chat model answers.

    The others have the small one, which answers sooner. These start when the first test asks.
    """
    log = Path(os.environ["COOKBOOK_TEST_LOG"]).with_name(f"servers-default-{os.getpid()}.log")
    key = os.environ["COOKBOOK_LOCAL_KEY"]
    with started_servers(log, key, COOKBOOK_MODELS="default") as (running, _):
        with running.client("chat") as client:
            (chat,) = client.get("/metadata").json()["weights"]
        if chat["localId"] != load_registry().weights_for("chat", "default").local_id:
            pytest.skip(f"needs the default chat weights, and has {chat['description']}")
        yield running


@pytest.fixture(scope="module")
def chat_tap(servers: Servers) -> Iterator[Tap]:
    """The way to the chat model, which can be held up."""
    tap = Tap(httpx.URL(servers.url("chat")).port or 0)
    yield tap
    tap.close()
