"""Which files begin first; what modules share: the wiki, its server, a way to the chat model."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from local_endpoints.notion import Workspace, load_workspace
from nim_cookbook.data import data_path
from tests.notion_server import serving
from tests.query_service import Tap
from tests.support import Servers

# xdist hands out whole files in this order, so that no long one is left for the end. Those that
# compute stand beside those that wait for other processes.
LONGEST_FIRST = (
    "test_gradient",
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
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


@pytest.fixture(scope="module")
def chat_tap(servers: Servers) -> Iterator[Tap]:
    """The way to the chat model, which can be held up."""
    tap = Tap(httpx.URL(servers.url("chat")).port or 0)
    yield tap
    tap.close()
