"""The live tests of nvidia-haystack's own source distribution, run against our servers.

15 tests are marked `integration` there. Two hard-code the hosted URL and need NVIDIA's hosts; the
others run against any server and pass with the default models: against the chat NIM in both
protocols of NIM LLM, and the retrieval NIMs.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nim_cookbook.local import cache_dir
from nim_cookbook.models import load_registry
from tests.support import Servers, started_servers

VERSION = "3.0.0"
SHA256 = "70ecc1b502211f57611252f2f5b6d0fe973bbef87ed9abe386127ee0809aac77"
HARD_CODED_HOSTED_URL = {
    "test_document_embedder.py::TestRun::test_run_integration_with_api_catalog",
    "test_text_embedder.py::TestRun::test_run_integration_with_api_catalog",
}
LIVE_TESTS = 15
CHAT_TESTS = "tests/test_nvidia_chat_generator.py"

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution, fetched once and checked."""
    store = cache_dir() / "vendor"
    archive = store / f"nvidia_haystack-{VERSION}.tar.gz"
    if not archive.exists():
        command = f"pip download --quiet --no-deps --no-binary=:all: nvidia-haystack=={VERSION}"
        fetch = subprocess.run(
            [sys.executable, "-m", *command.split(), "--dest", str(store)],
            capture_output=True,
            text=True,
        )
        if fetch.returncode:
            pytest.skip(f"needs network once, for nvidia-haystack's tests: {fetch.stderr[-200:]}")
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256
    folder = tmp_path_factory.mktemp("vendor")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / f"nvidia_haystack-{VERSION}"


@pytest.fixture
def nim_1_server(tmp_path: Path) -> Iterator[Servers]:
    """Servers with the default models whose chat NIM is 1.x."""
    key = os.environ["COOKBOOK_LOCAL_KEY"]
    with started_servers(tmp_path / "log", key, "--nim=1", COOKBOOK_MODELS="default") as (
        running,
        _,
    ):
        yield running


@pytest.mark.parametrize(
    "server", ["default_server", pytest.param("nim_1_server", marks=pytest.mark.long)]
)
def test_live_tests_pass(server: str, suite: Path, request: pytest.FixtureRequest):
    running: Servers = request.getfixturevalue(server)
    # One variable says where chat and hosted reranking are: only the first is the chat NIM's.
    result = live_tests(suite, running, "chat", CHAT_TESTS)
    result |= live_tests(suite, running, "catalog", "tests", f"--ignore={CHAT_TESTS}")
    assert len(result) == LIVE_TESTS
    passed = {name for name, status in result.items() if status == "PASSED"}
    print(f"{server}: nvidia-haystack {VERSION}: {len(passed)} of {LIVE_TESTS} live tests pass")
    assert set(result) - passed == HARD_CODED_HOSTED_URL


def live_tests(suite: Path, running: Servers, api: str, *which: str) -> dict[str, str]:
    """Run live tests with NVIDIA_API_URL at one of our servers; return how each ended."""
    registry = load_registry()
    environment = {
        **os.environ,
        "NVIDIA_API_KEY": running.key,
        "NVIDIA_API_URL": running.url(api),
        "NVIDIA_NIM_EMBEDDER_MODEL": registry.default("embedding").id,
        "NVIDIA_NIM_ENDPOINT_URL": running.url("embedding"),
        "NVIDIA_NIM_RANKER_MODEL": registry.default("reranking").id,
        "NVIDIA_NIM_RANKER_ENDPOINT_URL": running.url("reranking"),
    }
    options = "-m integration -rA --tb=short --no-cov -c pyproject.toml -p no:cacheprovider"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *which, *options.split(), "-p", "no:nbmake"],
        cwd=suite,
        env={name: value for name, value in environment.items() if "PYTEST" not in name},
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(run.stdout[-6000:], run.stderr[-2000:])  # shown when the test fails
    found = re.findall(
        r"^(PASSED|FAILED|ERROR) tests/(\S+?)(?:\[\S*\])?(?: - .*)?$", run.stdout, re.M
    )
    return {name: status for status, name in found}
