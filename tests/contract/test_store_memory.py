"""The computed memory of a vector store against what Qdrant's own engine takes."""

import importlib.util
import sys

import pytest

from capacity import measured, sizing
from nim_cookbook.errors import ConfigurationError, DataError

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc"),
    pytest.mark.skipif(
        importlib.util.find_spec("qdrant_edge") is None, reason="qdrant-edge-py is not installed"
    ),
]


@pytest.mark.parametrize(
    "encoding",
    [
        pytest.param(encoding, marks=[] if encoding == "int8" else [pytest.mark.long])
        for encoding in sizing.ENCODINGS
    ],
)
def test_computed_memory_and_disk_are_within_a_fifth_of_what_is_measured(encoding):
    found = measured.store_memory_measured(10_000, 384, encoding, ef_construct=32)
    computed = sizing.memory(10_000, 384, encoding)
    assert computed == pytest.approx(found.memory, rel=0.2)
    files = sizing.disk(10_000, 384, encoding, found.text_bytes)
    assert files == pytest.approx(found.disk, rel=0.2)
    assert found.process > found.memory


@pytest.mark.long
def test_a_length_that_is_no_multiple_of_anything():
    found = measured.store_memory_measured(10_000, 1001, "int8", ef_construct=16)
    assert sizing.memory(10_000, 1001, "int8") == pytest.approx(found.memory, rel=0.2)


def test_too_few_chunks_and_impossible_vectors_are_refused():
    with pytest.raises(DataError, match="4,999 chunks are too few"):
        measured.store_memory_measured(4_999)
    with pytest.raises(DataError, match="'int4'"):
        measured.store_memory_measured(5_000, 384, "int4")


def test_an_engine_that_is_not_installed_is_told(monkeypatch, tmp_path):
    (tmp_path / "qdrant_edge.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'qdrant_edge'\")", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with pytest.raises(ConfigurationError, match=r"nim-rag-cookbook\[kubernetes\]"):
        measured.store_memory_measured(5_000)


@pytest.mark.long
def test_a_process_that_fails_says_why(monkeypatch, tmp_path):
    (tmp_path / "qdrant_edge.py").write_text('raise RuntimeError("no disk")', encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with pytest.raises(ConfigurationError, match="no disk"):
        measured.store_memory_measured(5_000)
