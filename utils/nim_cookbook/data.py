"""The data that the recipes read, from the installed package or from a clone of the repository."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nim_cookbook.errors import DataError


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a collection, with what a right answer holds.

    Attributes:
        question: The question.
        answers: Reference answers, any of which is right; empty when the documents do not tell.
        relevant: The `meta["id"]` of the documents that hold the answer.
    """

    question: str
    answers: tuple[str, ...] = ()
    relevant: tuple[str, ...] = ()

    @property
    def answerable(self) -> bool:
        """Whether the documents hold the answer."""
        return bool(self.answers)


def data_dir() -> Path:
    """Return the folder that holds all data.

    Raises:
        DataError: Neither the installed package nor a clone has it.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "_data", package.parent.parent / "data"):
        if (folder / "people").is_dir():
            return folder
    raise DataError(
        "The recipes' data is missing from the installation: install the nim-rag-cookbook wheel "
        "again, or work in a clone of the repository."
    )


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
    package = Path(__file__).resolve().parent
    for folder in (package / "_data", package.parent.parent / "notebooks"):
        if (folder / "recipes.toml").is_file():
            index = tomllib.loads((folder / "recipes.toml").read_text(encoding="utf-8"))
            return list(index["recipe"])
    raise DataError(
        "The index of the recipes is missing from the installation: install the nim-rag-cookbook "
        "wheel again, or work in a clone of the repository."
    )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line; blank lines are skipped.

    Raises:
        DataError: The file cannot be read, or a line (named by its number) is no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} cannot be read ({error}): fetch the file again.") from None
    return [_record(line, path.name, n) for n, line in enumerate(lines, 1) if line.strip()]


def people() -> list[dict[str, Any]]:
    """Return three one-line documents that say who lives where.

    Returns:
        Records of `content` and `meta`, so that `Document(**record)` makes a Haystack document.
    """
    return read_jsonl(data_path("people/people.jsonl"))


def people_questions() -> list[Question]:
    """Return questions about `people()`, some of which the documents do not answer."""
    return [
        Question(
            question=str(record["question"]),
            answers=tuple(record["answers"]),
            relevant=tuple(record["relevant"]),
        )
        for record in read_jsonl(data_path("people/questions.jsonl"))
    ]


def _record(line: str, name: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise DataError(f"Line {number} of {name} is no JSON object: correct it or remove it.")
    return record
