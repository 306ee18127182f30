"""Which files begin first; and what the two modules on Notion share: the wiki and its server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from local_endpoints.notion import Workspace, load_workspace
from nim_cookbook.data import data_path
from tests.notion_server import serving

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
