"""What only POSIX systems have is not needed to import the packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

UTILS = Path(__file__).resolve().parents[2] / "utils"
POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
# What a notebook and the command import first, and what starts the servers.
DOORS = ("nim_cookbook.endpoints", "cookbook_cli.app", "local_endpoints.server", "capacity.plan")

# Refused to our own modules only: other packages decide by the name of the system, which is POSIX.
WITHOUT = """
import builtins, importlib, sys

real = builtins.__import__

def windows(name, globals=None, *others, **more):
    importer = (globals or {}).get("__name__", "").split(".")[0]
    if importer in {PACKAGES} and name.split(".")[0] in {POSIX}:
        raise ModuleNotFoundError(f"{globals['__name__']} imports {name}, which Windows lacks")
    return real(name, globals, *others, **more)

builtins.__import__ = windows
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_packages_import_without_the_modules_of_posix() -> None:
    packages = {path.name for path in UTILS.iterdir()}
    code = WITHOUT.replace("{PACKAGES}", repr(packages)).replace("{POSIX}", repr(POSIX))
    done = subprocess.run(
        [sys.executable, "-c", code, *DOORS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_module_needs_them_when_it_is_imported() -> None:
    for path in UTILS.rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:  # of the module, outside functions
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & POSIX, path
