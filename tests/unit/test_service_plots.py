"""Pictures of services at work."""

from __future__ import annotations

import pytest

from capacity import plots as capacity_plots
from capacity.load import Load
from nim_cookbook import pictures
from nim_cookbook.errors import DataError

WEIGHTS = "Tiny, Q4_1 (local stand-in)"


def run(*clients: int | None) -> list[Load]:
    return [Load("search", n, (0.1, 0.2, 0.3) * 4, 0, 2.0, 2.4) for n in clients]


def test_a_load_is_told_in_words() -> None:
    picture = capacity_plots.load_plot({"one process": run(1, 8)}, weights=WEIGHTS, goal=0.5)
    assert WEIGHTS in picture.alt
    assert "one process, by number of clients: 1: 6.0/s, median 200 ms" in picture.alt
    assert "8: 6.0/s" in picture.alt
    assert "The goal for 95 % is 500 ms" in picture.alt
    assert picture.png.startswith(b"\x89PNG")
    assert len(picture.png) <= pictures.MAX_PNG_BYTES


def test_an_open_load_has_no_clients_to_draw() -> None:
    with pytest.raises(DataError, match="closed loads only"):
        capacity_plots.load_plot({"x": run(1, None)}, weights=WEIGHTS)


@pytest.mark.parametrize("runs", [{}, {"x": []}, {str(n): run(1) for n in range(9)}])
def test_nothing_to_draw_is_told(runs: dict[str, list[Load]]) -> None:
    with pytest.raises(DataError, match="none of them empty"):
        capacity_plots.load_plot(runs, weights=WEIGHTS)
