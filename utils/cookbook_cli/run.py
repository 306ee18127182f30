"""`nim-cookbook run`: execute recipes side by side, report, and store outputs when asked."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nbformat import NotebookNode
from rich.console import Console

from cookbook_cli import recipes as index
from cookbook_cli import results, stored
from cookbook_cli.connection import Mode, caption, connected, port_base, shown
from cookbook_cli.execute import as_text, execute, is_runnable, read_notebook
from cookbook_cli.floors import missed
from cookbook_cli.progress import RunProgress
from cookbook_cli.recipes import Recipe
from cookbook_cli.results import RecipeResult
from nim_cookbook.errors import ConfigurationError
from nim_cookbook.models import load_registry

#: Recipes at the same time: their kernels start and think while the models serve another.
JOBS = 2
RECORD = "run.json"


def run(
    console: Console,
    *,
    wanted: Sequence[str] = (),
    mode: Mode | None = None,
    output: Path = Path("executed"),
    json_file: Path | None = None,
    details: bool = False,
    store: bool = False,
    notebooks: Path | None = None,
    timeout: int = 600,
    jobs: int = JOBS,
) -> int:
    """Execute the recipes; those that measure time or load run last, one by one.

    Returns:
        0 when all of them passed, else 1.

    Raises:
        CookbookError: A user mistake, found before anything is executed.
    """
    folder = index.find_notebooks(notebooks)
    chosen = index.select(index.load(folder), wanted)
    loaded = [(recipe, read_notebook(index.notebook_path(folder, recipe))) for recipe in chosen]
    output = _writable_folder(output, folder)
    with connected(mode) as connection:
        weights = connection.weights
        if store and connection.mode != "local":
            raise ConfigurationError(
                "Stored outputs come from the local endpoints, so that anybody can make them "
                "again: run --store without --endpoints hosted or self-hosted."
            )
        with RunProgress(console, {r.number: r.seconds for r in chosen}, jobs) as progress:
            done = asyncio.run(_all(loaded, folder, output, timeout, jobs, progress))
        base = port_base(connection)
        answering = connection.mode
    if not _is_small(weights):  # floors are for models whose answers are worth reading
        for result in done:
            if result.executed is not None and not result.error:
                result.missed = missed(result.recipe.floor, read_notebook(result.executed))
    _show(done, weights, output, console)
    if details:
        console.print(results.details(done), markup=False, highlight=False)
    record = json.dumps(results.report(done, answering, weights), indent=2, ensure_ascii=False)
    json_file = json_file or output / RECORD
    results.write_atomically(json_file, record + "\n")
    console.print(f"What was measured: {shown(json_file)}", soft_wrap=True, highlight=False)
    if store:
        _store(done, folder, weights, base, console)
    return 0 if all(result.passed for result in done) else 1


async def _all(
    loaded: Sequence[tuple[Recipe, NotebookNode]],
    folder: Path,
    output: Path,
    timeout: int,
    jobs: int,
    progress: RunProgress,
) -> list[RecipeResult]:
    """Execute the recipes; return how they went, in their order."""
    free = asyncio.Semaphore(jobs)

    async def one(recipe: Recipe, notebook: NotebookNode) -> RecipeResult:
        async with free:
            on_cell = progress.begin(recipe, sum(map(is_runnable, notebook.cells)))
            target = output / recipe.file
            result = await execute(recipe, notebook, folder, target, timeout, on_cell)
            progress.end(result)
            return result

    done: dict[str, RecipeResult] = {}
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(r, notebook)) for r, notebook in loaded if not r.alone]
    done = {task.result().recipe.number: task.result() for task in tasks}
    for recipe, notebook in loaded:
        if recipe.alone:
            done[recipe.number] = await one(recipe, notebook)
    return [done[recipe.number] for recipe, _ in loaded]


def _is_small(weights: Mapping[str, str]) -> bool:
    small = load_registry().weights_for("chat", "small").description
    return weights.get("chat", "").startswith(small)


def _show(
    done: Sequence[RecipeResult], weights: Mapping[str, str], output: Path, console: Console
) -> None:
    console.print()
    roles = {role for result in done for role in result.recipe.endpoints}
    console.print(results.table(done, caption(weights, roles)))
    for result in done:
        if result.passed or result.executed is None:
            continue
        of = f" of {result.cells}" if result.failed_cell else ""
        console.print(
            f"Recipe {result.recipe.number} {result.said}{of}: "
            f"{result.error or '; '.join(result.missed)}\n"
            f"  The executed notebook: {shown(result.executed)}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"The executed notebooks: {shown(output)}/", soft_wrap=True, highlight=False)


def _store(
    done: Sequence[RecipeResult],
    folder: Path,
    weights: Mapping[str, str],
    base: int,
    console: Console,
) -> None:
    """Write the outputs of the recipes that passed back into the notebooks."""
    for result in done:
        if not result.passed or result.executed is None:
            console.print(f"Not stored, because it failed: {result.recipe.file}", style="red")
            continue
        executed = read_notebook(result.executed)
        cleaned = stored.clean(executed, folder.resolve().parent, weights, base)
        target = folder / result.recipe.file
        results.write_atomically(target, as_text(cleaned))
        console.print(f"Stored: {shown(target)}", soft_wrap=True, highlight=False)


def _writable_folder(output: Path, notebooks: Path) -> Path:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {output} cannot be made ({error.strerror}): name another with --output."
        ) from error
    if not os.access(output, os.W_OK):
        raise ConfigurationError(f"The folder {output} is read-only: name another with --output.")
    if output.resolve() == notebooks.resolve():
        raise ConfigurationError(
            "The executed notebooks would overwrite the recipes: name another folder with "
            "--output, or store cleaned outputs with --store."
        )
    return output.resolve()
