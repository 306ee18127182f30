"""Run what `make test` runs, phase by phase, and say at the end how each one went.

Later phases run even when an earlier one failed, so that one run tells everything. Arguments that
are not options of this script go to pytest: `make test PYTEST_ARGS="-k rerank"`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
NO_TESTS_COLLECTED = 5
CODE = ("utils", "tests", "tools", "benchmarks")
PYTEST = (PYTHON, "-m", "pytest")
TRACED = ("--cov", "--cov-append", "--cov-report=")

LINT: tuple[tuple[str, ...], ...] = (
    (PYTHON, "-m", "ruff", "check", *CODE, "notebooks"),
    (PYTHON, "-m", "ruff", "format", "--check", *CODE),
    (PYTHON, "-m", "mypy"),
)
# Unit tests share nothing, so they run on all cores. The others share one local server, which
# generates on one thread. Contract tests wait a good deal, so three run at a time, and no file is
# split. The recipe that trains runs beside no other recipe: PyTorch's threads wait for each other,
# and a step that takes four seconds took twenty-seven. Most of its minutes go to answers, on one
# core: the phases before it get the rest of the time, with a priority that lets each step go first.
TRAINING = "tests/notebooks/test_recipes.py::test_recipe[05_gradient_notion]"
SUITES: dict[str, tuple[str, ...]] = {
    "unit": (*PYTEST, "tests/unit", "-n", "auto"),
    "contract": (
        *(*PYTEST, "tests/contract", "-n", "3"),
        *("--dist", "loadfile", "--no-loadscope-reorder"),  # its own order: the longest first
    ),
    "training": (*PYTEST, TRAINING),
    "notebooks": (
        *(*PYTEST, "tests/notebooks", f"--deselect={TRAINING}"),
        *("-n", "2", "--dist", "loadgroup"),
    ),
}
# What the recipes call is covered by the tests before them.
TRACED_SUITES = ("unit", "contract")
PHASES = ("lint", *SUITES)
BESIDE_TRAINING = ("lint", "unit", "contract")
GIVING_WAY = ("nice", "-n", "15") if shutil.which("nice") else ()  # the process that trains has 5


def run(command: Sequence[str]) -> int:
    """Run a command in the repository's root, shown as a person would type it."""
    show(command)
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def show(command: Sequence[str], remark: str = "") -> None:
    """Print a command as a person would type it."""
    shown = ["python" if part == PYTHON else part for part in command]
    print("$", " ".join(shown), remark, flush=True)


def run_phase(
    name: str, traced: bool, pytest_arguments: Sequence[str], before: Sequence[str] = ()
) -> bool:
    """Run one phase; true when all of it passed.

    Args:
        name: One of `PHASES`.
        traced: Whether to note which lines of `utils/` were executed.
        pytest_arguments: For pytest.
        before: What stands before each command.
    """
    if name == "lint":
        return all([run([*before, *part]) == 0 for part in LINT])  # a list: each of them, always
    tracing = TRACED if traced else ()
    code = run([*before, *SUITES[name], *tracing, *pytest_arguments])
    selected = bool(pytest_arguments)
    return code == 0 or (selected and code == NO_TESTS_COLLECTED)


class Training:
    """The recipe that trains, begun at once; what it prints is kept until its turn comes."""

    def __init__(self) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            SUITES["training"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def finish(self) -> bool:
        """Wait for its end and print what it said; true when it passed."""
        code = self._process.wait()
        self._output.seek(0)
        show(SUITES["training"], f"# since {BESIDE_TRAINING[0]} began")
        print(self._output.read().decode(errors="replace"), end="", flush=True)
        return code == 0

    def close(self) -> None:
        """End it, if it still runs."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        self._output.close()


@contextlib.contextmanager
def beside(phases: Sequence[str], pytest_arguments: Sequence[str]) -> Iterator[Training | None]:
    """Begin the training early where phases that run beside it are wanted as well.

    Not with arguments for pytest: they may ask for a debugger, or stop at the first failure.
    """
    together = "training" in phases and any(name in phases for name in BESIDE_TRAINING)
    if not together or pytest_arguments:
        yield None
        return
    training = Training()
    try:
        yield training
    finally:
        training.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the phases and print the summary; 0 when all of them passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=PHASES, help="may be given repeatedly")
    parser.add_argument(
        "--coverage",
        action="store_true",
        help="unit and contract tests only, a fifth slower, and which lines of utils/ they execute",
    )
    options, pytest_arguments = parser.parse_known_args(arguments)
    wanted = options.only or (TRACED_SUITES if options.coverage else PHASES)
    phases = [phase for phase in PHASES if phase in wanted]
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    if options.coverage:
        run([PYTHON, "-m", "coverage", "erase"])
    summary: list[tuple[str, bool, float]] = []
    with beside(phases, pytest_arguments) as training:
        for phase in phases:
            print(f"\n===== {phase} =====", flush=True)
            started = time.monotonic()
            if training is not None and phase == "training":
                passed = training.finish()
            else:
                yielding = GIVING_WAY if training is not None and phase in BESIDE_TRAINING else ()
                passed = run_phase(phase, options.coverage, pytest_arguments, yielding)
            summary.append((phase, passed, time.monotonic() - started))
    if options.coverage:
        print("\n===== coverage of utils/ =====", flush=True)
        # The session's servers write their figures when pytest has already put the others together.
        if any(ROOT.glob(".coverage.*")):
            run([PYTHON, "-m", "coverage", "combine", "--append", "--quiet"])
        run([PYTHON, "-m", "coverage", "report"])
    print("\n===== summary =====")
    for phase, passed, seconds in summary:
        print(f"{phase:<10} {'passed' if passed else 'FAILED'} {seconds:7.1f} s")
    return 0 if all(passed for _, passed, _ in summary) else 1


if __name__ == "__main__":
    sys.exit(main())
