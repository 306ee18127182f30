"""What may import what: the packages under `utils/` and the recipes."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parents[2]
UTILS = ROOT / "utils"
MAY_IMPORT = {
    "nim_cookbook": set(),
    "capacity": {"nim_cookbook"},
    "rag_service": {"nim_cookbook"},
    "local_endpoints": {"nim_cookbook"},
    "cookbook_cli": {"nim_cookbook", "local_endpoints", "rag_service", "capacity"},
}
RECIPES_MAY_IMPORT = {"nim_cookbook", "rag_service", "capacity"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def names(tree: ast.AST) -> set[str]:
    """Return the dotted names of all modules that the code may import."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(tree: ast.AST) -> set[str]:
    return {name.split(".")[0] for name in names(tree)} & set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_those_below_it(package):
    assert {path.name for path in UTILS.iterdir() if path.is_dir()} - {"__pycache__"} == set(
        MAY_IMPORT
    )
    for path in (UTILS / package).rglob("*.py"):
        imported = packages(ast.parse(path.read_text(encoding="utf-8")))
        assert imported <= {package, *MAY_IMPORT[package]}, path


def test_modules_import_each_other_in_no_circle():
    modules = {}
    for path in UTILS.rglob("*.py"):
        name = ".".join(path.relative_to(UTILS).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = ast.parse(path.read_text(encoding="utf-8"))
    graph = {name: (names(tree) & set(modules)) - {name} for name, tree in modules.items()}
    for name in graph:  # `from package import module` names the package as well
        graph[name] -= {other for other in graph[name] if name.startswith(f"{other}.")}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_recipe_imports_no_server_and_no_command(path):
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    code = TransformerManager().transform_cell("\n".join(cells))  # magics become calls
    assert packages(ast.parse(code)) <= RECIPES_MAY_IMPORT
