"""Runs one notebook from the first cell to the last, on a kernel that never stays behind.

nbclient's own `execute()` takes over Ctrl-C and then waits for a dead kernel, and its synchronous
`setup_kernel()` leaves the kernel alone when Ctrl-C comes while it starts. So the cells are run one
by one in a loop that cancels cleanly, which also gives a place to report progress from.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_async
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from cookbook_cli.recipes import Recipe
from cookbook_cli.results import RecipeResult, measures, write_atomically
from nim_cookbook.errors import DataError

KERNEL = "python3"
# Its warning about unencrypted loopback traffic would stand in the middle of the progress.
KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=ERROR"]
STARTUP_SECONDS = 120
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


async def execute(
    recipe: Recipe,
    notebook: NotebookNode,
    folder: Path,
    target: Path,
    timeout: int,
    on_cell: OnCell,
) -> RecipeResult:
    """Run a recipe and write the executed notebook, complete or not.

    Args:
        recipe: Its entry in the index.
        notebook: The notebook; changed in place.
        folder: Where its kernel runs, as JupyterLab would run it.
        target: Where the executed notebook is written.
        timeout: Seconds that one cell may take.
        on_cell: Told of every cell before it runs.

    Raises:
        CancelledError: The user stopped it; the kernel is gone and the partly executed notebook is
            written by then.
    """
    result = RecipeResult(recipe, cells=sum(map(is_runnable, notebook.cells)), executed=target)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # no stored output may look as if it came from this run
            cell.outputs, cell.execution_count = [], None
    started = time.monotonic()
    try:
        await _run_cells(notebook, folder, timeout, on_cell, result)
    finally:
        result.seconds = time.monotonic() - started
        result.measures = measures(notebook)
        write_atomically(target, as_text(notebook))
    return result


async def _run_cells(
    notebook: NotebookNode, folder: Path, timeout: int, on_cell: OnCell, result: RecipeResult
) -> None:
    manager = AsyncKernelManager(kernel_name=KERNEL)
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=timeout,
        startup_timeout=STARTUP_SECONDS,
        extra_arguments=KERNEL_ARGUMENTS,
        coalesce_streams=True,
    )
    client.reset_execution_trackers()
    polite = False
    try:
        await client.async_start_new_kernel(cwd=str(folder), env=os.environ | KERNEL_ENVIRONMENT)
        await client.async_start_new_kernel_client()
        await _cells(client, notebook, on_cell, result)
        polite = result.passed
    except RuntimeError as error:  # the kernel did not start, or died
        _raise_if_cancelled()
        result.error = result.error or _one_sentence("The kernel did not start", str(error))
    finally:
        await _shut_down(manager, client, now=not polite)


async def _cells(
    client: NotebookClient, notebook: NotebookNode, on_cell: OnCell, result: RecipeResult
) -> None:
    heading = ""
    number = 0
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            headings = [line for line in cell.source.splitlines() if line.startswith("#")]
            heading = headings[-1].lstrip("#").strip() if headings else heading
        if not is_runnable(cell):
            continue
        number += 1
        on_cell(number, result.cells, heading)
        try:
            await client.async_execute_cell(cell, index, execution_count=number)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            _raise_if_cancelled()
            result.failed_cell, result.error = number, _sentence(error, client, cell)
            return
        result.cells_run = number


def _raise_if_cancelled() -> None:
    """Go on with Ctrl-C: nbclient turns the cancelled wait for a cell into a dead kernel."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _shut_down(manager: AsyncKernelManager, client: NotebookClient, now: bool) -> None:
    """End the kernel: politely after the last cell, at once after an error."""
    if client.kc is not None:
        client.kc.stop_channels()
    if manager.has_kernel:
        await manager.shutdown_kernel(now=now)
    await ensure_async(manager.cleanup_resources())


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
