"""From files to chunks in a vector store, and keeping the store true when the files change.

The store is the only memory. Every chunk carries its document's id, a fingerprint of the file and
settings that it was made from, and how many chunks the file gave. So a look at the store tells
what is current, what is out of date and what an interrupted run left behind; there is no second
record that could disagree. For each changed file the new chunks are written before the old ones
are deleted, so that a run killed at any moment is completed by the next.

Any Haystack document store will do that filters, overwrites and deletes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from filelock import FileLock
from haystack import Document, Pipeline, component
from haystack.components.converters import (
    HTMLToDocument,
    MarkdownToDocument,
    PyPDFToDocument,
    TextFileToDocument,
)
from haystack.components.converters.utils import get_bytestream_from_source
from haystack.components.joiners import DocumentJoiner
from haystack.components.preprocessors import DocumentCleaner, DocumentSplitter
from haystack.components.routers import FileTypeRouter
from haystack.dataclasses import ByteStream
from haystack.document_stores.types import DocumentStore, DuplicatePolicy
from haystack.utils import Secret
from haystack_integrations.components.embedders.nvidia import NvidiaDocumentEmbedder
from pypdf import PdfReader
from trafilatura.utils import decode_file

from nim_cookbook import local
from nim_cookbook.corpus import CompanyFile, company_files, replaced
from nim_cookbook.endpoints import Endpoint
from nim_cookbook.errors import DataError
from nim_cookbook.markup import split_front_matter, visible

Unit = Literal["word", "line", "passage", "page"]
Status = Literal["added", "changed", "unchanged", "removed", "skipped"]
Progress = Callable[[int, int], None]
T = TypeVar("T")

#: Chunks that are embedded and written together: two of the embedder's usual batches.
BATCH = 64
#: Documents looked up in the store at once; bounds the memory that a look-up takes.
LOOKUP = 50
#: Words of a chunk, and how many of them it shares with the one before it (recipes 03 and 07).
SPLIT_LENGTH, SPLIT_OVERLAP = 100, 20

#: Page numbers at the foot of a page, with what follows on their line.
FOOTER = r"Page \d+ of \d+[^\n\f]*"

#: What a converter is called in the preparation, by the media type that the router gives it.
CONVERTERS = {
    "application/pdf": "pdf",
    "text/markdown": "markdown",
    "text/html": "html",
    "text/plain": "text",
}
# What the converters and the splitter leave behind and no reader needs.
_SPLITTER_KEYS = frozenset({"source_id", "split_idx_start", "_split_overlap"})


class Embedder(Protocol):
    """What embeds documents: `NvidiaDocumentEmbedder`, or any of Haystack's document embedders."""

    def run(self, documents: list[Document]) -> Mapping[str, Any]:
        """Return `{"documents": documents with an embedding each}`."""
        ...


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that is to be found."""

    document: str  # the document's id; a new version of the file keeps it
    path: Path  # where the file is
    # what else is known, such as `title` and `date`; every chunk carries it
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file.

    Attributes:
        document: The document's id.
        status: `added`, `changed` (other content, metadata or settings than before), `unchanged`,
            `removed` or `skipped`.
        chunks: How many chunks of it the store now holds.
        embedded: How many of them had to be embedded.
        note: What a person should know, such as why it was skipped.
    """

    document: str
    status: Status
    chunks: int = 0
    embedded: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What an update did, file by file."""

    outcomes: tuple[Outcome, ...]

    @property
    def embedded(self) -> int:
        """How many chunks were embedded."""
        return sum(outcome.embedded for outcome in self.outcomes)

    @property
    def notes(self) -> tuple[Outcome, ...]:
        """Return the files that somebody should look at: skipped ones, and those with a remark."""
        return tuple(outcome for outcome in self.outcomes if outcome.note)

    def count(self, status: Status) -> int:
        """Return how many files ended so."""
        return sum(outcome.status == status for outcome in self.outcomes)

    def __str__(self) -> str:
        """Say it in one line."""
        kinds: tuple[Status, ...] = ("added", "changed", "removed", "unchanged", "skipped")
        counts = ", ".join(f"{n} {kind}" for kind in kinds if (n := self.count(kind)))
        return f"{counts or 'nothing to do'}; {self.embedded} chunks embedded"


@component
class MarkdownFile:
    """Convert Markdown files; the lines of their front matter become metadata, as text.

    Haystack's converter reads front matter as YAML, whose aliases make megabytes of metadata out of
    a few bytes, in each chunk, and whose titles may be numbers.
    """

    def __init__(self) -> None:
        self._converter = MarkdownToDocument(progress_bar=False)

    @component.output_types(documents=list[Document])
    def run(
        self, sources: list[str | Path | ByteStream], meta: list[dict[str, Any]] | None = None
    ) -> dict[str, list[Document]]:
        """Return a document a file; what `meta` says of it counts more than its front matter."""
        parted = [self._parted(source) for source in sources]
        result: dict[str, list[Document]] = self._converter.run(sources=parted, meta=meta)
        return result

    @staticmethod
    def _parted(source: str | Path | ByteStream) -> str | Path | ByteStream:
        try:
            stream = get_bytestream_from_source(source)
            found, body = split_front_matter(stream.data.decode("utf-8-sig"))
        except (OSError, UnicodeDecodeError):
            return source  # the converter says what is wrong with it
        return ByteStream(body.encode(), meta={**found, **stream.meta})


@component
class HtmlFile:
    """Convert HTML files, without what a reader of the page cannot see.

    Haystack's converter takes the text of elements that are hidden by an attribute or a style, and
    the chat model may obey an instruction that stands there.
    """

    def __init__(self) -> None:
        self._converter = HTMLToDocument()

    @component.output_types(documents=list[Document])
    def run(
        self, sources: list[str | Path | ByteStream], meta: list[dict[str, Any]] | None = None
    ) -> dict[str, list[Document]]:
        """Return a document a file, with `meta` as its metadata."""
        seen = [self._seen(source) for source in sources]
        result: dict[str, list[Document]] = self._converter.run(sources=seen, meta=meta)
        return result

    @staticmethod
    def _seen(source: str | Path | ByteStream) -> str | Path | ByteStream:
        try:
            stream = get_bytestream_from_source(source)
        except OSError:
            return source  # the converter says what is wrong with it
        text = decode_file(stream.data)  # as the converter itself would
        return ByteStream(visible(text).encode(), meta=stream.meta)


@component
class TitleLine:
    """Begin each chunk with the title of its document, and end its page breaks.

    A chunk from the middle of a document rarely says what it is about. With the title in its text
    keyword search, vectors, reranker and chat model all know. Page breaks are form feeds, which the
    splitter has counted by now; in the text of a chunk they become line breaks.
    """

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Return the chunks with `meta["title"]`, where there is one, as their first line."""
        return {"documents": [replace(d, content=self._titled(d)) for d in documents]}

    @staticmethod
    def _titled(chunk: Document) -> str:
        text = (chunk.content or "").replace("\f", "\n")
        title = chunk.meta.get("title")
        return f"{title}\n{text}" if title else text


