"""`nim-cookbook fetch`: put the local models' weights into the cache, checked."""

from __future__ import annotations

from rich.console import Console

from local_endpoints import weights as store
from local_endpoints.options import WeightSet
from nim_cookbook.models import ROLES, Weights, load_registry


def of_set(models: WeightSet) -> list[Weights]:
    """Return the weights of a set, one a role."""
    return [load_registry().weights_for(role, models) for role in ROLES]


def fetch(models: WeightSet, force: bool, console: Console) -> int:
    """Fetch what is missing of a set of weights.

    Raises:
        WeightsError: A file cannot be fetched, or is not what it should be.
    """

    def report(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    wanted = of_set(models)
    for weights in wanted:
        report(f"{weights.role}: {weights.description} ({weights.licence}), {weights.source}")
    store.ensure(*wanted, report=report, force=force)
    for weights in wanted:
        report(f"checked: {store.folder_of(weights)}")
    return 0
