"""LoRA adapters: from a PEFT folder, as a NIM loads it, to the GGUF file that llama.cpp loads.

A PEFT folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. It is read without
PyTorch, checked against the GGUF file of the base model, and written in the form of llama.cpp's
``convert_lora_to_gguf.py``: each pair of matrices under the GGUF name of the layer it belongs to,
with ``.lora_a`` and ``.lora_b`` behind it.

The weights stay float32: LoRA on the small models here is a few megabytes, and what was trained is
then what answers.
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
from typing import Any

import gguf
import numpy as np
import safetensors
from numpy.typing import NDArray

from local_endpoints.weights import ResolvedWeights
from nim_cookbook.errors import CookbookError

Array = NDArray[np.float32]
Shape = tuple[int, ...]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# The default of a NIM's NIM_MAX_LORA_RANK.
MAX_RANK = 32
# Part of the name of a converted file: another way of converting must not find the old files.
FORM = 1

# Architectures whose converter keeps the rows of the q and k projections as they are (False), or
# reorders them for llama.cpp's rotary embedding (True), as `LlamaModel.permute` does there.
ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False}

# Settings of PEFT's LoraConfig that make more of an adapter than pairs of A and B, each with what
# to tell about it. None of them is in what a NIM loads either.
UNSUPPORTED = {
    "use_dora": "uses DoRA",
    "use_qalora": "uses QALoRA",
    "use_bdlora": "uses block-diagonal LoRA",
    "kasa_config": "uses KaSA",
    "arrow_config": "routes between adapters (Arrow)",
    "monteclora_config": "uses MonteCLoRA",
    "velora_config": "uses VeLoRA",
    "lora_ga_config": "starts from changed base weights (LoRA-GA)",
    "corda_config": "starts from changed base weights (CorDA)",
    "alora_invocation_tokens": "is an activated LoRA",
    "lora_bias": "trains biases",
    "modules_to_save": "replaces whole layers (modules_to_save)",
    "trainable_token_indices": "trains token embeddings",
    "layer_replication": "repeats layers (layer_replication)",
    "target_parameters": "targets bare parameters (target_parameters)",
    "megatron_config": "is made for Megatron",
    "fan_in_fan_out": "stores transposed weights (fan_in_fan_out)",
    "alpha_pattern": "has another alpha for some layers (alpha_pattern)",
}
# Other ways to start (PiSSA, OLoRA, CorDA, LoftQ) change the base weights under the adapter.
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_LAYER = re.compile(r"blk\.\d+\.(attn_(q|k|v|output)|ffn_(gate|up|down))\.weight")


class AdapterError(CookbookError):
    """A LoRA adapter that cannot be loaded for this base model."""


@dataclass(frozen=True, slots=True)
class Base:
    """What an adapter must fit: the base model as its GGUF file describes it.

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
        """What GGUF calls the parameters of the PyTorch model."""
        return gguf.get_tensor_name_map(_ARCHITECTURE_KEYS[self.architecture], self.layers)

    def rotary_heads(self, tensor: str) -> int:
        """Return how many heads' rows a tensor holds in llama.cpp's own order; 0 for none."""
        if not ARCHITECTURES[self.architecture]:
            return 0
        return self.heads * (".attn_q." in tensor) + self.heads_kv * (".attn_k." in tensor)


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """A PEFT folder that has been read and is sound in itself.

    Attributes:
        folder: Where it lies.
        rank: The rank that the configuration states; single layers may differ if it says so.
        alpha: LoRA's alpha; the update is scaled by alpha / rank.
        rank_stabilised: Whether it is scaled by alpha / sqrt(rank) instead.
        ranks_vary: Whether the configuration gives some layers another rank.
        pairs: A (rank, inputs) and B (outputs, rank) of each adapted layer, by PyTorch name.
        base: The base model's name as the configuration has it; empty if it does not say.
        sha256: Hash of both files.
    """

    folder: Path
    rank: int
    alpha: float
    rank_stabilised: bool
    ranks_vary: bool
    pairs: Mapping[str, tuple[Array, Array]]
    base: str
    sha256: str


