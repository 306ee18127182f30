"""Progress of long work: bars in a terminal, a line now and then in a log."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn

QUIET_SECONDS = 10.0


class LoggedProgress(Progress):
    """Rich's bars; where there is no terminal, lines."""

    def __init__(
        self, console: Console, *columns: ProgressColumn | str, transient: bool = False
    ) -> None:
        """Prepare."""
        hidden = not console.is_terminal
        super().__init__(*columns, console=console, disable=hidden, transient=transient)
        self._last_line = time.monotonic()

    def line(self, text: str, *, now: bool = True) -> None:
        """Write a line into a log; without `now` only if the last one is some time ago."""
        if not self.disable or not (now or time.monotonic() - self._last_line > QUIET_SECONDS):
            return
        self._last_line = time.monotonic()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class RunProgress(LoggedProgress):
    """Shows which cell of which recipe is running. Use it as a context manager."""

    def __init__(self, console: Console) -> None:
        """Prepare for one run."""
        super().__init__(
            console,
            TextColumn("{task.fields[recipe]}"),
            BarColumn(bar_width=24),
            TextColumn("cell {task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.description}"),
        )
        self._task = TaskID(0)
        self._recipe = ""

    def begin(self, recipe: str, cells: int) -> None:
        """Begin a recipe."""
        self._recipe = recipe
        self._task = self.add_task("starting", total=cells, recipe=recipe)
        self.line(f"{recipe}: {cells} cells")

    def cell(self, number: int, cells: int, heading: str) -> None:
        """Begin a cell; it is `OnCell` of `execute`."""
        self.update(self._task, completed=number - 1, description=heading)
        self.line(f"{self._recipe}: cell {number}/{cells} {heading}", now=False)

    def end(self, cells: int, said: str) -> None:
        """End a recipe, of which so many cells ran."""
        self.update(self._task, completed=cells, description=said)
        self.stop_task(self._task)
        self.line(f"{self._recipe}: {said}")
