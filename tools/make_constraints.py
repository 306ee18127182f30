"""Write constraints.txt: the versions that pip installs today into a fresh, empty environment.

Run it as `make constraints`, then `make test`, then commit both or neither. It wants the oldest
Python that the cookbook supports, because what installs there also installs on the later ones.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
EXTRAS = "notebooks,llamaindex,measure,tables,agent,finetune,serve,kubernetes,bench,site,dev"
PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!_]+")
# pip and setuptools come with the environment, and a constraint on them would only get in the way.
LEFT_OUT = {"pip", "setuptools", "wheel", "nim-rag-cookbook"}
HEADER = """\
# The versions that the cookbook is tested with, for Python 3.11 to 3.13 on every platform.
# Made by `make constraints` from a fresh environment; do not edit by hand.
"""


def run(*command: str) -> str:
    """Run a command and return what it printed; its errors go to the terminal."""
    try:
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    except subprocess.CalledProcessError:
        sys.exit(f"This command failed, see above: {' '.join(command)}")
    return done.stdout


def pins(frozen: str) -> list[str]:
    """Sort the pins and refuse everything else, such as a path of this machine.

    Args:
        frozen: What `pip freeze` printed.
    """
    # PyTorch's CPU build calls itself 2.13.0+cpu; the pin is for every build of that version.
    lines = [line.strip().removesuffix("+cpu") for line in frozen.splitlines() if line.strip()]
    for line in lines:
        if not PIN.fullmatch(line):
            sys.exit(f"pip froze a line that holds on this machine only: {line}")
    names = {line: line.split("==")[0].lower().replace("_", "-") for line in lines}
    kept = [line for line in lines if names[line] not in LEFT_OUT]
    return sorted(kept, key=names.__getitem__)


def main() -> None:
    """Make the environment, freeze it, and replace constraints.txt in one move."""
    if sys.version_info[:2] != OLDEST:
        sys.exit("Run this with Python 3.11: `make constraints PYTHON=python3.11`.")
    with tempfile.TemporaryDirectory(prefix="cookbook-constraints-") as folder:
        python = str(Path(folder) / "bin" / "python")
        print("Making a fresh environment and installing into it (some minutes) ...", flush=True)
        run(sys.executable, "-m", "venv", folder)
        run(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
        run(python, "-m", "pip", "install", "--quiet", f".[{EXTRAS}]")
        frozen = run(python, "-m", "pip", "freeze", "--exclude", "nim-rag-cookbook")
    lines = pins(frozen)
    part = ROOT / "constraints.txt.part"
    part.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    part.replace(ROOT / "constraints.txt")
    print(f"constraints.txt pins {len(lines)} packages.")


if __name__ == "__main__":
    main()
