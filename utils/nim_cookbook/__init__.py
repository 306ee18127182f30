"""Helpers for the recipes: where the endpoints are, data, scoring and display.

The package only does what distracts from a lesson. Without it, a notebook needs a URL, a model id
and a key, and nothing else changes.
"""

import os
import warnings

from nim_cookbook import torch_later
from nim_cookbook.errors import CookbookError

# Haystack reports its use to its makers unless told otherwise, and reads this when it is imported.
# In local mode nothing is to leave the machine; who wants to report sets the variable to True.
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
# ONNX Runtime's packages do the same since 1.29; this is read when the library is loaded.
# https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

torch_later.install()

# tqdm, which several libraries import, asks for widgets; its progress as text needs none.
warnings.filterwarnings("ignore", message="IProgress not found")

__all__ = ["CookbookError"]
