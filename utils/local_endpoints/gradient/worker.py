"""``python -m local_endpoints.gradient.worker BASE.gguf NAME THREADS``: the process that trains.

It reads one JSON object a line from standard input and writes one a line to standard output; the
first says that the model is loaded, each other answers a request. It ends with its standard input,
also in the middle of a step: what a step writes becomes current only when the server says so.

Requests are `{"op": "create", "folder", "rank", "learningRate"}` and `{"op": "step", "source",
"target", "samples"}`; answers are `{"ok": {...}}` or `{"error": KIND, "message": SENTENCE}`, where
KIND is `sample`, `disk` or `failed`.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:  # PyTorch takes seconds to import; the server imports nothing of this module
    from local_endpoints.gradient.trainer import Trainer

Json = dict[str, Any]

NICENESS = 5  # completions come first, and training still moves on a busy machine
SEED = 0  # two adapters of one rank begin alike, so that a run can be repeated


def _private_output() -> BinaryIO:
    """Return standard output for us alone; what libraries print goes to standard error."""
    mine = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return mine


def _say(output: BinaryIO, answer: Json) -> None:
    with suppress(BrokenPipeError):
        output.write(json.dumps(answer).encode() + b"\n")


def _read(requests: queue.SimpleQueue[Json]) -> None:
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    os._exit(0)  # the server has gone, or wants us gone


def _no_space(error: Exception) -> bool:
    # safetensors writes from Rust, whose errors carry the number in their text.
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"os error {n}" in str(error) for n in full)


def _failure(error: Exception) -> Json:
    if _no_space(error):
        return {"error": "disk", "message": "no space is left on the disk"}
    traceback.print_exception(error)
    return {"error": "failed", "message": f"{type(error).__name__}: {error}"[:500]}


def _perform(trainer: Trainer, request: Json) -> Json:
    from local_endpoints.gradient.trainer import Sample, SampleError, Segment

    try:
        if request["op"] == "create":
            folder, rank = Path(request["folder"]), request["rank"]
            trainer.create(folder, rank, request["learningRate"], seed=SEED)
            return {"ok": {}}
        samples = [
            Sample(
                tuple(
                    Segment(part["text"], part["trainable"], part["parseSpecial"])
                    for part in sample["segments"]
                ),
                sample["multiplier"],
            )
            for sample in request["samples"]
        ]
        result = trainer.step(Path(request["source"]), Path(request["target"]), samples)
        # JSON has no number for a loss that is none.
        return {"ok": {"tokens": result.tokens, "sumLoss": repr(result.sum_loss)}}
    except SampleError as error:
        return {"error": "sample", "message": str(error)}
    except Exception as error:
        return _failure(error)


def main(base: Path, name: str, threads: int) -> int:
    """Answer requests until standard input ends.

    Args:
        base: GGUF file of the base model.
        name: What its adapters call it.
        threads: Threads of PyTorch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then stops us
    output = _private_output()
    requests: queue.SimpleQueue[Json] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    with suppress(OSError, AttributeError):  # Windows has no niceness
        os.nice(NICENESS)
    # Read when PyTorch is imported. OpenMP's threads spin while they wait for each other, and one
    # that has lost its core to another program holds up all. A short spin costs nothing on idle
    # cores (a step of 800 tokens took 2.9 s on two, with none 3.6 s), and with one of them busy
    # 8 s instead of 27 s.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        from local_endpoints.gradient.trainer import Trainer

        trainer = Trainer(base, name, threads)
    except Exception as error:
        _say(output, _failure(error))
        return 1
    _say(output, {"ok": {"maxTokens": trainer.max_tokens}})
    while True:
        _say(output, _perform(trainer, requests.get()))


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
