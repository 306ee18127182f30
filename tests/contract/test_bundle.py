"""A bundle installs, and recipes of it run, where there is no network at all."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from cookbook_cli import recipes as index
from nim_cookbook.local import cache_dir
from tests.support import free_port_block

ROOT = Path(__file__).resolve().parents[2]
SILENT = ROOT / "tools" / "silent.py"
ALL = [recipe.number for recipe in index.load(ROOT / "notebooks")]
CPU_BUILD = not sys.platform.startswith("linux") or version("torch").endswith("+cpu")

pytestmark = [pytest.mark.long, pytest.mark.network, pytest.mark.timeout(1800)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)  # gigabytes


@pytest.fixture
def environ() -> dict[str, str]:
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


@pytest.mark.parametrize(
    ("wanted", "models", "ready", "executed", "weights"),
    [
        (["00"], "small", ["00", "01"], ["00"], "SmolLM2"),
        pytest.param(
            [], "default", ALL, ["00", "05", "11"], "Qwen2.5",
            marks=pytest.mark.skipif(not CPU_BUILD, reason="needs PyTorch's build for CPUs"),
        ),
    ],
    ids=["one", "all"],
)  # fmt: skip
def test_a_room_without_a_network(
    wanted: list[str], models: str, ready: list[str], executed: list[str], weights: str,
    place: Path, environ: dict[str, str],
) -> None:  # fmt: skip
    alone = no_network()
    stick, room = place / "stick", place / "room"
    source = environ | {"PYTHONPATH": str(ROOT / "utils"), "COOKBOOK_CACHE_DIR": str(cache_dir())}
    command = [sys.executable, "-m", "cookbook_cli", "bundle", stick, *wanted, "--models", models]
    run(*command, cwd=ROOT, env=source)

    environ |= {"COOKBOOK_CACHE_DIR": str(place / "cache"), "HOME": str(place)}
    said = run(*alone, sys.executable, "install", room, cwd=stick, env=environ)
    assert f": ready for {', '.join(ready)}" in said
    assert "Nothing tried to reach another machine." in said
    run(*alone, sys.executable, "install", room, cwd=stick, env=environ)  # again: nothing to do

    environ["COOKBOOK_PORT_BASE"] = str(free_port_block())
    command = [room / ".venv/bin/nim-cookbook", "run", *executed, "--jobs", "1"]
    said = run(*alone, *command, cwd=room, env=environ)
    assert weights in said and "passed" in said
    assert "Nothing tried to reach another machine." in said
