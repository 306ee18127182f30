"""Looks at the files of an encoder model: which they are, what comes out, how much goes in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import onnx

from nim_cookbook.errors import WeightsError

Kind = Literal["tokens", "sentence", "score", "other"]

MEANING: dict[str, str] = {
    "tokens": "one vector for each token",
    "sentence": "one vector for each text",
    "score": "one score for each pair of texts",
    "other": "neither vectors nor one score",
}
DEFAULT_MAX_TOKENS = 512
# Where Hugging Face repositories keep them; the first that exists is taken.
MODEL_NAMES = ("model.onnx", "onnx/model.onnx", "model.safetensors")
# These count positions from the padding token's id on, so two of them are never used.
OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})


class Output(NamedTuple):
    """An output of a graph: its name, its rank (0 if unknown) and its last extent if fixed."""

    name: str
    rank: int
    width: int | None


def find_model(folder: Path) -> str:
    """Return the model file's name, relative to its folder.

    Raises:
        WeightsError: There is none.
    """
    for name in MODEL_NAMES:
        if (folder / name).is_file():
            return name
    others = sorted(folder.glob("*.onnx"))
    if len(others) == 1:
        return others[0].name
    raise WeightsError(f"{folder} has none of {', '.join(MODEL_NAMES)}: name the model file.")


def find_tokenizer(folder: Path, model: str) -> str:
    """Return the name of `tokenizer.json`, which lies in the folder or beside the model.

    Raises:
        WeightsError: There is none.
    """
    beside = (Path(model).parent / "tokenizer.json").as_posix()
    for name in ("tokenizer.json", beside):
        if (folder / name).is_file():
            return name
    raise WeightsError(
        f"{folder} has no tokenizer.json, which tells how the model splits text: put it there."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file, an empty one if there is no file.

    Raises:
        WeightsError: The file is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is no JSON file ({error}): fetch it again.") from error
    return value if isinstance(value, dict) else {}


def max_tokens(folder: Path) -> int:
    """Return the longest input in tokens that the model's own configuration allows."""
    config = read_json(folder / "config.json")
    positions = int(config.get("max_position_embeddings") or DEFAULT_MAX_TOKENS)
    if config.get("model_type") in OFFSET_POSITIONS:
        positions -= 2
    stated = read_json(folder / "tokenizer_config.json").get("model_max_length")
    # Tokenizers without a limit state a number like 1e30.
    return min(positions, int(stated)) if stated and stated < 1e6 else positions


def pooling(folder: Path) -> str:
    """Return how token vectors become a text's vector: `mean` or `cls`.

    Read from sentence-transformers' `1_Pooling/config.json`; without it, `mean`.

    Raises:
        WeightsError: The model pools in another way.
    """
    config = read_json(folder / "1_Pooling" / "config.json")
    modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    if not modes or modes == ["pooling_mode_mean_tokens"]:
        return "mean"
    if modes == ["pooling_mode_cls_token"]:
        return "cls"
    raise WeightsError(
        f"{folder} wants {' and '.join(modes)}, which this engine does not know: choose a model "
        "with mean or CLS pooling."
    )


def kind(path: Path) -> Kind:
    """Return what an ONNX file computes.

    Raises:
        WeightsError: It is no ONNX file.
    """
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's, the file system's, and onnx's own
        raise WeightsError(f"{path} is no ONNX file that can be read: choose another.") from error
    return kind_of([_output(value) for value in graph.output])


def kind_of(outputs: Sequence[Output]) -> Kind:
    """Return what a graph with these outputs computes (the most useful reading of it)."""
    for wanted in ("tokens", "sentence", "score"):
        if choose(outputs, wanted):
            return wanted
    return "other"


def choose(outputs: Sequence[Output], wanted: Kind) -> str | None:
    """Return the name of the output that gives what is wanted, None if none does.

    A second output of BERT exports (`pooler_output`) has the shape of a text's vector and is none:
    beside token vectors, only an output that calls itself a sentence's is taken for one.
    """
    tokens = [output for output in outputs if output.rank == 3]
    flat = [output for output in outputs if output.rank in (1, 2)]
    if wanted == "tokens":
        return tokens[0].name if tokens else None
    if wanted == "sentence":
        named = [output for output in flat if "sentence" in output.name]
        wide = [o for o in flat if o.rank == 2 and not _is_score(o) and o.name != "logits"]
        return next((o.name for o in (*named, *([] if tokens else wide))), None)
    return next((o.name for o in flat if not tokens and _is_score(o)), None)


def _is_score(output: Output) -> bool:
    if output.rank == 1 or output.width == 1:
        return True
    return output.name == "logits" and output.width is None


def _output(value: Any) -> Output:  # noqa: ANN401 - onnx has no types
    dims = value.type.tensor_type.shape.dim
    width = dims[-1].dim_value if len(dims) else 0
    return Output(value.name, len(dims), width or None)
