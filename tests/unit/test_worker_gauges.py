"""What a killed worker had in flight is forgotten; what it counted is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rag_service.metrics import forget_dead_workers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="one process there")


def test_only_gauges_of_the_dead_go(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"gauge_livesum_{ended.pid}.db", f"gauge_livesum_{os.getpid()}.db"):
        (tmp_path / name).touch()
    (tmp_path / f"counter_{ended.pid}.db").touch()
    forget_dead_workers(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        f"gauge_livesum_{os.getpid()}.db",
        f"counter_{ended.pid}.db",
    }
