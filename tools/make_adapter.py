"""Train the adapters of recipe 05 at length, and measure them on all questions of the test split.

`make adapter` runs this, about an hour on two idle cores, most of it for answers. It trains on the
default chat model and writes `data/adapters`: two adapters as PEFT folders, in half precision, and
`card.json` with their data, steps, losses and scores, beside those of the larger chat model. A run
that was stopped goes on after the last adapter or answers that it finished; the same data, settings
and weights give the same adapters.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from haystack import Document
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import load_file, save_file

from local_endpoints.adapters import base_name, to_gguf
from local_endpoints.engines.chat import ChatEngine
from local_endpoints.finetuning.trainer import Sample, Segment, Trainer
from local_endpoints.weights import ResolvedWeights, resolve
from nim_cookbook import corpus, evaluation, finetuning, indexing
from nim_cookbook.local import cache_dir
from nim_cookbook.models import load_registry

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "data" / "adapters"
RANK, BATCH, SEED = 8, 8, 1
ANSWER_TOKENS = 60
QUESTIONS_AT_ONCE = 4
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: The adapter's name.
        words: Words of a training passage.
        overlap: Words that it shares with the next.
        learning_rate: Step size of AdamW.
        refusals: Share of the samples that teach to refuse.
        most: How many samples are used; None for all.
        kept: Whether the adapter is written to `data/adapters`.
    """

    name: str
    words: int = 25
    overlap: int = 8
    learning_rate: float = 1e-3
    refusals: float = 0.0
    most: int | None = None
    kept: bool = False


RUNS = (
    Run("brief-answers (this recipe)", most=56),
    Run("brief-answers-long", words=35, overlap=10, learning_rate=5e-4, kept=True),
    Run("refuses-too-much", refusals=0.5, most=160, kept=True),
)


@functools.cache
def passages(words: int, overlap: int) -> list[Document]:
    """Return the company's papers in passages."""
    return indexing.company_passages(corpus.company_files(), words, overlap)


def batches_of(run: Run) -> list[list[finetuning.Sample]]:
    """Return the samples of each step."""
    cut = passages(run.words, run.overlap)
    cases = finetuning.cases(corpus.load_company().split("train"), cut)
    samples = finetuning.samples(cases, refusals=run.refusals, passages=cut, seed=SEED)[: run.most]
    return [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]


def to_trainer(sample: finetuning.Sample) -> Sample:
    """Turn a sample of the Gradient SDK into the trainer's."""
    parts = sample["inputs"]
    return Sample(
        tuple(Segment(p["value"], p["trainable"], p["parse_special_tokens"]) for p in parts)
    )


def train(
    trainer: Trainer, run: Run, batches: Sequence[Any], folder: Path, bars: Progress
) -> list[float]:
    """Train one adapter into `folder`; return the loss of each step."""
    task = bars.add_task(f"training {run.name}", total=len(batches))
    losses = []
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        at = Path(scratch) / "0"
        at.mkdir()
        trainer.create(at, RANK, run.learning_rate)
        for number, batch in enumerate(batches, 1):
            after = Path(scratch) / str(number)
            after.mkdir()
            result = trainer.step(at, after, [to_trainer(sample) for sample in batch])
            shutil.rmtree(at)
            at = after
            losses.append(result.sum_loss / result.tokens)
            bars.update(task, completed=number)
        store(at, folder)
    return losses


def store(source: Path, folder: Path) -> None:
    """Copy an adapter in half precision, which is what a NIM computes in; in one move."""
    draft = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    tensors = {name: value.half() for name, value in load_file(source / PEFT_FILES[1]).items()}
    save_file(tensors, draft / PEFT_FILES[1], {"format": "pt"})
    config = json.loads((source / PEFT_FILES[0]).read_text("utf-8"))
    config["target_modules"].sort()  # a set, so each run would write another order
    _write(draft / PEFT_FILES[0], config)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


async def answers(
    weights: ResolvedWeights, gguf: Path | None, cases: Sequence[finetuning.Case], bars: Progress
) -> list[str]:
    """Return what llama.cpp answers, with an adapter or without, always the likeliest token."""
    engine = ChatEngine(weights, adapters={"adapter": gguf} if gguf else None)
    await engine.start()
    task = bars.add_task("answering", total=len(cases))
    gate = asyncio.Semaphore(QUESTIONS_AT_ONCE)

    async def answer(case: finetuning.Case) -> str:
        body = {"model": "-", "prompt": case.prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0}
        async with gate:
            reply = await engine.complete(
                "/v1/completions", body, adapter="adapter" if gguf else None
            )
        bars.advance(task)
        return str(reply["choices"][0]["text"]).strip()

    try:
        return list(await asyncio.gather(*map(answer, cases)))
    finally:
        await engine.close()


def scores(cases: Sequence[finetuning.Case], given: Sequence[str]) -> dict[str, Any]:
    """Return what the card says of answers, with 95 % intervals."""
    judged = evaluation.evaluate_answers([case.query for case in cases], given)
    return {
        "f1": str(judged.f1),
        "exact": str(judged.exact),
        "contains": str(judged.contains),
        "refused_wrongly": str(judged.refused_wrongly),
        "refused": str(judged.refused),
        "words": round(sum(len(text.split()) for text in given) / len(given), 1),
    }


