"""The default chat model reads three documents and names the right one."""

from __future__ import annotations

import contextlib

import pytest

from benchmarks.answers import HOMES, people
from nim_cookbook import endpoints
from tests.support import Servers

# Of six: "Who lives in Berlin?" is a coin toss for the first token, and falls the wrong way in the
# order in which bge-small finds the three documents.
MOST_WRONG = 1


def test_the_articles_pipeline_answers_its_six_questions(
    default_server: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COOKBOOK_ENDPOINTS", "local")
    monkeypatch.setenv("COOKBOOK_MODELS", "default")
    monkeypatch.setenv("COOKBOOK_PORT_BASE", str(default_server.port_base))
    monkeypatch.setenv("COOKBOOK_LOCAL_KEY", default_server.key)
    with contextlib.closing(endpoints.connect("nim")) as api:
        scores = people(api)
    wrong = [(row.query.question, row.answer) for row in scores.rows if not row.right]
    assert len(wrong) <= MOST_WRONG, wrong
    assert len(scores.rows) == 2 * len(HOMES)
