"""Turns texts into tokens (the model's own tokenizer) and tokens into outputs (ONNX Runtime).

Each text is a run of its own on one thread, and as many runs go on side by side as the machine has
cores. Batches would be padded, and the int8 models here scale their activations by the largest
value of a batch, so that a text's vector would depend on its neighbours (cosine down to 0.99 with
itself). On two cores single runs were a quarter faster than batches of 16 with two threads.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from local_endpoints.weights import ResolvedWeights
from nim_cookbook.errors import WeightsError

FloatArray = np.ndarray[Any, np.dtype[np.float32]]
Truncate = Literal["NONE", "START", "END"]

#: Characters that are tokenized together; what a large request may hold up a small one.
TOGETHER = 50_000
#: Characters that are tokenized at once, in less time than handing them to a thread takes.
AT_ONCE = 500


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


class Encoder:
    """A BERT-like ONNX model and its tokenizer.

    Args:
        weights: The model file, and the tokenizer's.
        workers: Runs side by side; the machine's cores by default.

    Attributes:
        limit: Most tokens of an input, special tokens included.

    Raises:
        WeightsError: ONNX Runtime or the tokenizer cannot load the files.
    """

    def __init__(self, weights: ResolvedWeights, workers: int | None = None) -> None:
        model, tokenizer = (weights.folder / name for name, _ in weights.files[:2])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # neither library has a common kind
            raise WeightsError(
                f"{weights.folder} has no model that can be loaded ({str(error)[:200]}): run "
                "`nim-cookbook fetch --force`."
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Around a text stand the two special tokens of BERT's vocabulary.
        self._around: list[int] = self._tokenizer.encode("").ids
        self.limit = weights.max_tokens
        self._workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix=weights.role)
        # One, as the tokenizer spreads its work itself; more would only take more memory.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix=f"{weights.role}-reader")

    async def tokenize(
        self, texts: Sequence[str], truncate: Truncate = "NONE", lead: str = ""
    ) -> list[list[int]]:
        """Return the token ids of texts, special tokens included.

        Args:
            texts: The texts.
            truncate: What to do with more tokens than `limit`: `END` keeps the beginning, `START`
                the end, both exactly `limit` tokens; `NONE` refuses.
            lead: What goes in front of each text and is never cut.

        Raises:
            InputTooLong: A text is over the limit and `truncate` is `NONE`.
        """
        bodies = self._bodies([lead, *texts])
        first = await anext(bodies)
        cls, sep = self._around
        return [
            [cls, *first, *self._fit(body, 2 + len(first), truncate), sep] async for body in bodies
        ]

    async def tokenize_pairs(
        self, query: str, texts: Sequence[str], truncate: Truncate = "NONE"
    ) -> list[tuple[list[int], int]]:
        """Return a query paired with each of the texts, as a cross-encoder reads them.

        Args:
            query: The first of each pair. With truncation it is cut, at its end, only when it
                fills the limit alone.
            texts: The second of each pair, cut as in `tokenize`.
            truncate: As in `tokenize`.

        Returns:
            For each pair its token ids, and the index where the text begins.

        Raises:
            InputTooLong: A pair is over the limit and `truncate` is `NONE`.
        """
        bodies = self._bodies([query, *texts])
        first = await anext(bodies)
        cls, sep = self._around
        pairs = []
        async for body in bodies:
            if truncate == "NONE" and 3 + len(first) + len(body) > self.limit:
                raise InputTooLong(3 + len(first) + len(body), self.limit)
            head = [cls, *first[: self.limit - 3], sep]
            pairs.append(([*head, *self._fit(body, len(head) + 1, truncate), sep], len(head)))
        return pairs

    async def run(self, items: Sequence[tuple[list[int], int]]) -> list[FloatArray]:
        """Return the model's output for each item.

        Concurrent callers take turns: none has more items in work than there are workers. When the
        caller is cancelled, what has not begun is left out.

        Args:
            items: Token ids, and the index where the second text of a pair begins.
        """
        results: dict[int, FloatArray] = {}
        left = iter(enumerate(items))
        loop = asyncio.get_running_loop()

        async def work() -> None:
            for index, item in left:
                results[index] = await loop.run_in_executor(self._pool, self._one, *item)

        await asyncio.gather(*(work() for _ in range(min(self._workers, len(items)))))
        return [results[index] for index in range(len(items))]

    async def close(self) -> None:
        """Refuse new work, and wait for what runs."""
        for pool in (self._reader, self._pool):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    def _one(self, ids: list[int], second: int) -> FloatArray:
        row = np.array([ids], np.int64)
        feeds = {
            "input_ids": row,
            "attention_mask": np.ones_like(row),
            "token_type_ids": (np.arange(len(ids))[None] >= second).astype(np.int64),
        }
        return np.asarray(self._session.run(None, feeds)[0][0], np.float32)

    async def _bodies(self, texts: Sequence[str]) -> AsyncIterator[list[int]]:
        """Yield the tokens of each text, without special tokens.

        A caller that finds one too long leaves the rest unread, and others take turns with it.
        """
        loop = asyncio.get_running_loop()
        for group in _groups(texts):
            pieces = [piece for text in group for piece in _pieces(text)]
            if sum(map(len, pieces)) <= AT_ONCE:
                for ids in self._encode(group):
                    yield ids
                continue
            if len(group) > 1:
                for ids in await loop.run_in_executor(self._reader, self._encode, pieces):
                    yield ids
                continue
            body: list[int] = []
            for piece in pieces:
                body += (await loop.run_in_executor(self._reader, self._encode, [piece]))[0]
            yield body

    def _encode(self, pieces: list[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _fit(self, body: list[int], taken: int, truncate: Truncate) -> list[int]:
        if taken + len(body) <= self.limit:
            return body
        if truncate == "NONE":
            raise InputTooLong(taken + len(body), self.limit)
        room = max(0, self.limit - taken)
        return body[len(body) - room :] if truncate == "START" else body[:room]


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the texts in groups of at most `TOGETHER` characters; a longer one is alone."""
    group: list[str] = []
    length = 0
    for text in texts:
        if group and length + len(text) > TOGETHER:
            yield group
            group, length = [], 0
        group.append(text)
        length += len(text)
    if group:
        yield group


def _pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces of about `TOGETHER` characters, cut where BERT cuts it anyway."""
    start = 0
    while len(text) - start > TOGETHER and (end := text.find(" ", start + TOGETHER)) >= 0:
        yield text[start:end]
        start = end
    yield text[start:]
