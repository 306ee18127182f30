"""Adapters on disk: one folder each, whose current version changes by one atomic rename.

Layout of the folder of adapters::

    <adapter id>/adapter.json       the description, which names the current version
    <adapter id>/<version>/peft/    a standard PEFT folder: adapter_config.json, adapter_model...
    <adapter id>/<version>/gguf/    the same for llama.cpp, made when it is first asked to complete
    .servers/<name>.lock            held by each running server

A step writes a new version, then replaces `adapter.json`; a process killed before that leaves the
old version current, and its half-written folder goes away at the next start. Several servers may
use one folder: what a running one is writing carries its name and is left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from local_endpoints.weights import cache_dir

ADAPTERS_VARIABLE = "COOKBOOK_ADAPTERS_DIR"
DESCRIPTION = "adapter.json"
ID_SUFFIX = "_model_adapter"  # after a UUID: 50 characters, which the SDK checks

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_ID = re.compile(_UUID + ID_SUFFIX)
_VERSION = r"v[0-9]{1,9}-[0-9a-f]{8}"  # steps taken, and the server that took the last


def adapters_dir() -> Path:
    """Return the folder of adapters: `COOKBOOK_ADAPTERS_DIR`, or one in the cache folder."""
    chosen = os.environ.get(ADAPTERS_VARIABLE, "").strip()
    return Path(chosen).expanduser().absolute() if chosen else cache_dir().absolute() / "adapters"


def is_adapter_id(text: str) -> bool:
    """Return whether a text has the form of an adapter's id."""
    return _ID.fullmatch(text) is not None


class UnknownAdapter(Exception):
    """There is no such adapter, or no longer."""


class DamagedAdapter(Exception):
    """An adapter's description cannot be read.

    Attributes:
        folder: The adapter's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


class ChangedMeanwhile(Exception):
    """Another server has trained the adapter since its version was read."""


class Step(BaseModel):
    """One optimiser step.

    Attributes:
        tokens: Trainable tokens of its samples.
        sum_loss: Sum of their cross-entropy before the step, in nats.
        seconds: How long it took, without waiting for its turn.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    tokens: Annotated[int, Field(gt=0)]
    sum_loss: float
    seconds: Annotated[float, Field(ge=0)]


class Adapter(BaseModel):
    """The description of an adapter.

    Attributes:
        id: Its id.
        name: What its maker calls it; names need not differ.
        base_model_id: The base model's id, which follows from its weights.
        rank: Rank of the two matrices of each layer.
        learning_rate: Step size of the optimiser.
        created: When it was made.
        updated: When its weights last changed.
        steps: Optimiser steps taken.
        trained_tokens: Trainable tokens seen in all of them.
        history: What each of them saw.
        version: Folder of the current weights.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    id: str
    name: Annotated[str, Field(min_length=1)]
    base_model_id: Annotated[str, Field(min_length=1)]
    rank: Annotated[int, Field(gt=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    created: AwareDatetime
    updated: AwareDatetime
    steps: Annotated[int, Field(ge=0)] = 0
    trained_tokens: Annotated[int, Field(ge=0)] = 0
    history: tuple[Step, ...] = ()
    version: Annotated[str, Field(pattern=rf"^{_VERSION}$")]


@dataclass(frozen=True, slots=True)
class Draft:
    """A version that is being written.

    Attributes:
        version: Its name.
        peft: An empty folder for its PEFT files.
    """

    version: str
    peft: Path


class AdapterStore:
    """The adapters in one folder.

    Args:
        folder: The folder; made when the first adapter is.
        warn: Receives one sentence about each adapter that cannot be read.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] | None = None) -> None:
        self.folder = folder
        self._warn = warn or (lambda sentence: None)
        self._warned: set[Path] = set()
        self._name = secrets.token_hex(4)
        self._alive: FileLock | None = None

    # --- reading ----------------------------------------------------------------------------

    def get(self, identity: str) -> Adapter:
        """Return an adapter as it now is.

        Raises:
            UnknownAdapter: There is none of that id.
            DamagedAdapter: Its description cannot be read.
        """
        if not is_adapter_id(identity):  # never a path
            raise UnknownAdapter(identity)
        home = self.folder / identity
        try:
            adapter = Adapter.model_validate_json((home / DESCRIPTION).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise UnknownAdapter(identity) from None
        except (OSError, ValidationError) as error:
            raise DamagedAdapter(home) from error
        if adapter.id != identity or not self.peft(adapter).is_dir():
            # A version that was replaced between the two looks is no damage.
            with contextlib.suppress(OSError, ValidationError):
                again = Adapter.model_validate_json((home / DESCRIPTION).read_bytes())
                if again.id == identity and self.peft(again).is_dir():
                    return again
            raise DamagedAdapter(home)
        return adapter

    def all(self) -> list[Adapter]:
        """Return all adapters that can be read, the oldest first."""
        found = []
        for home in self._homes():
            try:
                found.append(self.get(home.name))
            except UnknownAdapter:
                continue
            except DamagedAdapter as error:
                if error.folder not in self._warned:
                    self._warned.add(error.folder)
                    self._warn(
                        f"The adapter in {error.folder} is left out, since its {DESCRIPTION} "
                        "cannot be read: restore that file, or delete the folder."
                    )
        return sorted(found, key=lambda adapter: (adapter.created, adapter.id))

    def peft(self, adapter: Adapter) -> Path:
        """Return the PEFT folder of an adapter's weights, as it was when it was read."""
        return self.folder / adapter.id / adapter.version / "peft"

    def gguf(self, adapter: Adapter) -> Path:
        """Return the folder for what llama.cpp reads of the same weights."""
        return self.folder / adapter.id / adapter.version / "gguf"

    def _homes(self) -> list[Path]:
        try:
            return [path for path in self.folder.iterdir() if is_adapter_id(path.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    # --- writing ----------------------------------------------------------------------------

    def new_id(self) -> str:
        """Return an id that nothing has."""
        return f"{uuid.uuid4()}{ID_SUFFIX}"

    def draft(self, identity: str, steps: int) -> Draft:
        """Return an empty folder for a version of an adapter, which is not current yet.

        Args:
            identity: The adapter's id.
            steps: Optimiser steps that it will have seen.

        Raises:
            OSError: It cannot be made.
        """
        self._sign_in()
        version = f"v{steps}-{self._name}"
        self._remove(self.folder / identity / version)  # of a step that failed
        peft = self.folder / identity / version / "peft"
        peft.mkdir(parents=True)
        return Draft(version, peft)

    def discard(self, identity: str, draft: Draft) -> None:
        """Remove a version that did not become current, and the adapter if it has no other."""
        with contextlib.suppress(UnknownAdapter, DamagedAdapter):
            if self.get(identity).version == draft.version:
                return
        self._remove(self.folder / identity / draft.version)
        if not (self.folder / identity / DESCRIPTION).exists():
            self._remove(self.folder / identity)

    def publish(self, adapter: Adapter, before: Adapter | None = None) -> None:
        """Make `adapter`, whose version has been written, the current state.

        Args:
            adapter: The new description.
            before: The state that it continues; None for a new adapter.

        Raises:
            UnknownAdapter: It has been deleted meanwhile.
            ChangedMeanwhile: Its current version is no longer that of `before`.
            OSError: It cannot be written; the state before stays.
        """
        home = self.folder / adapter.id
        with self._exclusively():
            if before is not None and self.get(adapter.id).version != before.version:
                raise ChangedMeanwhile(adapter.id)
            for file in self.peft(adapter).iterdir():
                _flush(file)
            path = home / f"{DESCRIPTION}.{self._name}.tmp"
            try:
                path.write_text(adapter.model_dump_json(indent=2), encoding="utf-8")
                _flush(path)
                os.replace(path, home / DESCRIPTION)
            except OSError:
                with contextlib.suppress(OSError):
                    path.unlink()
                raise
        if before is not None:
            self._remove(home / before.version)

    def delete(self, identity: str) -> None:
        """Remove an adapter; with its description it is gone, whoever still reads its files.

        Raises:
            UnknownAdapter: There is none of that id.
            OSError: It cannot be removed.
        """
        if not is_adapter_id(identity):
            raise UnknownAdapter(identity)
        home = self.folder / identity
        if not (home / DESCRIPTION).exists():
            raise UnknownAdapter(identity)
        with self._exclusively():
            try:
                (home / DESCRIPTION).unlink()
            except FileNotFoundError:
                raise UnknownAdapter(identity) from None
        self._remove(home)

    def clean(self) -> None:
        """Remove what killed processes left; called when a server starts."""
        if not self._homes():
            return
        with contextlib.suppress(OSError), self._exclusively():
            writing = self._running()
            for home in self._homes():
                with contextlib.suppress(OSError):
                    self._clean_one(home, writing)

    def close(self) -> None:
        """Say that this server writes no more."""
        if self._alive is not None:
            self._alive.release()
            with contextlib.suppress(OSError):
                Path(self._alive.lock_file).unlink()
            self._alive = None

    def _clean_one(self, home: Path, writing: set[str]) -> None:
        def abandoned(path: Path) -> bool:
            version = re.fullmatch(_VERSION, path.name)
            draft = re.fullmatch(rf"{re.escape(DESCRIPTION)}\.([0-9a-f]{{8}})\.tmp", path.name)
            owner = draft[1] if draft else path.name[-8:] if version else None
            return owner is not None and owner not in writing

        try:
            current = self.get(home.name).version
        except DamagedAdapter:
            return  # somebody may want to repair it
        except UnknownAdapter:
            current = ""
        for path in home.iterdir():
            if path.name != current and abandoned(path):
                self._remove(path)
        if not current:
            home.rmdir()  # only if nothing is left in it

    # --- locks ------------------------------------------------------------------------------

    def _exclusively(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def _sign_in(self) -> None:
        """Hold this server's lock, which the system lets go of when the process ends."""
        if self._alive is None:
            folder = self.folder / ".servers"
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{self._name}.lock", thread_local=False)
            lock.acquire()
            self._alive = lock

    def _running(self) -> set[str]:
        """Return the names of the servers that run, and forget those that do not."""
        running = {self._name} if self._alive is not None else set()
        for path in (self.folder / ".servers").glob("*.lock"):
            if path.stem in running:
                continue
            lock = FileLock(path, thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                running.add(path.stem)
                continue
            lock.release()
            path.unlink(missing_ok=True)
        return running

    def _remove(self, path: Path) -> None:
        """Remove a file or folder as far as possible; the next start removes the rest."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def now() -> datetime:
    """Return the time, to the millisecond, as the API writes it."""
    time = datetime.now(UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def _flush(path: Path) -> None:
    """Wait until a file is on the disk, so that no rename is there before it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
