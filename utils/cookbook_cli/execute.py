"""Runs one notebook from the first cell to the last, on a kernel that never stays behind."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from cookbook_cli.recipes import Recipe
from cookbook_cli.results import RecipeResult, measures, write_atomically
from nim_cookbook.errors import DataError

LONGEST_SENTENCE = 300
# A recipe must not look different because somebody's terminal has colours or a plotting backend.
KERNEL_ENVIRONMENT = {"NO_COLOR": "1", "PYTHONHASHSEED": "0", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")

#: Called before each code cell with its number from 1, how many there are, and the step's heading.
OnCell = Callable[[int, int, str], None]


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook and check it against the schema.

    Raises:
        DataError: It cannot be read, or is not a valid notebook.
    """
    try:
        notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        nbformat.validate(notebook)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a valid notebook ({first}): restore it.") from error
    return notebook


def as_text(notebook: NotebookNode) -> str:
    """Return a notebook as the text of its file."""
    text: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
    return text.rstrip("\n") + "\n"


def is_runnable(cell: NotebookNode) -> bool:
    """Return whether a cell holds code."""
    return cell.cell_type == "code" and bool(cell.source.strip())


def execute(
    recipe: Recipe,
    notebook: NotebookNode,
    folder: Path,
    target: Path,
    timeout: int,
    on_cell: OnCell,
) -> RecipeResult:
    """Run a recipe and write the executed notebook, complete or not.

    Raises:
        KeyboardInterrupt: The user stopped it; the kernel is gone and the partly executed notebook
            is written by then.
    """
    result = RecipeResult(recipe, cells=sum(map(is_runnable, notebook.cells)), executed=target)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # no stored output may look as if it came from this run
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=timeout,
        startup_timeout=120,
        # Its warning about unencrypted loopback traffic would stand in the middle of the progress.
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        coalesce_streams=True,
        shutdown_kernel="immediate",
    )
    started = time.monotonic()
    try:
        # Not client.execute(): that takes over Ctrl-C and then waits for a dead kernel.
        with client.setup_kernel(cwd=str(folder), env=os.environ | KERNEL_ENVIRONMENT):
            _run_cells(client, on_cell, result)
            if result.passed:
                client.shutdown_kernel = "graceful"
    except RuntimeError as error:
        result.error = result.error or _one_sentence("The kernel did not start", str(error))
    finally:
        result.seconds = time.monotonic() - started
        result.measures = measures(notebook)
        write_atomically(target, as_text(notebook))
    return result


def _run_cells(client: NotebookClient, on_cell: OnCell, result: RecipeResult) -> None:
    heading = ""
    for index, cell in enumerate(client.nb.cells):
        if cell.cell_type == "markdown":
            headings = [line for line in cell.source.splitlines() if line.startswith("#")]
            heading = headings[-1].lstrip("#").strip() if headings else heading
        if not is_runnable(cell):
            continue
        number = result.cells_run + 1
        on_cell(number, result.cells, heading)
        try:
            client.execute_cell(cell, index, execution_count=number)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            result.failed_cell, result.error = number, _sentence(error, client, cell)
            return
        result.cells_run = number


def _sentence(error: Exception, client: NotebookClient, cell: NotebookNode) -> str:
    if isinstance(error, CellExecutionError):
        # What the reader of the notebook sees, which explains more than the bare exception.
        shown = [output for output in cell.outputs if output.output_type == "error"]
        name, text = (shown[-1].ename, shown[-1].evalue) if shown else (error.ename, error.evalue)
        return _one_sentence(name, text)
    if isinstance(error, CellTimeoutError):
        return f"The cell did not end within {client.timeout} seconds: allow more with --timeout."
    return "The kernel died while it ran this cell: it may have run out of memory."


def _one_sentence(name: str, text: str) -> str:
    lines = [line.strip() for line in _ESCAPES.sub("", text).splitlines() if line.strip()]
    sentence = f"{name}: {lines[0]}" if lines else name
    return sentence if len(sentence) <= LONGEST_SENTENCE else f"{sentence[:LONGEST_SENTENCE]}..."
