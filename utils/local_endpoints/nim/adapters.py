"""LoRA adapters: from a PEFT folder, as a NIM loads it, to the GGUF file that llama.cpp loads.

A PEFT folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. It is read without
PyTorch, checked against the GGUF file of the base model, and written in the form of llama.cpp's
``convert_lora_to_gguf.py``: each pair of matrices under the GGUF name of its layer, with
``.lora_a`` and ``.lora_b`` appended. The weights stay float32, as they were trained.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import safetensors
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from local_endpoints.weights import ResolvedWeights
from nim_cookbook.errors import CookbookError

Array = NDArray[np.float32]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_RANK = 32  # the default of a NIM's NIM_MAX_LORA_RANK
FORM = 1  # part of a converted file's name; raise it when the conversion changes

# Architectures, and whether their converter reorders the rows of the q and k projections for
# llama.cpp's rotary embedding, as `LlamaModel.permute` does there.
ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False}

# Settings of PEFT's LoraConfig that make an adapter more than pairs of A and B. A NIM does not load
# such adapters either.
UNSUPPORTED = (
    *("use_dora", "use_qalora", "use_bdlora", "kasa_config", "arrow_config", "monteclora_config"),
    *("velora_config", "lora_ga_config", "corda_config", "alora_invocation_tokens", "lora_bias"),
    *("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters"),
    *("megatron_config", "fan_in_fan_out", "alpha_pattern"),
)

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_LAYER = re.compile(r"blk\.\d+\.(attn_(q|k|v|output)|ffn_(gate|up|down))\.weight")


class AdapterError(CookbookError):
    """A LoRA adapter that cannot be loaded for this base model."""


class _Config(BaseModel):
    """The content of adapter_config.json."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

    peft_type: Literal["LORA"]
    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0)
    bias: Literal["none"] = "none"
    # PiSSA, OLoRA, CorDA and LoftQ change the base weights under the adapter.
    init_lora_weights: Literal["gaussian", "orthogonal", "eva"] | bool | None = True
    use_rslora: bool | None = False
    rank_pattern: dict[str, Any] | None = None
    base_model_name_or_path: str | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """The base model as its GGUF file describes it.

    Attributes:
        architecture: llama.cpp's name of the architecture, such as ``llama``.
        heads: Attention heads of a layer.
        heads_kv: Key and value heads of a layer.
        layers: Transformer blocks.
        shapes: (outputs, inputs) of each linear layer that LoRA can adapt, by GGUF tensor name.
        file: Name of the file.
    """

    architecture: str
    heads: int
    heads_kv: int
    layers: int
    shapes: Mapping[str, tuple[int, int]]
    file: str

    @property
    def names(self) -> gguf.TensorNameMap:
        """The GGUF names of the PyTorch model's parameters."""
        return gguf.get_tensor_name_map(_ARCHITECTURE_KEYS[self.architecture], self.layers)

    def rotary_heads(self, tensor: str) -> int:
        """Return how many heads' rows a tensor holds in llama.cpp's own order; 0 for none."""
        if not ARCHITECTURES[self.architecture]:
            return 0
        return self.heads * (".attn_q." in tensor) + self.heads_kv * (".attn_k." in tensor)


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """A PEFT folder that has been read and is valid in itself.

    Attributes:
        folder: Its path.
        config: Its configuration.
        pairs: A (rank, inputs) and B (outputs, rank) of each adapted layer, by PyTorch name.
        sha256: Hash of both files.
    """

    folder: Path
    config: _Config
    pairs: Mapping[str, tuple[Array, Array]]
    sha256: str