def preparation(
    split_length: int = SPLIT_LENGTH,
    split_overlap: int = SPLIT_OVERLAP,
    split_by: Unit = "word",
) -> Pipeline:
    """Return the pipeline from files to chunks; recipe 03 builds it for PDF files.

    Inputs `router.sources` and `router.meta`; output `title.documents`.

    Args:
        split_length: Most words of a chunk.
        split_overlap: Words that a chunk shares with the one before it.
        split_by: What is counted in the place of words.
    """
    pipeline = Pipeline()
    pipeline.add_component("router", FileTypeRouter(list(CONVERTERS)))
    pipeline.add_component("pdf", PyPDFToDocument())
    pipeline.add_component("markdown", MarkdownFile())
    pipeline.add_component("html", HtmlFile())
    pipeline.add_component("text", TextFileToDocument())
    pipeline.add_component("joiner", DocumentJoiner())
    pipeline.add_component(
        "cleaner", DocumentCleaner(remove_extra_whitespaces=False, remove_regex=FOOTER)
    )
    pipeline.add_component(
        "splitter",
        DocumentSplitter(split_by=split_by, split_length=split_length, split_overlap=split_overlap),
    )
    pipeline.add_component("title", TitleLine())
    for media_type, converter in CONVERTERS.items():
        pipeline.connect(f"router.{media_type}", f"{converter}.sources")
        pipeline.connect(f"{converter}.documents", "joiner.documents")
    pipeline.connect("joiner.documents", "cleaner.documents")
    pipeline.connect("cleaner.documents", "splitter.documents")
    pipeline.connect("splitter.documents", "title.documents")
    return pipeline


