"""An adapter trained here answers alike in plain transformers with PEFT and in llama.cpp.

Both read the same GGUF weights and the same PEFT folder, of the default model and of the small one,
whose architecture orders the rows of two projections in another way. They do not compute alike:
llama.cpp multiplies quantised weights with activations rounded to 8 bits, transformers undoes the
quantisation and computes in float32. So the bare base model is compared as well: an adapter that
were read wrongly would add to its difference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from local_endpoints import weights
from local_endpoints.gradient.training import missing_packages
from local_endpoints.nim import adapters
from local_endpoints.nim.engines.chat import ChatEngine
from nim_cookbook import corpus, finetuning, indexing
from nim_cookbook.models import load_registry

# Imported where they are used: every process that collects tests would spend seconds on them.
missing = missing_packages()
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)}: not installed"),
]

PROMPTS = 4


@dataclass(frozen=True)
class First:
    """The first tokens of all answers, and their log-probabilities."""

    tokens: list[int]
    logprobs: list[float]


@pytest.fixture(scope="module", params=["default", "small"])
def base(request):
    """Chat weights of the registry, on disk."""
    return weights.resolve(load_registry().weights_for("chat", request.param), report=print)


@pytest.fixture(scope="module")
def file(base) -> Path:
    return base.folder / base.files[0][0]


@pytest.fixture(scope="module")
def tokenizer(file):
    from local_endpoints.gradient.base_model import load_tokenizer

    return load_tokenizer(file)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Questions of the test split with the chunks that hold the answer."""
    chunks = indexing.company_chunks(corpus.company_files(), 35, 10)
    queries = [query for query in corpus.load_company().split("test") if query.answerable]
    return [case.prompt for case in finetuning.cases(queries[: 2 * PROMPTS], chunks)][:PROMPTS]


@pytest.fixture(scope="module")
def model(file):
    """The base model in PyTorch."""
    from local_endpoints.gradient.base_model import load_model

    return load_model(file)


@pytest.fixture(scope="module")
def folders(base, model, tmp_path_factory) -> dict[str, Path]:
    """Random weights on every linear layer."""
    import peft
    import torch

    random = tmp_path_factory.mktemp("adapters") / "random"
    with torch.random.fork_rng():
        torch.manual_seed(6)
        config = peft.LoraConfig(  # rank-stabilised, so that this scale is covered as well
            r=16, lora_alpha=32, target_modules="all-linear", use_rslora=True, task_type="CAUSAL_LM"
        )
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                # Enough to show a wrong order of rows. With 0.02 the default model says nothing
                # sensible any more, and every rounding error grows.
                torch.nn.init.normal_(parameter, std=0.005)
    adapted.save_pretrained(random)
    adapted.unload()
    return {"random": random}


@pytest.fixture(scope="module")
def by_torch(model, tokenizer, prompts, folders) -> Iterator[dict[str, First]]:
    """Plain transformers and PEFT."""
    import peft
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other beside other tests
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    found = {"base": first_by_torch(model, ids)}
    for name, folder in folders.items():
        adapted = peft.PeftModel.from_pretrained(model, folder).eval()
        found[name] = first_by_torch(adapted, ids)
        adapted.unload()
    yield found
    torch.set_num_threads(threads)


def first_by_torch(model, ids: list[list[int]]) -> First:
    import torch

    tokens, logprobs = [], []
    with torch.inference_mode():
        for row in ids:
            logits = model(torch.tensor([row]), logits_to_keep=1).logits[0, -1].log_softmax(-1)
            tokens.append(int(logits.argmax()))
            logprobs.append(float(logits.max()))
    return First(tokens, logprobs)


@pytest.fixture(scope="module")
def by_llama(base, file, tokenizer, prompts, folders, tmp_path_factory) -> dict[str, First]:
    """llama.cpp, over the same file and the same folders."""
    cache = tmp_path_factory.mktemp("converted")
    ggufs = {name: adapters.to_gguf(folder, file, cache) for name, folder in folders.items()}
    lengths = [len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]

    async def ask() -> dict[str, First]:
        engine = ChatEngine(base, adapters=ggufs)
        await engine.start()
        try:
            return {
                name: await first_by_llama(
                    engine, prompts, lengths, None if name == "base" else name
                )
                for name in ("base", *ggufs)
            }
        finally:
            await engine.close()

    return asyncio.run(ask())


async def first_by_llama(
    engine: ChatEngine, prompts: list[str], lengths: list[int], adapter: str | None
) -> First:
    tokens, logprobs = [], []
    for prompt, length in zip(prompts, lengths, strict=False):
        body = {"model": "m", "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1}
        answer = await engine.complete("/v1/completions", body, adapter=adapter)
        assert answer["usage"]["prompt_tokens"] == length, "both must read the same prompt"
        entry = answer["choices"][0]["logprobs"]["content"][0]
        tokens.append(entry["id"])
        logprobs.append(entry["logprob"])
    return First(tokens, logprobs)


def test_an_adapter_adds_no_difference_to_that_of_the_base(by_torch, by_llama):
    """A wrong scale, a wrong order of rows or a lost layer would."""

    def distance(of: str) -> float:
        pairs = zip(by_torch[of].logprobs, by_llama[of].logprobs, strict=True)
        return sum(abs(a - b) for a, b in pairs) / PROMPTS

    assert all(distance(name) < 2 * distance("base") for name in by_torch)