def to_gguf(folder: Path, base: Path, cache: Path, max_rank: int = MAX_RANK) -> Path:
    """Return an adapter as a GGUF file that llama.cpp loads over `base`.

    The file's name is made of the content of both PEFT files and of what the conversion needs to
    know of the base model, so a second call finds it, and a changed adapter is another file. It is
    moved to its place complete; several processes may do it at once.

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
        _write(draft, known.architecture, adapter.alpha, tensors)
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
    """Return what an adapter of some weights calls its base model, for PEFT to find it again.

    That is the repository of the weights before their conversion to GGUF; of a file of the user's
    own only the name is known.
    """
    hub = "https://huggingface.co/"
    if not weights.source.startswith(hub):
        return weights.name
    return weights.source.removeprefix(hub).removesuffix("-GGUF")


def describe_base(path: Path) -> Base:
    """Return what adapters of a GGUF model must fit; remembered, since reading takes seconds.

    Raises:
        AdapterError: The file is no GGUF model, or of an architecture whose adapters we do not
            know how to convert.
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
    """Return what adapters of a GGUF model must fit, and the open file; raises as above."""
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


def read(folder: Path, max_rank: int = MAX_RANK) -> PeftAdapter:
    """Read a PEFT folder and check what can be checked without its base model.

    Raises:
        AdapterError: A file is missing or damaged, or this is more than, or no, plain LoRA.
    """
    config_bytes = _bytes(folder / CONFIG_FILE)
    weights_bytes = _bytes(folder / WEIGHTS_FILE)
    config = _config(folder, config_bytes)
    rank, alpha = _scale(folder, config, max_rank)
    pairs = _pairs(folder, weights_bytes)
    ranks_vary = bool(config.get("rank_pattern"))
    for module, (a, b) in pairs.items():
        _check_pair(folder, module, a, b, max_rank if ranks_vary else rank, exact=not ranks_vary)
    digest = hashlib.sha256(hashlib.sha256(config_bytes).digest())
    digest.update(hashlib.sha256(weights_bytes).digest())
    return PeftAdapter(
        folder=folder,
        rank=rank,
        alpha=alpha,
        rank_stabilised=config.get("use_rslora") is True,
        ranks_vary=ranks_vary,
        pairs=pairs,
        base=str(config.get("base_model_name_or_path") or "")[:120],
        sha256=digest.hexdigest(),
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise AdapterError(
            f"The adapter '{path.parent.name}' has no {path.name}: copy the whole folder that "
            "PEFT's save_pretrained wrote."
        ) from error
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}.") from error


def _config(folder: Path, content: bytes) -> dict[str, Any]:
    where = f"The adapter '{folder.name}'"
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{where} has a {CONFIG_FILE} that is not valid JSON: copy the folder again."
        ) from error
    if not isinstance(config, dict):
        raise AdapterError(f"{where} has a {CONFIG_FILE} that is no JSON object: copy it again.")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{where} is of the PEFT type {kind!r}: only LORA is served.")
    for name, what in UNSUPPORTED.items():
        if config.get(name):
            raise AdapterError(f"{where} {what}: train it again as plain LoRA.")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{where} trains biases (bias): train it again with bias='none'.")
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise AdapterError(
            f"{where} starts from changed base weights (init_lora_weights {start!r}): let PEFT "
            "convert it to plain LoRA when saving (path_initial_model_for_weight_conversion)."
        )
    return config


