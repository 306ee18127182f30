"""`nim-cookbook ask`: answers over a reader's own files, with their sources."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from haystack import Document, Pipeline
from haystack_integrations.components.rankers.nvidia.truncate import RankerTruncateMode
from haystack_integrations.document_stores.qdrant.document_store import QdrantStoreError
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from cookbook_cli.connection import Mode, asking, caption, say, shown
from cookbook_cli.folder_index import FolderIndex, damaged, opened
from cookbook_cli.progress import LoggedProgress
from nim_cookbook import answering, indexing
from nim_cookbook.answering import Answer
from nim_cookbook.bounded import BoundedPreparation
from nim_cookbook.endpoints import Endpoints
from nim_cookbook.errors import DataError
from nim_cookbook.folders import SUFFIXES, Folder, read_folder
from nim_cookbook.models import ROLES

MOST_NOTES = 20
FIRST_WORDS = 100  # characters


def ask(
    console: Console,
    place: Path,
    *,
    question: str | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
    rebuild: bool = False,
    as_json: bool = False,
    mode: Mode | None = None,
) -> int:
    """Bring the index of a folder up to date and answer.

    Returns:
        0, also when a question was refused.

    Raises:
        CookbookError: A user mistake, an endpoint that fails, an index in use or damaged.
    """
    if question is not None and not question.strip():
        raise DataError("The question is empty: write one in quotation marks after the folder.")
    folder = read_folder(place)
    if not folder.files:
        raise DataError(_nothing_found(folder))
    output = sys.stdout
    with asking(console, mode, as_json=as_json) as (api, console):
        embedder = answering.text_embedder(api.embedding)
        dimensions = len(embedder.run("width")["embedding"])  # only a vector tells for sure
        identity = api.embedding.weights
        with opened(folder.path, identity, dimensions, rebuild=rebuild) as index:
            _index(index, folder, api, f"{identity}, {dimensions}", console)
            if threshold is None:
                threshold = api.reranking.refusal_logit
            pipeline = _pipeline(api, index, top_k or answering.TOP_K, threshold)
            for asked in _questions(question, console):
                answer = answering.ask(pipeline, asked)
                if as_json:
                    print(_as_json(answer, threshold, api.weights), file=output, flush=True)
                else:
                    _show(answer, api.chat.model, threshold, console)
            if not as_json:
                say(console, caption(api.weights, ROLES), style="dim")
    return 0


def _nothing_found(folder: Folder) -> str:
    kinds = ", ".join(sorted(SUFFIXES))
    what = "is of none of the kinds" if folder.path.is_file() else "holds no file of the kinds"
    also = f" ({others})" if (others := _left_out(folder)) else ""
    return f"{folder.path} {what} that can be read, which are {kinds}{also}: name another folder."


def _left_out(folder: Folder) -> str:
    """Return one line on the files of other kinds; empty if there are none."""
    if not folder.others:
        return ""
    count = folder.others.total()
    kinds = ", ".join(kind or "no ending" for kind, _ in folder.others.most_common(8))
    more = ", ..." if len(folder.others) > 8 else ""
    return f"{count} file{'s' if count > 1 else ''} of other kinds left out: {kinds}{more}"


def _pipeline(api: Endpoints, index: FolderIndex, top_k: int, threshold: float | None) -> Pipeline:
    """Return the recipes' query pipeline, safe from chunks that are too long for the reranker.

    A chunk has a number of words, and a reader's file may hold words of any length. The pipeline
    of the recipes leaves `truncate` out because a ranker that has it cannot be saved as YAML.
    """
    pipeline = answering.query_pipeline(
        api,
        index.store,
        candidates=max(answering.CANDIDATES, top_k),
        top_k=top_k,
        threshold=threshold,
    )
    ranker: Any = pipeline.get_component("ranker")
    ranker.truncate = RankerTruncateMode.END
    return pipeline


# --- indexing -------------------------------------------------------------------------------


def _index(
    index: FolderIndex, folder: Folder, api: Endpoints, settings: str, console: Console
) -> None:
    """Bring the index up to date, with progress, and say what there is to say."""
    present = {file.document for file in folder.files}
    total = len(folder.files)
    bars = LoggedProgress(
        console,
        TextColumn("Indexing"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} files"),
        TimeElapsedColumn(),
        transient=True,
    )
    try:
        with bars, contextlib.closing(BoundedPreparation()) as preparation:
            task = bars.add_task("", total=total)

            def progress(done: int, _: int) -> None:
                bars.update(task, completed=done)
                bars.line(f"Indexing: {done}/{total} files", now=False)

            report = indexing.update(
                index.store,
                folder.files,
                preparation=preparation,
                embedder=indexing.document_embedder(api.embedding),
                gone=[name for name in index.documents if name not in present],
                settings=settings,
                progress=progress,
            )
    except (sqlite3.Error, QdrantStoreError) as error:
        raise damaged(index.place, error) from error
    chunks = index.store.count_documents()
    say(console, f"Index of {shown(folder.path)}: {report}; {chunks} chunks in all.")
    for line in _notes(report, folder):
        say(console, f"  {line}")
    if not chunks:
        raise DataError(
            f"None of the files of {folder.path} gave any text: see the reasons above, or name "
            "another folder."
        )


def _notes(report: indexing.Report, folder: Folder) -> list[str]:
    """Return what was left out, and why."""
    lines = [
        f"{'skipped ' if outcome.status == 'skipped' else ''}{outcome.document}: {outcome.note}"
        for outcome in report.notes
    ]
    lines += [f"skipped {line}" for line in folder.unreadable]
    more = [f"and {len(lines) - MOST_NOTES} more"] if len(lines) > MOST_NOTES else []
    return [*lines[:MOST_NOTES], *more, *([others] if (others := _left_out(folder)) else [])]


# --- questions and answers ------------------------------------------------------------------


def _questions(given: str | None, console: Console) -> Iterator[str]:
    """Yield the question, or those that are typed until an empty line, or those of a pipe."""
    if given is not None:
        yield given.strip()
    elif sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - line editing and history for input()
        say(console, "Ask, or end with an empty line.")
        try:
            while question := _typed().strip():
                yield question
        except EOFError:  # Ctrl-D leaves the cursor behind the prompt
            print(file=sys.stderr)
    else:
        yield from (line.strip() for line in sys.stdin if line.strip())


def _typed() -> str:
    print("\n? ", end="", file=sys.stderr, flush=True)
    return input()


def _show(answer: Answer, model: str, threshold: float | None, console: Console) -> None:
    """Show an answer and its sources."""
    say(console, "")
    text = answer.text or answering.no_answer(model, answer.finish_reason)
    say(console, text, style="bold")
    if answer.refused and answer.score is None:
        say(console, "Nothing was found.", style="dim")
    elif answer.refused:
        say(
            console,
            f"The best chunk scores {answer.score:.2f}, and {threshold:.2f} is asked for; "
            "--threshold sets another limit.",
            style="dim",
        )
    for number, source in enumerate(answer.sources, start=1):
        date = f", {source.meta['date']}" if source.meta.get("date") else ""
        place = f"[{number}] {answering.citation(source)}{date} (score {source.score:.2f})"
        say(console, place, style="cyan")
        say(console, f"    {_first_words(source)}")
    say(console, "")


def _as_json(answer: Answer, threshold: float | None, weights: Mapping[str, str]) -> str:
    """Return an answer as one line of JSON."""
    return json.dumps(
        {
            "question": answer.question,
            "answer": answer.text,
            "refused": answer.refused,
            "finish_reason": answer.finish_reason,
            "score": answer.score,
            "threshold": threshold,
            "sources": [
                {
                    "number": number,
                    "file": source.meta["document"],
                    "page": answering.page(source),
                    "title": source.meta.get("title"),
                    "date": source.meta.get("date"),
                    "score": source.score,
                    "text": source.content,
                }
                for number, source in enumerate(answer.sources, start=1)
            ],
            "answered_by": weights,
        },
        ensure_ascii=False,
        default=str,
    )


def _first_words(source: Document) -> str:
    """Return the beginning of a chunk, without the title line that all of a file share."""
    words = " ".join(indexing.own_text(source).split())
    return words if len(words) <= FIRST_WORDS else f"{words[:FIRST_WORDS].rsplit(' ', 1)[0]} ..."