def against_base(
    cases: Sequence[finetuning.Case], given: Sequence[str], base: Sequence[str]
) -> dict[str, str]:
    """Return the paired differences from the base model, over the answerable questions."""
    queries = [case.query for case in cases]
    ours = evaluation.evaluate_answers(queries, given).rows
    theirs = evaluation.evaluate_answers(queries, base).rows
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.query.answerable]
    return {
        metric: str(
            evaluation.paired_bootstrap(
                [float(getattr(a, metric)) for a, _ in pairs],
                [float(getattr(b, metric)) for _, b in pairs],
            )
        )
        for metric in ("f1", "contains")
    }


class Maker:
    """Trains and measures, and remembers in the cache what is finished."""

    def __init__(self, bars: Progress) -> None:
        """Fetch the weights and put the test questions together."""
        self.bars = bars
        registry = load_registry()
        self.weights, self.larger = (
            resolve(registry.weights_for("chat", models), report=bars.console.print)
            for models in ("default", "better")
        )
        self.base = self.weights.folder / self.weights.files[0][0]
        self.cases = finetuning.cases(corpus.load_company().split("test"), passages(100, 20))
        self._trainer: Trainer | None = None

    def remembered(self, key: object, weights: ResolvedWeights) -> Path:
        """Return the folder for what a key leads to."""
        text = json.dumps([key, weights.files, ANSWER_TOKENS], sort_keys=True, default=str)
        cache = cache_dir() / "make-adapter"
        folder = cache / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def trained(self, run: Run, batches: Sequence[Any]) -> tuple[Path, list[float]]:
        """Return an adapter's folder and losses, trained now or before."""
        key = ["adapter", finetuning.fingerprint(batches), asdict(run)]
        place = self.remembered(key, self.weights)
        folder, log = place / "adapter", place / "losses.json"
        if not log.is_file():
            self._trainer = self._trainer or Trainer(self.base, base_name(self.weights))
            losses = train(self._trainer, run, batches, folder, self.bars)
            _write(log, losses)
        return folder, json.loads(log.read_text("utf-8"))

    def answered(self, weights: ResolvedWeights, folder: Path | None = None) -> list[str]:
        """Return the answers to all test questions, given now or before."""
        gguf = to_gguf(folder, self.base, cache_dir() / "lora") if folder else None
        key = ["answers", gguf.name if gguf else "", _digest(self.cases)]
        log = self.remembered(key, weights) / "answers.json"
        if not log.is_file():
            _write(log, asyncio.run(answers(weights, gguf, self.cases, self.bars)))
        given: list[str] = json.loads(log.read_text("utf-8"))
        return given


def _digest(cases: Sequence[finetuning.Case]) -> str:
    return hashlib.sha256("\0".join(case.prompt for case in cases).encode()).hexdigest()


def _write(path: Path, content: object) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def make(bars: Progress) -> dict[str, Any]:
    """Train, measure, write the adapters; return the card."""
    maker = Maker(bars)

    def untrained(weights: ResolvedWeights, what: str) -> dict[str, Any]:
        given = scores(maker.cases, maker.answered(weights))
        return {"name": f"nothing ({what})", "refusals": 0.0, "steps": 0} | given

    rows = [untrained(maker.weights, "the base model")]
    base = maker.answered(maker.weights)
    for run in RUNS:
        batches = batches_of(run)
        folder, losses = maker.trained(run, batches)
        given = maker.answered(maker.weights, folder)
        measured = scores(maker.cases, given)
        if run.kept:
            TARGET.mkdir(exist_ok=True)
            store(folder, TARGET / run.name)
        rows.append(
            {
                "name": run.name,
                "refusals": run.refusals,
                "steps": len(losses),
                "samples": sum(map(len, batches)),
                "rank": RANK,
                "learning_rate": run.learning_rate,
                "words_of_a_passage": run.words,
                "losses": [round(loss, 3) for loss in losses],
            }
            | measured
            | {"minus_base": against_base(maker.cases, given, base)}
        )
        bars.console.print(f"{run.name}: {json.dumps(measured)}")
    rows.append(untrained(maker.larger, maker.larger.description))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "weights": f"{maker.weights.description} (local stand-in)",
        "base_sha256": maker.weights.files[0][1],
        "licence": "Apache-2.0",
        "base": base_name(maker.weights),
        "data": "the 405 train questions of data/company; measured on its test split: "
        f"{sum(c.query.answerable for c in maker.cases)} answerable questions with the passages "
        f"that hold the answer, {sum(not c.query.answerable for c in maker.cases)} others with "
        "the passage that comes closest by BM25",
        "seed": SEED,
        "runs": rows,
    }


def main() -> int:
    """Make everything; 130 after Ctrl-C."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    try:
        with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
            card = make(bars)
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on after the last finished adapter.")
        return 130
    _write(TARGET / "card.json", card)
    console.print(f"Wrote {TARGET.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
