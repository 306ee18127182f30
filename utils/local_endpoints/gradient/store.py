"""Adapters on disk: one folder each, whose current version changes by one atomic rename.

Layout of the folder of adapters::

    <adapter id>/adapter.json       the description, which names the current version
    <adapter id>/<version>/peft/    a standard PEFT folder: adapter_config.json, adapter_model...
    <adapter id>/<version>/gguf/    the same for llama.cpp, made at the first completion

A step writes a new version, then replaces `adapter.json`. A process that is killed before that
leaves the old version current; the next step, or `clean` a day later, removes its files.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from nim_cookbook.local import cache_dir

ADAPTERS_VARIABLE = "COOKBOOK_ADAPTERS_DIR"
DESCRIPTION = "adapter.json"
ABANDONED_SECONDS = 24 * 3600  # longer than any step takes

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
ADAPTER_ID = re.compile(f"{_UUID}_model_adapter")  # 50 characters, which the SDK checks
_VERSION = re.compile(r"v[0-9]{1,9}-[0-9a-f]{8}")


def adapters_dir() -> Path:
    """Return the folder of adapters: `COOKBOOK_ADAPTERS_DIR`, or one in the cache folder."""
    chosen = os.environ.get(ADAPTERS_VARIABLE, "").strip()
    return Path(chosen).expanduser().absolute() if chosen else cache_dir() / "adapters"


class UnknownAdapter(Exception):
    """There is no such adapter, or its description cannot be read."""


class Step(BaseModel):
    """One optimiser step.

    Attributes:
        tokens: Trainable tokens of its samples.
        sum_loss: Sum of their cross-entropy before the step, in nats.
        seconds: Its duration, without the wait for other steps.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    tokens: Annotated[int, Field(gt=0)]
    sum_loss: float
    seconds: Annotated[float, Field(ge=0)]


class Adapter(BaseModel):
    """The description of an adapter.

    Attributes:
        id: Its id.
        name: The name that its maker chose; two adapters may have the same.
        base_model_id: The base model's id, which follows from its weights.
        rank: Rank of the two matrices of each layer.
        learning_rate: Step size of the optimiser.
        created: Time of its creation.
        updated: Time of the last change of its weights.
        history: Its steps.
        version: Folder of the current weights.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    id: str
    name: str
    base_model_id: str
    rank: int
    learning_rate: float
    created: AwareDatetime
    updated: AwareDatetime
    history: tuple[Step, ...] = ()
    version: Annotated[str, Field(pattern=f"^{_VERSION.pattern}$")]


class AdapterStore:
    """The adapters in one folder; for one process.

    Args:
        folder: The folder; made with the first adapter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, identity: str) -> Adapter:
        """Return an adapter's current description.

        Raises:
            UnknownAdapter: There is none of that id, or it cannot be read.
        """
        if not ADAPTER_ID.fullmatch(identity):  # it becomes part of a path
            raise UnknownAdapter(identity)
        try:
            content = (self.folder / identity / DESCRIPTION).read_bytes()
            adapter = Adapter.model_validate_json(content)
        except (OSError, ValidationError):
            raise UnknownAdapter(identity) from None
        if adapter.id != identity or not self.peft(adapter).is_dir():
            raise UnknownAdapter(identity)
        return adapter

    def all(self) -> list[Adapter]:
        """Return all adapters that can be read, the oldest first."""
        found = []
        for home in self._homes():
            with contextlib.suppress(UnknownAdapter):
                found.append(self.get(home.name))
        return sorted(found, key=lambda adapter: (adapter.created, adapter.id))

    def peft(self, adapter: Adapter) -> Path:
        """Return the PEFT folder of an adapter's weights."""
        return self.folder / adapter.id / adapter.version / "peft"

    def gguf(self, adapter: Adapter) -> Path:
        """Return the folder of the same weights in llama.cpp's form."""
        return self.folder / adapter.id / adapter.version / "gguf"

    def draft(self, adapter: Adapter) -> Adapter:
        """Return the description with a new version, whose empty PEFT folder exists.

        Raises:
            OSError: The folder cannot be made.
        """
        version = f"v{len(adapter.history)}-{secrets.token_hex(4)}"
        drafted = adapter.model_copy(update={"version": version})
        self.peft(drafted).mkdir(parents=True)
        return drafted

    def discard(self, draft: Adapter) -> None:
        """Remove a version unless it is current, and the adapter if it has no other."""
        home = self.folder / draft.id
        with contextlib.suppress(UnknownAdapter):
            if self.get(draft.id).version == draft.version:
                return
        shutil.rmtree(home / draft.version, ignore_errors=True)
        with contextlib.suppress(OSError):
            home.rmdir()  # fails unless it is empty

    def publish(self, draft: Adapter) -> None:
        """Make a version current, and remove the others.

        Raises:
            UnknownAdapter: The adapter has been deleted since the step began.
            OSError: It cannot be written; the version before stays current.
        """
        home = self.folder / draft.id
        if draft.history and not (home / DESCRIPTION).exists():
            raise UnknownAdapter(draft.id)
        path = home / f"{DESCRIPTION}.tmp"
        path.write_text(draft.model_dump_json(indent=2), encoding="utf-8")
        os.replace(path, home / DESCRIPTION)
        for other in home.iterdir():
            if other.name != draft.version and _VERSION.fullmatch(other.name):
                shutil.rmtree(other, ignore_errors=True)

    def delete(self, identity: str) -> None:
        """Remove an adapter.

        Raises:
            UnknownAdapter: There is none of that id.
            OSError: It cannot be removed.
        """
        home = self.folder / identity
        if not ADAPTER_ID.fullmatch(identity) or not (home / DESCRIPTION).exists():
            raise UnknownAdapter(identity)
        (home / DESCRIPTION).unlink()
        shutil.rmtree(home, ignore_errors=True)

    def clean(self) -> None:
        """Remove versions that killed processes left; called when a server starts.

        Another server may be writing one into this folder, so only old ones are removed.
        """
        for home in self._homes():
            with contextlib.suppress(OSError, UnknownAdapter):
                current = self.get(home.name).version if (home / DESCRIPTION).exists() else ""
                for path in home.iterdir():
                    old = time.time() - path.stat().st_mtime > ABANDONED_SECONDS
                    if old and path.name != current and _VERSION.fullmatch(path.name):
                        shutil.rmtree(path, ignore_errors=True)
                if not current:
                    home.rmdir()  # fails unless it is empty

    def _homes(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if ADAPTER_ID.fullmatch(path.name)]


def new_adapter(name: str, base_model_id: str, rank: int, learning_rate: float) -> Adapter:
    """Return the description of a new adapter, whose version is still to be drafted."""
    return Adapter(
        id=f"{uuid.uuid4()}_model_adapter",
        name=name,
        base_model_id=base_model_id,
        rank=rank,
        learning_rate=learning_rate,
        created=(moment := now()),
        updated=moment,
        version="v0-00000000",
    )


def now() -> datetime:
    """Return the time in milliseconds, as the API writes it."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
