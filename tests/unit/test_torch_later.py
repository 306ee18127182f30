"""PyTorch is loaded when it is used, not when Haystack is imported."""

import importlib.util
import subprocess
import sys

import pytest

CODE = """
import sys
import nim_cookbook
import haystack
from haystack.utils import ComponentDevice

assert "torch" not in sys.modules, "Haystack's import loaded PyTorch"
assert str(ComponentDevice.from_str("cpu").to_torch()) == "cpu"
import torch

assert torch.tensor([1.0]).sum().item() == 1.0 and torch.__spec__ is not None
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_haystack_loads_pytorch_at_first_use() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
