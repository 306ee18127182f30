"""An adapter trained here answers alike in transformers with PEFT and in llama.cpp.

Both read the same GGUF weights and the same PEFT folder. They do not compute alike: llama.cpp
rounds activations to 8 bits for its quantised weights, transformers does not. So two more things
are compared: the bare base model, and llama.cpp over the same weights written out as float32, where
it rounds nothing and only the adapter's conversion can make a difference.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from local_endpoints import adapters, weights
from local_endpoints.engines.chat import ChatEngine
from nim_cookbook.data import data_path
from nim_cookbook.models import load_registry

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra finetune)")
peft = pytest.importorskip("peft", reason="PEFT is not installed (the extra finetune)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

PROMPTS = 50
STEPS = 8
BATCH = 8
SYSTEM = "Answer in a few words."
NEEDED = 0.95


@dataclass(frozen=True)
class First:
    """The first tokens of all answers, and their log-probabilities."""

    tokens: list[int]
    logprobs: list[float]


def questions() -> list[dict]:
    lines = (data_path("company") / "questions" / "train.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def messages(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


@pytest.fixture(scope="module")
def base():
    """The chat weights of the registry, on disk."""
    return weights.resolve(load_registry().weights_of_set("chat", "small"), report=print)


@pytest.fixture(scope="module")
def tokenizer(base):
    return transformers.AutoTokenizer.from_pretrained(base.folder, gguf_file=base.files[0][0])


@pytest.fixture(scope="module")
def prompts(tokenizer):
    """The prompts' messages and token ids."""
    chats = [messages(entry["question"]) for entry in questions()[:PROMPTS]]
    encoded = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
        for chat in chats
    ]
    return chats, [entry["input_ids"] for entry in encoded]


@pytest.fixture(scope="module")
def folders(base, tokenizer, tmp_path_factory) -> dict[str, Path]:
    """Two PEFT folders: a short real training, and random weights on every linear layer."""
    from local_endpoints.finetuning.trainer import Sample, Segment, Trainer

    root = tmp_path_factory.mktemp("adapters")
    trainer = Trainer(base.folder / base.files[0][0])
    source = root / "step-0"
    source.mkdir()
    trainer.create(source, rank=8, learning_rate=1e-3)
    samples = []
    for entry in [entry for entry in questions()[PROMPTS:] if entry["answers"]]:
        chat = messages(entry["question"])
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        answer = Segment(f"{entry['answers'][0]}<|im_end|>")
        samples.append(Sample((Segment(asked, trainable=False), answer)))
    for step in range(STEPS):
        target = root / f"step-{step + 1}"
        target.mkdir()
        trainer.step(source, target, samples[step * BATCH : (step + 1) * BATCH])
        source = target
    return {"trained": source, "random": random_adapter(base, root / "random")}


def random_adapter(base, folder: Path) -> Path:
    """Rank-stabilised, so that this scale is covered as well."""
    model = torch_model(base)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        config = peft.LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", use_rslora=True, task_type="CAUSAL_LM"
        )
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder)
    return folder


def torch_model(base):
    return transformers.AutoModelForCausalLM.from_pretrained(
        base.folder, gguf_file=base.files[0][0], dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def by_torch(base, prompts, folders) -> dict[str, First]:
    """Plain transformers and PEFT."""
    model = torch_model(base)
    found = {"base": first_by_torch(model, prompts[1])}
    for name, folder in folders.items():
        adapted = peft.PeftModel.from_pretrained(model, folder).eval()
        found[name] = first_by_torch(adapted, prompts[1])
        model = adapted.unload()
    return found


def first_by_torch(model, ids: list[list[int]]) -> First:
    """Prompts are padded behind, where a causal model does not see it."""
    tokens, logprobs = [], []
    with torch.inference_mode():
        for start in range(0, len(ids), 10):
            batch = ids[start : start + 10]
            longest = max(map(len, batch))
            padded = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
            ends = torch.tensor([len(row) - 1 for row in batch])
            logits = model(padded, logits_to_keep=torch.arange(int(ends.min()), longest)).logits
            last = logits[torch.arange(len(batch)), ends - ends.min()].log_softmax(-1)
            best = last.max(-1)
            tokens += best.indices.tolist()
            logprobs += best.values.tolist()
    return First(tokens, logprobs)


@pytest.fixture(scope="module")
def by_llama(base, prompts, folders, tmp_path_factory) -> dict[str, First]:
    """llama.cpp, over the same file and the same folders."""
    return run_llama(base, prompts, folders, tmp_path_factory.mktemp("converted"))


@pytest.fixture(scope="module")
def by_llama_float32(base, prompts, folders, tmp_path_factory) -> dict[str, First]:
    """llama.cpp, over the same weights without their quantisation."""
    folder = tmp_path_factory.mktemp("float32")
    wide = write_float32(base.folder / base.files[0][0], folder / "wide.gguf")
    try:
        weights = replace(base, folder=folder, files=((wide.name, ""),))
        return run_llama(weights, prompts, folders, folder)
    finally:
        wide.unlink()  # half a gigabyte


def write_float32(source: Path, target: Path) -> Path:
    """Write a GGUF model's fields and tensors again, the tensors as float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in (
            "general.architecture",
            "general.file_type",
        ):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        wide = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, wide.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def run_llama(weights, prompts, folders: dict[str, Path], cache: Path) -> dict[str, First]:
    file = weights.folder / weights.files[0][0]
    ggufs = {name: adapters.to_gguf(folder, file, cache) for name, folder in folders.items()}

    async def ask() -> dict[str, First]:
        engine = ChatEngine(weights, adapters=ggufs)
        await engine.start()
        try:
            return {
                "base": await first_by_llama(engine, prompts, None),
                **{name: await first_by_llama(engine, prompts, name) for name in ggufs},
            }
        finally:
            await engine.close()

    return asyncio.run(ask())


async def first_by_llama(engine: ChatEngine, prompts, adapter: str | None) -> First:
    tokens, logprobs = [], []
    for chat, ids in zip(*prompts, strict=True):
        body = {"model": "m", "messages": chat, "max_tokens": 1, "temperature": 0, "logprobs": True}
        answer = await engine.complete(
            "/v1/chat/completions", {**body, "top_logprobs": 1}, adapter=adapter
        )
        assert answer["usage"]["prompt_tokens"] == len(ids), "both must read the same prompt"
        entry = answer["choices"][0]["logprobs"]["content"][0]
        tokens.append(entry["id"])
        logprobs.append(entry["logprob"])
    return First(tokens, logprobs)


def share(one: list[int], other: list[int]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def test_the_trained_adapter_changes_what_is_answered(by_torch):
    assert share(by_torch["trained"].tokens, by_torch["base"].tokens) < 0.8


@pytest.mark.parametrize("name", ["base", "trained", "random"])
def test_first_tokens_agree_without_quantisation(by_torch, by_llama_float32, name):
    assert share(by_torch[name].tokens, by_llama_float32[name].tokens) >= NEEDED


@pytest.mark.parametrize("name", ["trained", "random"])
def test_the_adapter_adds_no_difference_to_that_of_the_base(by_torch, by_llama, name):
    """A wrong scale, a wrong order of rows or a lost layer would."""

    def distance(of: str) -> float:
        pairs = zip(by_torch[of].logprobs, by_llama[of].logprobs, strict=True)
        return sum(abs(a - b) for a, b in pairs) / PROMPTS

    assert distance(name) < 2 * distance("base")
