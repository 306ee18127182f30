"""What the two modules on Notion share: the wiki, and a server of their own for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from local_endpoints.notion import Workspace, load_workspace
from nim_cookbook.data import data_path
from tests.notion_server import serving


@pytest.fixture(scope="module")
def wiki() -> Workspace:
    """The company's wiki, as `data/notion` has it."""
    return load_workspace(data_path("notion"))


@pytest.fixture(scope="module")
def url(wiki: Workspace) -> Iterator[str]:
    """The address of a local Notion that serves it."""
    with serving(wiki) as address:
        yield address
