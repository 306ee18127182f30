"""An index whose update is killed at random points ends like one that nobody disturbed."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import sys
import time

import pytest

from tests.contract import interrupted

KILLS = 20
ROUNDS = 4  # two from an empty index, two from one with the first batch in it


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by a POSIX signal")
def test_killed_at_twenty_random_points(servers, tmp_path):
    url = servers.url("embedding")
    interrupted.update(tmp_path / "first", url, ("initial",))
    began = time.monotonic()
    interrupted.update(tmp_path / "whole", url, ())
    duration = time.monotonic() - began
    wanted = interrupted.content(tmp_path / "whole")
    assert len(wanted) > 100

    # A fork server that has imported everything: a child starts at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.contract.interrupted"])
    chance = random.Random(20)
    killed = partial = 0
    for number in range(ROUNDS):
        folder = tmp_path / f"round-{number}"
        if number % 2:
            shutil.copytree(tmp_path / "first", folder)
        for _ in range(KILLS // ROUNDS):
            started = context.Event()
            child = context.Process(target=interrupted.update, args=(folder, url, (), started))
            child.start()
            assert started.wait(120)
            child.join(chance.uniform(0, duration / 2))
            child.kill()
            child.join()
            killed += child.exitcode == -9
        if (folder / "meta.json").is_file():
            partial += interrupted.content(folder) != wanted
        interrupted.update(folder, url, ())
        assert interrupted.content(folder) == wanted
    assert killed >= KILLS // 2
    assert partial, "no kill came early enough to interrupt anything"