def _scale(folder: Path, config: Mapping[str, Any], max_rank: int) -> tuple[int, float]:
    """Return rank and alpha."""
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise AdapterError(
            f"The adapter '{folder.name}' states the rank {rank!r}: r in {CONFIG_FILE} must be a "
            "whole number from 1."
        )
    if rank > max_rank:
        raise AdapterError(
            f"The adapter '{folder.name}' has rank {rank}, over the limit of {max_rank}: train it "
            "with a lower r, or raise NIM_MAX_LORA_RANK."
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise AdapterError(
            f"The adapter '{folder.name}' states the alpha {alpha!r}: lora_alpha in {CONFIG_FILE} "
            "must be a number over 0."
        )
    return rank, float(alpha)


def _pairs(folder: Path, content: bytes) -> dict[str, tuple[Array, Array]]:
    """Return A and B of each adapted layer, by its name in the PyTorch model."""
    try:
        entries = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise AdapterError(
            f"The adapter '{folder.name}' has an incomplete or damaged {WEIGHTS_FILE}: copy the "
            "folder again."
        ) from error
    sides: dict[str, dict[str, Array]] = {}
    for key, entry in entries:
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterError(
                f"The adapter '{folder.name}' holds '{key}', which is no LoRA of a linear layer: "
                "train it again as plain LoRA on attention and MLP layers."
            )
        sides.setdefault(match["module"], {})[match["side"]] = _array(folder, key, entry)
    if not sides:
        raise AdapterError(f"The adapter '{folder.name}' holds no weights: train it again.")
    for module, pair in sides.items():
        if len(pair) < 2:
            raise AdapterError(
                f"The adapter '{folder.name}' holds only one of A and B of {module}: copy the "
                "folder again."
            )
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _array(folder: Path, key: str, entry: Mapping[str, Any]) -> Array:
    """Return a tensor as float32; bfloat16, which NumPy lacks, is the upper half of it."""
    kind, shape, data = entry["dtype"], tuple(entry["shape"]), entry["data"]
    if kind == "BF16":
        array = (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F64", "F32", "F16"):
        # A float64 too large becomes infinite, and is refused as such.
        with np.errstate(over="ignore"):
            array = np.frombuffer(data, dtype=f"<f{int(kind[1:]) // 8}").astype(np.float32)
    else:
        raise AdapterError(
            f"The adapter '{folder.name}' stores '{key}' as {kind}: save it as float32, float16 "
            "or bfloat16."
        )
    return array.reshape(shape)


def _check_pair(folder: Path, module: str, a: Array, b: Array, rank: int, exact: bool) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise AdapterError(
            f"The adapter '{folder.name}' has A {a.shape} and B {b.shape} at {module}, which do "
            "not multiply: copy the folder again."
        )
    if not 1 <= a.shape[0] <= rank or (exact and a.shape[0] != rank):
        raise AdapterError(
            f"The adapter '{folder.name}' has rank {a.shape[0]} at {module}, where {CONFIG_FILE} "
            f"and the limit allow {rank}: copy both files of one training."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise AdapterError(
            f"The adapter '{folder.name}' has weights at {module} that are no numbers (NaN or "
            "infinite): its training diverged; train it again with a lower learning rate."
        )


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
            raise AdapterError(
                f"The adapter '{adapter.folder.name}' adapts {module}: only attention and MLP "
                "layers are served; train it again without that module."
            )
        shape = base.shapes.get(name) if name is not None else None
        if name is None or shape != (b.shape[0], a.shape[1]):
            raise AdapterError(_wrong_base(adapter, base, module, (b.shape[0], a.shape[1]), shape))
        if f"{name}.lora_a" in tensors:
            raise AdapterError(
                f"The adapter '{adapter.folder.name}' adapts {module} twice: copy the folder again."
            )
        if adapter.rank_stabilised:
            b = b * np.float32(math.sqrt(a.shape[0]))
        if heads := base.rotary_heads(name):
            b = permute(b, heads)
        tensors[f"{name}.lora_a"] = np.ascontiguousarray(a)
        tensors[f"{name}.lora_b"] = np.ascontiguousarray(b)
    return tensors


_ARCHITECTURE_KEYS = {
    name: key for key, name in gguf.MODEL_ARCH_NAMES.items() if name in ARCHITECTURES
}


def _wrong_base(
    adapter: PeftAdapter,
    base: Base,
    module: str,
    has: tuple[int, int],
    wanted: tuple[int, int] | None,
) -> str:
    found = "which it lacks" if wanted is None else f"where it has {wanted[0]} x {wanted[1]}"
    return (
        f"The adapter '{adapter.folder.name}' was trained on {adapter.base or 'another model'}, "
        f"and {base.file} is served (the adapter's {module} is {has[0]} x {has[1]}, {found}): a "
        "NIM loads adapters only for its own base model."
    )


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
