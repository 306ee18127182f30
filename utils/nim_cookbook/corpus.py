"""Collections with judgements: documents, questions, and the words that answer each question.

A judgement names a document and a verbatim quote, never a chunk number. A chunk is relevant when
it holds enough of the quote (`relevant`), so the same judgements serve every way of splitting.

Three ways in: `load_company` (the packaged collection; `company_files` gives it as the files that
reach the reader, PDFs among them), `load_folder` (anybody's files and a `questions.jsonl`) and
`load_beir` (the layout of BEIR: Thakur et al., "BEIR: A Heterogeneous Benchmark for Zero-shot
Evaluation of Information Retrieval Models", NeurIPS 2021).
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from nim_cookbook.data import Evidence as Evidence
from nim_cookbook.data import FollowUp as FollowUp
from nim_cookbook.data import Query as Query
from nim_cookbook.data import Text, brief, data_path, numbered_records, read_text, validated
from nim_cookbook.errors import DataError
from nim_cookbook.markup import page_words, parsed_page, split_front_matter

#: A chunk is relevant when it holds this share of a quote's words in a row. At one half, a quote
#: that a splitter cuts in two still has a relevant chunk: the one with the longer piece.
THRESHOLD = 0.5

SPLITS = ("train", "dev", "test")

_FORMATS = {".md": "md", ".txt": "txt", ".html": "html", ".htm": "html"}
_WORD = re.compile(r"\w+")
Q = TypeVar("Q", bound=Query)


@dataclass(frozen=True, slots=True)
class Source:
    """One document."""

    id: str  # its name; unique in the collection
    title: str  # its title, or the file's name
    text: str  # the body: Markdown or plain text; of HTML the words, a line to a block
    kind: str = ""  # what it is, such as `policy`; empty where the collection does not say
    format: str = "txt"  # `md`, `txt`, `html`, or `pdf` where a PDF is built from the text
    date: str = ""  # its date, ISO; empty where the collection does not say
    batch: str = "initial"  # `initial`, or the day of the batch it came with
    split: str = ""  # the questions that may ask about it: `train`, `dev`, `test`, or empty
    supersedes: str | None = None  # the document that it updates, if any
    withdraws: str | None = None  # the document that it takes out of force, if any


@dataclass(frozen=True, slots=True)
class CompanyFile(Source):
    """One document of the packaged collection as the file that reaches the reader."""

    path: Path = Path()  # the file: Markdown (`.md`), HTML (`.html`) or PDF (`.pdf`)


@dataclass(frozen=True, slots=True)
class Collection:
    """Documents and the questions about them."""

    sources: tuple[Source, ...]
    queries: tuple[Query, ...]
    _by_id: Mapping[str, Source] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the documents by id."""
        object.__setattr__(self, "_by_id", {source.id: source for source in self.sources})

    def source(self, name: str) -> Source:
        """Return the document of that id.

        Raises:
            DataError: There is none.
        """
        if name not in self._by_id:
            raise DataError(f"There is no document {name!r} among these {len(self.sources)}.")
        return self._by_id[name]

    def split(self, name: str) -> tuple[Query, ...]:
        """Return the questions of a split: `train`, `dev` or `test`."""
        return tuple(query for query in self.queries if query.split == name)

    def in_force(self) -> tuple[Source, ...]:
        """Return the documents that no other one supersedes or withdraws."""
        gone = replaced(self.sources)
        return tuple(source for source in self.sources if source.id not in gone)


def replaced(documents: Iterable[Source]) -> set[str]:
    """Return the ids of the documents that one of these supersedes or withdraws."""
    return {name for d in documents for name in (d.supersedes, d.withdraws) if name}


# ---------------------------------------------------------------------------------- judgements


def words(text: str) -> list[str]:
    """Return the words of a text as they are compared: no case, no marks, no soft hyphens."""
    plain = unicodedata.normalize("NFKC", text).replace("\u00ad", "").casefold()
    return _WORD.findall(plain)


