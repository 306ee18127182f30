"""`nim-cookbook run`: execute recipes one after another, report, and store outputs when asked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from cookbook_cli import recipes as index
from cookbook_cli import results, stored
from cookbook_cli.connection import Mode, caption, connected, port_base, shown
from cookbook_cli.execute import as_text, execute, is_runnable, read_notebook
from cookbook_cli.progress import RunProgress
from cookbook_cli.results import RecipeResult
from nim_cookbook.errors import ConfigurationError


def run(
    console: Console,
    *,
    wanted: Sequence[str] = (),
    mode: Mode | None = None,
    output: Path = Path("executed"),
    json_file: Path | None = None,
    store: bool = False,
    notebooks: Path | None = None,
    timeout: int = 600,
) -> int:
    """Execute the recipes.

    Returns:
        0 when all of them passed, else 1.

    Raises:
        CookbookError: A user mistake, found before anything is executed.
    """
    folder = index.find_notebooks(notebooks)
    chosen = index.select(index.load(folder), wanted)
    loaded = [(recipe, read_notebook(index.notebook_path(folder, recipe))) for recipe in chosen]
    output = _writable_folder(output, folder)
    done = []
    with connected(mode) as connection:
        weights = {str(role): what for role, what in connection.weights.items()}
        if store and connection.mode != "local":
            raise ConfigurationError(
                "Stored outputs come from the local endpoints, so that anybody can make them "
                "again: run --store without --endpoints hosted or self-hosted."
            )
        with RunProgress(console) as progress:
            for recipe, notebook in loaded:
                cells = sum(map(is_runnable, notebook.cells))
                progress.begin(f"{recipe.number} {recipe.title}", cells)
                target = output / recipe.file
                ran = execute(recipe, notebook, folder, target, timeout, progress.cell)
                progress.end(ran.cells_run, f"{ran.said} after {ran.seconds:.1f} s")
                done.append(ran)
        base = port_base(connection)
        answering = connection.mode
    _show(done, weights, output, console)
    if json_file is not None:
        record = results.report(done, answering, weights)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        results.write_atomically(json_file, text)
        console.print(f"The record of this run: {shown(json_file)}", soft_wrap=True)
    if store:
        _store(done, folder, weights, base, console)
    return 0 if all(result.passed for result in done) else 1


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
            f"Recipe {result.recipe.number} {result.said}{of}: {result.error}\n"
            f"  The partly executed notebook: {shown(result.executed)}",
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
