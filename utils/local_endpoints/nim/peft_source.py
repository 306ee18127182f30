"""The folder from which the local chat NIM loads LoRA adapters, as a NIM does.

``NIM_PEFT_SOURCE`` names it; each sub-folder with an ``adapter_config.json`` is an adapter, and the
sub-folder's name is its model id. Without the variable the local servers use a folder of their own
in the cache. It is scanned at the start and every ``NIM_PEFT_REFRESH_INTERVAL`` seconds. Where that
is unset, a NIM scans only once; these servers scan every two seconds, so that a recipe sees its
adapter without a restart. ``NIM_MAX_LORA_RANK`` limits the rank, 32 by default as in a NIM.

A folder that cannot be loaded is skipped with one line of explanation, and examined again when one
of its files changes. So an adapter that is being copied appears when it is complete.

An adapter answers chats without a system message with the system message of the base weights, if
those have one. A request's own system message replaces it, also an empty one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from local_endpoints.nim import adapters
from local_endpoints.nim.adapters import AdapterError
from local_endpoints.nim.engines.adaptable import AdaptableEngine
from local_endpoints.nim.service import ServedAdapter
from nim_cookbook.errors import ConfigurationError, CookbookError
from nim_cookbook.local import cache_dir

Report = Callable[[str], None]
Signature = tuple[tuple[int, int, int], ...]

SOURCE = "NIM_PEFT_SOURCE"
INTERVAL = "NIM_PEFT_REFRESH_INTERVAL"
RANK = "NIM_MAX_LORA_RANK"
DEFAULT_SECONDS = 2.0
SHORTEST_SECONDS = 0.1

_NAME = re.compile(r"\w[\w.+-]{0,127}")


@dataclass(frozen=True, slots=True)
class PeftSettings:
    """The settings of the folder of adapters.

    Attributes:
        folder: The folder to scan.
        seconds: Pause between two scans.
        max_rank: Highest rank to load.
    """

    folder: Path
    seconds: float = DEFAULT_SECONDS
    max_rank: int = adapters.MAX_RANK


def settings(port_base: int) -> PeftSettings:
    """Return the settings of the environment; the folder exists afterwards.

    Args:
        port_base: The chat server's port, part of the name of the default folder.

    Raises:
        ConfigurationError: A variable has an invalid value, or its folder does not exist.
    """
    seconds = _number(INTERVAL, DEFAULT_SECONDS)
    if seconds < SHORTEST_SECONDS:
        raise ConfigurationError(
            f"{INTERVAL} is {seconds:g}: give seconds from {SHORTEST_SECONDS}, or leave it out."
        )
    rank = _number(RANK, adapters.MAX_RANK)
    if rank < 1 or rank != int(rank):
        raise ConfigurationError(f"{RANK} is {rank:g}: give a whole number from 1.")
    return PeftSettings(_folder(port_base), seconds, int(rank))


def tidy(settings: PeftSettings) -> None:
    """Remove the servers' own folder if it is empty; called at their end."""
    if not os.environ.get(SOURCE, "").strip():
        with contextlib.suppress(OSError):
            settings.folder.rmdir()


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigurationError(f"{variable} is '{text}', which is no number: correct it.")
    return value


def _folder(port_base: int) -> Path:
    chosen = os.environ.get(SOURCE, "").strip()
    if chosen:
        folder = Path(chosen).expanduser().absolute()
        if not folder.is_dir():
            raise ConfigurationError(f"{SOURCE} names {folder}, which is no folder: make it first.")
        return folder
    folder = cache_dir() / "peft" / str(port_base)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {folder} for adapters cannot be made ({error.strerror}): set {SOURCE} or "
            "COOKBOOK_CACHE_DIR to one that you may write."
        ) from error
    return folder


@dataclass(frozen=True, slots=True)
class _Candidate:
    """The result of examining a sub-folder.

    Attributes:
        signature: Inode, size and time of both files before they were read.
        served: Its entry in listings, None if it was refused.
        gguf: The converted file, None if it was refused.
    """

    signature: Signature
    served: ServedAdapter | None = None
    gguf: Path | None = None


