"""The company's papers as files: the PDFs hold what is judged, and are what the sources give."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pytest
from pypdf import PdfReader

from nim_cookbook.corpus import Source, company_files, load_company, overlap
from nim_cookbook.data import data_path
from nim_cookbook.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
COMPANY = load_company()
PAPERS = [source for source in COMPANY.sources if source.format == "pdf"]
DAYS = ["2026-07-01", "2026-07-02", "2026-07-03", "2026-07-06", "2026-07-07"]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pdfs", ROOT / "tools" / "make_pdfs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection of three papers and their PDFs, and a text of which there is no PDF."""
    for name in ("documents/report-2024-q1.md", "documents/sheet-kf-80.md"):
        _copy(name, tmp_path)
    _copy("documents/incident-2026-006.md", tmp_path)
    _copy("documents/note-001.md", tmp_path)
    for name in ("report-2024-q1", "sheet-kf-80", "incident-2026-006"):
        _copy(f"pdf/{name}.pdf", tmp_path)
    return tmp_path


def _copy(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(data_path("company") / name, folder / name)


def _pages(pdf: bytes) -> list[str]:
    return [page.extract_text() for page in PdfReader(BytesIO(pdf)).pages]


@cache
def _committed(name: str) -> tuple[str, ...]:
    return tuple(_pages(data_path(f"company/pdf/{name}.pdf").read_bytes()))


def _report(text: str) -> Source:
    return replace(COMPANY.source("report-2024-q1"), text=text)


# ---------------------------------------------------------------------------------- the papers


def test_every_quote_is_in_the_text_of_its_pdf():
    names = {source.id for source in PAPERS}
    evidence = [e for query in COMPANY.queries for e in query.evidence if e.document in names]
    assert len(evidence) > 200
    lost = [e for e in evidence if overlap("\n".join(_committed(e.document)), e.quote) < 1]
    assert lost == []


@pytest.mark.parametrize("source", PAPERS, ids=lambda source: source.id)
def test_every_line_of_the_source_is_in_its_pdf(source):
    text = "\n".join(_committed(source.id))
    lines = [line for line in source.text.splitlines() if re.search(r"\w", line)]
    assert [line for line in lines if overlap(text, line) < 1] == []


@pytest.mark.parametrize("source", PAPERS, ids=lambda source: source.id)
def test_pages_are_numbered_and_say_whose_they_are(source):
    pages = _committed(source.id)
    for number, page in enumerate(pages, 1):
        assert f"Page {number} of {len(pages)}" in page
        assert source.id in page
        assert page.startswith("Tarnfeld Hydrometrics")


# -------------------------------------------------------------------------------- building them


def test_the_sources_give_the_committed_bytes(tool):
    built = {source.id: tool.build(source) for source in PAPERS}
    there = {path.stem: path.read_bytes() for path in data_path("company/pdf").iterdir()}
    assert sorted(built) == sorted(there)
    assert [name for name in built if built[name] != there[name]] == []


def test_no_paragraph_list_or_table_row_is_cut_by_a_page(tool):
    sentence = " ".join(f"word{n}" for n in range(70))
    rows = "\n".join(f"| row {n} | value {n} |" for n in range(8))
    items = "\n".join(f"{n + 1}. item {n} of the list" for n in range(6))
    parts = []
    for n in range(9):
        parts += [f"## Heading {n}", f"First {n} {sentence}", f"| a | b |\n|---|---|\n{rows}"]
        parts += [f"Second {n} {sentence}", items]
    pages = _pages(tool.build(_report("# Title\n\n" + "\n\n".join(parts))))
    assert len(pages) > 5
    whole = "\n".join(pages)
    for n in range(9):
        # A heading stands on the page of the paragraph below it.
        assert overlap(whole, f"Heading {n} First {n} {sentence}") == 1
        assert overlap(whole, f"Second {n} {sentence}") == 1
    table = "a b " + " ".join(f"row {n} value {n}" for n in range(8))
    numbers = " ".join(f"{n + 1} item {n} of the list" for n in range(6))
    assert " ".join(whole.split()).count(table) == 9
    assert " ".join(whole.replace(". item", " item").split()).count(numbers) == 9


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("A [link](x.md).", "'link'"),
        ("```\ncode\n```", "'fence'"),
        ("> quoted", "'blockquote'"),
        ("- above\n  - below", "'paragraph'"),
        ("A rise of 3 \u2030.", "\u2030"),  # not in the core fonts
    ],
)
def test_what_the_papers_lack_is_one_sentence(tool, text, what):
    with pytest.raises(SystemExit, match=rf"report-2024-q1\.md cannot become a PDF \(.*{what}"):
        tool.build(_report(text))


def test_check_passes_on_the_committed_files(tool, capsys):
    tool.main(["--check"])
    assert "All 42 PDFs" in capsys.readouterr().out


def test_check_names_what_differs_and_writes_nothing(tool, folder):
    source = folder / "documents" / "sheet-kf-80.md"
    source.write_text(source.read_text("utf-8").replace("cr", "crowns"), encoding="utf-8")
    (folder / "pdf" / "report-2024-q1.pdf").unlink()
    (folder / "documents" / "incident-2026-006.md").unlink()
    before = {path: path.read_bytes() for path in (folder / "pdf").iterdir()}
    with pytest.raises(SystemExit) as caught:
        tool.main(["--check", "--folder", str(folder)])
    for name in ("sheet-kf-80", "report-2024-q1", "incident-2026-006"):
        assert f"{name}.pdf" in str(caught.value.code)
    assert {path: path.read_bytes() for path in (folder / "pdf").iterdir()} == before


def test_building_writes_what_changed_and_removes_what_has_no_source(tool, folder, capsys):
    (folder / "pdf" / "report-2024-q1.pdf").write_bytes(b"old")
    (folder / "documents" / "incident-2026-006.md").unlink()
    tool.main(["--folder", str(folder)])
    assert "1 written, 1 removed" in capsys.readouterr().out
    names = sorted(path.name for path in (folder / "pdf").iterdir())
    assert names == ["report-2024-q1.pdf", "sheet-kf-80.pdf"]
    tool.main(["--check", "--folder", str(folder)])


def test_a_folder_without_documents_removes_nothing(tool, folder):
    shutil.rmtree(folder / "documents")
    with pytest.raises(SystemExit, match="There is no folder"):
        tool.main(["--folder", str(folder)])
    assert len(list((folder / "pdf").iterdir())) == 3


# ---------------------------------------------------------------------------------- as files


def test_company_files_are_all_documents_as_they_reach_the_reader():
    files = company_files()
    assert {file.id for file in files} == {source.id for source in COMPANY.sources}
    assert Counter(file.path.suffix for file in files) == {".md": 58, ".html": 30, ".pdf": 42}
    for file in files:
        source = COMPANY.source(file.id)
        assert file.path.is_file()
        assert file.path.stem == file.id
        for key in ("title", "kind", "date", "batch", "supersedes", "withdraws"):
            assert getattr(file, key) == getattr(source, key)


def test_company_files_of_some_batches_stand_in_their_order():
    assert company_files("initial", *DAYS) == company_files()
    third_and_first = company_files("2026-07-03", "2026-07-01", "2026-07-03")
    assert [file.batch for file in third_and_first] == ["2026-07-01"] * 3 + ["2026-07-03"] * 3
    with pytest.raises(DataError, match=r"'2026-07-04'.* initial, 2026-07-01, .*2026-07-07\."):
        company_files("initial", "2026-07-04")
