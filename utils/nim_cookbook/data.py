"""The data that the recipes read, from the installed package or from a clone of the repository."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from nim_cookbook.errors import DataError

T = TypeVar("T")
_ADAPTERS: dict[object, TypeAdapter[Any]] = {}  # making one takes a millisecond
#: A text that is not empty, for `validated`.
Text = Annotated[str, Field(pattern=r"\S")]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What answers a question: words of a document."""

    document: Text  # the document's id
    quote: str = ""  # its words, verbatim; empty when all of the document is judged, as in BEIR
    grade: int = 1  # how relevant, from 1 up; above 1 only in graded collections


@dataclass(frozen=True, slots=True)
class Query:
    """A question with its references and judgements."""

    id: str  # its name; unique in its split
    question: Text  # the question
    # reference answers, any of which is right; empty where there are none
    answers: tuple[Text, ...] = ()
    # what makes it hard, such as `paraphrase`; empty where the collection does not say
    kind: str = ""
    # the words that answer it, all of which a perfect retriever finds
    evidence: tuple[Evidence, ...] = ()
    split: str = ""  # `train`, `dev`, `test`, or empty

    @property
    def answerable(self) -> bool:
        """Whether the documents hold the answer."""
        return bool(self.answers or self.evidence)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question of a conversation with its answer."""

    question: Text
    answer: Text


@dataclass(frozen=True, slots=True)
class FollowUp(Query):
    """A question that was asked after others."""

    turns: tuple[Turn, ...] = ()  # what was said before it, the oldest first
    standalone: str = ""  # the same question as it would be asked alone, written by hand


def _folder(name: str, holds: str) -> Path:
    """Return a folder of the wheel, or of the clone, that holds a file or folder."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_data", package.parent.parent / name):
        if (folder / holds).exists():
            return folder
    raise DataError(
        f"{holds} is missing from the installation: install the nim-rag-cookbook wheel again, or "
        "work in a clone of the repository."
    )


def data_dir() -> Path:
    """Return the folder that holds all data.

    Raises:
        DataError: Neither the installed package nor a clone has it.
    """
    return _folder("data", "people")


def data_path(name: str) -> Path:
    """Return the path of a data file or folder.

    Args:
        name: Path below the data folder, such as `people/people.jsonl`.

    Raises:
        DataError: There is no such file; the message names what there is.
    """
    root = data_dir().resolve()
    path = (root / name).resolve()
    if path.is_relative_to(root) and path.exists():
        return path
    folders = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir()))
    raise DataError(f"There is no data file {name!r}: the collections are {folders}.")


def recipes() -> list[dict[str, Any]]:
    """Return the index of the recipes: number, file, title, level, minutes and so on.

    Raises:
        DataError: Neither the installed package nor a clone has it.
    """
    index = _folder("notebooks", "recipes.toml") / "recipes.toml"
    return list(tomllib.loads(index.read_text(encoding="utf-8"))["recipe"])


def people() -> list[dict[str, Any]]:
    """Return three one-line documents that say who lives where.

    Returns:
        Records of `content` and `meta`, so that `Document(**record)` makes a Haystack document.
    """
    return read_jsonl(data_path("people/people.jsonl"))


def people_questions() -> list[Query]:
    """Return questions about `people()`, some of which the documents do not answer."""
    records = read_jsonl(data_path("people/questions.jsonl"))
    return [
        Query(
            id=f"q-{number}",
            question=record["question"],
            answers=tuple(record["answers"]),
            evidence=tuple(Evidence(name) for name in record["relevant"]),
        )
        for number, record in enumerate(records, 1)
    ]


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte-order mark.

    Raises:
        DataError: There is no such file, or it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} cannot be read ({error}).") from None


def numbered_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read a file of one JSON object a line; blank lines are skipped.

    Returns:
        Of each line its place, such as `Line 3 of questions.jsonl`, and its object.

    Raises:
        DataError: The file cannot be read, or a line is no JSON object.
    """
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"Line {number} of {path.name}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # RecursionError: of a thousand brackets
                record = None
            if not isinstance(record, dict):
                raise DataError(f"{where} is no JSON object: correct it or remove it.")
            found.append((where, record))
    return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of `numbered_records` alone."""
    return [record for _, record in numbered_records(path)]


def validated(kind: type[T], value: object, where: str) -> T:
    """Return a value of a file as a dataclass, whose annotations are checked by pydantic.

    Raises:
        DataError: A field is missing, unknown or of another type; the message names the first one.
    """
    try:
        if kind not in _ADAPTERS:
            _ADAPTERS[kind] = TypeAdapter(kind)
        found: T = _ADAPTERS[kind].validate_python(value)
        return found
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        shown = "" if first["type"] == "missing" else f", not {brief(first['input'])}"
        raise DataError(f"{where}: {brief(field)}: {first['msg']}{shown}.") from None


def brief(value: object) -> str:
    """Return a value as Python writes it, cut so that it fits into a sentence."""
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
