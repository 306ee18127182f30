"""Every recipe runs from its first cell to its last, and does what its text says.

Against the local servers, or, with COOKBOOK_ENDPOINTS set to hosted or self-hosted and the keys
and URLs that go with it, against the real thing.
"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import pytest
from nbmake.nb_run import NotebookRun

from tests.notebooks.guards import GUARDS, check
from tests.support import Servers

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted((HERE.parents[1] / "notebooks").glob("*.ipynb"))
# The later recipes take longest, so they begin first; and xdist hands each of its processes one
# test ahead, which should be a short one.
_half = (len(NOTEBOOKS) + 1) // 2
LONGEST_FIRST = [
    path
    for pair in zip_longest(NOTEBOOKS[: _half - 1 : -1], NOTEBOOKS[:_half])
    for path in pair
    if path is not None
]
TIMEOUT = 900  # seconds for a cell


# Recipes that load the services: beside another recipe their requests would time out.
ALONE = ("07",)


@pytest.mark.timeout(3 * TIMEOUT)  # for whole recipes on a busy machine
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=path.stem, marks=[pytest.mark.alone] if path.stem[:2] in ALONE else []
        )
        for path in LONGEST_FIRST
    ],
)
def test_recipe(path: Path, servers: Servers):
    result = NotebookRun(path, default_timeout=TIMEOUT).execute()
    assert result.error is None, f"{result.error.summary}\n{result.error.trace}"
    assert check(path.stem[:2], result.nb) == []


def test_every_recipe_is_guarded():
    assert [path.stem[:2] for path in NOTEBOOKS] == sorted(GUARDS)


def test_the_canary_fails(servers: Servers):
    """If this notebook passed, no other notebook's passing would mean anything."""
    result = NotebookRun(HERE / "canary_must_fail.ipynb", default_timeout=TIMEOUT).execute()
    assert result.error is not None
    assert "AssertionError" in result.error.trace
