"""Questions on one's own files, to choose a design by and to confirm it: `docs/sweep.md`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from nim_cookbook.data import Query, brief, numbered_records, validated
from nim_cookbook.errors import DataError
from nim_cookbook.kept import name_of


def load_questions(path: Path, documents: Iterable[str], split: str = "") -> list[Query]:
    """Read questions on one's own files: one JSON object a line.

    `question`, and `relevant` (a list of documents) or `evidence` (a list of `document` and
    `quote`, as in `data/company/questions`); optional are `id`, `answer` or `answers`, `kind` and
    `split`. A document is named by its path below the folder, with or without its ending.

    Args:
        path: The file.
        documents: The ids of the documents that there are.
        split: What the questions are for, where the file does not say.

    Raises:
        DataError: The file or a line cannot be used; the message names the line.
    """
    known: dict[str, set[str]] = {}
    for name in documents:
        for short in (name, name.rpartition(".")[0] or name):
            known.setdefault(short, set()).add(name)
    queries: dict[str, Query] = {}
    for where, record in numbered_records(path):
        listed, judged = record.pop("relevant", []), record.get("evidence", [])
        for field, value in (("relevant", listed), ("evidence", judged)):
            if not isinstance(value, list):
                raise DataError(f"{where}: {field} is no list: write it in brackets.")
        if "answer" in record:
            record["answers"] = [record.pop("answer")]
        evidence = [*judged, *({"document": name} for name in listed)]
        given = {"id": f"q-{where.split()[1]}", "split": split} | record | {"evidence": evidence}
        query = validated(Query, given, where)
        if not query.evidence and query.kind != "unanswerable":
            raise DataError(
                f"{where}: the question has no relevant documents: list them in `relevant` or "
                '`evidence`, or give it the kind "unanswerable".'
            )
        if query.id in queries:
            raise DataError(f"{where}: the question id {brief(query.id)} is used a second time.")
        for entry in query.evidence:
            if len(known.get(entry.document, ())) != 1:
                many = "several documents are" if entry.document in known else "no document is"
                raise DataError(f"{where}: {many} called {brief(entry.document)}.")
        found = (replace(e, document=next(iter(known[e.document]))) for e in query.evidence)
        queries[query.id] = replace(query, evidence=tuple(found))
    return list(queries.values())


def with_test(queries: Sequence[Query]) -> list[Query]:
    """Return the questions with every third one, by a hash of it, kept for the test.

    Questions that come with a split of their own keep it.
    """
    if any(query.split for query in queries):
        return list(queries)
    return [
        replace(q, split="test" if int(name_of(q.question), 16) % 3 == 0 else "dev")
        for q in queries
    ]
