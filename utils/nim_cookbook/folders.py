"""A reader's own folder as files to be found: which ones can be read, and what they are called."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from nim_cookbook.errors import DataError
from nim_cookbook.indexing import SourceFile
from nim_cookbook.markup import parsed_page, split_front_matter

#: Endings of the files that `nim_cookbook.indexing` has converters for, in lower case.
SUFFIXES = frozenset({".pdf", ".md", ".markdown", ".html", ".htm", ".txt"})
# Where a file names itself; the rest is not read for it.
_HEAD = 65_536
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, slots=True)
class Folder:
    """What a folder holds."""

    path: Path  # the folder, or the one file, without links and relative parts
    files: tuple[SourceFile, ...]  # the files that can be indexed, by their paths below the folder
    # how many files of other kinds were left out, by their endings in lower case
    others: Counter[str]
    # folders and files that could not be looked at, each with the reason
    unreadable: tuple[str, ...]


def folder_files(folder: str | Path) -> list[SourceFile]:
    """Return the files below a folder that can be indexed; see `read_folder`."""
    return list(read_folder(folder).files)


def read_folder(folder: str | Path) -> Folder:
    """Look through a folder and all folders below it.

    Hidden files and folders are left out, and links to folders are not followed. A document's id is
    its path below the folder, with `/` between the parts. Its title is the first heading of a
    Markdown file or the title of a page; else the file's name made readable. The front matter of a
    Markdown file, which may hold another title and a date, is read by the converter.

    Args:
        folder: The folder; a single file will do.

    Raises:
        DataError: There is no such folder, or it cannot be read.
    """
    path = Path(folder).expanduser()
    if not path.exists():
        raise DataError(f"There is no folder {path}: name a folder of your files, or one file.")
    path = path.resolve()
    files: list[SourceFile] = []
    others: Counter[str] = Counter()
    unreadable: list[str] = []
    for found in [path] if path.is_file() else _walk(path, unreadable):
        name = found.name if found == path else found.relative_to(path).as_posix()
        if not name.isprintable():  # bytes that are not UTF-8, or control characters
            unreadable.append(f"{name!a}: rename it, its name cannot be shown")
        elif found.suffix.lower() in SUFFIXES:
            files.append(SourceFile(name, found, _meta(found)))
        else:
            others[found.suffix.lower()] += 1
    return Folder(path, tuple(files), others, tuple(unreadable))


def _walk(folder: Path, unreadable: list[str]) -> Iterator[Path]:
    """Yield the files below a folder in a lasting order, hidden ones left out."""

    def failed(error: OSError) -> None:
        if error.filename == str(folder):
            raise DataError(
                f"The folder {folder} cannot be read ({error.strerror}): name another, or change "
                "its permissions."
            ) from None
        unreadable.append(f"{error.filename}: it cannot be read ({error.strerror})")

    for root, folders, names in os.walk(folder, onerror=failed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith(".") and (path.is_file() or path.is_symlink()):
                yield path


def _meta(path: Path) -> dict[str, str]:
    """Return the title of a file, and its date if a page states one."""
    readable = re.sub(r"[\s_-]+", " ", path.stem).strip()
    meta = {"title": readable[:1].upper() + readable[1:] or path.name}
    suffix = path.suffix.lower()
    if suffix in (".md", ".markdown"):
        meta["title"] = _first_heading(_head(path)) or meta["title"]
    elif suffix in (".html", ".htm"):
        page = parsed_page(_head(path))
        meta["title"] = page.title or page.heading or meta["title"]
        if date := _ISO_DATE.match(page.meta.get("date", "")):
            meta["date"] = date[0]
    return meta


def _head(path: Path) -> str:
    """Return the beginning of a text file; nothing if it cannot be read, which indexing reports."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD).decode("utf-8-sig", errors="replace")
    except OSError:
        return ""


def _first_heading(text: str) -> str:
    """Return the text of the first heading in Markdown."""
    tokens = MarkdownIt().parse(split_front_matter(text)[1])
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(c.content or " " for c in inline.children or () if c.type != "image")
            return " ".join(words.split())
    return ""
