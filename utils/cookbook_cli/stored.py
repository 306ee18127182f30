"""Cleans executed notebooks so that their outputs can be committed, and tells stale ones.

What is cleaned: widget state (GitHub refuses to show it), time stamps, the language version,
absolute paths, memory addresses and ports. What is refused: keys and large images,
because they are mistakes of the recipe that somebody must put right.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from nim_cookbook import local
from nim_cookbook.errors import DataError

LARGEST_IMAGE = 200_000
METADATA = "nim_cookbook"
KEY_PATTERN = re.compile(r"nvapi-[A-Za-z0-9_-]{12,}")
FAKE_KEYS = ("nvapi-fake-key-for-tests",)
_CELL_METADATA_TO_DROP = ("execution", "ExecuteTime", "collapsed", "scrolled", "outputId")
_WIDGET = "application/vnd.jupyter.widget"
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,16}\b")
_PORT = re.compile(r"(?<=127\.0\.0\.1:)(\d{4,5})")


def source_hash(notebook: NotebookNode) -> str:
    """Return a fingerprint of the code; prose may change without making outputs stale."""
    digest = hashlib.sha256()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            digest.update(cell.source.strip().encode("utf-8") + b"\0")
    return digest.hexdigest()


def is_stale(notebook: NotebookNode) -> bool:
    """Return whether the code was changed after the stored outputs were made from it."""
    stored = notebook.metadata.get(METADATA, {}).get("source_sha256")
    return bool(stored != source_hash(notebook))


def clean(
    notebook: NotebookNode, root: Path, weights: Mapping[str, str], port_base: int = 0
) -> NotebookNode:
    """Return a copy of an executed notebook that is fit to be committed.

    Raises:
        DataError: An output holds a key, or an image that is too large.
    """
    cleaned = _node(json.loads(json.dumps(notebook)))
    cleaned.metadata = _node(_notebook_metadata(cleaned, weights))
    places = _places(root)
    codes = (cell for cell in cleaned.cells if cell.cell_type == "code")
    for number, cell in enumerate(codes, start=1):
        for name in _CELL_METADATA_TO_DROP:
            cell.metadata.pop(name, None)
        for output in cell.outputs:
            output.pop("transient", None)
            for mime in [m for m in output.get("data", ()) if m.startswith(_WIDGET)]:
                del output["data"][mime]
        text = _without_marks(json.dumps(cell.outputs, ensure_ascii=False), places, port_base)
        cell.outputs = _node({"outputs": json.loads(text)}).outputs
        _refuse_keys(number, cell)
        _refuse_large_images(number, cell)
    return cleaned


def _node(content: dict[str, Any]) -> NotebookNode:
    node: NotebookNode = nbformat.from_dict(content)  # type: ignore[no-untyped-call]
    return node


def _notebook_metadata(notebook: NotebookNode, weights: Mapping[str, str]) -> dict[str, Any]:
    kept = {k: v for k, v in notebook.metadata.items() if k not in {"widgets", "language_info"}}
    kept["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    kept["language_info"] = {"name": "python"}
    kept[METADATA] = {"source_sha256": source_hash(notebook), "weights": dict(weights)}
    return kept


def _without_marks(text: str, places: list[tuple[str, str]], port_base: int) -> str:
    """Take this machine's and this run's marks out of JSON text."""

    def port(match: re.Match[str]) -> str:
        offset = int(match[0]) - port_base
        inside = port_base > 0 and 0 <= offset < local.PORTS
        return str(local.DEFAULT_PORT_BASE + offset) if inside else match[0]

    for place, name in places:
        text = text.replace(json.dumps(place)[1:-1], name)
    return _PORT.sub(port, _ADDRESS.sub("0x...", text))


def _places(root: Path) -> list[tuple[str, str]]:
    """Return paths of this machine and what to write in their place, the longest first."""
    pairs = {
        sysconfig.get_path("purelib"): "site-packages",
        sysconfig.get_path("stdlib"): f"python{sys.version_info[0]}",
        sys.prefix: ".venv",
        str(root.resolve()): ".",
        str(local.cache_dir()): "~/.cache/nim-cookbook",
        tempfile.gettempdir(): "tmp",
        str(Path.home()): "~",
    }
    pairs = {place: name for place, name in pairs.items() if len(place) > 1}
    return sorted(pairs.items(), key=lambda pair: -len(pair[0]))


def _refuse_keys(number: int, cell: NotebookNode) -> None:
    for match in KEY_PATTERN.finditer(json.dumps(cell.outputs)):
        if match[0] not in FAKE_KEYS:
            raise DataError(
                f"The output of cell {number} shows a key: change the cell so that it does not, "
                "then store the outputs again."
            )


def _refuse_large_images(number: int, cell: NotebookNode) -> None:
    for kind, size in image_sizes(cell):
        if size > LARGEST_IMAGE:
            raise DataError(
                f"The {kind} image of cell {number} has {size:,} bytes and {LARGEST_IMAGE:,} are "
                "allowed: draw it smaller or with a lower resolution."
            )


def image_sizes(cell: NotebookNode) -> list[tuple[str, int]]:
    """Return the kind and the size in bytes of every image among a cell's outputs."""
    sizes = []
    for output in cell.get("outputs", []):
        for mime, data in output.get("data", {}).items():
            if mime.startswith("image/"):
                text = "".join(data) if isinstance(data, list) else str(data)
                is_text = mime == "image/svg+xml"
                size = len(text.encode()) if is_text else len(base64.b64decode(text))
                sizes.append((mime.removeprefix("image/").split("+")[0], size))
            elif mime == "text/html":
                sizes += _embedded_images(data)
    return sizes


def _embedded_images(html: str | list[str]) -> list[tuple[str, int]]:
    text = "".join(html)
    found = re.finditer(r"data:image/([a-z0-9.+-]+);base64,([A-Za-z0-9+/=]+)", text)
    return [(match[1], len(match[2]) * 3 // 4) for match in found]
