"""Servers that lie must turn a recipe red: the proof that the recipes' checks check something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from cookbook_cli import recipes as index
from cookbook_cli.floors import missed
from tests.notebooks.sabotaged_server import SABOTAGES
from tests.support import free_port_block

REPOSITORY = Path(__file__).resolve().parents[2]
# The recipes that look at what the engine in question gives.
WATCHED_BY = {"shuffled-embeddings": "00", "reversed-ranking": "00", "fixed-answer": "01"}

EVERY_COMMIT = "shuffled-embeddings"  # the others on the long run


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.long] if name != EVERY_COMMIT else [])
        for name in SABOTAGES
    ]
)
def sabotage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A running sabotaged server, which notebooks started from here will find."""
    base = free_port_block()
    script = Path(__file__).with_name("sabotaged_server.py")
    process = subprocess.Popen(
        [sys.executable, str(script), request.param, "--port-base", str(base)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdin is not None and process.stderr is not None
    for line in process.stderr:
        if line.startswith("Local stand-ins"):
            break
    monkeypatch.setenv("COOKBOOK_PORT_BASE", str(base))
    monkeypatch.setenv("COOKBOOK_ENDPOINTS", "local")
    yield request.param
    process.stdin.close()
    process.wait(timeout=30)


def test_a_recipe_turns_red(sabotage: str):
    number = WATCHED_BY[sabotage]
    (recipe,) = index.select(index.load(REPOSITORY / "notebooks"), [number])
    path = index.notebook_path(REPOSITORY / "notebooks", recipe)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    try:
        NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    except CellExecutionError:
        return
    findings = missed(recipe.floor, notebook)
    print(json.dumps(findings, indent=2))
    assert findings, f"recipe {number} did not notice {sabotage}"
