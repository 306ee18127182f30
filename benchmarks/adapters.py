"""What a LoRA adapter costs llama.cpp in speed, as a ratio within one run.

    python benchmarks/adapters.py [--rounds 5] [--rank 16] [--json results.json]

One engine holds the chat weights and one adapter on every linear layer, with random weights (its
values cost what trained ones cost). Rounds alternate between the base and the adapter and the ratio
of each pair is taken, so that a machine that slows down favours neither. Each request has a prompt
of its own, so that none is found in the prompt cache. The converted adapter is written as float32,
as the local servers do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from timing import spread

from local_endpoints.nim import adapters
from local_endpoints.nim.engines.chat import ChatEngine
from local_endpoints.weights import resolve
from nim_cookbook.models import load_registry

TOKENS = 64
SENTENCE = "The committee met on Tuesday and discussed the budget of the coming year in detail. "
# Layers of a Hugging Face model by the last part of their GGUF name.
MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def random_adapter(folder: Path, base: Path, rank: int) -> Path:
    """Write a PEFT folder with small random weights on every linear layer of a GGUF model."""
    draw = np.random.default_rng(0)
    weights = {}
    for name, (outputs, inputs) in adapters.describe_base(base).shapes.items():
        _, layer, kind, _ = name.split(".")
        prefix = f"base_model.model.model.layers.{layer}.{MODULES[kind]}"
        for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            weights[f"{prefix}.lora_{side}.weight"] = draw.normal(0, 1e-3, shape).astype("float32")
    save_file(weights, folder / adapters.WEIGHTS_FILE)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / adapters.CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    return folder


async def speed(engine: ChatEngine, number: int, adapter: str | None) -> tuple[float, float]:
    """Return tokens a second of the prompt (up to the first token) and of the rest, streamed."""
    prompt = f"{number} {adapter}. {SENTENCE * 12}"
    request = {"model": "m", "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True}
    began = time.perf_counter()
    first = None
    usage: dict[str, int] = {}
    async for chunk in engine.stream("/v1/completions", request, adapter):
        first = first or time.perf_counter()
        usage = chunk.get("usage") or usage
    ended = time.perf_counter()
    assert first is not None
    return usage["prompt_tokens"] / (first - began), usage["completion_tokens"] / (ended - first)


async def measure(rounds: int, rank: int) -> dict[str, object]:
    """Return the speeds and the ratios of adapter to base."""
    weights = resolve(load_registry().weights_for("chat"), report=print)
    base = weights.folder / weights.files[0][0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_adapter(Path(scratch), base, rank)
        converted = adapters.to_gguf(folder, base, Path(scratch))
        engine = ChatEngine(weights, adapters={"random": converted})
        await engine.start()
        try:
            await speed(engine, -1, None)
            pairs = [
                (await speed(engine, n, None), await speed(engine, n, "random"))
                for n in range(rounds)
            ]
        finally:
            await engine.close()
        megabytes = converted.stat().st_size / 1e6
    figures: dict[str, object] = {"rank": rank, "adapter_megabytes": round(megabytes, 1)}
    for index, name in enumerate(("prompt", "generation")):
        figures[f"{name}_tokens_per_second_base"] = spread([bare[index] for bare, _ in pairs])
        figures[f"{name}_tokens_per_second_adapter"] = spread([lora[index] for _, lora in pairs])
        figures[f"{name}_ratio"] = spread([lora[index] / bare[index] for bare, lora in pairs])
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.rounds, arguments.rank))
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
