"""Collections with judgements: documents, questions, and the words that answer each question.

A judgement names a document and a verbatim quote, never a chunk number. A passage is relevant when
it holds enough of the quote (`relevant`), so the same judgements serve every way of splitting.

Three ways in: `load_company` (the packaged collection; `company_files` gives it as the files that
reach the reader, PDFs among them), `load_folder` (anybody's files and a `questions.jsonl`) and
`load_beir` (the layout of BEIR: Thakur et al., "BEIR: A Heterogeneous Benchmark for Zero-shot
Evaluation of Information Retrieval Models", NeurIPS 2021).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from nim_cookbook.data import data_path, read_jsonl
from nim_cookbook.errors import DataError

#: A passage is relevant when it holds this share of a quote's words in a row. At one half, a quote
#: that a splitter cuts in two still has a relevant passage: the one with the longer piece.
THRESHOLD = 0.5

SPLITS = ("train", "dev", "test")

_FORMATS = {".md": "md", ".txt": "txt", ".html": "html", ".htm": "html"}
_KEYS = ("id", "title", "kind", "format", "date", "batch", "split", "supersedes", "withdraws")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_PAIR = re.compile(r"([A-Za-z_][\w-]*):[ \t]*(.*)")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Source:
    """One document.

    Attributes:
        id: Its name; unique in the collection.
        title: Its title, or the file's name.
        kind: What it is, such as `policy`; empty where the collection does not say.
        format: `md`, `txt`, `html`, or `pdf` where a PDF is built from the text.
        date: Its date, ISO; empty where the collection does not say.
        batch: `initial`, or the day of the batch it came with.
        split: The questions that may ask about it: `train`, `dev`, `test`, or empty.
        supersedes: The document that it updates, if any.
        withdraws: The document that it takes out of force, if any.
        text: The body: Markdown or plain text; of HTML the words, a line to a block.
    """

    id: str
    title: str
    kind: str
    format: str
    date: str
    batch: str
    split: str
    supersedes: str | None
    withdraws: str | None
    text: str


@dataclass(frozen=True, slots=True)
class CompanyFile:
    """One document of the packaged collection as the file that reaches the reader.

    Attributes:
        id: The document's id.
        path: The file: Markdown (`.md`), HTML (`.html`) or PDF (`.pdf`).
        title: Its title.
        kind: What it is, such as `policy`.
        date: Its date, ISO.
        batch: `initial`, or the day of the batch it came with.
        supersedes: The document that it updates, if any.
        withdraws: The document that it takes out of force, if any.
    """

    id: str
    path: Path
    title: str
    kind: str
    date: str
    batch: str
    supersedes: str | None
    withdraws: str | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What answers a question: words of a document.

    Attributes:
        document: The document's id.
        quote: Its words, verbatim; empty when all of the document is judged, as in BEIR.
        grade: How relevant, from 1 up; above 1 only in graded collections.
    """

    document: str
    quote: str = ""
    grade: int = 1


