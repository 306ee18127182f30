"""What the endpoints cost over their engines, as ratios within one run; a part of `make bench`.

    python benchmarks/endpoints.py [--parts embedding reranking chat] [--rounds 7]
                                   [--requests 64] [--json [FILE]]

Each request has one text, or a question with `CHUNKS` chunks; a round is so many requests, by so
many clients at a time. All sides get the same texts.

1. Embedding and reranking over HTTP, against ONNX Runtime called directly with the session that the
   endpoint has (one thread a run, as many runs as cores), against ONNX Runtime as it is by default
   (all cores a run, a run at a time), and against sentence-transformers, which gets the clients'
   texts as one batch. Speed does not depend on a model's values: sentence-transformers has random
   ones, in float32, in a model of the same size (BERT, 12 layers, width 384). The endpoints' models
   are int8.
2. Chat over HTTP against llama.cpp's own server, on the same file, with the same threads and slots.
   No prompt comes twice, so that neither finds one in its cache.

The servers are started if they do not run; what is called directly loads the weights once more.
sentence-transformers is of the extra `bench`, which `make bench` installs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnxruntime
from timing import Measure, Row, alternating, parser, rate_of, ratio_rows, report, say, seconds
from tokenizers import Tokenizer

from capacity.load import Target
from local_endpoints.nim.engines.chat import HTTP_THREADS, PARALLEL_SLOTS, default_threads
from local_endpoints.weights import ResolvedWeights, resolve
from nim_cookbook import endpoints
from nim_cookbook.endpoints import Endpoint
from nim_cookbook.models import Role, load_registry

SENTENCE = "The committee met on Tuesday and discussed the budget of the coming year in detail. "
QUESTION = "When did the committee discuss the budget?"
#: Sentences of a text: a question's length, and nearly the 512 tokens that the models take.
LENGTHS = {"short": 1, "long": 24}
#: A round of short texts has so many times the requests, or it would end in a tenth of a second.
ROUND = {"short": 8, "long": 1}
CHUNKS = 4  # of a reranking request
ANSWER_TOKENS = 32
HTTP, DIRECT, DEFAULT = "HTTP", "ONNX Runtime", "ONNX Runtime, its defaults"
OTHER, LLAMA = "sentence-transformers", "llama.cpp's server"
TARGETS = {DIRECT: 0.9, DEFAULT: None, OTHER: 2.0}

#: Computes so many texts for so many clients.
Engine = Callable[[Sequence[str], int], object]


def texts_of(length: str, count: int) -> list[str]:
    """Return different texts of one length."""
    return [f"{number}. {SENTENCE * LENGTHS[length]}".strip() for number in range(count)]


def http_rate(
    endpoint: Endpoint, route: str, bodies: Sequence[Mapping[str, Any]], clients: int
) -> float:
    """Return answers a second of an endpoint; none may fail."""
    parts = urlsplit(endpoint.url)
    origin = f"{parts.scheme}://{parts.netloc}"
    return rate_of(Target(origin, f"{parts.path}{route}", bodies, endpoint.key or ""), clients)


class Onnx:
    """A model and its tokenizer, called with nothing in between.

    Args:
        weights: The model.
        threads: Threads of one run; 0 for ONNX Runtime's own choice.
        workers: Runs side by side.
    """

    def __init__(self, weights: ResolvedWeights, threads: int, workers: int) -> None:
        model, tokenizer = (str(weights.folder / name) for name, _ in weights.files[:2])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options)
        self._tokenizer = Tokenizer.from_file(tokenizer)
        self._tokenizer.no_padding()
        self._workers = workers
        self._reranking = weights.role == "reranking"

    def __call__(self, texts: Sequence[str], clients: int) -> None:
        """Compute the texts."""
        with ThreadPoolExecutor(min(self._workers, clients)) as pool:
            list(pool.map(self._pairs if self._reranking else self._vector, texts))

    def _vector(self, text: str) -> object:
        vector = self._run(text)[0][0, 0]
        return vector / np.linalg.norm(vector)

    def _pairs(self, text: str) -> object:
        return [float(self._run(QUESTION, f"{n} {text}")[0][0, 0]) for n in range(CHUNKS)]

    def _run(self, *texts: str) -> Any:  # noqa: ANN401
        encoding = self._tokenizer.encode(*texts)
        columns = (encoding.ids, encoding.attention_mask, encoding.type_ids)
        names = ("input_ids", "attention_mask", "token_type_ids")
        feeds = {n: np.array([c], np.int64) for n, c in zip(names, columns, strict=True)}
        return self._session.run(None, feeds)


def sentence_transformers(weights: ResolvedWeights, folder: Path) -> Engine | None:
    """Return sentence-transformers on a model of the weights' shape, None if not installed."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import sentence_transformers as library
    except ImportError:
        return None
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertModel,
        PreTrainedTokenizerFast,
    )

    reranking = weights.role == "reranking"
    special = {
        f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(weights.folder / weights.files[1][0]),
        model_max_length=weights.max_tokens,
        **special,
    )
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=384, num_attention_heads=12, num_hidden_layers=12,
        intermediate_size=1536, num_labels=1,
    )  # fmt: skip
    model = (BertForSequenceClassification if reranking else BertModel)(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    quiet = {"show_progress_bar": False}
    if reranking:
        encoder = library.CrossEncoder(str(folder), device="cpu")

        def rank(texts: Sequence[str], clients: int) -> object:
            pairs = [(QUESTION, f"{n} {text}") for text in texts for n in range(CHUNKS)]
            return encoder.predict(pairs, batch_size=clients * CHUNKS, **quiet)

        return rank
    embedder = library.SentenceTransformer(str(folder), device="cpu")  # with mean pooling
    return lambda texts, clients: embedder.encode(list(texts), batch_size=clients, **quiet)


def encoders(
    nim: endpoints.Endpoints, role: Role, clients: Sequence[int], requests: int, rounds: int
) -> list[Row]:
    """Measure the embedding or the reranking endpoint against what computes the same."""
    weights = resolve(load_registry().weights_for(role), report=say)
    engines: dict[str, Engine | None] = {
        DIRECT: Onnx(weights, 1, os.cpu_count() or 1),
        DEFAULT: Onnx(weights, 0, 1),
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        engines[OTHER] = sentence_transformers(weights, Path(folder))
        for length in LENGTHS:
            for number in clients:
                say(f"  {role}, {length} texts, {number} clients")
                texts = texts_of(length, max(requests, number) * ROUND[length])
                rows += compared(nim, role, length, texts, number, engines, rounds)
    return rows


def compared(
    nim: endpoints.Endpoints,
    role: Role,
    length: str,
    texts: Sequence[str],
    clients: int,
    engines: Mapping[str, Engine | None],
    rounds: int,
) -> list[Row]:
    """Return the rows of one length and number of clients."""
    endpoint = getattr(nim, role)
    route = "/embeddings" if role == "embedding" else "/ranking"
    bodies = [request(endpoint.model, role, text) for text in texts]

    def direct(engine: Engine) -> Measure:
        engine(texts[: min(clients, 2)], clients)  # once untimed, as over HTTP
        return lambda: len(texts) / seconds(lambda: engine(texts, clients))

    measures: dict[str, Measure] = {HTTP: lambda: http_rate(endpoint, route, bodies, clients)}
    measures |= {name: direct(engine) for name, engine in engines.items() if engine}
    rates = alternating(measures, rounds)
    case = {"texts": length, "clients": clients}
    found = {name: target for name, target in TARGETS.items() if name in measures}
    rows = ratio_rows(case, rates, HTTP, found)
    if OTHER not in found:
        note = "not installed: it is of the extra bench"
        rows.append(
            {**case, "what": HTTP, "against": OTHER, "target": TARGETS[OTHER], "note": note}
        )
    return rows


def request(model: str, role: Role, text: str) -> dict[str, object]:
    """Return the body of one request."""
    if role == "embedding":
        return {"model": model, "input": [text], "input_type": "passage"}
    chunks = [{"text": f"{number} {text}"} for number in range(CHUNKS)]
    return {"model": model, "query": {"text": QUESTION}, "passages": chunks}


def chat(nim: endpoints.Endpoints, clients: Sequence[int], requests: int, rounds: int) -> list[Row]:
    """Measure the chat endpoint against llama.cpp's own server, in answers of `ANSWER_TOKENS`."""
    import xllamacpp

    weights = resolve(
        load_registry().weights_for("chat", os.environ.get("COOKBOOK_MODELS", "default")),
        report=say,
    )
    params = xllamacpp.CommonParams()
    params.model.path = str(weights.folder / weights.files[0][0])
    params.n_ctx, params.n_parallel = weights.max_tokens * PARALLEL_SLOTS, PARALLEL_SLOTS
    params.warmup, params.ui, params.verbosity = False, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = default_threads()
    params.n_threads_http, params.cache_ram_mib = HTTP_THREADS, 0
    params.cache_idle_slots = False
    key, route = os.urandom(16).hex(), "/v1/chat/completions"
    params.api_keys = [key]
    server = xllamacpp.Server(params)
    numbers = iter(range(10**6))
    batches: dict[str, list[list[dict[str, object]]]] = {HTTP: [], LLAMA: []}

    def bodies(side: str, count: int) -> list[dict[str, object]]:
        """Return a round's requests: new ones, and then the same for the other side."""
        if not batches[side]:
            new = [chat_request(nim.chat.model, next(numbers)) for _ in range(count)]
            for waiting in batches.values():
                waiting.append(new)
        return batches[side].pop(0)

    rows: list[Row] = []
    for number in clients:
        say(f"  chat, {number} clients")
        count = max(requests // 2, number)
        rates = alternating(
            {
                HTTP: lambda n=number, c=count: http_rate(
                    nim.chat, "/chat/completions", bodies(HTTP, c), n
                ),
                LLAMA: lambda n=number, c=count: rate_of(
                    Target(server.listening_address, route, bodies(LLAMA, c), key), n
                ),
            },
            rounds,
        )
        rows += ratio_rows({"clients": number}, rates, HTTP, {LLAMA: 0.95})
    return rows


def chat_request(model: str, number: int) -> dict[str, object]:
    """Return a request that no other is like."""
    text = f"{number}. {SENTENCE * 3}Tell a long story about it."
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
    }


def main() -> int:
    """Run the measurements and print them."""
    options = parser(__doc__, rounds=7)
    names = ("embedding", "reranking", "chat")
    options.add_argument("--parts", nargs="+", choices=names, default=names)
    options.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    options.add_argument("--chat-clients", type=int, nargs="+", default=[1, 4, 16])
    options.add_argument("--requests", type=int, default=64, help="of a round of long texts")
    given = options.parse_args()
    nim = endpoints.connect("nim")
    sections: list[dict[str, object]] = []
    for name in names:
        if name not in given.parts:
            continue
        say(name)
        size = (given.requests, given.rounds)
        rows = (
            chat(nim, given.chat_clients, *size)
            if name == "chat"
            else encoders(nim, name, given.clients, *size)
        )
        sections.append({"title": TITLES[name], "plot": "ratios", "rows": rows})
    report(
        {"weights": {str(k): v for k, v in nim.weights.items()}, "sections": sections}, given.json
    )
    nim.close()
    sys.stdout.flush()
    os._exit(0)  # llama.cpp's threads may still wind down


TITLES = {
    "embedding": "Embedding over HTTP against ONNX Runtime and sentence-transformers",
    "reranking": "Reranking over HTTP against ONNX Runtime and sentence-transformers",
    "chat": "Chat over HTTP against llama.cpp's own server",
}

if __name__ == "__main__":
    main()
