"""Turns texts into tokens (the model's own tokenizer) and tokens into vectors (ONNX Runtime)."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from local_endpoints.engines import onnx_bert, onnx_files
from local_endpoints.engines.batching import Batcher
from nim_cookbook.errors import WeightsError

FloatArray = np.ndarray[Any, np.dtype[np.float32]]
Truncate = Literal["NONE", "START", "END"]
R = TypeVar("R")

# Padded tokens in one run. More is no faster, since it does not fit the processor's caches (128
# texts of 113 tokens on two cores: in runs of 4 or 8 texts 140 a second, in one run 110), and keeps
# other callers waiting.
TOKEN_BUDGET = 512
# Shorter inputs are tokenised faster than a thread is woken up.
INLINE_CHARACTERS = 2000
KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


class InputTooLong(ValueError):
    """A text has more tokens than the model takes, and truncation was not asked for.

    Attributes:
        length: Its tokens, special tokens included.
        limit: The most tokens that are taken.
    """

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(f"Input length {length} exceeds maximum allowed token size {limit}")
        self.length = length
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenised text, or pair of texts.

    Attributes:
        ids: Token ids, special tokens included.
        second: Index where the second text of a pair starts; `len(ids)` for a single text.
    """

    ids: list[int]
    second: int

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)


class Encoder:
    """A tokenizer and an ONNX session.

    Args:
        folder: Holds `tokenizer.json` and the model (see `onnx_files.find_model`).
        threads: Threads of ONNX Runtime; the machine's cores by default.
        model: The model file's name in the folder; found by its usual names if not given.
        output: What is wanted of the model: vectors of tokens, a vector of the text (vectors of
            tokens if the model has no other), or the score of a pair.

    Attributes:
        output: What the model gives: `tokens`, `sentence` or `score`.
        max_tokens: Longest input in tokens, special tokens included.
        width: Width of the vectors; 1 for scores.

    Raises:
        WeightsError: The files are missing, damaged, or of another kind.
    """

    def __init__(
        self,
        folder: Path,
        threads: int | None = None,
        *,
        model: str | None = None,
        output: Literal["tokens", "sentence", "score"] = "tokens",
    ) -> None:
        self.folder = folder
        name = model or onnx_files.find_model(folder)
        self._tokenizer = _load_tokenizer(folder / onnx_files.find_tokenizer(folder, name))
        self._session = _open_session(folder, name, threads or os.cpu_count() or 1)
        self._inputs = {value.name for value in self._session.get_inputs()}
        if "input_ids" not in self._inputs or not self._inputs <= KNOWN_INPUTS:
            raise WeightsError(
                f"{folder / name} wants the inputs {', '.join(sorted(self._inputs))}, and an "
                f"encoder with {', '.join(sorted(KNOWN_INPUTS))} is needed: choose another model."
            )
        self.output, self._output = self._choose(folder / name, output)
        self.max_tokens = onnx_files.max_tokens(folder)
        self._pad = next(
            (i for t in ("[PAD]", "<pad>") if (i := self._tokenizer.token_to_id(t)) is not None), 0
        )
        self._prefix, self._suffix = _special_tokens(self._tokenizer, pair=False)
        self._pair_template = _special_tokens(self._tokenizer, pair=True)
        self.width = self._probe(folder / name)

    def count(self, text: str) -> int:
        """Return the tokens of a text, special tokens included."""
        return len(self._prefix) + len(self._suffix) + len(self._bodies([text])[0])

    def vocabulary(self) -> list[str]:
        """Return the tokens by their ids; an id that stands for none has an empty text."""
        ids = self._tokenizer.get_vocab()
        tokens = [""] * (max(ids.values(), default=-1) + 1)
        for token, index in ids.items():
            tokens[index] = token
        return tokens

    def tokenize(
        self, texts: Sequence[str], truncate: Truncate = "NONE", limit: int | None = None
    ) -> list[Tokens]:
        """Return the tokens of texts.

        Args:
            texts: The texts.
            truncate: What to do with more tokens than the limit: `END` keeps the beginning,
                `START` the end, both exactly `limit` tokens; `NONE` refuses.
            limit: The most tokens, special tokens included; `max_tokens` by default and at most.

        Raises:
            InputTooLong: A text is over the limit and `truncate` is `NONE`.
        """
        limit = min(limit or self.max_tokens, self.max_tokens)
        special = len(self._prefix) + len(self._suffix)
        tokens = []
        for body in self._bodies(texts):
            if truncate == "NONE" and special + len(body) > limit:
                raise InputTooLong(special + len(body), limit)
            ids = [*self._prefix, *_cut(body, limit - special, truncate), *self._suffix]
            tokens.append(Tokens(ids, len(ids)))
        return tokens

    def tokenize_pairs(
        self,
        text: str,
        others: Sequence[str],
        truncate: Truncate = "NONE",
        limit: int | None = None,
    ) -> list[Tokens]:
        """Return the tokens of a text paired with each of others, as a cross-encoder reads them.

        Args:
            text: The first of each pair.
            others: The second of each pair.
            truncate: As in `tokenize`, for the second text; the first is cut, at its end, only
                when it fills the limit alone.
            limit: The most tokens of a pair.

        Raises:
            InputTooLong: A pair is over the limit and `truncate` is `NONE`.
        """
        limit = min(limit or self.max_tokens, self.max_tokens)
        lead, between, tail = self._pair_template
        special = len(lead) + len(between) + len(tail)
        first, *rest = self._bodies([text, *others])
        pairs = []
        for body in rest:
            length = special + len(first) + len(body)
            if truncate == "NONE" and length > limit:
                raise InputTooLong(length, limit)
            head = [*lead, *_cut(first, limit - special, "END"), *between]
            ids = [*head, *_cut(body, limit - len(head) - len(tail), truncate), *tail]
            pairs.append(Tokens(ids, len(head)))
        return pairs

    def run(self, batch: Sequence[Tokens]) -> list[FloatArray]:
        """Return what the model gives for each item: [tokens, width], or [width].

        The arrays are views of one array for the whole batch.
        """
        longest = max(len(item) for item in batch)
        ids = np.full((len(batch), longest), self._pad, np.int64)
        mask = np.zeros_like(ids)
        segments = np.zeros_like(ids)
        for row, item in enumerate(batch):
            ids[row, : len(item)] = item.ids
            mask[row, : len(item)] = 1
            segments[row, item.second : len(item)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
        feeds = {name: value for name, value in feeds.items() if name in self._inputs}
        output = np.asarray(self._session.run([self._output], feeds)[0], np.float32)
        if output.ndim == 3:
            return [row[: len(item)] for row, item in zip(output, batch, strict=True)]
        return list(output.reshape(len(batch), -1))

    def encode(
        self, texts: Sequence[str], truncate: Truncate = "NONE", limit: int | None = None
    ) -> list[FloatArray]:
        """Return what the model gives for each text, in order; see `tokenize` and `run`.

        Texts of about the same length share a run, so that little is padded.

        Raises:
            InputTooLong: A text is over the limit and `truncate` is `NONE`.
        """
        tokens = self.tokenize(texts, truncate, limit)
        order = sorted(range(len(tokens)), key=lambda index: -len(tokens[index]))
        results: dict[int, FloatArray] = {}
        while order:
            count = max(1, TOKEN_BUDGET // len(tokens[order[0]]))
            batch, order = order[:count], order[count:]
            arrays = self.run([tokens[index] for index in batch])
            results.update((i, array.copy()) for i, array in zip(batch, arrays, strict=True))
        return [results[index] for index in range(len(tokens))]

    def _bodies(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts without special tokens."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _choose(
        self, path: Path, wanted: Literal["tokens", "sentence", "score"]
    ) -> tuple[str, str]:
        outputs = []
        for value in self._session.get_outputs():
            shape = value.shape or []
            width = shape[-1] if shape and isinstance(shape[-1], int) else None
            outputs.append(onnx_files.Output(value.name, len(shape), width))
        accepted: list[onnx_files.Kind] = [wanted]
        if wanted == "sentence":
            accepted.append("tokens")
        for kind in accepted:
            if name := onnx_files.choose(outputs, kind):
                return kind, name
        raise WeightsError(
            f"{path} gives {onnx_files.MEANING[onnx_files.kind_of(outputs)]}, and "
            f"{onnx_files.MEANING[wanted]} is needed: choose another model."
        )

    def _probe(self, path: Path) -> int:
        """Run once: warms up, tells the width, and finds a model that loads and cannot run."""
        try:
            width = int(self.run([Tokens([*self._prefix, *self._suffix] or [0], 2)])[0].shape[-1])
        except Exception as error:  # ONNX Runtime has many kinds, and no common one
            raise WeightsError(
                f"{path} does not run with its tokenizer ({_first_line(error)}): choose another."
            ) from error
        if self.output == "score" and width != 1:
            raise WeightsError(f"{path} gives {width} scores for a pair, and one is needed.")
        return width


class BatchedEncoder:
    """An encoder whose runs are shared by concurrent callers.

    Args:
        encoder: The encoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._batcher: Batcher[tuple[Tokens, Callable[[FloatArray], Any]], Any] = Batcher(
            self._run, lambda item: len(item[0]), TOKEN_BUDGET, name="encoder"
        )

    async def tokenize(
        self, texts: Sequence[str], truncate: Truncate, limit: int | None
    ) -> list[Tokens]:
        """Tokenise without blocking the event loop; see `Encoder.tokenize`."""
        return await _aside(texts, self.encoder.tokenize, list(texts), truncate, limit)

    async def tokenize_pairs(
        self, text: str, others: Sequence[str], truncate: Truncate, limit: int | None
    ) -> list[Tokens]:
        """Tokenise without blocking the event loop; see `Encoder.tokenize_pairs`."""
        texts = [text * len(others), *others]
        return await _aside(texts, self.encoder.tokenize_pairs, text, list(others), truncate, limit)

    async def run(self, items: Sequence[Tokens], finish: Callable[[FloatArray], R]) -> list[R]:
        """Run items in shared batches.

        Args:
            items: The tokenised texts.
            finish: Turns the model's output for one item into what the caller wants, in the
                worker thread. It must not keep the array it is given, a view of the batch's.
        """
        return cast(list[R], await self._batcher.submit([(item, finish) for item in items]))

    async def close(self) -> None:
        """Close; work that waits fails with `BatcherClosed`."""
        await self._batcher.close()

    def _run(self, batch: list[tuple[Tokens, Callable[[FloatArray], Any]]]) -> list[Any]:
        outputs = self.encoder.run([item for item, _ in batch])
        return [finish(output) for (_, finish), output in zip(batch, outputs, strict=True)]


class EncoderPool:
    """Encoders in use: engines over the same model share one, its memory and its batches."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[tuple[object, ...], tuple[BatchedEncoder, int]] = {}

    def acquire(
        self,
        folder: Path,
        threads: int | None = None,
        *,
        model: str | None = None,
        output: Literal["tokens", "sentence", "score"] = "tokens",
    ) -> BatchedEncoder:
        """Return the encoder with these arguments (see `Encoder`), opened if need be.

        Raises:
            WeightsError: See `Encoder`.
        """
        name = model or onnx_files.find_model(folder)
        # Safetensors hold vectors of tokens only, so what is wanted makes no difference.
        wanted = "tokens" if name.endswith(".safetensors") and output == "sentence" else output
        key = (folder.resolve(), name, threads, wanted)
        with self._lock:
            encoder, users = self._used.get(key) or (None, 0)
            if encoder is None:
                encoder = BatchedEncoder(Encoder(folder, threads, model=name, output=wanted))
            self._used[key] = (encoder, users + 1)
            return encoder

    async def release(self, encoder: BatchedEncoder) -> None:
        """Give an encoder back; the last user closes it."""
        with self._lock:
            key = next((key for key, (used, _) in self._used.items() if used is encoder), None)
            if key is None:
                return
            users = self._used[key][1] - 1
            if users:
                self._used[key] = (encoder, users)
                return
            del self._used[key]
        await encoder.close()


POOL = EncoderPool()


async def _aside(texts: Sequence[str], work: Callable[..., R], *args: object) -> R:
    if sum(map(len, texts)) <= INLINE_CHARACTERS:
        return work(*args)
    return await asyncio.to_thread(work, *args)


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise WeightsError(
            f"{path} is no tokenizer that can be read ({_first_line(error)}): fetch it again."
        ) from error
    # Publishers store their training's settings here (this one cuts at 128 and pads to 128).
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_tokens(tokenizer: Tokenizer, *, pair: bool) -> list[list[int]]:
    """Return the ids around a text or a pair: before the first, between them, after the last."""
    encoding = tokenizer.encode("a", "a" if pair else None)
    around: list[list[int]] = [[] for _ in range(3 if pair else 2)]
    place = 0
    for token, part in zip(encoding.ids, encoding.sequence_ids, strict=True):
        if part is None:
            around[place].append(token)
        else:
            place = part + 1
    return around


def _cut(body: list[int], room: int, truncate: Truncate) -> list[int]:
    room = max(0, room)
    if len(body) <= room:
        return body
    return body[len(body) - room :] if truncate == "START" else body[:room]


def _open_session(folder: Path, name: str, threads: int) -> Any:  # noqa: ANN401 - no types
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Otherwise its threads keep a core busy for a while after each run, waiting for the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    source: str | bytes = str(folder / name)
    if name.endswith(".safetensors"):
        source = onnx_bert.build(folder, name)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has many kinds, and no common one
        raise WeightsError(
            f"ONNX Runtime cannot load {folder / name} ({_first_line(error)}): fetch it again or "
            "choose another model."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