@dataclass(frozen=True, slots=True)
class Query:
    """A question with its references and judgements.

    Attributes:
        id: Its name; unique in its split.
        question: The question.
        answers: Reference answers, any of which is right; empty where there are none.
        kind: What makes it hard, such as `paraphrase`; empty where the collection does not say.
        evidence: The words that answer it, all of which a perfect retriever finds.
        split: `train`, `dev`, `test`, or empty.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    kind: str
    evidence: tuple[Evidence, ...]
    split: str = ""

    @property
    def answerable(self) -> bool:
        """Whether the documents hold the answer."""
        return bool(self.answers or self.evidence)


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


def replaced(documents: Iterable[Source | CompanyFile]) -> set[str]:
    """Return the ids of the documents that one of these supersedes or withdraws."""
    return {name for d in documents for name in (d.supersedes, d.withdraws) if name}


# ---------------------------------------------------------------------------------- judgements


def words(text: str) -> list[str]:
    """Return the words of a text as they are compared: no case, no marks, no soft hyphens."""
    plain = unicodedata.normalize("NFKC", text).replace("\u00ad", "").casefold()
    return _WORD.findall(plain)


def overlap(passage: str, quote: str) -> float:
    """Return the share of a quote's words that a passage holds in one unbroken run, 0 to 1.

    Only words count, so line breaks, table bars and Markdown marks make no difference.
    """
    wanted, given = words(quote), words(passage)
    if not wanted:
        return 0.0
    if f" {' '.join(wanted)} " in f" {' '.join(given)} ":
        return 1.0
    matcher = SequenceMatcher(None, given, wanted, autojunk=False)
    return matcher.find_longest_match().size / len(wanted)


def relevant(
    passage: str,
    evidence: Evidence,
    document: str | None = None,
    *,
    threshold: float = THRESHOLD,
) -> bool:
    """Tell whether a passage is relevant by a judgement.

    Args:
        passage: The passage's text; of a span of a document, `source.text[start:end]`.
        evidence: The judgement.
        document: The id of the document that the passage comes from. None compares the words
            alone; a judgement without a quote is then never met.
        threshold: The share of the quote's words, in a row, that the passage must hold.
    """
    if document is not None and document != evidence.document:
        return False
    if not evidence.quote:
        return document is not None
    return overlap(passage, evidence.quote) >= threshold


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
        for query in _queries(folder / "questions" / f"{split}.jsonl", sources, split)
    ]
    return Collection(tuple(sources.values()), tuple(queries))


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
    known = sorted({source.batch for source in sources}, key=_batch_order)
    for batch in batches:
        if batch not in known:
            raise DataError(f"There is no batch {batch!r}: the batches are {', '.join(known)}.")
    wanted = [source for source in sources if source.batch in (batches or known)]
    wanted.sort(key=lambda source: (_batch_order(source.batch), source.id))
    return [_company_file(source) for source in wanted]


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
    if not folder.is_dir():
        raise DataError(f"There is no folder {str(folder)!r}: give one that holds your files.")
    sources = _sources(folder)
    if not sources:
        raise DataError(f"The folder {str(folder)!r} holds no .md, .txt or .html files.")
    questions = folder / "questions.jsonl"
    queries = _queries(questions, sources) if questions.is_file() else []
    return Collection(tuple(sources.values()), tuple(queries))


def load_beir(folder: str | Path, *, strict: bool = True) -> Collection:
    """Return a collection in BEIR's layout.

    `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`) and `qrels/*.tsv`
    (query, document, whole grade; tabs; a header line), one file a split. A grade of 0 or less
    says "not relevant". Queries without a relevant document are left out, as they measure nothing.

    Args:
        folder: The folder that holds the three.
        strict: Whether a judgement of an unknown query or document is an error; otherwise it is
            left out.

    Raises:
        DataError: A file is missing or a line malformed.
    """
    folder = Path(folder)
    sources: dict[str, Source] = {}
    for where, record in _lines(folder / "corpus.jsonl"):
        name = _text(record, "_id", where)
        if name in sources:
            raise DataError(f"{where}: the document id {name!r} is used a second time.")
        text = _text(record, "text", where, empty=True)
        title = _text(record, "title", where, default="")
        sources[name] = Source(name, title, "", "txt", "", "initial", "", None, None, text)
    questions: dict[str, str] = {}
    for where, record in _lines(folder / "queries.jsonl"):
        name = _text(record, "_id", where)
        if name in questions:
            raise DataError(f"{where}: the query id {name!r} is used a second time.")
        questions[name] = _text(record, "text", where)
    files = sorted((folder / "qrels").glob("*.tsv"))
    if not files:
        raise DataError(f"The folder {str(folder / 'qrels')!r} holds no .tsv files of judgements.")
    queries = []
    for path in files:
        grades: dict[str, dict[str, int]] = {}
        for where, query, document, grade in _judgements(path):
            if query not in questions or document not in sources:
                what = f"query {query!r}" if query not in questions else f"document {document!r}"
                if strict:
                    raise DataError(f"{where}: there is no {what} in the collection.")
            elif grade > 0:
                grades.setdefault(query, {})[document] = grade
        queries += [
            Query(
                query,
                questions[query],
                (),
                "",
                tuple(Evidence(document, "", grade) for document, grade in graded.items()),
                path.stem,
            )
            for query, graded in grades.items()
        ]
    return Collection(tuple(sources.values()), tuple(queries))


def _sources(folder: Path) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in below.parts)
        if hidden or path.suffix.lower() not in _FORMATS or not path.is_file():
            continue
        source = _source(path, below.as_posix())
        if source.id in sources:
            raise DataError(f"{below.as_posix()}: the id {source.id!r} is used a second time.")
        sources[source.id] = source
    return sources


def _batch_order(batch: str) -> tuple[bool, str]:
    return batch != "initial", batch


def _company_file(source: Source) -> CompanyFile:
    folder = "pdf" if source.format == "pdf" else "documents"
    return CompanyFile(
        id=source.id,
        path=data_path(f"company/{folder}/{source.id}.{source.format}"),
        title=source.title,
        kind=source.kind,
        date=source.date,
        batch=source.batch,
        supersedes=source.supersedes,
        withdraws=source.withdraws,
    )


def _source(path: Path, name: str) -> Source:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} cannot be read as UTF-8 text ({error}).") from None
    kind = _FORMATS[path.suffix.lower()]
    meta: dict[str, str] = {}
    if kind == "html":
        meta, text = _read_html(text)
    elif kind == "md":
        meta, text = _read_markdown(text)
    return Source(
        id=meta.get("id") or name,
        title=meta.get("title") or path.stem,
        kind=meta.get("kind", ""),
        format=meta.get("format") or kind,
        date=meta.get("date", ""),
        batch=meta.get("batch") or "initial",
        split=meta.get("split", ""),
        supersedes=meta.get("supersedes") or None,
        withdraws=meta.get("withdraws") or None,
        text=text,
    )


def _read_markdown(text: str) -> tuple[dict[str, str], str]:
    """Split front matter off; only `key: value` lines of known keys are read."""
    head = _FRONT_MATTER.match(text)
    lines = [line for line in head[1].splitlines() if line.strip()] if head else []
    pairs = [pair for line in lines if (pair := _PAIR.match(line))]
    if head is None or not pairs or not _PAIR.match(lines[0]):
        return {}, text  # a rule between two lines of dashes, and no front matter
    meta = {pair[1]: pair[2].strip().strip("\"'") for pair in pairs if pair[1] in _KEYS}
    return meta, text[head.end() :].lstrip("\r\n")


class _Html(HTMLParser):
    """Collects metadata and the words of a page, one line to a block."""

    SKIP = frozenset({"script", "style", "template", "noscript", "title", "nav"})
    BLOCK = re.compile(
        r"address|article|aside|blockquote|br|dd|div|dl|dt|figcaption|figure|footer|h[1-6r]|header|"
        r"li|main|ol|p|pre|section|table|tr|ul"
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.meta: dict[str, str] = {}
        self.title = ""
        self.pieces: list[str] = []
        self._skipping: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "meta":
            given = dict(attrs)
            if (name := given.get("name") or "") in _KEYS:
                self.meta[name] = given.get("content") or ""
        elif tag in self.SKIP:
            self._skipping.append(tag)
        elif self.BLOCK.fullmatch(tag):
            self.pieces.append("\n")
        elif tag in ("td", "th"):
            self.pieces.append(" | ")

    def handle_endtag(self, tag: str) -> None:
        if self._skipping and tag == self._skipping[-1]:
            self._skipping.pop()
        elif self.BLOCK.fullmatch(tag):
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self.pieces.append(re.sub(r"\s+", " ", data))
        elif self._skipping == ["title"]:
            self.title += data


def _read_html(text: str) -> tuple[dict[str, str], str]:
    parser = _Html()
    parser.feed(text)
    parser.close()
    lines = (
        " ".join(line.split()).removeprefix("| ") for line in "".join(parser.pieces).split("\n")
    )
    parser.meta.setdefault("title", " ".join(parser.title.split()))
    return parser.meta, "\n".join(line for line in lines if line) + "\n"


def _queries(path: Path, sources: Mapping[str, Source], split: str = "") -> list[Query]:
    queries: dict[str, Query] = {}
    for where, record in _lines(path):
        number = where.split()[1]
        name = _text(record, "id", where, default=f"q-{number}")
        if name in queries:
            raise DataError(f"{where}: the question id {name!r} is used a second time.")
        answers = record.get("answers", [])
        if not isinstance(answers, list) or not all(isinstance(a, str) and a for a in answers):
            raise DataError(f'{where}: "answers" is no list of texts.')
        evidence = record.get("evidence", [])
        if not isinstance(evidence, list) or not all(isinstance(e, dict) for e in evidence):
            raise DataError(f'{where}: "evidence" is no list of objects.')
        queries[name] = Query(
            id=name,
            question=_text(record, "question", where),
            answers=tuple(answers),
            kind=_text(record, "kind", where, default=""),
            evidence=tuple(_evidence(entry, sources, where) for entry in evidence),
            split=split or _text(record, "split", where, default=""),
        )
    return list(queries.values())


def _evidence(entry: Mapping[str, Any], sources: Mapping[str, Source], where: str) -> Evidence:
    document = _text(entry, "document", where)
    quote = _text(entry, "quote", where, default="")
    if document not in sources:
        raise DataError(f"{where}: there is no document {document!r} in the collection.")
    text = sources[document].text
    if quote and quote not in text and overlap(text, quote) < 1:
        raise DataError(f"{where}: the document {document!r} does not hold the quote {quote!r}.")
    return Evidence(document, quote)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object of a JSONL file with the words that say where it stands."""
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}.")
    for number, record in _numbered(path):
        yield f"Line {number} of {path.name}", record


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each object of a JSONL file with the number of its line, from 1.

    Raises:
        DataError: The file cannot be read, or a line is no JSON object.
    """
    records = read_jsonl(path)
    text = path.read_text(encoding="utf-8")
    numbers = (n for n, line in enumerate(text.split("\n"), 1) if line.strip())
    yield from zip(numbers, records, strict=True)


def _judgements(path: Path) -> Iterator[tuple[str, str, str, int]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} cannot be read as UTF-8 text ({error}).") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"Line {number} of {path.name}"
        cells = line.split("\t")
        if len(cells) != 3:
            raise DataError(f"{where}: it has {len(cells)} columns between tabs instead of three.")
        query, document, grade = (cell.strip() for cell in cells)
        try:
            yield where, query, document, int(grade)
        except ValueError:
            if number > 1:  # the first line may be a header
                raise DataError(f"{where}: the grade {grade!r} is no whole number.") from None


def _text(
    record: Mapping[str, Any],
    key: str,
    where: str,
    *,
    default: str | None = None,
    empty: bool = False,
) -> str:
    value = record.get(key, default)
    if not isinstance(value, str):
        what = "is missing" if key not in record else "is no text"
        raise DataError(f'{where}: "{key}" {what}.')
    if not value.strip() and default is None and not empty:
        raise DataError(f'{where}: "{key}" is empty.')
    return value
