"""PEFT folders and base models written by hand, so that tests of adapters need no PyTorch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from local_endpoints.nim.adapters import CONFIG_FILE, WEIGHTS_FILE

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Dimensions:
    """The sizes of a llama model that LoRA meets."""

    layers: int
    width: int
    heads: int
    heads_kv: int
    inner: int

    def shape(self, module: str) -> tuple[int, int]:
        """Return (outputs, inputs) of a linear layer."""
        narrow = self.width // self.heads * self.heads_kv
        return {
            "q_proj": (self.width, self.width),
            "k_proj": (narrow, self.width),
            "v_proj": (narrow, self.width),
            "o_proj": (self.width, self.width),
            "gate_proj": (self.inner, self.width),
            "up_proj": (self.inner, self.width),
            "down_proj": (self.width, self.inner),
        }[module]


TINY = Dimensions(layers=2, width=16, heads=4, heads_kv=2, inner=24)
SMOLLM2_135M = Dimensions(layers=30, width=576, heads=9, heads_kv=3, inner=1536)


def module_name(layer: int, module: str) -> str:
    """Return a linear layer's name in the PyTorch model."""
    block = "self_attn" if module in LINEAR[:4] else "mlp"
    return f"model.layers.{layer}.{block}.{module}"


def write_base(path: Path, sizes: Dimensions = TINY, architecture: str = "llama") -> Path:
    """Write a GGUF file with the linear layers of a model, enough to check adapters against."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(sizes.layers)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.heads_kv)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, sizes.layers)
    for layer in range(sizes.layers):
        for module in LINEAR:
            name = names.get_name(module_name(layer, module))
            writer.add_tensor(f"{name}.weight", np.zeros(sizes.shape(module), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(
    sizes: Dimensions = TINY,
    rank: int = 4,
    seed: int = 0,
    size: float = 0.02,
    modules: tuple[str, ...] = LINEAR,
) -> dict[str, np.ndarray]:
    """Return random A and B of all layers, A as PEFT draws it, B with the deviation `size`."""
    draw = np.random.default_rng(seed)
    found = {}
    for layer in range(sizes.layers):
        for module in modules:
            outputs, inputs = sizes.shape(module)
            bound = inputs**-0.5
            prefix = f"base_model.model.{module_name(layer, module)}"
            a = draw.uniform(-bound, bound, (rank, inputs))
            b = draw.normal(0, size, (outputs, rank))
            found[f"{prefix}.lora_A.weight"] = a.astype(np.float32)
            found[f"{prefix}.lora_B.weight"] = b.astype(np.float32)
    return found


def write_peft(
    folder: Path, weights: dict[str, np.ndarray] | None = None, rank: int = 4, **config: Any
) -> Path:
    """Write a PEFT folder; `config` replaces settings of its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "bias": "none",
        "target_modules": list(LINEAR),
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "use_rslora": False,
        **config,
    }
    save_file(tensors(rank=rank) if weights is None else weights, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(settings), encoding="utf-8")
    return folder