@dataclass(frozen=True, slots=True)
class Prepared:
    """The chunks of one file."""

    file: SourceFile  # the file
    fingerprint: str  # of its bytes, metadata and the settings; the same file gives the same
    chunks: tuple[Document, ...]  # its chunks, without vectors; none when it could not be read
    note: str  # what a person should know


@runtime_checkable
class Preparation(Protocol):
    """What prepares files in a place of its own, with the settings of a pipeline."""

    def dumps(self) -> str:
        """Return the settings that decide the chunks."""
        ...

    def prepare(self, file: SourceFile, fingerprint: str) -> Prepared:
        """Do what the function `prepare` does."""
        ...


def source_files(files: Iterable[CompanyFile]) -> list[SourceFile]:
    """Return the company's files with their metadata, for `update`."""
    return [
        SourceFile(file.id, file.path, {"title": file.title, "kind": file.kind, "date": file.date})
        for file in files
    ]


def in_force(files: Iterable[CompanyFile]) -> tuple[list[CompanyFile], list[str]]:
    """Part what is in force from what a later file superseded or withdrew.

    A notice that only withdraws another document is a document itself, and stays.

    Returns:
        The files in force, and the ids of the documents that are gone.
    """
    files = list(files)
    gone = replaced(files)
    return [file for file in files if file.id not in gone], sorted(gone)


def prepare(file: SourceFile, pipeline: Pipeline, fingerprint: str = "") -> Prepared:
    """Convert, clean and split one file.

    Args:
        file: The file.
        pipeline: See `preparation`.
        fingerprint: Of this version of the file; part of the chunks' ids.
    """
    result = pipeline.run(
        {"router": {"sources": [file.path], "meta": [dict(file.meta)]}},
        include_outputs_from={"router", "joiner"},
    )
    chunks = [
        chunk for chunk in result.get("title", {}).get("documents", ()) if own_text(chunk).strip()
    ]
    if not chunks:
        unknown = not set(CONVERTERS) & set(result.get("router", {}))
        return Prepared(file, fingerprint, (), _why_empty(file.path, unknown))
    text = result["joiner"]["documents"][0].content or ""
    note = _empty_pages(text) if file.path.suffix.lower() == ".pdf" else ""
    return Prepared(file, fingerprint, tuple(_identified(file, fingerprint, chunks, note)), note)


def company_chunks(
    files: Iterable[CompanyFile],
    split_length: int = SPLIT_LENGTH,
    split_overlap: int = SPLIT_OVERLAP,
) -> list[Document]:
    """Return some of the company's files in chunks, without vectors and in no store.

    Args:
        files: The files; see `corpus.company_files`.
        split_length: Most words of a chunk.
        split_overlap: Words that a chunk shares with the one before it.
    """
    pipeline = preparation(split_length, split_overlap)
    return [p for file in source_files(files) for p in prepare(file, pipeline).chunks]


