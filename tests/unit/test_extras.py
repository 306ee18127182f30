"""The core install stays small, and what it lacks is an extra that the recipe's entry names."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from packaging.utils import canonicalize_name

from cookbook_cli import recipes as index
from cookbook_cli.recipes import Recipe
from nim_cookbook.explain import explain, extra_of
from tests.support import closure

ROOT = Path(__file__).resolve().parents[2]
UTILS = ROOT / "utils"
OURS = {path.name for path in UTILS.iterdir() if path.is_dir()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
RECIPES = index.load(ROOT / "notebooks")
MOST_PACKAGES, MOST_MEGABYTES = 120, 600
# Colab, Jupyter and IPython are there where notebooks run.
ELSEWHERE = {"IPython", "google", "nbformat", "nbclient", "jupyter_client", "jupyter_core"}


@cache
def installed(*extras: str) -> frozenset[str]:
    """Return the packages that an install with these extras brings."""
    needs = [*PROJECT["dependencies"], *(need for extra in extras for need in EXTRAS[extra])]
    return frozenset(closure(needs))


def modules(tree: ast.AST, *, later: bool) -> Iterator[str]:
    """Yield the modules of other projects that code imports; `later` is within functions, too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif later or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from modules(node, later=later)


def foreign(names: Iterator[str]) -> set[str]:
    return {
        name
        for name in names
        if name.split(".")[0] not in {*sys.stdlib_module_names, *OURS, *ELSEWHERE}
    }


@cache
def tops() -> Mapping[str, list[str]]:
    """Return the packages that have something in a top-level module."""
    return packages_distributions()


@cache
def files(package: str) -> frozenset[str]:
    return frozenset(map(str, distribution(package).files or ()))


@cache
def owners(module: str) -> frozenset[str]:
    """Return the packages that a module comes from; several share a namespace."""
    named = set(tops().get(module.split(".")[0], []))
    if len(named) > 1:
        path = module.replace(".", "/")
        kinds = (f"{path}.py", f"{path}/__init__.py")
        named = {name for name in named if files(name).intersection(kinds)}
    return frozenset(map(canonicalize_name, named))


def ours(names: set[str], seen: set[Path]) -> set[str]:
    """Return what our modules import at once, with those that they import in turn."""
    found: set[str] = set()
    for name in names:
        path = UTILS / name.replace(".", "/")
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file() and file not in seen:
                seen.add(file)
                tree = ast.parse(file.read_text(encoding="utf-8"))
                found |= foreign(modules(tree, later=False)) | ours(our_names(tree), seen)
    return found


def our_names(tree: ast.AST) -> set[str]:
    """Return the modules of this project that code imports, and what may be modules of them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imports(recipe: Recipe) -> set[str]:
    """Return the modules that a recipe's cells import, themselves or through ours."""
    notebook = nbformat.read(index.notebook_path(ROOT / "notebooks", recipe), as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    tree = ast.parse(TransformerManager().transform_cell("\n".join(cells)))
    return foreign(modules(tree, later=True)) | ours(our_names(tree), set())


def test_the_core_install_is_small() -> None:
    """By what is installed here: `pip install .` into an empty environment brings the same."""
    core = installed()
    size = sum(file.size or 0 for name in core for file in distribution(name).files or ())
    assert len(core) < MOST_PACKAGES
    assert size < MOST_MEGABYTES * 1e6


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.number)
def test_a_recipes_entry_names_the_extras_that_it_imports(recipe: Recipe) -> None:
    there = installed(*recipe.extras)
    missing = {module for module in imports(recipe) if not owners(module) & there}
    assert not missing, f"recipe {recipe.number} with {recipe.extras or 'the core install'}"


def test_the_first_recipes_and_the_servers_need_no_extra() -> None:
    assert {recipe.number for recipe in RECIPES if not recipe.extras} >= {
        "00",
        "01",
        "02",
        "03",
        "04",
    }
    training = {"base_model.py", "trainer.py"}  # in a process of its own, which says what it needs
    for package in ("local_endpoints", "cookbook_cli"):
        for path in set((UTILS / package).rglob("*.py")):
            if path.name not in training:
                for module in foreign(modules(ast.parse(path.read_text("utf-8")), later=True)):
                    assert owners(module) & installed(), f"{path}: {module}"


def test_a_missing_module_names_the_extra_that_brings_it() -> None:
    """Every module beyond the core install that a recipe or our code imports."""
    named = set().union(*(imports(recipe) for recipe in RECIPES))
    for path in UTILS.rglob("*.py"):
        named |= foreign(modules(ast.parse(path.read_text("utf-8")), later=True))
    beyond = {module for module in named if not owners(module) & installed()}
    assert beyond > {"ranx", "scipy.stats", "llama_index.core.schema", "hayhooks"}
    for module in beyond:
        extra = extra_of(module)
        assert extra, f"nim_cookbook.explain knows no extra for {module}"
        assert owners(module) & installed(extra), f"{extra} does not bring {module}"
    assert extra_of("numpy") is None
    sentence = explain(ModuleNotFoundError("No module named 'ranx'", name="ranx"))
    assert sentence and '"nim-rag-cookbook[measure]"' in sentence
