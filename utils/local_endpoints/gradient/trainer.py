"""Trains LoRA adapters over the weights that the chat server runs.

PEFT adds an adapter to every linear layer of the upper half of the blocks, so no gradient is
computed for the lower half. Only tokens that a sample marks as trainable count for the loss, and
the output layer, a quarter of the parameters of so small a model, is computed for them alone.

LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685. The output is PEFT's own folder, which a NIM
reads from `NIM_PEFT_SOURCE`. Only the worker imports this module: it takes seconds and needs the
extra `finetune`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.utils import logging

from local_endpoints.gradient import base_model as bases
from local_endpoints.gradient.schemas import FineTuneSample, StructuredInput

STATE_FILE = "training_state.safetensors"
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_TOKENS = 1024  # of one sample; activations are kept for the backward pass
MICRO_BATCH_TOKENS = 512
MAX_GRADIENT_NORM = 1.0
IGNORED = -100  # the label that cross-entropy skips


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one step.

    Attributes:
        tokens: Trainable tokens of all samples.
        sum_loss: Sum of their cross-entropy in nats, before the step changed the weights.
    """

    tokens: int
    sum_loss: float


class SampleError(ValueError):
    """A sample that cannot be learnt from; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class _Encoded:
    ids: torch.Tensor  # (tokens,)
    labels: torch.Tensor  # (tokens,); IGNORED for tokens that are only read

    @property
    def trainable(self) -> int:
        return int((self.labels[1:] != IGNORED).sum())


class Trainer:
    """One base model, and the adapter that was trained last.

    Args:
        base: GGUF file of the base model.
        name: The base model's name, written into every adapter, as PEFT does.
        threads: Threads of PyTorch.

    Raises:
        OSError: The file cannot be read.
        AdapterError: It is no GGUF model that adapters can be trained for.
    """

    def __init__(self, base: Path, name: str, threads: int) -> None:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        torch.set_num_threads(threads)
        self._name = name
        self._tokenizer = bases.load_tokenizer(base)
        self._base: PreTrainedModel = bases.load_model(base)
        self._model: PeftModel | None = None
        self._optimizer: torch.optim.AdamW | None = None
        self._learning_rate = 0.0
        self._folder: Path | None = None

    def create(self, folder: Path, rank: int, learning_rate: float, seed: int = 0) -> None:
        """Write a new adapter, which leaves the base model's output as it is.

        Args:
            folder: An empty folder.
            rank: Rank of the two matrices that each linear layer gets.
            learning_rate: Step size of AdamW in all steps of this adapter.
            seed: Of the random half of the two matrices.

        Raises:
            OSError: The folder cannot be written.
        """
        self._drop()
        blocks = self._base.config.num_hidden_layers
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=list(ALL_LINEAR),
            layers_to_transform=list(range(blocks // 2, blocks)),
            lora_dropout=0.0,  # the same samples give the same loss
            bias="none",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._adopt(get_peft_model(self._base, config), learning_rate)
        self._save(folder)

    def step(self, source: Path, target: Path, samples: Sequence[FineTuneSample]) -> StepResult:
        """Take one optimiser step over all samples together.

        Args:
            source: The adapter as the last step, or `create`, left it.
            target: An empty folder for the adapter after this step.
            samples: At least one sample.

        Raises:
            SampleError: A sample is empty, has nothing to learn or is too long; nothing was done.
            OSError: A folder cannot be read or written.
        """
        encoded = [self._encode(number, sample) for number, sample in enumerate(samples, 1)]
        model, optimizer = self._ready(source)
        # Until the new state is saved, memory differs from disk: after a failure, load again.
        self._folder = None
        tokens = sum(sample.trainable for sample in encoded)
        sum_loss = 0.0
        model.train()
        for batch in _micro_batches(encoded):
            loss = self._loss(model, batch)
            sum_loss += float(loss.detach())
            (loss / tokens).backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._save(target)
        return StepResult(tokens, sum_loss)

    def _encode(self, number: int, sample: FineTuneSample) -> _Encoded:
        given = sample.inputs
        ids: list[int] = []
        labels: list[int] = []
        for part in [StructuredInput(value=given)] if isinstance(given, str) else given:
            new = self._tokenizer(
                part.value,
                add_special_tokens=False,
                split_special_tokens=part.parse_special_tokens is False,
            )["input_ids"]
            ids += new
            labels += [IGNORED] * len(new) if part.trainable is False else new
        if len(ids) > MAX_TOKENS:
            raise SampleError(
                f"Sample {number} has {len(ids)} tokens, and the limit is {MAX_TOKENS}: shorten it."
            )
        # The first token cannot be predicted: none stands before it.
        if all(label == IGNORED for label in labels[1:]):
            raise SampleError(
                f"Sample {number} has no token to learn: mark an input as trainable and put "
                "something before it."
            )
        return _Encoded(torch.tensor(ids), torch.tensor(labels))

    def _loss(self, model: PeftModel, batch: Sequence[_Encoded]) -> torch.Tensor:
        """Return the sum of the cross-entropy of all trainable tokens."""
        ids = pad_sequence([one.ids for one in batch], batch_first=True)
        mask = pad_sequence([torch.ones_like(one.ids) for one in batch], batch_first=True)
        labels = pad_sequence([one.labels for one in batch], True, IGNORED)[:, 1:]
        base: Any = model.get_base_model()
        hidden = base.get_decoder()(
            input_ids=ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        learnt = labels != IGNORED
        logits = base.get_output_embeddings()(hidden[:, :-1][learnt])
        return torch.nn.functional.cross_entropy(logits, labels[learnt], reduction="sum")

    # --- adapters in memory and on disk ----------------------------------------------------

    def _ready(self, source: Path) -> tuple[PeftModel, torch.optim.AdamW]:
        if self._folder != source or self._model is None or self._optimizer is None:
            self._load(source)
        assert self._model is not None and self._optimizer is not None
        return self._model, self._optimizer

    def _load(self, folder: Path) -> None:
        self._drop()
        with safe_open(folder / STATE_FILE, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            rate = float(file.metadata()["learning_rate"])
        model = PeftModel.from_pretrained(self._base, folder, is_trainable=True)
        optimizer = self._adopt(model, rate)
        for name, parameter in _trained(model):
            if f"{name}.step" in state:
                optimizer.state[parameter] = {
                    key: state[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self._folder = folder

    def _adopt(self, model: PeftModel, learning_rate: float) -> torch.optim.AdamW:
        parameters = [parameter for _, parameter in _trained(model)]
        self._model = model
        self._learning_rate = learning_rate
        self._optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
        return self._optimizer

    def _save(self, folder: Path) -> None:
        assert self._model is not None and self._optimizer is not None
        self._model.peft_config["default"].base_model_name_or_path = self._name
        # By default PEFT would fetch the base model's configuration from the network.
        self._model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # an empty model card
        state = {
            f"{name}.{key}": value
            for name, parameter in _trained(self._model)
            for key, value in self._optimizer.state.get(parameter, {}).items()
        }
        metadata = {"learning_rate": repr(self._learning_rate)}
        save_file(state, folder / STATE_FILE, metadata)
        self._folder = folder

    def _drop(self) -> None:
        """Take the adapter off the base model."""
        if self._model is not None:
            self._base = self._model.unload()
        self._model = self._optimizer = self._folder = None


def _trained(model: PeftModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad)


def _micro_batches(samples: Sequence[_Encoded]) -> Iterator[list[_Encoded]]:
    """Group samples of similar length: less padding, and bounded memory."""
    batch: list[_Encoded] = []
    for sample in sorted(samples, key=lambda one: len(one.ids)):
        if batch and (len(batch) + 1) * len(sample.ids) > MICRO_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch
