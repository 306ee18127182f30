"""Makes vectors.json: what sentence-transformers computes from the weights that we serve.

Run it in an environment of its own (see README.md); the tests only read its result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

MAX_TOKENS = 512
TEXTS = [
    "Who lives in Rome?",
    "My name is Giorgio and I live in Rome.",
    "a",
    "",
    "The Golden Gate Bridge opened in 1937; it is 2,737 metres long and painted in a red that is "
    "officially called international orange.",
    "Wo wohnt Jürgen Müßig? In der Königstraße, neben der Bäckerei.",
    "パリに住んでいるのは誰ですか。",
    "Кто живёт в Париже? 🗼🥐",
    "def mean(values):\n\treturn sum(values) / len(values)\n",
    "NATS JetStream stores every message until a consumer has acknowledged it. " * 4,
    "Retrieval finds the passages that may hold the answer, and the generator writes it. " * 16,
    "One two three four five six seven eight nine ten. " * 80,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder with model.safetensors, config.json, ...")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("vectors.json"))
    options = parser.parse_args()
    encoder = Transformer(str(options.model), max_seq_length=MAX_TOKENS)
    pooling = Pooling(encoder.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[encoder, pooling, Normalize()], device="cpu")
    vectors = model.encode(TEXTS, batch_size=1)
    weights = (options.model / "model.safetensors").read_bytes()
    result = {
        "made_with": {
            "sentence-transformers": sentence_transformers.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        "model_sha256": hashlib.sha256(weights).hexdigest(),
        "max_tokens": MAX_TOKENS,
    }
    items = [
        {"text": text, "vector": [round(float(value), 6) for value in vector]}
        for text, vector in zip(TEXTS, vectors, strict=True)
    ]
    # One line a text, so that a changed vector is one changed line.
    head = json.dumps(result, indent=1).removesuffix("\n}")
    rows = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    options.output.write_text(f'{head},\n "items": [\n{rows}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
