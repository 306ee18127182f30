"""`make bench` makes its page with all sections; nothing is timed here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support import Servers

SECTIONS = [
    "Embedding over HTTP",
    "Reranking over HTTP",
    "Chat over HTTP",
    "The query service",
    "Growth of an index",
    "Exponents of growth",
    "100,000,000 chunks, on paper",
]
PICTURES = ["endpoints-0", "endpoints-1", "endpoints-2", "serving-0", "growth-0"]


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="PostgreSQL's socket is POSIX")
def test_the_page_has_every_section(servers: Servers, tmp_path: Path) -> None:
    paths = [str(REPOSITORY / "utils"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "benchmarks/page.py", "--tiny", "--out", str(tmp_path)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "COOKBOOK_ENDPOINTS": "local",
            "COOKBOOK_MODELS": "small",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "index.html").read_text("utf-8")
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert len(titles) == len(SECTIONS)
    for title, wanted in zip(titles, SECTIONS, strict=True):
        assert title.startswith(wanted)
    for name in PICTURES:
        assert (tmp_path / f"{name}.png").stat().st_size
        assert f'<img src="{name}.png" alt="' in page
    for fact in ("processor", "memory", "date", "command"):
        assert f"<th>{fact}</th>" in page
    for against in ("ONNX Runtime", "sentence-transformers", "llama.cpp", "Hayhooks", "components"):
        assert against in page