def to_gguf(folder: Path, base: Path, cache: Path, max_rank: int = MAX_RANK) -> Path:
    """Return an adapter as a GGUF file that llama.cpp loads over `base`.

    The file's name is a hash of both PEFT files and of the base model's properties, so a second
    call finds it, and a changed adapter is another file. A complete file is moved to its place, so
    several processes may convert at once.

    Args:
        folder: The PEFT folder.
        base: The GGUF file of the base model.
        cache: Folder for converted adapters, made if need be.
        max_rank: Highest rank to take; a NIM's NIM_MAX_LORA_RANK.

    Raises:
        AdapterError: The folder is incomplete or damaged, or no LoRA adapter of this base model.
    """
    adapter = read(folder, max_rank)
    known = describe_base(base)
    key = repr((FORM, adapter.sha256, known.architecture, known.heads, known.heads_kv))
    shapes = json.dumps(dict(known.shapes), sort_keys=True)
    target = cache / f"lora-{hashlib.sha256((key + shapes).encode()).hexdigest()[:32]}.gguf"
    if target.is_file():
        return target
    tensors = convert(adapter, known)
    draft = cache / f".{target.name}.{secrets.token_hex(8)}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _write(draft, known.architecture, adapter.config.lora_alpha, tensors)
        os.replace(draft, target)
    except OSError as error:
        raise AdapterError(
            f"The converted adapter cannot be written to {cache} ({error.strerror or error}): make "
            "room there, or choose another cache folder with COOKBOOK_CACHE_DIR."
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return target


# --- the base model -------------------------------------------------------------------------


def base_name(weights: ResolvedWeights) -> str:
    """Return the base model's name for `base_model_name_or_path`.

    It is the repository of the weights before their conversion to GGUF, or the name of a user's
    own file.
    """
    hub = "https://huggingface.co/"
    if not weights.source.startswith(hub):
        return weights.name
    return weights.source.removeprefix(hub).removesuffix("-GGUF")


def describe_base(path: Path) -> Base:
    """Return the description of a GGUF model; cached, since reading takes seconds.

    Raises:
        AdapterError: The file is no GGUF model, or of an unsupported architecture.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise AdapterError(f"The base model {path} cannot be read: {error.strerror}.") from error
    return _describe_base(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _describe_base(path: Path, size: int, mtime: int) -> Base:
    return read_base(path)[0]


def read_base(path: Path) -> tuple[Base, gguf.GGUFReader]:
    """Return the description of a GGUF model, and the open file; raises as `describe_base`."""
    try:
        reader = gguf.GGUFReader(path)
        field = reader.get_field("general.architecture")
        architecture = str(field.contents()) if field is not None else ""
        if architecture not in ARCHITECTURES:
            raise AdapterError(
                f"The base model {path.name} is of the architecture '{architecture}': adapters "
                f"are served for {', '.join(ARCHITECTURES)} only; choose another --chat-model."
            )
        heads = _number(reader, f"{architecture}.attention.head_count")
        base = Base(
            architecture=architecture,
            heads=heads,
            heads_kv=_number(reader, f"{architecture}.attention.head_count_kv", heads),
            layers=_number(reader, f"{architecture}.block_count"),
            # GGUF writes the innermost dimension first, NumPy and PyTorch write it last.
            shapes={
                tensor.name: (int(tensor.shape[1]), int(tensor.shape[0]))
                for tensor in reader.tensors
                if _LAYER.fullmatch(tensor.name)
            },
            file=path.name,
        )
    except (ValueError, TypeError, KeyError, IndexError, OSError) as error:
        raise AdapterError(
            f"The base model {path.name} is no GGUF file that adapters can be checked against: "
            f"{error}."
        ) from error
    return base, reader


def _number(reader: gguf.GGUFReader, name: str, default: int = 0) -> int:
    field = reader.get_field(name)
    value = default if field is None else field.contents()
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"its {name} is not one number from 1")
    return value


# --- the PEFT folder ------------------------------------------------------------------------


def _error(folder: Path, fault: str) -> AdapterError:
    return AdapterError(f"The adapter '{folder.name}' {fault}.")


def read(folder: Path, max_rank: int = MAX_RANK) -> PeftAdapter:
    """Read a PEFT folder and check everything that does not need its base model.

    Raises:
        AdapterError: A file is missing or damaged, or this is no plain LoRA adapter.
    """
    config_bytes = _bytes(folder / CONFIG_FILE)
    weights_bytes = _bytes(folder / WEIGHTS_FILE)
    config = _config(folder, config_bytes)
    if config.r > max_rank:
        raise _error(
            folder,
            f"has rank {config.r}, over the limit of {max_rank}: train it with a lower r, or raise "
            "NIM_MAX_LORA_RANK",
        )
    pairs = _pairs(folder, weights_bytes)
    ranks = range(1, max_rank + 1) if config.rank_pattern else (config.r,)
    for module, (a, b) in pairs.items():
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] not in ranks:
            raise _error(
                folder,
                f"has A {a.shape} and B {b.shape} at {module}, which do not fit rank {config.r} of "
                f"its {CONFIG_FILE}: copy both files of one training",
            )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise _error(
                folder,
                f"has NaN or infinite weights at {module}, because its training diverged: train it "
                "again with a lower learning rate",
            )
    digest = hashlib.sha256(hashlib.sha256(config_bytes).digest())
    digest.update(hashlib.sha256(weights_bytes).digest())
    return PeftAdapter(folder, config, pairs, digest.hexdigest())


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _error(
            path.parent,
            f"has no {path.name}: copy the whole folder that PEFT's save_pretrained wrote",
        ) from None
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}.") from error


def _config(folder: Path, content: bytes) -> _Config:
    try:
        config = _Config.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{step}: " for step in first["loc"][:1])
        raise _error(
            folder,
            f"has a {CONFIG_FILE} that is not one of plain LoRA ({where}{first['msg']}): copy it "
            "again, or train it as plain LoRA",
        ) from None
    for name in UNSUPPORTED:
        if (config.model_extra or {}).get(name):
            raise _error(folder, f"uses {name}: train it again as plain LoRA")
    return config


def _pairs(folder: Path, content: bytes) -> dict[str, tuple[Array, Array]]:
    """Return A and B of each adapted layer, by its name in the PyTorch model."""
    try:
        entries = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise _error(
            folder, f"has an incomplete or damaged {WEIGHTS_FILE}: copy the folder again"
        ) from error
    sides: dict[str, dict[str, Array]] = {}
    for key, entry in entries:
        match = _KEY.fullmatch(key)
        if match is None:
            raise _error(
                folder,
                f"holds '{key}', which is no LoRA of a linear layer: train it again as plain LoRA "
                "on attention and MLP layers",
            )
        sides.setdefault(match["module"], {})[match["side"]] = _array(folder, key, entry)
    if not sides or any(len(pair) < 2 for pair in sides.values()):
        raise _error(folder, "holds no weights, or an A without its B: copy the folder again")
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _array(folder: Path, key: str, entry: Mapping[str, Any]) -> Array:
    """Return a tensor as float32."""
    kind, shape, data = entry["dtype"], tuple(entry["shape"]), entry["data"]
    if kind == "BF16":  # the upper half of a float32; NumPy has no such type
        array = (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F32", "F16"):
        array = np.frombuffer(data, dtype=f"<f{int(kind[1:]) // 8}").astype(np.float32)
    else:
        raise _error(folder, f"stores '{key}' as {kind}: save it as float32, float16 or bfloat16")
    return array.reshape(shape)


# --- conversion -----------------------------------------------------------------------------


def convert(adapter: PeftAdapter, base: Base) -> dict[str, Array]:
    """Return an adapter's tensors under llama.cpp's names and in its order of rows.

    llama.cpp scales each pair by alpha / rank of that pair; any other scale is put into B.

    Raises:
        AdapterError: A layer does not exist in the base model, or has another shape.
    """
    names = base.names
    tensors: dict[str, Array] = {}
    for module, (a, b) in adapter.pairs.items():
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if name is not None and not _LAYER.fullmatch(name):
            raise _error(
                adapter.folder,
                f"adapts {module}: only attention and MLP layers are served; train it again "
                "without that module",
            )
        has, wanted = (b.shape[0], a.shape[1]), base.shapes.get(name or "")
        if name is None or has != wanted:
            trained_on = (adapter.config.base_model_name_or_path or "another model")[:120]
            found = f"where it has {wanted[0]} x {wanted[1]}" if wanted else "which it lacks"
            raise _error(
                adapter.folder,
                f"was trained on {trained_on}, and {base.file} is served (the adapter's {module} "
                f"is {has[0]} x {has[1]}, {found}): a NIM loads adapters only for its own base "
                "model",
            )
        if adapter.config.use_rslora:  # alpha / sqrt(rank)
            b = b * np.float32(math.sqrt(a.shape[0]))
        if heads := base.rotary_heads(name):
            b = permute(b, heads)
        tensors[f"{name}.lora_a"] = np.ascontiguousarray(a)
        tensors[f"{name}.lora_b"] = np.ascontiguousarray(b)
    return tensors


_ARCHITECTURE_KEYS = {
    name: key for key, name in gguf.MODEL_ARCH_NAMES.items() if name in ARCHITECTURES
}


def permute(rows: Array, heads: int) -> Array:
    """Return the rows of a q or k projection in llama.cpp's order.

    Hugging Face rotates the first half of a head's dimensions against its second half, llama.cpp
    rotates neighbours (`LlamaModel.permute` in its ``convert_hf_to_gguf.py``).

    Args:
        rows: (heads * head size, rank) matrix B of an adapter, or the whole projection.
        heads: Heads that the rows belong to.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows: Array, heads: int) -> Array:
    """Return the rows of a q or k projection in Hugging Face's order: `permute` undone."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _write(path: Path, architecture: str, alpha: float, tensors: Mapping[str, Array]) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name in sorted(tensors):
            writer.add_tensor(name, tensors[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
