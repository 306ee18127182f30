"""The base model in PyTorch, from the GGUF file that llama.cpp runs.

transformers reads such files as well (`gguf_file=`), and its tokenizer is used here. Its model
loader reads the vocabulary three times and rebuilds the table of tensor names for each module,
which takes a minute for a vocabulary of 150,000.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from local_endpoints.nim import adapters

# What a configuration of transformers calls the fields of a GGUF file.
SETTINGS = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "rope.freq_base": "rope_theta",
}


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a GGUF model."""
    found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
        path.parent, gguf_file=path.name
    )
    return found


def load_model(path: Path) -> PreTrainedModel:
    """Return a GGUF model in float32, without its quantisation.

    Raises:
        OSError: The file cannot be read.
        AdapterError: It is no GGUF model of a known architecture.
    """
    known, reader = adapters.read_base(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = AutoConfig.for_model(
        known.architecture,  # transformers has the same names for them
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        tie_word_embeddings="output.weight" not in tensors,
        **_settings(reader, known.architecture),
    )
    with torch.device("meta"):  # its weights come below
        empty: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    names = known.names
    state = {}
    for parameter in empty.state_dict():
        name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name in tensors:  # without an output layer of its own, the model uses the embeddings
            values = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
            if heads := known.rotary_heads(name):
                values = adapters.unpermute(values, heads)
            state[parameter] = torch.from_numpy(np.array(values))
    model: PreTrainedModel = empty.from_pretrained(None, config=config, state_dict=state)
    model.train(False)
    return model


def _settings(reader: gguf.GGUFReader, architecture: str) -> dict[str, Any]:
    fields = {new: reader.get_field(f"{architecture}.{old}") for old, new in SETTINGS.items()}
    return {name: field.contents() for name, field in fields.items() if field is not None}
