"""The Notion stand-in on a free port, for tests that need another than the session's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from local_endpoints.notion import Workspace, build_app
from tests.support import serving_app

TOKEN = "notion-fake-token-for-tests"


@contextlib.contextmanager
def serving(space: Workspace) -> Iterator[str]:
    """Serve a workspace on a free port; give its address."""
    with serving_app(build_app(space, TOKEN)) as url:
        yield url
