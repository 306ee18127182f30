"""A bundle installs, and a recipe of it runs, where there is no network at all."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nim_cookbook.local import cache_dir
from tests.support import free_port_block

ROOT = Path(__file__).resolve().parents[2]
SILENT = ROOT / "tools" / "silent.py"

pytestmark = [pytest.mark.long, pytest.mark.network, pytest.mark.timeout(1800)]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    ours = ("COOKBOOK_", "NIM_", "NVIDIA_", "PYTHON", "COVERAGE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def run(*command: object, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, text=True, timeout=900, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def no_network() -> list[object]:
    """Return the command in front of one that must not reach another machine."""
    spec = importlib.util.spec_from_file_location("silent", SILENT)
    assert spec and spec.loader
    silent = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(silent)
    if not silent.namespace():
        pytest.skip("needs the right to make a network namespace")
    return [sys.executable, SILENT]


def test_a_room_without_a_network(tmp_path: Path, environ: dict[str, str]) -> None:
    alone = no_network()
    stick, room = tmp_path / "stick", tmp_path / "room"
    source = environ | {"PYTHONPATH": str(ROOT / "utils"), "COOKBOOK_CACHE_DIR": str(cache_dir())}
    command = [sys.executable, "-m", "cookbook_cli", "bundle", stick, "00", "--models", "small"]
    run(*command, cwd=ROOT, env=source)

    environ |= {"COOKBOOK_CACHE_DIR": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    said = run(*alone, sys.executable, "install", room, cwd=stick, env=environ)
    assert ": ready for 00, 01" in said
    assert "Nothing tried to reach another machine." in said
    run(*alone, sys.executable, "install", room, cwd=stick, env=environ)  # again: nothing to do

    environ["COOKBOOK_PORT_BASE"] = str(free_port_block())
    said = run(*alone, room / ".venv/bin/nim-cookbook", "run", "00", cwd=room, env=environ)
    assert "SmolLM2" in said and "passed" in said
