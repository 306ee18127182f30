"""Progress of long work: bars in a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from cookbook_cli.recipes import Recipe
    from cookbook_cli.results import RecipeResult

QUIET_SECONDS = 10.0


class Bars:
    """Bars that are redrawn between the beginning and the end of a `with` block.

    Attributes:
        bars: What is drawn.
    """

    bars: Progress

    def __enter__(self) -> Self:
        """Start to redraw."""
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop to redraw, and give the terminal its cursor back."""
        self.bars.stop()


class RunProgress(Bars):
    """Shows which cell of which recipe is running. Use it as a context manager."""

    def __init__(self, console: Console) -> None:
        """Prepare for one run.

        Args:
            console: Where to show it.
        """
        self._console = console
        self.bars = Progress(
            TextColumn("{task.fields[recipe]}"),
            BarColumn(bar_width=24),
            TextColumn("cell {task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._recipe = ""
        self._last_line = 0.0

    def start(self, recipe: Recipe, cells: int) -> None:
        """Begin a recipe."""
        self._recipe = f"{recipe.number} {recipe.title}"
        self._task = self.bars.add_task("starting", total=cells, recipe=self._recipe)
        self._line(f"{self._recipe}: {cells} cells")

    def cell(self, number: int, cells: int, heading: str) -> None:
        """Begin a cell; it is `OnCell` of `execute`."""
        if self._task is not None:
            self.bars.update(self._task, completed=number - 1, total=cells, description=heading)
        if time.monotonic() - self._last_line > QUIET_SECONDS:
            self._line(f"{self._recipe}: cell {number}/{cells} {heading}")

    def end(self, result: RecipeResult) -> None:
        """End a recipe."""
        said = "passed" if result.passed else "failed"
        if self._task is not None:
            self.bars.update(self._task, completed=result.cells_run, description=said)
            self.bars.stop_task(self._task)
        self._line(f"{self._recipe}: {said} after {result.seconds:.1f} s")

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False)
