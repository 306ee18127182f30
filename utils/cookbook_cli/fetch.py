"""`nim-cookbook fetch`: put the local models' weights into the cache, checked."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from local_endpoints import weights as store
from local_endpoints.options import WeightSet
from nim_cookbook.models import ROLES, Weights, load_registry


def of_set(models: WeightSet) -> list[Weights]:
    """Return the weights of a set, each once: the reranker may use the embedder's files.

    Args:
        models: `small` or `better`; a role that it leaves out keeps the small ones.
    """
    by_folder: dict[Path, Weights] = {}
    for role in ROLES:
        weights = load_registry().weights_of_set(role, models)
        by_folder.setdefault(store.folder_of(weights), weights)
    return list(by_folder.values())


def fetch(models: WeightSet, force: bool, console: Console) -> int:
    """Fetch what is missing of a set of weights.

    Args:
        models: `small` or `better`.
        force: Fetch all of it again.
        console: Where progress goes.

    Raises:
        WeightsError: A file cannot be fetched, or is not what it should be.
    """

    def report(line: str) -> None:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)

    for weights in of_set(models):
        console.print(f"{weights.description} ({weights.licence}), from {weights.source}")
        folder = store.ensure(weights, report=report, force=force)
        console.print(f"  checked, in {folder}", markup=False, highlight=False, soft_wrap=True)
    return 0
