"""What recipe 12 starts ends with it, also when one of its cells fails."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.support import Servers

RECIPE = next((Path(__file__).resolve().parents[2] / "notebooks").glob("12_*.ipynb"))
# What runs, and then a mistake. PostgreSQL has left its parent, so its own file names it.
FAILS = """
import json, psutil
pids = [child.pid for child in psutil.Process().children(recursive=True)]
pids.append(int((services.folder / "postgres" / "postmaster.pid").read_text().split()[0]))
print(json.dumps([str(services.folder), *pids]))
raise RuntimeError("a cell fails")
"""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform == "win32", reason="PostgreSQL's socket is POSIX"),
]


def test_nothing_outlives_a_failed_cell(servers: Servers) -> None:
    recipe = nbformat.read(RECIPE, as_version=4)
    sources = {cell.id: cell.source for cell in recipe.cells}
    token = "fake-token-for-tests-0123456789abcdef"
    starting = (
        "services.start_worker()\nservices.wait_for_workers()\n"
        f"services.start_service('app', COOKBOOK_SERVICE_TOKEN='{token}')"
    )
    codes = [sources["connect"], starting, FAILS]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes])
    with pytest.raises(CellExecutionError, match="a cell fails"):
        NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    folder, *pids = json.loads(notebook.cells[-1].outputs[0].text)
    assert len(pids) >= 5  # the servers' parent, NATS, PostgreSQL, the indexer, the query service
    limit = time.monotonic() + 60
    while any([*map(psutil.pid_exists, pids), Path(folder).exists()]) and time.monotonic() < limit:
        time.sleep(0.1)
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    assert not Path(folder).exists()
