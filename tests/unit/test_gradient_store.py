"""Adapters on disk: what is current, what a killed process leaves, what wild files do."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local_endpoints.gradient.store import (
    Adapter,
    AdapterStore,
    ChangedMeanwhile,
    DamagedAdapter,
    UnknownAdapter,
    adapters_dir,
    is_adapter_id,
    now,
)

BASE = "00000000-0000-4000-8000-000000000000_base_ml_model"
NOBODY = "00000000-0000-4000-8000-000000000000_model_adapter"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AdapterStore]:
    opened = AdapterStore(tmp_path / "adapters")
    yield opened
    opened.close()


def create(store: AdapterStore, name: str = "mine", content: bytes = b"0") -> Adapter:
    identity = store.new_id()
    draft = store.draft(identity, 0)
    (draft.peft / WEIGHTS).write_bytes(content)
    moment = now()
    adapter = Adapter(
        id=identity,
        name=name,
        base_model_id=BASE,
        rank=4,
        learning_rate=0.001,
        created=moment,
        updated=moment,
        version=draft.version,
    )
    store.publish(adapter)
    return store.get(identity)


def step(store: AdapterStore, before: Adapter, content: bytes) -> Adapter:
    draft = store.draft(before.id, before.steps + 1)
    (draft.peft / WEIGHTS).write_bytes(content)
    after = before.model_copy(update={"version": draft.version, "steps": before.steps + 1})
    store.publish(after, before)
    return after


def weights(store: AdapterStore, identity: str) -> bytes:
    return (store.peft(store.get(identity)) / WEIGHTS).read_bytes()


def versions(store: AdapterStore, identity: str) -> set[str]:
    return {path.name for path in (store.folder / identity).iterdir() if path.is_dir()}


def test_ids_are_the_fifty_characters_that_the_sdk_checks(store: AdapterStore) -> None:
    identity = store.new_id()
    assert len(identity) == 50
    assert is_adapter_id(identity)
    assert identity != store.new_id()


@pytest.mark.parametrize("text", ["", "..", f"../{NOBODY}", NOBODY.upper(), f"{NOBODY}\n", BASE])
def test_what_is_no_id_is_never_a_path(store: AdapterStore, text: str) -> None:
    assert not is_adapter_id(text)
    with pytest.raises(UnknownAdapter):
        store.get(text)
    with pytest.raises(UnknownAdapter):
        store.delete(text)


def test_an_empty_store_has_no_folder_and_lists_nothing(store: AdapterStore) -> None:
    store.clean()
    assert store.all() == []
    assert not store.folder.exists()
    with pytest.raises(UnknownAdapter):
        store.get(NOBODY)


def test_adapters_outlive_the_server_and_are_listed_by_age(store: AdapterStore) -> None:
    made = [create(store, name) for name in ("first", "second")]
    store.close()
    again = AdapterStore(store.folder)
    again.clean()
    assert [adapter.name for adapter in again.all()] == ["first", "second"]
    assert again.get(made[1].id) == made[1]


def test_a_step_replaces_the_weights_and_removes_the_old_ones(store: AdapterStore) -> None:
    before = create(store, content=b"before")
    after = step(store, before, b"after")
    assert weights(store, before.id) == b"after"
    assert store.get(before.id) == after
    assert versions(store, before.id) == {after.version}


def test_a_version_counts_only_once_it_is_published(store: AdapterStore) -> None:
    before = create(store, content=b"before")
    draft = store.draft(before.id, 1)
    (draft.peft / WEIGHTS).write_bytes(b"half")
    assert weights(store, before.id) == b"before"
    store.discard(before.id, draft)
    assert versions(store, before.id) == {before.version}
    assert weights(store, before.id) == b"before"


def test_discarding_the_first_version_leaves_no_adapter(store: AdapterStore) -> None:
    identity = store.new_id()
    store.discard(identity, store.draft(identity, 0))
    assert not (store.folder / identity).exists()


def test_discarding_what_has_become_current_keeps_it(store: AdapterStore) -> None:
    before = create(store)
    draft = store.draft(before.id, 1)
    (draft.peft / WEIGHTS).write_bytes(b"new")
    store.publish(before.model_copy(update={"version": draft.version, "steps": 1}), before)
    store.discard(before.id, draft)
    assert weights(store, before.id) == b"new"


@pytest.mark.parametrize("where", ["replace", "fsync"])
def test_a_full_disk_keeps_the_last_good_version(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = create(store, content=b"before")
    draft = store.draft(before.id, 1)
    (draft.peft / WEIGHTS).write_bytes(b"after")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, where, full)
        with pytest.raises(OSError, match="No space"):
            store.publish(before.model_copy(update={"version": draft.version}), before)
    assert weights(store, before.id) == b"before"
    assert not list((store.folder / before.id).glob("*.tmp"))


def test_two_servers_cannot_undo_each_others_steps(store: AdapterStore) -> None:
    before = create(store)
    other = AdapterStore(store.folder)
    draft = store.draft(before.id, 1)
    theirs = step(other, before, b"theirs")
    with pytest.raises(ChangedMeanwhile):
        store.publish(before.model_copy(update={"version": draft.version}), before)
    assert store.get(before.id) == theirs
    other.close()


def test_a_deleted_adapter_does_not_come_back_with_the_step_that_ran(store: AdapterStore) -> None:
    before = create(store)
    draft = store.draft(before.id, 1)
    store.delete(before.id)
    with pytest.raises(UnknownAdapter):
        store.publish(before.model_copy(update={"version": draft.version}), before)
    with pytest.raises(UnknownAdapter):
        store.delete(before.id)
    assert store.all() == []


def test_the_next_start_removes_what_a_killed_server_left(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    killed = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from tests.unit.test_gradient_store import create
        from local_endpoints.gradient.store import AdapterStore

        store = AdapterStore(Path(sys.argv[1]))
        made = create(store, content=b"good")
        store.draft(made.id, 1)
        store.draft(store.new_id(), 0)  # an adapter that was being made
        (store.folder / made.id / f"adapter.json.{made.version[-8:]}.tmp").write_text("half")
        print(made.id)
        sys.stdout.flush()
        os._exit(9)
        """
    )
    run = subprocess.run(
        [sys.executable, "-c", killed, str(folder)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 9, run.stderr
    identity = run.stdout.strip()
    store = AdapterStore(folder)
    assert len(versions(store, identity)) == 2
    store.clean()
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {identity}
    assert {path.name for path in (folder / identity).iterdir()} == {
        "adapter.json",
        store.get(identity).version,
    }
    assert weights(store, identity) == b"good"


def test_cleaning_leaves_alone_what_a_running_server_writes(store: AdapterStore) -> None:
    made = create(store)
    draft = store.draft(made.id, 1)
    fresh = store.new_id()
    started = store.draft(fresh, 0)
    other = AdapterStore(store.folder)
    other.clean()
    assert draft.peft.is_dir()
    assert started.peft.is_dir()
    store.close()  # it has ended now
    other.clean()
    assert not draft.peft.exists()
    assert not (store.folder / fresh).exists()
    assert weights(other, made.id) == b"0"


def test_foreign_files_stay(store: AdapterStore) -> None:
    made = create(store)
    notes = store.folder / made.id / "notes.txt"
    notes.write_text("mine")
    elsewhere = store.folder / "my-other-things"
    elsewhere.mkdir()
    AdapterStore(store.folder).clean()
    assert notes.exists()
    assert elsewhere.is_dir()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"id": 1}'],
    ids=["empty", "cut", "list", "null", "no text", "wrong types"],
)
def test_a_damaged_description_hides_one_adapter_and_is_told_once(
    tmp_path: Path, content: bytes
) -> None:
    told: list[str] = []
    store = AdapterStore(tmp_path, told.append)
    good, bad = create(store, "good"), create(store, "bad")
    (tmp_path / bad.id / "adapter.json").write_bytes(content)
    assert store.all() == [good]
    assert store.all() == [good]
    assert len(told) == 1
    assert str(tmp_path / bad.id) in told[0]
    with pytest.raises(DamagedAdapter):
        store.get(bad.id)
    store.clean()  # somebody may want to repair it
    assert versions(store, bad.id) == {bad.version}
    store.delete(bad.id)
    with pytest.raises(UnknownAdapter):
        store.get(bad.id)
    store.close()


