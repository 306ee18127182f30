"""The papers with tables, figures and scans are what their sources give, and can be judged."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pypdf import PdfReader

from nim_cookbook.corpus import load_folder, overlap
from nim_cookbook.data import data_path
from tests.unit.test_pdfs import tool as tool  # a fixture

PAPERS = load_folder(data_path("tables/documents"))
SCANS = [source for source in PAPERS.sources if source.kind == "scan"]


def pdf(name: str) -> Path:
    return data_path(f"tables/pdf/{name}.pdf")


def test_the_sources_give_the_committed_bytes(tool):
    there = {path.stem: path.read_bytes() for path in data_path("tables/pdf").iterdir()}
    assert sorted(there) == sorted(source.id for source in PAPERS.sources)
    assert [s.id for s in PAPERS.sources if tool.build(s) != there[s.id]] == []


def test_there_are_as_many_questions_as_the_readme_says():
    readme = data_path("tables/README.md").read_text("utf-8")
    counts = Counter((query.kind, query.split) for query in PAPERS.queries)
    for kind in ("table", "scan", "figure"):
        assert f"| {kind} | {counts[kind, 'dev']} | {counts[kind, 'test']} |" in readme
    assert f"{len(PAPERS.queries)} questions" in readme
    assert sum(counts.values()) == len(PAPERS.queries)


def test_a_reference_is_in_the_evidence_and_splits_share_no_document():
    for query in PAPERS.queries:
        quotes = " ".join(entry.quote for entry in query.evidence)
        assert any(overlap(quotes, answer) == 1 for answer in query.answers), query.id
        assert {PAPERS.source(e.document).split for e in query.evidence} == {query.split}


@pytest.mark.parametrize("source", SCANS, ids=lambda source: source.id)
def test_a_scan_is_one_small_picture_without_text(source):
    (page,) = PdfReader(pdf(source.id)).pages
    assert page.extract_text() == ""
    assert len(page.images) == 1
    assert pdf(source.id).stat().st_size < 200_000


def test_a_table_goes_on_without_its_header():
    for name, header in (("prices-2026-accessories", "Price (cr)"), ("shifts-2026-08", "On call")):
        pages = [page.extract_text() for page in PdfReader(pdf(name)).pages]
        assert sum(header in page for page in pages) == 1, name
        rows = [cell for cell in PAPERS.source(name).text.splitlines() if cell.startswith("| ")]
        assert overlap(pages[1], rows[-1]) == 1
