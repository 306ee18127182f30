"""tools/bootstrap.py: the environment is made once, safely, and mistakes are one sentence."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bootstrap(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    path = ROOT / "tools" / "bootstrap.py"
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


@pytest.fixture
def installed(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Environments are made for real but without pip, and nothing is installed into them."""
    calls: list[list[str]] = []
    check_call = subprocess.check_call

    def make_venv(command: list[str]) -> int:
        return check_call([*command, "--without-pip"])

    monkeypatch.setattr(bootstrap.subprocess, "check_call", make_venv)
    monkeypatch.setattr(bootstrap, "install_packages", lambda venv, extras: calls.append(extras))
    monkeypatch.delenv(bootstrap.NEWEST, raising=False)
    return calls


def test_installs_once(bootstrap: ModuleType, installed: list[list[str]], tmp_path: Path) -> None:
    arguments = ["--venv", str(tmp_path / "env"), "--extras", "notebooks,dev"]
    bootstrap.main(arguments)
    bootstrap.main(arguments)
    assert installed == [["notebooks", "dev"]]
    assert Path(bootstrap.python_in(str(tmp_path / "env"))).exists()


def test_larger_set_of_extras_will_do(
    bootstrap: ModuleType, installed: list[list[str]], tmp_path: Path
) -> None:
    venv = str(tmp_path / "env")
    bootstrap.main(["--venv", venv, "--extras", "notebooks,dev"])
    bootstrap.main(["--venv", venv, "--extras", "notebooks"])
    assert len(installed) == 1
    bootstrap.main(["--venv", venv, "--extras", "other"])
    assert len(installed) == 2


def test_changed_file_installs_again(
    bootstrap: ModuleType,
    installed: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "clone"
    (root / "tools").mkdir(parents=True)
    for name in bootstrap.INPUTS:
        (root / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(bootstrap, "ROOT", str(root))
    arguments = ["--venv", str(root / ".venv")]
    bootstrap.main(arguments)
    (root / "constraints.txt").write_text("# other pins\n", encoding="utf-8")
    bootstrap.main(arguments)
    bootstrap.main(arguments)
    assert len(installed) == 2


def test_newest_packages_go_into_an_environment_of_their_own(
    bootstrap: ModuleType,
    installed: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    venv = tmp_path / "env"
    arguments = ["--venv", str(venv)]
    bootstrap.main(arguments)
    (venv / "pinned").touch()
    monkeypatch.setenv(bootstrap.NEWEST, "1")
    bootstrap.main(arguments)
    bootstrap.main(arguments)
    assert len(installed) == 2
    assert not (venv / "pinned").exists()


@pytest.mark.parametrize("newest", ["", "1"])
def test_newest_packages_are_three_days_old(
    bootstrap: ModuleType, newest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setenv(bootstrap.NEWEST, newest)
    monkeypatch.setattr(bootstrap, "uv_environment", lambda venv: {})
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda command, **_: calls.append(command))
    bootstrap.install_packages("env", ["dev"])
    last = " ".join(calls[-1])
    assert ("--exclude-newer 3 days" in last) == bool(newest)
    assert ("-c constraints.txt" in last) == (not newest)


def test_failed_install_is_done_again(
    bootstrap: ModuleType,
    installed: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(venv: str, extras: list[str]) -> None:
        raise bootstrap.SetupError("no network")

    arguments = ["--venv", str(tmp_path / "env")]
    works = bootstrap.install_packages
    monkeypatch.setattr(bootstrap, "install_packages", fails)
    with pytest.raises(bootstrap.SetupError):
        bootstrap.main(arguments)
    monkeypatch.setattr(bootstrap, "install_packages", works)
    bootstrap.main(arguments)
    assert len(installed) == 1


def test_two_at_once_install_once(
    bootstrap: ModuleType, installed: list[list[str]], tmp_path: Path
) -> None:
    arguments = ["--venv", str(tmp_path / "env")]
    threads = [threading.Thread(target=bootstrap.main, args=(arguments,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(installed) == 1


def test_moved_environment_is_made_again(
    bootstrap: ModuleType, installed: list[list[str]], tmp_path: Path
) -> None:
    bootstrap.main(["--venv", str(tmp_path / "one")])
    (tmp_path / "one").rename(tmp_path / "two")
    bootstrap.main(["--venv", str(tmp_path / "two")])
    assert len(installed) == 2


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 14, 0), (2, 7, 18)])
def test_unsuitable_python(
    bootstrap: ModuleType, version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.sys, "version_info", version)
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None)
    with pytest.raises(bootstrap.SetupError, match=r"Python 3\.11, 3\.12 or 3\.13") as caught:
        bootstrap.use_suitable_python([])
    assert "PYTHON=" in str(caught.value)


def test_another_python_on_the_path_is_used(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 1))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(
        bootstrap, "version_of", lambda path: (3, 12) if path.endswith("3.12") else None
    )
    seen: list[list[str]] = []
    monkeypatch.setattr(
        bootstrap.subprocess, "call", lambda command, env: seen.append(command) or 5
    )
    with pytest.raises(SystemExit) as caught:
        bootstrap.use_suitable_python(["--extras", "dev"])
    assert caught.value.code == 5
    assert seen[0][0] == "/usr/bin/python3.12"
    assert seen[0][2:] == ["--extras", "dev"]


def test_missing_venv_module(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(bootstrap.SetupError, match="venv module"):
        bootstrap.check_venv_module()


def test_uv_looks_where_pip_looks(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://pip.example/simple\nfind-links = /one /two\n"
        "extra-index-url = https://more.example/simple\n"
    )
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://env.example/simple")
    monkeypatch.setenv("UV_INDEX_STRATEGY", "first-index")
    monkeypatch.setattr(bootstrap, "python_in", lambda venv: sys.executable)
    found = bootstrap.uv_environment(str(tmp_path))
    assert found["UV_DEFAULT_INDEX"] == "https://pip.example/simple"
    assert found["UV_INDEX"] == "https://env.example/simple"
    assert found["UV_FIND_LINKS"] == "/one,/two"
    assert found["UV_INDEX_STRATEGY"] == "first-index"  # what the user set himself


def test_failure_says_what_to_do(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "python_in", lambda venv: sys.executable)
    monkeypatch.setattr(bootstrap, "UV", "./no-such-package-of-the-cookbook")
    with pytest.raises(bootstrap.SetupError, match="could not install uv"):
        bootstrap.install_packages(str(tmp_path), [])


def test_the_script_parses_on_old_pythons() -> None:
    """It has to say its sentence there: no syntax newer than Python 3.6."""
    import ast

    source = (ROOT / "tools" / "bootstrap.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))


def test_makefile_without_python(tmp_path: Path) -> None:
    command = ["make", "setup", "PYTHON=no-such-python", f"VENV={tmp_path / 'env'}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 2
    assert "no-such-python was not found" in done.stderr
    assert not (tmp_path / "env").exists()