def overlap(chunk: str, quote: str) -> float:
    """Return the share of a quote's words that a chunk holds in one unbroken run, 0 to 1.

    Only words count, so line breaks, table bars and Markdown marks make no difference.
    """
    wanted, given = words(quote), words(chunk)
    if not wanted:
        return 0.0
    if f" {' '.join(wanted)} " in f" {' '.join(given)} ":
        return 1.0
    matcher = SequenceMatcher(None, given, wanted, autojunk=False)
    return matcher.find_longest_match().size / len(wanted)


def relevant(
    chunk: str,
    evidence: Evidence,
    document: str | None = None,
    *,
    threshold: float = THRESHOLD,
) -> bool:
    """Tell whether a chunk is relevant by a judgement.

    Args:
        chunk: The chunk's text; of a span of a document, `source.text[start:end]`.
        evidence: The judgement.
        document: The id of the document that the chunk comes from. None compares the words
            alone; a judgement without a quote is then never met.
        threshold: The share of the quote's words, in a row, that the chunk must hold.
    """
    if document is not None and document != evidence.document:
        return False
    if not evidence.quote:
        return document is not None
    return overlap(chunk, evidence.quote) >= threshold


# ------------------------------------------------------------------------------------- loading


def load_company() -> Collection:
    """Return the packaged collection: the papers of an invented company, with questions.

    Raises:
        DataError: A file is missing or malformed.
    """
    folder = data_path("company")
    sources = _sources(folder / "documents")
    queries = [
        query
        for split in SPLITS
        for query in _queries(Query, folder / "questions" / f"{split}.jsonl", sources, split)
    ]
    return Collection(tuple(sources.values()), tuple(queries))


def load_follow_ups(split: str) -> tuple[FollowUp, ...]:
    """Return follow-up questions about the packaged collection's documents in force.

    Args:
        split: `dev` or `test`.

    Raises:
        DataError: There is no such split, or a file is missing or malformed.
    """
    path = data_path(f"conversations/{split}.jsonl")
    return tuple(_queries(FollowUp, path, _sources(data_path("company/documents")), split))


def company_files(*batches: str) -> list[CompanyFile]:
    """Return the packaged collection as files, the way they would arrive: also as real PDFs.

    Args:
        batches: `initial`, and days of daily batches such as `2026-07-01`; none for all of them.

    Returns:
        The files of those batches, by batch (`initial` first) and id, whatever order was asked.

    Raises:
        DataError: There is no batch of that name, or a file is missing or malformed.
    """
    sources = _sources(data_path("company/documents")).values()
    known = sorted({source.batch for source in sources}, key=lambda b: (b != "initial", b))
    if unknown := [batch for batch in batches if batch not in known]:
        raise DataError(f"There is no batch {unknown[0]!r}: the batches are {', '.join(known)}.")
    wanted = [source for source in sources if source.batch in (batches or known)]
    wanted.sort(key=lambda source: (known.index(source.batch), source.id))
    folders = {"pdf": "pdf"}
    return [
        CompanyFile(
            **asdict(s),
            path=data_path(f"company/{folders.get(s.format, 'documents')}/{s.id}.{s.format}"),
        )
        for s in wanted
    ]


def load_folder(folder: str | Path) -> Collection:
    """Return anybody's collection: a folder of `.md`, `.txt` and `.html` files.

    A document's id is the `id` of its front matter (or `<meta name="id">`), else its path below
    the folder, such as `guides/setup.md`. Hidden files and folders are left out. Questions come
    from `questions.jsonl` in the folder, if there is one; a line is an object of `question` and,
    all optional, `id`, `answers` (a list), `kind`, `split` and `evidence` (a list of `document`
    and `quote`; without the quote all of the document is judged relevant).

    Raises:
        DataError: The folder has no such files, or a file or line is malformed.
    """
    folder = Path(folder)
    sources = _sources(folder)
    if not sources:
        raise DataError(f"There is no folder {str(folder)!r} with .md, .txt or .html files.")
    questions = folder / "questions.jsonl"
    queries = _queries(Query, questions, sources) if questions.is_file() else []
    return Collection(tuple(sources.values()), tuple(queries))


@dataclass(frozen=True, slots=True)
class _BeirText:
    """A line of `corpus.jsonl` or `queries.jsonl`."""

    id: Annotated[Text, Field(alias="_id")]
    text: str
    title: str = ""


