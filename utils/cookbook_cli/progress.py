"""Progress of long work: bars in a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn

from cookbook_cli.execute import OnCell
from cookbook_cli.recipes import Recipe
from cookbook_cli.results import RecipeResult

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
    """Shows which cells of which recipes are running, and the time left. Use it as a context."""

    def __init__(self, console: Console, seconds: Mapping[str, int], jobs: int) -> None:
        """Prepare for one run.

        Args:
            console: Where it is shown.
            seconds: How long each recipe usually takes, by its number.
            jobs: How many recipes run side by side.
        """
        super().__init__(
            console,
            TextColumn("{task.fields[recipe]}"),
            BarColumn(bar_width=24),
            TextColumn("cell {task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.description}"),
        )
        self._running: dict[str, TaskID] = {}
        self._usual = dict(seconds)
        self._jobs = jobs
        self._expected, self._took = 0.0, 0.0  # seconds of the recipes that ended

    def begin(self, recipe: Recipe, cells: int) -> OnCell:
        """Begin a recipe; return what to call before each of its cells."""
        name = f"{recipe.number} {recipe.title}"
        self._running[recipe.number] = self.add_task("starting", total=cells, recipe=name)
        self.line(f"{name}: {cells} cells")

        def cell(number: int, cells: int, heading: str) -> None:
            task = self._running[recipe.number]
            self.update(task, completed=number - 1, description=heading)
            self.line(f"{name}: cell {number}/{cells} {heading}", now=False)

        return cell

    def end(self, result: RecipeResult) -> None:
        """End a recipe, and say how long the others will take."""
        self._expected += self._usual.pop(result.recipe.number, 0)
        self._took += result.seconds
        said = f"{result.said} after {result.seconds:.1f} s{self._left()}"
        task = self._running[result.recipe.number]
        self.update(task, completed=result.cells_run, description=said)
        self.stop_task(task)
        self.line(f"{result.recipe.number} {result.recipe.title}: {said}")

    def _left(self) -> str:
        """Return the time left: usual times, scaled by how long the recipes took so far."""
        rest = sum(self._usual.values()) / self._jobs
        if not rest or not self._expected:
            return ""
        return f", about {rest * self._took / self._expected:.0f} s left"