def embedded_company(
    embedding: Endpoint,
    split_length: int = SPLIT_LENGTH,
    split_overlap: int = SPLIT_OVERLAP,
    *,
    titles: bool = True,
) -> list[Document]:
    """Return the company's documents in force as chunks with vectors, ready for any store.

    They are kept in the cache folder, under a name made of the files' bytes, the settings and the
    weights that embed, so that recipes which only search them do not embed them again.

    Args:
        embedding: The embedding endpoint.
        split_length: Most words of a chunk.
        split_overlap: Words that a chunk shares with the one before it.
        titles: Whether a chunk begins with its document's title.

    Raises:
        ConfigurationError: The cache folder cannot be written.
    """
    files = source_files(in_force(company_files())[0])
    pipeline = preparation(split_length, split_overlap)
    settings = _digest(pipeline.dumps(), embedding.weights, version("haystack-ai"), str(titles))
    name = _digest(*(fingerprint(file, settings) for file in files))
    kept = local.cache_dir() / "company" / f"{name}.json"
    with FileLock(local.made(kept.parent) / "lock"):  # recipes run side by side
        if not kept.is_file():
            chunks = [p for file in files for p in prepare(file, pipeline).chunks]
            if not titles:
                chunks = [replace(c, content=own_text(c)) for c in chunks]
            embedder = NvidiaDocumentEmbedder(
                model=embedding.model,
                api_url=embedding.url,
                api_key=Secret.from_env_var(embedding.key_variable),
                progress_bar=False,
            )
            embedded: Any = embedder.run(chunks)["documents"]
            part = kept.with_suffix(".part")
            part.write_text(json.dumps([d.to_dict(flatten=False) for d in embedded]), "utf-8")
            part.replace(kept)
        return [Document.from_dict(record) for record in json.loads(kept.read_text("utf-8"))]


def document_embedder(embedding: Endpoint) -> NvidiaDocumentEmbedder:
    """Return what embeds chunks; one that is too long for the model is cut at its end."""
    return NvidiaDocumentEmbedder(
        model=embedding.model,
        api_url=embedding.url,
        api_key=Secret.from_env_var(embedding.key_variable),
        truncate="END",
        progress_bar=False,
    )


def update(
    store: DocumentStore,
    files: Iterable[SourceFile],
    *,
    preparation: Pipeline | Preparation,
    embedder: Embedder,
    gone: Iterable[str] = (),
    settings: str = "",
    progress: Progress | None = None,
) -> Report:
    """Bring the chunks of some files up to date, and remove those of documents that are gone.

    Files with the same bytes, metadata and settings as before are not converted, embedded or
    written again. Of a changed file, chunks whose text is as before keep their vectors. A file
    that cannot be read is skipped, and what the store holds of an earlier version stays.

    Args:
        store: Where the chunks are; a Haystack document store.
        files: The files, all or those of one batch.
        preparation: From files to chunks: the pipeline of the function of that name, or what does
            the same elsewhere.
        embedder: Embeds chunks.
        gone: Ids of documents that were withdrawn, superseded or deleted.
        settings: What else decides the vectors, above all the embedding model: when it changes,
            everything is embedded anew.
        progress: Called with the number of files done and of all.

    Returns:
        What became of each file, in the order of the files, then the removed ones.

    Raises:
        DataError: Two files have the same document id, one is among those that are gone, or the
            embedder left a chunk without a vector.
    """
    files, gone = list(files), list(dict.fromkeys(gone))
    _check(files, gone)
    run = _Update(store, preparation, embedder, _digest(preparation.dumps(), settings))
    outcomes: dict[str, Outcome] = {}
    for some in _batched(files, LOOKUP):
        for outcome in run.files(some):
            outcomes[outcome.document] = outcome
            if progress:
                progress(len(outcomes), len(files))
    removed = [outcome for names in _batched(gone, LOOKUP) for outcome in run.remove(names)]
    return Report((*(outcomes[file.document] for file in files), *removed))


