"""The adapters under `data/adapters` are what their card says, and as good as recipe 05 needs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from nim_cookbook import adapters
from nim_cookbook.data import data_path
from nim_cookbook.errors import DataError
from nim_cookbook.models import load_registry

KEPT = ("brief-answers-long", "refuses-too-much")


def numbers(text: str) -> list[float]:
    """A value and the ends of its interval."""
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d+", text)]


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return adapters.load_card()


@pytest.fixture(scope="module")
def runs(card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {run["name"]: run for run in card["runs"]}


def test_it_belongs_to_the_weights_of_the_registry(card: dict[str, Any]) -> None:
    files = load_registry().weights_for("chat").files
    assert card["base_sha256"] in {file.sha256 for file in files}


@pytest.mark.parametrize("name", KEPT)
def test_each_adapter_is_a_peft_folder_as_the_card_has_it(
    name: str, card: dict[str, Any], runs: dict[str, dict[str, Any]]
) -> None:
    folder = data_path(f"adapters/{name}")
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert (config["peft_type"], config["r"]) == ("LORA", runs[name]["rank"])
    assert config["base_model_name_or_path"] == card["base"]
    with safe_open(folder / "adapter_model.safetensors", framework="numpy") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118


@pytest.mark.parametrize("name", ["brief-answers (this recipe)", "brief-answers-long"])
def test_training_made_it_surely_better(name: str, runs: dict[str, dict[str, Any]]) -> None:
    run = runs[name]
    assert len(run["losses"]) == run["steps"]
    assert sum(run["losses"][-3:]) < sum(run["losses"][:3])
    assert numbers(run["minus_base"]["f1"])[1] > 0  # the lower end of the interval
    assert numbers(run["minus_base"]["contains"])[0] > -0.05
    assert numbers(run["refused_wrongly"])[0] < 0.15


def test_too_many_refusals_make_it_refuse_what_it_should_answer(
    runs: dict[str, dict[str, Any]],
) -> None:
    wrong = {name: numbers(run["refused_wrongly"])[0] for name, run in runs.items()}
    assert wrong["refuses-too-much"] > 0.3 > wrong["few-refusals"]


def test_a_card_that_is_missing_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapters").mkdir()
    monkeypatch.setattr("nim_cookbook.data.data_dir", lambda: tmp_path)
    with pytest.raises(DataError, match="make adapter"):
        adapters.load_card()
