"""`nim-cookbook ask` end to end: the command as a process, real small models, real files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nim_cookbook.local import SERVERS, cache_dir
from nim_cookbook.scoring import contains
from tests.support import Servers

COMMAND = [sys.executable, "-m", "cookbook_cli", "ask"]
MANY = 300


def environment(cache: Path) -> dict[str, str]:
    """Return an environment with a cache of its own, in which the session's servers are found."""
    return os.environ | {"COOKBOOK_CACHE_DIR": str(cache), "COOKBOOK_ENDPOINTS": "local"}


@pytest.fixture
def cache(servers: Servers, tmp_path: Path) -> Path:
    """A cache folder that knows the session's servers."""
    run = tmp_path / "cache" / "run"
    run.mkdir(parents=True, mode=0o700)
    state = {"urls": {name: servers.url(name) for name in SERVERS}, "key": servers.key}
    (run / f"{servers.port_base}.json").write_text(json.dumps(state))
    # Servers that are too busy to answer in time are taken for none, and others are started.
    (tmp_path / "cache" / "weights").symlink_to(cache_dir() / "weights")
    return tmp_path / "cache"


def ask(cache: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, str(folder), *arguments],
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_answers_over_files_with_their_sources(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "owl.md").write_text("# The owl\n\nThe owl in the warehouse is called Bernard.\n")
    (folder / "kettle.txt").write_text("The kettle is descaled on the first Monday of March.")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4\n")
    first = ask(cache, folder, "What is the owl in the warehouse called?", "--json")
    assert first.returncode == 0, first.stderr
    answer = json.loads(first.stdout)
    assert answer["sources"][0]["file"] == "owl.md"
    assert contains(answer["answer"], "Bernard")
    assert "2 added, 1 skipped; 2 chunks embedded" in first.stderr
    assert "WARNING" not in first.stderr
    second = ask(cache, folder, "Which planet has the most moons?", "--threshold", "9")
    assert second.returncode == 0, second.stderr
    assert "2 unchanged, 1 skipped; 0 chunks embedded" in second.stdout
    assert "The documents do not tell." in second.stdout
    assert "Answered by: chat: " in second.stdout


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="processes are stopped by POSIX signals")
@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGKILL", -9)])
def test_stopped_while_indexing_is_mended_by_the_next_run(
    cache: Path, tmp_path: Path, number: str, status: int
) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    for note in range(MANY):
        (folder / f"note-{note:04}.txt").write_text(f"Note {note}: the gauge shows {note}.")
    process = subprocess.Popen(
        [*COMMAND, str(folder), "What does the gauge show in note 7?"],
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while process.poll() is None and not _points(cache):
            time.sleep(0.02)
        process.send_signal(signal.Signals[number])
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status, said
    assert ("Stopped" in said) == (number == "SIGINT")
    assert "Traceback" not in said
    written = _points(cache)
    assert 0 < written < MANY
    again = ask(cache, folder, "What does the gauge show in note 7?")
    assert again.returncode == 0, again.stderr
    assert f"{MANY - written} added, {written} unchanged" in again.stdout
    assert f"{MANY} chunks in all" in again.stdout


def _points(cache: Path) -> int:
    """Return how many chunks the one index in the cache holds on disk."""
    for file in cache.glob("indexes/*/qdrant/collection/*/storage.sqlite"):
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(file)) as data:
            return int(data.execute("select count(*) from points").fetchone()[0])
    return 0
