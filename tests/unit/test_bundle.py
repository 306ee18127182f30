"""What `nim-cookbook bundle` and the bundle's `install` refuse, each in one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from rich.console import Console

from cookbook_cli import bundle as bundling
from cookbook_cli.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundling, "_wheels", lambda *arguments: pytest.fail("went on"))
    monkeypatch.setenv("COOKBOOK_MODELS", "small")
    monkeypatch.chdir(ROOT)


def test_other_files_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    assert main(["bundle", str(tmp_path), "00"]) == 2
    assert main(["bundle", str(tmp_path / "thesis.doc"), "00"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "holds other files" in said[0] and "is a file" in said[1]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_the_same_bundle_is_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundling, "_wheels", lambda *arguments: None)
    monkeypatch.setattr(bundling, "_weights", lambda *arguments: None)
    folder = tmp_path / "stick"
    for _ in range(2):
        assert main(["bundle", str(folder), "00"]) == 0
    assert "is up to date" in capsys.readouterr().out
    first = json.loads((folder / bundling.MANIFEST).read_text())
    assert main(["bundle", str(folder), "05"]) == 0  # another recipe replaces it
    second = json.loads((folder / bundling.MANIFEST).read_text())
    assert (first["extras"], second["extras"]) == (["notebooks"], ["notebooks", "llamaindex"])
    assert "notebooks/05_hybrid_and_reranking.ipynb" in second["files"]
    assert [path.name for path in tmp_path.iterdir()] == ["stick"]


def test_a_failure_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundling, "_wheels", lambda *arguments: None)
    monkeypatch.setattr(bundling, "_weights", lambda *arguments: None)
    assert main(["bundle", str(tmp_path / "stick"), "00"]) == 0
    before = (tmp_path / "stick" / bundling.MANIFEST).read_bytes()

    def unplugged(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "a wheel")

    monkeypatch.setattr(bundling, "_wheels", unplugged)
    with pytest.raises(OSError, match="No space"):  # the command makes one sentence of it
        bundling.bundle(Console(), tmp_path / "stick", ["01"], "small")
    assert (tmp_path / "stick" / bundling.MANIFEST).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["stick"]


def test_gigabytes_of_cuda_are_not_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(bundling, "version", lambda name: "2.13.0")
    with pytest.raises(bundling.ConfigurationError, match="PIP_EXTRA_INDEX_URL"):
        bundling._cpu_build()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"platform": "amiga-68k"}, "This bundle is for amiga-68k"),
        ({"python": [3, 99]}, "needs Python 3.99"),
        ({"files": {"wheels/a.whl": "0" * 64}}, "a.whl is missing or damaged: copy the bundle"),
    ],
)
def test_install_says_why_not(tmp_path: Path, change: dict[str, object], says: str) -> None:
    shutil.copy(ROOT / "tools" / "bootstrap.py", tmp_path)
    shutil.copy(ROOT / "tools" / "install_bundle.py", tmp_path / "install")
    good = {"platform": sysconfig.get_platform(), "python": sys.version_info[:2], "files": {}}
    (tmp_path / bundling.MANIFEST).write_text(json.dumps(good | change))
    command = [sys.executable, str(tmp_path / "install"), str(tmp_path / "room")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert not (tmp_path / "room").exists()
