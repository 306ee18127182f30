"""Cleaning executed notebooks for the repository."""

from __future__ import annotations

import base64
import sysconfig
import tempfile
from pathlib import Path

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

from cookbook_cli import stored
from nim_cookbook.errors import DataError

WEIGHTS = {"chat": "a tiny model"}


def notebook(*outputs: NotebookNode, source: str = "a = 1") -> NotebookNode:
    return new_notebook(cells=[new_code_cell(source, outputs=list(outputs))])


def clean_text(text: str, root: Path, port_base: int = 0) -> str:
    made = notebook(new_output("stream", name="stdout", text=text))
    return str(stored.clean(made, root, WEIGHTS, port_base).cells[0].outputs[0].text)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("<object at 0x7f12ab34cd56>", "<object at 0x...>"),
        ("color 0x12", "color 0x12"),
        ("http://127.0.0.1:9102/v1", "http://127.0.0.1:8002/v1"),
        ("http://127.0.0.1:9999/v1", "http://127.0.0.1:9999/v1"),
    ],
)
def test_marks_of_the_run_go(text, cleaned, tmp_path):
    assert clean_text(text, tmp_path, 9100) == cleaned


def test_places_of_this_machine_go(tmp_path):
    site = sysconfig.get_path("purelib")
    text = f"{site}/haystack/a.py {tmp_path}/notebooks/x {tempfile.gettempdir()}/y {Path.home()}/z"
    cleaned = clean_text(text, tmp_path)
    assert cleaned == "site-packages/haystack/a.py ./notebooks/x tmp/y ~/z"


def test_metadata(tmp_path):
    made = notebook(source="print(1)")
    made.metadata.widgets = {"state": {}}
    made.metadata.language_info = {"name": "python", "version": "3.11.7"}
    made.cells[0].metadata.execution = {"iopub.execute_input": "2026"}
    made.cells[0].metadata.tags = ["setup"]
    cleaned = stored.clean(made, tmp_path, WEIGHTS)
    assert "widgets" not in cleaned.metadata
    assert cleaned.metadata.language_info == {"name": "python"}
    assert cleaned.metadata.nim_cookbook.weights == WEIGHTS
    assert cleaned.cells[0].metadata == {"tags": ["setup"]}
    assert "widgets" in made.metadata, "the original is left alone"


def test_images_are_kept_as_they_are(tmp_path):
    picture = base64.b64encode(b"0x12345678 " * 3).decode()
    data = {"image/png": picture, "text/plain": "alt"}
    cleaned = stored.clean(notebook(new_output("display_data", data=data)), tmp_path, WEIGHTS)
    assert cleaned.cells[0].outputs[0].data["image/png"] == picture


def test_html_and_json_are_cleaned_too(tmp_path):
    data = {
        "text/html": f"<td>{tmp_path}/a</td>",
        "application/json": {"paths": [f"{tmp_path}/b", 1, None]},
    }
    cleaned = stored.clean(notebook(new_output("display_data", data=data)), tmp_path, WEIGHTS)
    kept = cleaned.cells[0].outputs[0].data
    assert kept["text/html"] == "<td>./a</td>"
    assert kept["application/json"] == {"paths": ["./b", 1, None]}


@pytest.mark.parametrize("key", ["nvapi-local-" + "x1" * 10, "nvapi-" + "Ab3_" * 8])
def test_keys_are_refused(key, tmp_path):
    with pytest.raises(DataError, match="cell 1 shows a key") as caught:
        clean_text(f"Bearer {key}", tmp_path)
    assert key not in str(caught.value)


def test_large_images_are_refused(tmp_path):
    large = base64.b64encode(b"0" * (stored.LARGEST_IMAGE + 1)).decode()
    made = notebook(new_output("display_data", data={"image/png": large}))
    with pytest.raises(DataError, match="200,001 bytes"):
        stored.clean(made, tmp_path, WEIGHTS)
    html = new_output(
        "display_data", data={"text/html": f"<img src='data:image/png;base64,{large}'>"}
    )
    with pytest.raises(DataError, match="png image of cell 1"):
        stored.clean(notebook(html), tmp_path, WEIGHTS)


def test_stale():
    made = notebook(source="a = 1")
    assert stored.is_stale(made)
    made.metadata[stored.METADATA] = {"source_sha256": stored.source_hash(made)}
    assert not stored.is_stale(made)
    made.cells[0].source = "a = 2"
    assert stored.is_stale(made)


def test_cleaning_twice_changes_nothing(tmp_path):
    made = notebook(new_output("stream", name="stdout", text=f"0x7f12ab34cd56 {tmp_path} "))
    once = stored.clean(made, tmp_path, WEIGHTS, 9100)
    assert stored.clean(once, tmp_path, WEIGHTS, 9100) == once
