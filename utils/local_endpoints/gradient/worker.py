"""``python -m local_endpoints.gradient.worker BASE.gguf NAME THREADS``: the process that trains.

It reads one JSON object a line from standard input and answers each with one line on standard
output. It ends with its standard input, also in the middle of a step: the version that a step
writes becomes current only when the server publishes it.

Requests are `{"op": "create", "folder", "rank", "learningRate"}` and `{"op": "step", "source",
"folder", "samples"}`; answers are `{}`, `{"tokens", "sumLoss"}` or `{"error": KIND, "message":
SENTENCE}`, where KIND is `start` (the model cannot be loaded), `sample` or `failed`.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_endpoints.gradient.schemas import FineTuneSample

if TYPE_CHECKING:  # PyTorch takes seconds to import
    from local_endpoints.gradient.trainer import Trainer

Json = dict[str, Any]

NICENESS = 5  # completions come first
SEED = 0  # two adapters of one rank start with the same weights, so a run can be repeated


def _read(requests: queue.SimpleQueue[Json]) -> None:
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    os._exit(0)  # the server has ended, or closed us


def _failure(kind: str, error: Exception) -> Json:
    traceback.print_exception(error)
    return {"error": kind, "message": f"{type(error).__name__}: {error}"[:500]}


def _perform(trainer: Trainer, request: Json) -> Json:
    from local_endpoints.gradient.trainer import SampleError

    folder = Path(request["folder"])
    try:
        if request["op"] == "create":
            trainer.create(folder, request["rank"], request["learningRate"], seed=SEED)
            return {}
        samples = [FineTuneSample.model_validate(sample) for sample in request["samples"]]
        result = trainer.step(Path(request["source"]), folder, samples)
        return {"tokens": result.tokens, "sumLoss": result.sum_loss}
    except SampleError as error:
        return {"error": "sample", "message": str(error)}
    except Exception as error:
        return _failure("failed", error)


def main(base: Path, name: str, threads: int) -> None:
    """Answer requests until standard input ends.

    Args:
        base: GGUF file of the base model.
        name: The base model's name, written into every adapter.
        threads: Threads of PyTorch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the server, which ends us
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # libraries that print do so to standard error
    requests: queue.SimpleQueue[Json] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    with suppress(OSError, AttributeError):  # Windows has no niceness
        os.nice(NICENESS)
    # Must be set before PyTorch is imported. OpenMP threads spin while they wait for each other.
    # Measured for a step of 800 tokens on two cores: 2.9 s with a short spin, 3.6 s with none;
    # with one core busy 8 s with a short spin and 27 s with the default.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    trainer = None
    while True:
        request = requests.get()
        try:
            if trainer is None:
                from local_endpoints.gradient.trainer import Trainer

                trainer = Trainer(base, name, threads)
            answer = _perform(trainer, request)
        except Exception as error:
            answer = _failure("start", error)
        with suppress(BrokenPipeError):
            output.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