class PeftSource:
    """Keeps an engine's adapters equal to the sub-folders of a folder.

    Args:
        settings: The folder, and how often to scan it.
        engine: The engine; loaded already.
        reserved: Returns the ids that no adapter may take.
        publish: Receives the adapters served, by name, whenever they have changed.
        report: Receives one line for each change and each refusal.
    """

    def __init__(
        self,
        settings: PeftSettings,
        engine: AdaptableEngine,
        reserved: Callable[[], Collection[str]],
        publish: Callable[[dict[str, ServedAdapter]], None],
        report: Report,
    ) -> None:
        self.settings = settings
        self._engine = engine
        self._reserved = reserved
        self._publish = publish
        self._report = report
        self._base = engine.weights.folder / engine.weights.files[0][0]
        self._seen: dict[str, _Candidate] = {}
        self._refused: dict[str, str] = {}
        self._failed: dict[str, Path] | None = None

    async def run(self) -> None:
        """Scan until cancelled."""
        while True:
            await asyncio.sleep(self.settings.seconds)
            await self.scan()

    async def scan(self) -> None:
        """Scan the folder once, and serve its adapters."""
        self._seen = await asyncio.to_thread(self._look)
        served = {name: c.served for name, c in self._seen.items() if c.served is not None}
        files = {name: c.gguf for name, c in self._seen.items() if c.gguf is not None}
        before = dict(self._engine.adapters)
        if files in (before, self._failed):
            return
        try:
            await self._engine.set_adapters(files)
        except CookbookError as error:
            self._failed = files  # the adapters before stay; the same set is not tried again
            self._report(f"adapters: {error}")
            return
        self._failed = None
        self._publish(served)
        for name in sorted(files.keys() | before.keys()):
            if name not in files:
                self._report(f"adapter {name}: no longer served")
            elif name not in before:
                self._report(f"adapter {name}: loaded from {self.settings.folder / name}")
            elif files[name] != before[name]:
                self._report(f"adapter {name}: loaded again, its files have changed")

    def _look(self) -> dict[str, _Candidate]:
        """Examine the sub-folders; those that have not changed are not read again."""
        try:
            folders = sorted(path for path in self.settings.folder.iterdir() if path.is_dir())
        except OSError as error:
            self._refuse("", f"{self.settings.folder} cannot be read ({error.strerror})")
            return {}
        found: dict[str, _Candidate] = {}
        for folder in folders:
            if folder.name.startswith(".") or not (folder / adapters.CONFIG_FILE).is_file():
                continue
            signature = _signature(folder)
            before = self._seen.get(folder.name)
            unchanged = before is not None and before.signature == signature
            found[folder.name] = (
                before if before and unchanged else self._examine(folder, signature)
            )
        self._refused = {name: why for name, why in self._refused.items() if name in found}
        return found

    def _examine(self, folder: Path, signature: Signature) -> _Candidate:
        name = folder.name
        try:
            self._check_name(name)
            cache = cache_dir() / "lora"
            gguf = adapters.to_gguf(folder, self._base, cache, self.settings.max_rank)
            weights = folder / adapters.WEIGHTS_FILE
            sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
            created = int(weights.stat().st_mtime)
        except (AdapterError, OSError) as error:
            self._refuse(name, str(error))
            return _Candidate(signature)
        if _signature(folder) != signature:
            return _Candidate(())  # changed while it was read: the next scan reads it again
        self._refused.pop(name, None)
        return _Candidate(signature, ServedAdapter(name, created, weights.name, sha256), gguf)

    def _check_name(self, name: str) -> None:
        if name in self._reserved():
            raise AdapterError(
                f"The adapter '{name}' has the name of a model that is served: rename its folder."
            )
        if not _NAME.fullmatch(name):
            raise AdapterError(
                f"The adapter '{name}' has a name that is no model id: rename its folder, to at "
                "most 128 letters, digits and any of . _ + -."
            )

    def _refuse(self, name: str, reason: str) -> None:
        """Report the reason for skipping an adapter, once until it changes."""
        if self._refused.get(name) != reason:
            self._refused[name] = reason
            self._report(f"adapter left out: {reason}" if name else f"adapters: {reason}")


def _signature(folder: Path) -> Signature:
    """Return a value that changes when one of the two files is written or replaced."""
    found = []
    for name in (adapters.CONFIG_FILE, adapters.WEIGHTS_FILE):
        try:
            stat = (folder / name).stat()
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)