def test_a_description_without_its_weights_is_damage(store: AdapterStore) -> None:
    made = create(store)
    after = made.model_copy(update={"version": "v9-00000000"})
    (store.folder / made.id / "adapter.json").write_text(after.model_dump_json())
    with pytest.raises(DamagedAdapter):
        store.get(made.id)


def test_a_copied_folder_is_not_taken_for_the_adapter_it_came_from(store: AdapterStore) -> None:
    made = create(store)
    (store.folder / made.id).rename(store.folder / NOBODY)
    with pytest.raises(DamagedAdapter):
        store.get(NOBODY)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(Adapter.model_fields)),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=20)
        | st.sampled_from(["../../..", "v1-00000000/..", "v0-00000000\n"])
        | st.lists(st.integers(), max_size=2),
        min_size=1,
    )
)
def test_wild_descriptions_never_lead_out_of_the_folder(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    store = AdapterStore(tmp_path)
    made = create(store)
    path = tmp_path / made.id / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}), encoding="utf-8")
    try:
        found = store.get(made.id)
    except DamagedAdapter:
        assert made.id not in {adapter.id for adapter in store.all()}
    else:
        assert store.peft(found).parent.parent == tmp_path / made.id
    store.delete(made.id)
    store.close()


def test_the_folder_is_chosen_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COOKBOOK_ADAPTERS_DIR", str(tmp_path))
    assert adapters_dir() == tmp_path
    monkeypatch.setenv("COOKBOOK_ADAPTERS_DIR", " ")
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path))
    assert adapters_dir() == tmp_path / "adapters"
