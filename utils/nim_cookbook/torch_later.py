"""Let Haystack load PyTorch at its first use, not with every import of Haystack.

`haystack.utils.device` imports PyTorch where it is installed, to name the devices of models that
run inside the process. The models of the recipes and services run elsewhere, so each kernel and
each worker would pay some three seconds and 200 MB for nothing.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

DEVICES = "haystack.utils.device"


class _Torch(ModuleType):
    """What `haystack.utils.device` holds for PyTorch; `import torch` elsewhere is not changed."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module("torch"), name)


class _Finder:
    """Finds one module, once, and gives its ``import torch`` the stand-in."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != DEVICES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None or "torch" in sys.modules:
            return spec
        if not _is_installed("torch"):
            return spec
        load = spec.loader.exec_module

        def load_with_stand_in(module: ModuleType) -> None:
            sys.modules["torch"] = _Torch("torch")
            try:
                load(module)
            finally:
                del sys.modules["torch"]

        spec.loader.exec_module = load_with_stand_in  # type: ignore[method-assign]
        return spec


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # a finder that hides it
        return False


def install() -> None:
    """Arrange it; nothing happens where Haystack was imported before."""
    if DEVICES not in sys.modules and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
