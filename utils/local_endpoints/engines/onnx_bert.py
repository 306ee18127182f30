"""Builds the graph of a BERT encoder over its safetensors file, without PyTorch.

The graph is about 24 kB: it points into the safetensors file for every weight (ONNX calls that
external data), and ONNX Runtime maps the file into memory. So nothing is converted or copied:
building takes milliseconds, and there is no second file that could go stale.

It is written in plain ONNX operators. ONNX Runtime fuses what pays for this machine when it loads
the graph; naming its fused operators (Attention, SkipLayerNormalization) here came out 10% slower.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from local_endpoints.engines import onnx_files
from nim_cookbook.errors import WeightsError

OPSET = 20  # the first with Gelu
IR_VERSION = 10
OUTPUT = "token_embeddings"


def build(folder: Path, weights: str = "model.safetensors") -> bytes:
    """Return a BERT encoder as a serialised ONNX model.

    Inputs are `input_ids` and `attention_mask`, int64 of [batch, tokens]; the output is
    `token_embeddings`, float32 of [batch, tokens, hidden]. All tokens are of the first segment.

    Args:
        folder: Holds `config.json` and the weights; ONNX Runtime needs it too, as the folder of
            external data.
        weights: Name of the safetensors file.

    Raises:
        WeightsError: The model is not a BERT that this builder knows, or the file is damaged.
    """
    config = onnx_files.read_json(folder / "config.json")
    _check(config, folder)
    return bytes(_Builder(config, folder / weights).model().SerializeToString())


def _check(config: dict[str, Any], folder: Path) -> None:
    known = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
    for key, value in known.items():
        found = config.get(key, value if key != "model_type" else None)
        if found != value:
            raise WeightsError(
                f"{folder / 'config.json'} says {key} = {found!r}, and only {value!r} can be "
                "built from safetensors: export the model to ONNX and name that file."
            )


class _Builder:
    def __init__(self, config: dict[str, Any], weights: Path) -> None:
        self.weights = weights
        self.heads = int(config["num_attention_heads"])
        self.hidden = int(config["hidden_size"])
        self.layers = int(config["num_hidden_layers"])
        self.epsilon = float(config["layer_norm_eps"])
        self.offset, self.tensors = _read_header(weights)
        # Some publishers save the encoder as part of a larger model.
        self.prefix = "bert." if "bert.embeddings.LayerNorm.weight" in self.tensors else ""
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}

    def model(self) -> Any:  # noqa: ANN401 - onnx has no types
        self._constants()
        x = self._embeddings()
        mask = self._mask()
        for layer in range(self.layers):
            x = self._layer(f"encoder.layer.{layer}.", x, mask)
        self.nodes[-1].output[0] = OUTPUT
        shape = ["batch", "tokens"]
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name in ("input_ids", "attention_mask")
        ]
        output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [*shape, self.hidden])
        graph = helper.make_graph(
            self.nodes, "bert", inputs, [output], list(self.initializers.values())
        )
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)

    def _constants(self) -> None:
        width = self.hidden // self.heads
        constants: dict[str, np.ndarray[Any, Any]] = {
            "from": np.array([0], np.int64),
            "to": np.array([1], np.int64),
            "head_axes": np.array([1, 2], np.int64),
            "one": np.array(1, np.float32),
            "minus": np.array(-1e9, np.float32),
            "scale": np.array(width**-0.5, np.float32),
            "split": np.array([0, 0, self.heads, width], np.int64),
            "join": np.array([0, 0, self.hidden], np.int64),
        }
        for name, value in constants.items():
            self.initializers[name] = numpy_helper.from_array(value, name)

    def _embeddings(self) -> str:
        at = "embeddings."
        words = self._add("Gather", self._weight(f"{at}word_embeddings.weight"), "input_ids")
        count = self._add("Shape", "input_ids", start=1, end=2)
        places = self._weight(f"{at}position_embeddings.weight")
        segments = self._weight(f"{at}token_type_embeddings.weight")
        place = self._add("Slice", places, "from", count, "from")
        segment = self._add("Slice", segments, "from", "to", "from")
        total = self._add("Add", words, self._add("Add", place, segment))
        return self._norm(f"{at}LayerNorm", total)

    def _mask(self) -> str:
        """Return what is added to attention scores: 0 for a token, very little for padding."""
        kept = self._add("Cast", "attention_mask", to=TensorProto.FLOAT)
        masked = self._add("Mul", self._add("Sub", "one", kept), "minus")
        return self._add("Unsqueeze", masked, "head_axes")

    def _layer(self, at: str, x: str, mask: str) -> str:
        query, key, value = (
            self._add("Reshape", self._linear(f"{at}attention.self.{name}", x), "split")
            for name in ("query", "key", "value")
        )
        query = self._add("Transpose", query, perm=[0, 2, 1, 3])
        key = self._add("Transpose", key, perm=[0, 2, 3, 1])
        value = self._add("Transpose", value, perm=[0, 2, 1, 3])
        scores = self._add("Mul", self._add("MatMul", query, key), "scale")
        shares = self._add("Softmax", self._add("Add", scores, mask), axis=-1)
        mixed = self._add("Transpose", self._add("MatMul", shares, value), perm=[0, 2, 1, 3])
        mixed = self._linear(f"{at}attention.output.dense", self._add("Reshape", mixed, "join"))
        x = self._norm(f"{at}attention.output.LayerNorm", self._add("Add", mixed, x))
        wide = self._add("Gelu", self._linear(f"{at}intermediate.dense", x))
        narrow = self._linear(f"{at}output.dense", wide)
        return self._norm(f"{at}output.LayerNorm", self._add("Add", narrow, x))

    def _linear(self, at: str, x: str) -> str:
        matrix = self._add("Transpose", self._weight(f"{at}.weight"), perm=[1, 0])
        return self._add("Add", self._add("MatMul", x, matrix), self._weight(f"{at}.bias"))

    def _norm(self, at: str, x: str) -> str:
        scale, shift = self._weight(f"{at}.weight"), self._weight(f"{at}.bias")
        return self._add("LayerNormalization", x, scale, shift, epsilon=self.epsilon)

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def _weight(self, name: str) -> str:
        entry = self.tensors.get(self.prefix + name)
        if entry is None or entry["dtype"] != "F32":
            found = "missing" if entry is None else f"of type {entry['dtype']}"
            raise WeightsError(
                f"In {self.weights} the tensor {self.prefix + name} is {found}, and a float32 "
                "BERT is needed: export the model to ONNX and name that file."
            )
        start, end = entry["data_offsets"]
        tensor = TensorProto(
            name=name,
            data_type=TensorProto.FLOAT,
            dims=entry["shape"],
            data_location=TensorProto.EXTERNAL,
        )
        place = {
            "location": self.weights.name,
            "offset": self.offset + start,
            "length": end - start,
        }
        for key, value in place.items():
            tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
        self.initializers[name] = tensor
        return name


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where the data of a safetensors file starts, and its table of tensors.

    The format: 8 bytes little-endian length of a JSON table, the table, the data.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            return 8 + length, json.loads(file.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise WeightsError(f"{path} is no safetensors file ({error}): fetch it again.") from error
