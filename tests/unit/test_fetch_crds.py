"""The definitions of custom resources are fetched whole and as pinned, or not at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from types import ModuleType

import pytest

from tests.http_server import listening
from tests.unit.chart_checks import CRD_FILES, ROOT, SETS, rendered

TOOL = ROOT / "tools" / "fetch_crds.py"
CONTENT = b"kind: CustomResourceDefinition\n"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import fetch_crds

    module: ModuleType = fetch_crds
    return module


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "source" / "owner" / "v1").mkdir(parents=True)
    (tmp_path / "source" / "owner" / "v1" / "a.yaml").write_bytes(CONTENT)
    handler = partial(Quiet, directory=str(tmp_path / "source"))
    with listening(handler) as url:
        yield url


def test_a_file_is_fetched_once(
    tool: ModuleType, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "crds"
    wanted = [tool.Definition("owner/v1/a.yaml", tool.digest(CONTENT))]
    tool.fetch(folder, wanted, source)
    assert (folder / "a.yaml").read_bytes() == CONTENT
    assert "fetched" in capsys.readouterr().out
    tool.fetch(folder, wanted, "http://127.0.0.1:9")  # nobody is asked
    assert "is there" in capsys.readouterr().out
    (folder / "a.yaml").write_bytes(CONTENT[:5])  # as a broken copy would leave it
    tool.fetch(folder, wanted, source)
    assert [file.name for file in folder.iterdir()] == ["a.yaml"]
    assert (folder / "a.yaml").read_bytes() == CONTENT


def test_another_file_than_the_pinned_is_not_kept(
    tool: ModuleType, source: str, tmp_path: Path
) -> None:
    wanted = [tool.Definition("owner/v1/a.yaml", "0" * 64)]
    with pytest.raises(RuntimeError, match=f"{tool.digest(CONTENT)}, and 0+ is pinned"):
        tool.fetch(tmp_path / "crds", wanted, source)
    assert list((tmp_path / "crds").iterdir()) == []
    tool.fetch(tmp_path / "crds", wanted, source, accept=True)
    assert (tmp_path / "crds" / "a.yaml").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "closed", "why"),
    [("owner/v2/a.yaml", False, "answered 404"), ("owner/v1/a.yaml", True, "cannot be reached")],
)
def test_what_cannot_be_had_is_one_sentence(
    tool: ModuleType, source: str, tmp_path: Path, path: str, closed: bool, why: str
) -> None:
    wanted = [tool.Definition(path, tool.digest(CONTENT))]
    with pytest.raises(RuntimeError, match=why):
        tool.fetch(tmp_path / "crds", wanted, "http://127.0.0.1:9" if closed else source)
    assert list((tmp_path / "crds").iterdir()) == []


def test_the_command_says_so_and_fails(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, TOOL, tmp_path / "crds", "--source", "http://127.0.0.1:9"],
        env={"no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and "Traceback" not in done.stderr


def test_there_is_a_definition_for_each_object_of_the_operators(tool: ModuleType) -> None:
    kinds = {
        f"{one['apiVersion'].partition('/')[0]}_{one['kind'].lower()}s.yaml"
        for name in SETS
        for one in rendered(name)
        if one["apiVersion"].startswith(("keda.sh/", "apps.nvidia.com/"))
    }
    assert kinds == {one.name for one in tool.DEFINITIONS} == set(CRD_FILES)
