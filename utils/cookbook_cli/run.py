"""`nim-cookbook run`: execute recipes one after another, report, and store outputs when asked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode
from rich.console import Console

from cookbook_cli import recipes as index
from cookbook_cli import results, stored
from cookbook_cli.connection import Mode, caption, connected, port_base
from cookbook_cli.execute import as_text, execute, is_runnable, read_notebook
from cookbook_cli.progress import RunProgress
from cookbook_cli.recipes import Recipe
from cookbook_cli.results import RecipeResult
from nim_cookbook.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the user asked for.

    Attributes:
        wanted: Recipes by number or file name; empty for all.
        mode: Where the endpoints are; None for what COOKBOOK_ENDPOINTS says.
        output: Folder for the executed notebooks.
        json_file: Where to write the dated record; None for nowhere.
        store: Whether to write cleaned outputs back into the notebooks.
        notebooks: Folder of the notebooks; None to look for it.
        timeout: Seconds that one cell may take.
    """

    wanted: tuple[str, ...] = ()
    mode: Mode | None = None
    output: Path = Path("executed")
    json_file: Path | None = None
    store: bool = False
    notebooks: Path | None = None
    timeout: int = 600


def run(options: RunOptions, console: Console) -> int:
    """Execute the recipes.

    Returns:
        0 when all of them passed, else 1.

    Raises:
        CookbookError: A user mistake, found before anything is executed.
    """
    folder = index.find_notebooks(options.notebooks)
    chosen = index.select(index.load(folder), options.wanted)
    loaded = [(recipe, read_notebook(index.notebook_path(folder, recipe))) for recipe in chosen]
    output = _writable_folder(options.output)
    _refuse_overwriting(folder, output)
    with connected(options.mode) as connection:
        weights = {str(role): what for role, what in connection.weights.items()}
        if options.store and connection.mode != "local":
            raise ConfigurationError(
                "Stored outputs come from the local endpoints, so that anybody can make them "
                "again: run --store without --endpoints hosted or self-hosted."
            )
        done = _execute_all(loaded, folder, output, options, console)
        base = port_base(connection)
        mode = connection.mode
    _show(done, weights, output, console)
    if options.json_file is not None:
        results.write_json(options.json_file, results.report(done, mode, weights))
        console.print(f"The record of this run: {_shown(options.json_file)}", soft_wrap=True)
    if options.store:
        _store(done, folder, weights, base, console)
    return 0 if all(result.passed for result in done) else 1


def _execute_all(
    loaded: Sequence[tuple[Recipe, NotebookNode]],
    folder: Path,
    output: Path,
    options: RunOptions,
    console: Console,
) -> list[RecipeResult]:
    done = []
    with RunProgress(console) as progress:
        for recipe, notebook in loaded:
            progress.start(recipe, sum(map(is_runnable, notebook.cells)))
            target = output / recipe.file
            done.append(execute(recipe, notebook, folder, target, options.timeout, progress.cell))
            progress.end(done[-1])
    return done


def _show(
    done: Sequence[RecipeResult], weights: Mapping[str, str], output: Path, console: Console
) -> None:
    console.print()
    roles = {role for result in done for role in result.recipe.endpoints}
    console.print(results.table(done, caption(weights, roles)))
    for result in done:
        if result.passed or result.executed is None:
            continue
        where = f" in cell {result.failed_cell} of {result.cells}" if result.failed_cell else ""
        console.print(
            f"Recipe {result.recipe.number} failed{where}: {result.error}\n"
            f"  The partly executed notebook: {_shown(result.executed)}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"The executed notebooks: {_shown(output)}/", soft_wrap=True, highlight=False)


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
        console.print(f"Stored: {_shown(target)}", soft_wrap=True, highlight=False)


def _writable_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {folder} cannot be made ({error.strerror}): name another with --output."
        ) from error
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"The folder {folder} is read-only: name another with --output.")
    return folder.resolve()


def _refuse_overwriting(folder: Path, output: Path) -> None:
    if folder.resolve() == output:
        raise ConfigurationError(
            "The executed notebooks would overwrite the recipes: name another folder with "
            "--output, or store cleaned outputs with --store."
        )


def _shown(path: Path) -> str:
    """Return a path as short as it can be named from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve())) or "."
    except ValueError:
        return str(path)
