"""Notebooks by themselves: the built wheel, and an empty folder to run one notebook in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from nim_cookbook.local import cache_dir

REPOSITORY = Path(__file__).resolve().parents[2]
# What pip says when no package index can be reached at all.
OFFLINE = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")


def attempt(*command: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    """Run a command; return how it ended and what it printed."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
        **more,
    )


def run(*command: str | Path, **more: object) -> str:
    """Run a command and return what it printed; when it fails, fail the test with that."""
    done = attempt(*command, **more)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def install(*command: str | Path, **more: object) -> None:
    """Run pip; skip the test where no package index can be reached."""
    done = attempt(*command, **more)
    if done.returncode and any(words in done.stdout for words in OFFLINE):
        pytest.skip("needs a network, to install packages")
    assert done.returncode == 0, done.stdout[-4000:]


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the repository; return its path."""
    source = folder / "source"
    ignored = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "dist", "executed")
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    build = ["-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    run(sys.executable, *build, cwd=source)
    return next(folder.glob("*.whl"))


@dataclass
class Desk:
    """An empty folder with one notebook in it, and an empty cache but for the weights.

    Attributes:
        folder: The folder.
        environ: Environment variables: none that says where servers are.
    """

    folder: Path
    environ: dict[str, str]

    @classmethod
    def at(cls, tmp_path: Path) -> Desk:
        """Make one in a test's folder."""
        cache = tmp_path / "cache"
        cache.mkdir()
        (cache / "weights").symlink_to(cache_dir() / "weights")
        folder = tmp_path / "desk"
        folder.mkdir()
        ours = ("COOKBOOK_", "NIM_", "NVIDIA_", "PYTHONPATH", "PYTHONDONTWRITE", "COVERAGE_")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return cls(folder, {**environ, "COOKBOOK_CACHE_DIR": str(cache)})

    def execute(self, environment: Path) -> subprocess.CompletedProcess[str]:
        """Execute the notebook with the Jupyter of an environment's bin folder."""
        (notebook,) = self.folder.iterdir()
        command = (
            environment / "jupyter",
            "execute",
            "--inplace",
            "--startup_timeout=300",
            notebook.name,
        )
        done = attempt(*command, cwd=self.folder, env=self.environ)
        assert list(self.folder.iterdir()) == [notebook], "the notebook left files"
        servers = Path(self.environ["COOKBOOK_CACHE_DIR"]) / "run"
        assert not list(servers.glob("*.json")), "the notebook left servers running"
        return done
