"""Recipes in hosted mode, against NVIDIA's own URLs: see `tests/hosted.py` for who answers there.

What each fault of the hosted catalog makes of each recipe, as the table of docs/hosted-catalog.md:

    python -m pytest tests/notebooks/test_hosted.py -k fault -rP | grep '^|'
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from _pytest.mark import ParameterSet
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbmake.nb_run import NotebookRun

from cookbook_cli import recipes as index
from cookbook_cli.floors import missed
from cookbook_cli.recipes import Recipe
from tests.hosted import HostedStandIn, hosted_stand_in
from tests.support import Servers

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
TIMEOUT = 600
FIRST = ("00", "01", "02")  # the others on the long run
RECIPES = index.load(FOLDER)
# These ask NIMs of one's own, which are the local ones in hosted mode, or nobody (14).
SELF_HOSTED = ("09", "10", "12", "13", "14")

# What a reader is told.
SENTENCES = {
    "busy": "answered 429: wait a minute",
    "busy-silent": "answered 429: wait a minute",
    "retired": "answered 410 (The model 'nvidia/",
    "unknown": "answered 404: choose a model that answers",
    "withheld": "Not found for account",
    "asleep": "the model is being started, run the cell again",
    "unauthorized": "answered 401 (Authentication failed): set the key",
    "forbidden": "answered 403 (Authorization failed): check the key",
}
# These pass by themselves, or should.
PASSING = ("busy:chat:1", "busy-silent:chat:1", "slow:chat:1", "reasoning")
# The roles that a recipe calls on NVIDIA's hosts; 02 calls only the cell to be copied there.
CALLED = {"00": ("embedding", "chat", "reranking"), "01": ("embedding", "chat"), "02": ("chat",)}


@pytest.fixture(scope="module")
def nvidia(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedStandIn]:
    """NVIDIA's hosts; this process and the kernels that it starts are in hosted mode."""
    with (
        hosted_stand_in(servers, tmp_path_factory.mktemp("hosted")) as stand_in,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        stand_in.enter(monkeypatch)
        yield stand_in


def marked(recipe: Recipe, *more: str, long: bool = False) -> ParameterSet:
    """Return a recipe as a parameter: all of one recipe in one process."""
    marks = [pytest.mark.xdist_group(f"hosted-{recipe.number}")]
    marks += [pytest.mark.long] if long or recipe.number not in FIRST else []
    marks += [pytest.mark.alone] if recipe.alone else []
    return pytest.param(recipe, *more, id="-".join([recipe.number, *more]), marks=marks)


@pytest.mark.timeout(3 * TIMEOUT)
@pytest.mark.parametrize("recipe", [marked(recipe) for recipe in RECIPES])
def test_recipe_in_hosted_mode(nvidia: HostedStandIn, recipe: Recipe):
    nvidia.fail()
    nvidia.proxy.asked.clear()
    path = index.notebook_path(FOLDER, recipe)
    result = NotebookRun(path, default_timeout=TIMEOUT).execute()
    assert result.error is None, f"{result.error.summary}\n{result.error.trace}"
    assert missed(recipe.floor, result.nb) == []
    assert bool(nvidia.proxy.asked) == (recipe.number not in SELF_HOSTED)
    assert nvidia.proxy.refused == []


class Desk:
    """A kernel that runs one recipe again and again, as a reader does who begins anew."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.notebook: NotebookNode = nbformat.read(
            index.notebook_path(FOLDER, recipe), as_version=4
        )
        self.client = NotebookClient(
            self.notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": str(FOLDER)}},
        )

    def attempt(self) -> list[str]:
        """Run the recipe; return the lines of the error that it ends with, or what is missed."""
        cells = self.notebook.cells
        for number, cell in enumerate(cells):
            if cell.cell_type != "code":
                continue
            cell.outputs = []
            try:
                self.client.execute_cell(cell, number)
            except CellExecutionError:
                (error,) = [out for out in cell.outputs if out.output_type == "error"]
                return [line for part in error.traceback for line in part.splitlines()]
        return missed(self.recipe.floor, self.notebook)


@pytest.fixture(scope="module")
def desk(request: pytest.FixtureRequest, nvidia: HostedStandIn) -> Iterator[Desk]:
    desk = Desk(request.param)
    with desk.client.setup_kernel():
        yield desk


def told(desk: Desk, nvidia: HostedStandIn, fault: str) -> list[str]:
    """Run a recipe under a fault; print a row of the table, and return what the reader saw."""
    nvidia.fail(fault)
    lines = desk.attempt()
    shown = " ".join(lines[:2] or ["the right result"]).replace("|", "\\|")
    print(f"| `{fault}` | {desk.recipe.number} | {shown} |")
    return lines


def late(number: str, fault: str) -> bool:
    """Whether a case waits for the long run: 02 runs to its end, and silence makes 01 wait."""
    return (number == "02" and fault != "retired") or (number == "01" and fault == "busy-silent")


STOPPING = [
    marked(recipe, f"{fault}:{role}", long=late(recipe.number, fault))
    for recipe in RECIPES
    for role in CALLED.get(recipe.number, ())
    for fault in SENTENCES
]
# The others end at their first call. In 11 a service stands between: its own 500 is what is told.
STOPPING += [
    marked(recipe, fault)
    for recipe in RECIPES
    if recipe.number not in (*FIRST, *SELF_HOSTED, "11")
    for fault in SENTENCES
]


@pytest.mark.parametrize("desk, fault", STOPPING, indirect=["desk"])
def test_fault_ends_in_one_sentence(desk: Desk, nvidia: HostedStandIn, fault: str):
    lines = told(desk, nvidia, fault)
    assert len(lines) == 1, lines
    assert SENTENCES[fault.partition(":")[0]] in lines[0]


ENDING_WELL = [
    marked(recipe, fault, long=(recipe.number, fault) != ("00", "busy:chat:1"))
    for recipe in RECIPES
    if recipe.number in CALLED
    for fault in PASSING
]


@pytest.mark.parametrize("desk, fault", ENDING_WELL, indirect=["desk"])
def test_fault_that_passes_does_no_harm(desk: Desk, nvidia: HostedStandIn, fault: str):
    assert told(desk, nvidia, fault) == []
