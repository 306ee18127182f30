"""Models of a few hundred bytes with known answers, to test what users may bring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "zero", "one", "two", "three", "four"]
WIDTH = 3


def table() -> np.ndarray:
    """The vector of each word: row `i` is (i, 1, 0)."""
    rows = np.zeros((len(WORDS), WIDTH), np.float32)
    rows[:, 0] = np.arange(len(WORDS))
    rows[:, 1] = 1
    return rows


def write_tokenizer(folder: Path) -> None:
    """A tokenizer that splits at spaces and adds [CLS] and [SEP]."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_model(
    path: Path, kind: Literal["tokens", "sentence", "score", "scores"], extra: Sequence[str] = ()
) -> None:
    """An ONNX model.

    Args:
        path: Where to write it.
        kind: `tokens`: each word's vector. `sentence`: the vector of the first token. `score`:
            the sum over the second text's token ids. `scores`: three of them.
        extra: Further inputs, which it ignores.
    """
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["words"])]
    inputs = ["input_ids", "attention_mask", *extra]
    shape: list[str | int] = ["batch", WIDTH]
    if kind == "tokens":
        output, shape = "last_hidden_state", ["batch", "tokens", WIDTH]
        nodes.append(helper.make_node("Identity", ["words"], [output]))
    elif kind == "sentence":
        output = "sentence_embedding"
        nodes.append(helper.make_node("Gather", ["words", "first"], [output], axis=1))
    else:
        output, width = "logits", 1 if kind == "score" else 3
        shape = ["batch", width]
        inputs = [*inputs, "token_type_ids"]
        nodes = [
            helper.make_node("Mul", ["input_ids", "token_type_ids"], ["second"]),
            helper.make_node("ReduceSum", ["second", "axis"], ["sum"], keepdims=1),
            helper.make_node("Cast", ["sum"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Concat", ["float"] * width, [output], axis=1),
        ]
    constants = {
        "table": table(),
        "first": np.array(0, np.int64),
        "axis": np.array([1], np.int64),
    }
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "tokens"]) for n in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