def fingerprint(file: SourceFile, settings: str = "") -> str:
    """Return a hash of a file's bytes, name, metadata and the settings: 32 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    content = hashlib.sha256(file.path.read_bytes()).hexdigest()
    meta = json.dumps(dict(file.meta), sort_keys=True, default=str)
    return _digest(content, file.path.name, meta, settings)


class _Update:
    """One run over a store."""

    def __init__(
        self,
        store: DocumentStore,
        preparation: Pipeline | Preparation,
        embedder: Embedder,
        settings: str,
    ) -> None:
        self._store = store
        self._prepared: Callable[..., Prepared] = (
            preparation.prepare
            if isinstance(preparation, Preparation)
            else partial(prepare, pipeline=preparation)
        )
        self._embedder = embedder
        self._settings = settings

    def files(self, files: Sequence[SourceFile]) -> Iterator[Outcome]:
        """Bring some files up to date; whole batches of chunks are embedded at a time.

        While the endpoint embeds a batch, the next one is prepared.
        """
        held = self._held([file.document for file in files])
        batch: list[Prepared] = []
        sent: deque[tuple[list[Prepared], Future[list[Document]]]] = deque()
        with ThreadPoolExecutor(max_workers=1) as endpoint:
            for file in files:
                item = self._prepare(file, held.get(file.document, []))
                if isinstance(item, Outcome):
                    yield item
                    continue
                batch.append(item)
                if sum(len(prepared.chunks) for prepared in batch) >= BATCH:
                    sent.append((batch, endpoint.submit(self._embed, batch)))
                    batch = []
                    if len(sent) > 1:
                        yield from self._write(*sent.popleft(), held)
            if batch:
                sent.append((batch, endpoint.submit(self._embed, batch)))
            for finished in sent:
                yield from self._write(*finished, held)

    def remove(self, names: Sequence[str]) -> list[Outcome]:
        """Delete the chunks of documents; those that the store does not know are no outcome."""
        held = self._held(names)
        self._delete([chunk for chunks in held.values() for chunk in chunks])
        return [Outcome(name, "removed") for name in names if name in held]

    def _held(self, names: Sequence[str]) -> dict[str, list[Document]]:
        """Return the chunks, with vectors, that the store holds of some documents."""
        held: dict[str, list[Document]] = {}
        wanted = {"field": "meta.document", "operator": "in", "value": list(names)}
        for chunk in self._store.filter_documents(filters=wanted):
            held.setdefault(chunk.meta["document"], []).append(chunk)
        return held

    def _prepare(self, file: SourceFile, known: Sequence[Document]) -> Prepared | Outcome:
        """Return what has to be written of a file, or its outcome if that is nothing.

        Chunks whose text is as before get their vectors, if these were made in the same way.
        """
        try:
            wanted = fingerprint(file, self._settings)
        except OSError as error:
            return _skipped(file, f"it cannot be read ({error.strerror})", known)
        current = [p for p in known if p.meta.get("fingerprint") == wanted]
        complete = bool(current) and len(current) == current[0].meta.get("chunks")
        if complete and len(current) == len(known):
            note = next((p.meta["note"] for p in current if p.meta.get("note")), "")
            return Outcome(file.document, "unchanged", len(current), note=note)
        try:
            prepared = self._prepared(file, fingerprint=wanted)
        except DataError as error:  # it takes too much to read
            return _skipped(file, str(error).rstrip("."), known)
        if not prepared.chunks:
            return _skipped(file, prepared.note, known)
        alike = [p for p in known if p.meta.get("settings") == self._settings]
        vectors = {p.content: p.embedding for p in alike}
        chunks = (
            replace(p, meta=p.meta | {"settings": self._settings}, embedding=vectors.get(p.content))
            for p in prepared.chunks
        )
        return replace(prepared, chunks=tuple(chunks))

    def _embed(self, batch: Sequence[Prepared]) -> list[Document]:
        """Return the chunks that had no vector with one."""
        missing = [p for prepared in batch for p in prepared.chunks if not p.embedding]
        if not missing:
            return []
        embedded: list[Document] = list(self._embedder.run(documents=missing)["documents"])
        if len(embedded) != len(missing) or not all(chunk.embedding for chunk in embedded):
            raise DataError("The embedder left a chunk without a vector; nothing was written.")
        return embedded

    def _write(
        self,
        batch: Sequence[Prepared],
        embedding: Future[list[Document]],
        held: Mapping[str, list[Document]],
    ) -> Iterator[Outcome]:
        """Write the new chunks of some files, then delete the old ones."""
        embedded = {chunk.id: chunk for chunk in embedding.result()}
        new = {p.id: embedded.get(p.id, p) for prepared in batch for p in prepared.chunks}
        self._store.write_documents(list(new.values()), policy=DuplicatePolicy.OVERWRITE)
        old = [p for prepared in batch for p in held.get(prepared.file.document, ())]
        self._delete([chunk for chunk in old if chunk.id not in new])
        for prepared in batch:
            yield Outcome(
                prepared.file.document,
                "changed" if prepared.file.document in held else "added",
                len(prepared.chunks),
                sum(chunk.id in embedded for chunk in prepared.chunks),
                prepared.note,
            )

    def _delete(self, chunks: Sequence[Document]) -> None:
        if chunks:
            self._store.delete_documents([chunk.id for chunk in chunks])


def _identified(
    file: SourceFile, fingerprint: str, chunks: Sequence[Document], note: str
) -> Iterator[Document]:
    """Give chunks their lasting ids and the metadata that `update` looks for."""
    for number, chunk in enumerate(chunks):
        own = {key: value for key, value in chunk.meta.items() if key not in _SPLITTER_KEYS}
        meta = own | {
            "file_path": file.path.name,
            "document": file.document,
            "fingerprint": fingerprint,
            "chunks": len(chunks),
            "split_id": number,
        }
        if note and number == 0:
            meta["note"] = note
        name = _digest(file.document, fingerprint, str(number))
        yield Document(id=name, content=chunk.content, meta=meta)


def own_text(chunk: Document) -> str:
    """Return a chunk without its title line: a title alone is no chunk."""
    return (chunk.content or "").removeprefix(f"{chunk.meta.get('title')}\n")


def _why_empty(path: Path, unknown: bool) -> str:
    """Say why a file gave no chunk."""
    if unknown:
        return f"there is no converter for {path.suffix or 'files without an ending'}"
    if path.stat().st_size == 0:
        return "the file is empty"
    try:
        if path.suffix.lower() != ".pdf":
            path.read_text(encoding="utf-8")
            return "it holds no text"
        reader = PdfReader(path)
        if reader.is_encrypted:
            return "it is protected by a password: save it without one"
        for page in reader.pages:
            contents = page.get_contents()
            if contents is not None:
                contents.get_data()  # raises what `extract_text` hides, such as pypdf's own limits
        return f"none of its {len(reader.pages)} pages holds text (a scan?): run OCR on it first"
    except UnicodeDecodeError:
        return "it is not UTF-8 text: save it as UTF-8"
    except Exception as error:  # pypdf raises many kinds on broken files
        return f"it cannot be read as a PDF ({str(error).rstrip('.') or type(error).__name__})"


def _empty_pages(text: str) -> str:
    """Say which pages of a PDF hold no text; pages end with a form feed."""
    empty = [str(n) for n, page in enumerate(text.split("\f"), 1) if not page.strip()]
    if not empty:
        return ""
    shown = ", ".join(empty[:8]) + (", ..." if len(empty) > 8 else "")
    pages = f"page {shown} holds" if len(empty) == 1 else f"pages {shown} hold"
    return f"{pages} no text (scanned?)"


def _skipped(file: SourceFile, why: str, known: Sequence[Document]) -> Outcome:
    note = f"{why}; its earlier version stays in the index" if known else why
    return Outcome(file.document, "skipped", len(known), note=note)


def _check(files: Sequence[SourceFile], gone: Sequence[str]) -> None:
    names = Counter([*(file.document for file in files), *gone])
    if double := [name for name, count in names.items() if count > 1]:
        raise DataError(
            f"The document {double[0]!r} is twice among the files and those that are gone: give "
            "each file an id of its own, and leave out what is gone."
        )


def _digest(*parts: str) -> str:
    """Return 32 hexadecimal digits of SHA-256 over some texts, kept apart by their lengths."""
    joined = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(joined.encode()).hexdigest()[:32]


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
