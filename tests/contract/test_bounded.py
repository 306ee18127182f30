"""Files that ask for too much memory or time are given up, and the next file is read."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from haystack.document_stores.in_memory import InMemoryDocumentStore

from nim_cookbook import indexing
from nim_cookbook.bounded import BoundedPreparation
from nim_cookbook.corpus import company_files
from nim_cookbook.errors import DataError
from nim_cookbook.indexing import SourceFile
from tests.unit.embedding_double import HashEmbedder


@pytest.fixture(scope="module")
def bounded() -> Iterator[BoundedPreparation]:
    with contextlib.closing(BoundedPreparation(memory=700_000_000, seconds=300)) as opened:
        yield opened


def sources() -> list[SourceFile]:
    first = {file.path.suffix: file for file in company_files()}
    return indexing.source_files(first.values())


def pdf_bomb(path: Path, size: int) -> SourceFile:
    """A page whose content is `size` bytes of one letter, as a PDF of a thousandth of that."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b"A" * (1 << 20)) for _ in range(size >> 20))
    packed += packer.flush()
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 100] /Contents 4 0 R >>",
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed),
    ]
    body, places = b"%PDF-1.7\n", []
    for number, part in enumerate(parts, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    path.write_bytes(
        body
        + b"xref\n0 5\n0000000000 65535 f \n"
        + table
        + b"trailer << /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(body)
    )
    return SourceFile("bomb", path)


def test_the_chunks_are_those_of_the_pipeline(bounded: BoundedPreparation) -> None:
    pipeline, short = indexing.preparation(), indexing.preparation(2, 1, "line")
    assert bounded.dumps() == pipeline.dumps()
    for source in sources():
        assert bounded.prepare(source, "f") == indexing.prepare(source, pipeline, "f")
        prepared = bounded.prepare(source, "f", (2, 1, "line"))
        assert prepared == indexing.prepare(source, short, "f")


def text_bomb(path: Path) -> SourceFile:
    """Forty megabytes of text, which need gigabytes as chunks."""
    path.write_text("a " * 20_000_000)
    return SourceFile("bomb", path)


def test_a_file_that_takes_too_much_is_named_for_it_and_the_next_one_is_read(
    bounded: BoundedPreparation, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="more than 667 MB of memory"):
        bounded.prepare(text_bomb(tmp_path / "bomb.txt"), "f")
    assert bounded.prepare(sources()[0], "f").chunks


def test_an_update_skips_the_file_that_takes_too_much_and_indexes_the_others(
    bounded: BoundedPreparation, tmp_path: Path
) -> None:
    store = InMemoryDocumentStore()
    files = [text_bomb(tmp_path / "bomb.txt"), sources()[0]]
    report = indexing.update(store, files, preparation=bounded, embedder=HashEmbedder())
    assert [outcome.status for outcome in report.outcomes] == ["skipped", "added"]
    assert report.outcomes[0].note == "it needs more than 667 MB of memory to read"
    assert {chunk.meta["document"] for chunk in store.filter_documents()} == {files[1].document}


def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    with (
        contextlib.closing(BoundedPreparation(seconds=0.5)) as quick,
        pytest.raises(DataError, match="seconds to read"),
    ):
        quick.prepare(text_bomb(tmp_path / "bomb.txt"), "f")


def test_a_pdf_bomb_is_no_scan(bounded: BoundedPreparation, tmp_path: Path) -> None:
    bomb = pdf_bomb(tmp_path / "bomb.pdf", 400 << 20)
    assert bomb.path.stat().st_size < 500_000
    try:
        said = bounded.prepare(bomb, "f").note
    except DataError as error:
        said = str(error)
    assert "scan" not in said
    assert "memory" in said or "seconds" in said or "cannot be read" in said
