"""What running a recipe gave: counts, time, measures, the error; as a table and as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from rich.table import Table
from rich.text import Text

from cookbook_cli.recipes import Recipe
from nim_cookbook.wording import MEASURE_MIME

CORE = ("haystack-ai", "nvidia-haystack", "openai", "xllamacpp", "onnxruntime")
VERSIONED = (
    *CORE,
    "llama-index-core",
    "llama-index-llms-nvidia",
    "llama-index-postprocessor-nvidia-rerank",
)


@dataclass(frozen=True, slots=True)
class Measure:
    """A number that a recipe reported."""

    name: str  # what was measured
    value: float | int | str  # the number, or a short text
    unit: str = ""  # its unit, or an empty string
    weights: str = ""  # the weights it is about, or an empty string

    def __str__(self) -> str:
        """Return the measure as a line of the table."""
        value = f"{self.value:.3g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.name}: {value}{' ' if self.unit else ''}{self.unit}"


@dataclass(slots=True)
class RecipeResult:
    """How one recipe went."""

    recipe: Recipe  # the entry in the index
    cells: int = 0  # code cells in the notebook
    cells_run: int = 0  # code cells that ran without an error
    seconds: float = 0.0  # wall-clock time, with the start of the kernel
    executed: Path | None = None  # where the executed notebook was written
    failed_cell: int | None = None  # its number among the code cells, from 1; None when all ran
    error: str = ""  # the failing cell's error in one sentence
    missed: list[str] = field(default_factory=list)  # floors that it missed, in sentences
    measures: list[Measure] = field(default_factory=list)  # what the recipe reported

    @property
    def passed(self) -> bool:
        """Whether every cell ran and every floor was kept."""
        return not self.error and not self.missed

    @property
    def said(self) -> str:
        """How it ended."""
        where = f" in cell {self.failed_cell}" if self.failed_cell else ""
        if self.error:
            return f"failed{where}"
        return "missed its floor" if self.missed else "passed"


def measures(notebook: NotebookNode) -> list[Measure]:
    """Collect what the cells of an executed notebook reported through `display.measured`."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {}).get(MEASURE_MIME)
            if data:
                found.append(Measure(**data))
    return found


def table(results: Sequence[RecipeResult], caption: str) -> Table:
    """Return the table that closes a run: a line a recipe."""
    shown = Table(title="Recipes", caption=caption, caption_justify="left", expand=False)
    shown.add_column("Recipe")
    shown.add_column("Cells", justify="right", no_wrap=True)
    shown.add_column("Seconds", justify="right", no_wrap=True)
    shown.add_column("Result", no_wrap=True)
    for result in results:
        shown.add_row(
            f"{result.recipe.number} {result.recipe.title}",
            f"{result.cells_run}/{result.cells}",
            f"{result.seconds:.1f}",
            Text(result.said, style="green" if result.passed else "red"),
        )
    return shown


def details(results: Sequence[RecipeResult]) -> str:
    """Return what the recipes measured, a line a measure."""
    lines = [
        f"{result.recipe.number} {measure}" for result in results for measure in result.measures
    ]
    return "\n".join(lines)


def report(
    results: Sequence[RecipeResult], mode: str, answers: Mapping[str, str]
) -> dict[str, Any]:
    """Return the dated record of a run, ready for JSON; it holds no key and no absolute path."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": mode,
        "weights": dict(answers),
        "python": platform.python_version(),
        "packages": versions(VERSIONED),
        "recipes": [
            {
                "number": result.recipe.number,
                "file": result.recipe.file,
                "title": result.recipe.title,
                "result": "passed" if result.passed else "failed",
                "cells": result.cells,
                "cells_run": result.cells_run,
                "seconds": round(result.seconds, 2),
                "failed_cell": result.failed_cell,
                "error": result.error,
                "missed": result.missed,
                "measures": [asdict(measure) for measure in result.measures],
            }
            for result in results
        ],
    }


def versions(distributions: Sequence[str]) -> dict[str, str]:
    """Return the installed version of each distribution; missing ones are left out."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_atomically(path: Path, text: str) -> None:
    """Write a text file in one move.

    Raises:
        OSError: The folder cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
