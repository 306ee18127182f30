"""Adapters on disk: the current version, and the files that a killed process leaves."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local_endpoints.gradient import store as stores
from local_endpoints.gradient.store import (
    ADAPTER_ID,
    Adapter,
    AdapterStore,
    Step,
    UnknownAdapter,
    adapters_dir,
    new_adapter,
)

BASE = "00000000-0000-4000-8000-000000000000_base_ml_model"
NOBODY = "00000000-0000-4000-8000-000000000000_model_adapter"
WEIGHTS = "adapter_model.safetensors"
STEP = Step(tokens=3, sum_loss=1.5, seconds=0.1)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


def draft(store: AdapterStore, adapter: Adapter, content: bytes) -> Adapter:
    drafted = store.draft(adapter)
    (store.peft(drafted) / WEIGHTS).write_bytes(content)
    return drafted


def create(store: AdapterStore, name: str = "mine", content: bytes = b"0") -> Adapter:
    made = draft(store, new_adapter(name, BASE, rank=4, learning_rate=0.001), content)
    store.publish(made)
    return store.get(made.id)


def step(store: AdapterStore, before: Adapter, content: bytes) -> Adapter:
    drafted = draft(store, before, content)
    after = drafted.model_copy(update={"history": (*before.history, STEP)})
    store.publish(after)
    return after


def weights(store: AdapterStore, identity: str) -> bytes:
    return (store.peft(store.get(identity)) / WEIGHTS).read_bytes()


def versions(store: AdapterStore, identity: str) -> set[str]:
    return {path.name for path in (store.folder / identity).iterdir() if path.is_dir()}


def test_ids_have_the_fifty_characters_that_the_sdk_checks() -> None:
    identity = new_adapter("mine", BASE, 4, 0.1).id
    assert len(identity) == 50
    assert ADAPTER_ID.fullmatch(identity)


@pytest.mark.parametrize("text", ["", "..", f"../{NOBODY}", f"{NOBODY}\n", BASE, NOBODY])
def test_other_texts_are_never_used_as_a_path(store: AdapterStore, text: str) -> None:
    for call in (store.get, store.delete):
        with pytest.raises(UnknownAdapter):
            call(text)


def test_adapters_outlive_the_server_and_are_listed_by_age(store: AdapterStore) -> None:
    assert store.all() == []
    made = [create(store, "first")]
    time.sleep(0.002)  # the API's times are in milliseconds
    made.append(create(store, "second"))
    again = AdapterStore(store.folder)
    again.clean()
    assert [adapter.name for adapter in again.all()] == ["first", "second"]
    assert again.get(made[1].id) == made[1]


def test_a_step_replaces_the_weights_and_removes_the_old_ones(store: AdapterStore) -> None:
    before = create(store, content=b"before")
    drafted = draft(store, before, b"half")
    assert weights(store, before.id) == b"before"  # until it is published
    store.discard(drafted)
    after = step(store, before, b"after")
    assert weights(store, before.id) == b"after"
    assert store.get(before.id) == after
    store.discard(after)  # it is current: nothing happens
    assert versions(store, before.id) == {after.version}


def test_discarding_the_first_version_leaves_no_adapter(store: AdapterStore) -> None:
    drafted = store.draft(new_adapter("mine", BASE, 4, 0.1))
    store.discard(drafted)
    assert not (store.folder / drafted.id).exists()


def test_a_full_disk_keeps_the_last_good_version(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = create(store, content=b"before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            step(store, before, b"after")
    assert weights(store, before.id) == b"before"


def test_a_deleted_adapter_does_not_return_with_the_step_that_ran(store: AdapterStore) -> None:
    before = create(store)
    after = draft(store, before, b"1").model_copy(update={"history": (STEP,)})
    store.delete(before.id)
    with pytest.raises(UnknownAdapter):
        store.publish(after)
    with pytest.raises(UnknownAdapter):
        store.delete(before.id)
    assert store.all() == []


WRITE_FOREVER = """
import sys
from pathlib import Path
from local_endpoints.gradient.store import AdapterStore
from tests.unit.test_gradient_store import create, step

store = AdapterStore(Path(sys.argv[1]))
adapter = create(store, content=b"0" * 100_000)
print(adapter.id, flush=True)
while True:
    adapter = step(store, adapter, bytes([len(adapter.history) % 256]) * 50_000)
"""


@pytest.mark.long
def test_a_server_killed_at_any_moment_leaves_a_whole_adapter(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", WRITE_FOREVER, str(store.folder)]
    for seconds in (0, 0.013, 0.057):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            identity = server.stdout.readline().strip()
            time.sleep(seconds)
            server.send_signal(signal.SIGKILL)
        found = store.get(identity)
        assert len(set(weights(store, identity))) == 1
        monkeypatch.setattr(stores, "ABANDONED_SECONDS", 0)
        store.clean()
        assert versions(store, identity) == {found.version}
        assert step(store, found, b"next") == store.get(identity)


def test_cleaning_removes_only_old_unpublished_versions(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server may be writing the young ones."""
    made = create(store)
    running = draft(store, made, b"1")
    starting = store.draft(new_adapter("mine", BASE, 4, 0.1))
    notes = store.folder / made.id / "notes.txt"
    notes.write_text("mine")
    AdapterStore(store.folder).clean()
    assert store.peft(running).is_dir() and store.peft(starting).is_dir()
    monkeypatch.setattr(stores, "ABANDONED_SECONDS", 0)
    store.clean()
    assert not store.peft(running).exists()
    assert not (store.folder / starting.id).exists()
    assert notes.exists() and weights(store, made.id) == b"0"


@pytest.mark.parametrize(
    "change",
    [b"", b"{", b'{"id": 1}', NOBODY, "../../etc", "v9-00000000"],
    ids=["empty", "cut", "wrong types", "other id", "version outside", "version missing"],
)
def test_a_damaged_description_hides_one_adapter(store: AdapterStore, change: str | bytes) -> None:
    good, bad = create(store, "good"), create(store, "bad")
    path = store.folder / bad.id / "adapter.json"
    if isinstance(change, str):
        key = "id" if change == NOBODY else "version"
        change = bad.model_copy(update={key: change}).model_dump_json().encode()
    path.write_bytes(change)
    assert store.all() == [good]
    with pytest.raises(UnknownAdapter):
        store.get(bad.id)
    store.clean()
    assert versions(store, bad.id) == {bad.version}  # it may be repaired
    store.delete(bad.id)
    assert not (store.folder / bad.id).exists()


def test_the_folder_is_chosen_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COOKBOOK_ADAPTERS_DIR", str(tmp_path))
    assert adapters_dir() == tmp_path
    monkeypatch.setenv("COOKBOOK_ADAPTERS_DIR", " ")
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path))
    assert adapters_dir() == tmp_path / "adapters"