def load_beir(folder: str | Path) -> Collection:
    """Return a collection in BEIR's layout.

    `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`) and `qrels/*.tsv`
    (query, document, whole grade; tabs; a header line), one file a split. A grade of 0 or less
    says "not relevant". Queries without a relevant document are left out, as they measure nothing.

    Raises:
        DataError: A file is missing or a line malformed.
    """
    folder = Path(folder)
    documents = _beir_texts(folder / "corpus.jsonl")
    asked = _beir_texts(folder / "queries.jsonl")
    queries = []
    for path in sorted((folder / "qrels").glob("*.tsv")):
        evidence: dict[str, list[Evidence]] = {}
        for number, row in _rows(path):
            if number == 1 and not row[-1].strip().lstrip("-").isdigit():
                continue  # the header
            try:
                query, document, grade = row
                if int(grade) > 0:
                    entry = Evidence(documents[document].id, "", int(grade))
                    evidence.setdefault(asked[query].id, []).append(entry)
            except (ValueError, KeyError) as error:
                raise DataError(
                    f"Line {number} of {path.name} is no judgement of a query and a document of "
                    f"this collection ({str(error)[:100]})."
                ) from None
        queries += [
            Query(name, asked[name].text, evidence=tuple(found), split=path.stem)
            for name, found in evidence.items()
        ]
    if not queries:
        raise DataError(f"The folder {str(folder / 'qrels')!r} holds no judgements in .tsv files.")
    sources = (Source(line.id, line.title, line.text) for line in documents.values())
    return Collection(tuple(sources), tuple(queries))


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a tab-separated file and their numbers; blank lines are skipped."""
    rows = enumerate(csv.reader(read_text(path).splitlines(), "excel-tab"), 1)
    try:
        yield from ((number, row) for number, row in rows if row)
    except csv.Error as error:
        raise DataError(f"{path.name} is no tab-separated file ({error}).") from None


def _beir_texts(path: Path) -> dict[str, _BeirText]:
    lines = (validated(_BeirText, record, where) for where, record in numbered_records(path))
    return {line.id: line for line in lines}


def _sources(folder: Path) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in below.parts)
        if hidden or path.suffix.lower() not in _FORMATS or not path.is_file():
            continue
        source = _source(path, below.as_posix())
        if source.id in sources:
            raise DataError(f"{below.as_posix()}: the id {brief(source.id)} is used a second time.")
        sources[source.id] = source
    return sources


def _source(path: Path, name: str) -> Source:
    text = read_text(path)
    kind = _FORMATS[path.suffix.lower()]
    meta: dict[str, str] = {}
    if kind == "html":
        page = parsed_page(text)
        meta, text = page.meta, page_words(page)
        meta.setdefault("title", page.title)
    elif kind == "md":
        meta, text = split_front_matter(text)
    return Source(
        id=meta.get("id") or name,
        title=meta.get("title") or path.stem,
        text=text,
        kind=meta.get("kind", ""),
        format=meta.get("format") or kind,
        date=meta.get("date", ""),
        batch=meta.get("batch") or "initial",
        split=meta.get("split", ""),
        supersedes=meta.get("supersedes") or None,
        withdraws=meta.get("withdraws") or None,
    )


def _queries(
    kind: type[Q],
    path: Path,
    sources: Mapping[str, Source],
    split: str = "",
) -> list[Q]:
    queries: dict[str, Q] = {}
    for where, record in numbered_records(path):
        defaults = {"id": f"q-{where.split()[1]}"}
        query = validated(kind, defaults | record | ({"split": split} if split else {}), where)
        if query.id in queries:
            raise DataError(f"{where}: the question id {brief(query.id)} is used a second time.")
        for entry in query.evidence:
            if entry.document not in sources:
                raise DataError(f"{where}: there is no document {brief(entry.document)}.")
            text = sources[entry.document].text
            if entry.quote and entry.quote not in text and overlap(text, entry.quote) < 1:
                raise DataError(
                    f"{where}: the document {brief(entry.document)} does not hold the quote "
                    f"{brief(entry.quote)}."
                )
        queries[query.id] = query
    return list(queries.values())
