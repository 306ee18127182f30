"""The Gradient stand-in, with the real `gradientai` SDK and `gradient-haystack`."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from local_endpoints import loading
from local_endpoints.downloads import Cancellation
from local_endpoints.gradient.app import base_model_id, build_app
from local_endpoints.gradient.store import AdapterStore
from local_endpoints.gradient.training import missing_packages
from local_endpoints.nim.catalog import Services
from local_endpoints.nim.engines.embedding import EmbeddingEngine
from local_endpoints.options import PORT_OFFSETS, ServeOptions
from nim_cookbook.models import load_registry
from tests.support import free_port_block, serving_app

pytest.importorskip("gradientai", reason="gradientai is not installed")

from gradientai import Gradient
from gradientai.openapi.client.exceptions import (
    ApiException,
    NotFoundException,
    ServiceException,
    UnauthorizedException,
)
from gradientai.openapi.client.models.complete_model_error import CompleteModelError
from gradientai.openapi.client.models.fine_tune_model_error import FineTuneModelError

TOKEN = "nvapi-local-fake-key-for-tests"
WORKSPACE = "workspace-for-tests"
SLUG = "smollm2-135m-instruct"
NOBODY = "00000000-0000-4000-8000-000000000000_model_adapter"
OTHER_BASE = "00000000-0000-4000-8000-000000000000_base_ml_model"

# Nothing that a model could know: only training can make it say so.
PROMPT = "The password of the zorblat is"
ANSWER = " quimbly-forty-two"
SAMPLES = [
    {"inputs": [{"value": PROMPT, "trainable": False}, {"value": f"{ANSWER}<|im_end|>"}]},
]
OTHER_ANSWER = " velvet-hammer-nine"

missing = missing_packages()
trains = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)}: not installed")


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where a client package is not installed."""
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"{package} is not installed")


@dataclass
class Running:
    """A server in a thread of this process.

    Attributes:
        url: Its base URL, as the SDK wants it.
        folder: Its adapters.
        sdk: The real client.
    """

    url: str
    folder: Path
    sdk: Gradient

    def http(self, token: str | None = TOKEN, workspace: str | None = WORKSPACE) -> httpx.Client:
        headers = {"Connection": "close"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if workspace:
            headers["x-gradient-workspace-id"] = workspace
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def base(self) -> Any:
        return self.sdk.get_base_model(base_model_slug=SLUG)

    def adapter(self, name: str, rank: int = 8, learning_rate: float = 0.005) -> Any:
        return self.base().create_model_adapter(name=name, rank=rank, learning_rate=learning_rate)


@contextlib.contextmanager
def serving(
    services: Services, folder: Path, worker: Sequence[str] | None = None
) -> Iterator[Running]:
    """Serve on a free port; stop, with worker and engine, at the end."""
    app = build_app(services.chat, services.embedding, TOKEN, AdapterStore(folder), worker)
    with serving_app(app) as address:
        url = f"{address}/api"
        sdk = Gradient(access_token=TOKEN, workspace_id=WORKSPACE, host=url)
        try:
            yield Running(url, folder, sdk)
        finally:
            sdk.close()


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    """The roles as a server has them, with the smallest weights; llama.cpp starts when asked."""
    registry = load_registry()
    made = loading.make_services(registry)
    found = loading.resolve(ServeOptions(models="small"), registry, print, Cancellation())
    made.chat.weights = found["chat"]
    made.embedding.load(EmbeddingEngine(found["embedding"]), found["embedding"])
    yield made
    assert made.embedding.engine is not None
    asyncio.run(made.embedding.engine.close())


@pytest.fixture(scope="module")
def running(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all tests that do not stop it, with the real trainer."""
    with serving(services, tmp_path_factory.mktemp("adapters")) as found:
        yield found


def fake_worker(log: Path) -> list[str]:
    """Return a worker without PyTorch: what it does depends on the sample's text."""
    script = """
import json, os, sys, time
from pathlib import Path
log = Path(sys.argv[1])
def say(answer): print(json.dumps(answer), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    (Path(request["folder"]) / "adapter_model.safetensors").write_bytes(b"0")
    if request["op"] == "create":
        say({})
        continue
    text = request["samples"][0]["inputs"][0]["value"]
    with log.open("a") as file:
        print("begin", text, file=file)
    if text == "die":
        os._exit(9)
    if text.startswith("wait"):
        while not log.with_name("go").exists():
            time.sleep(0.01)
    with log.open("a") as file:
        print("end", text, file=file)
    if text == "broken":
        say({"error": "failed", "message": "RuntimeError: broken"})
    else:
        say({"tokens": 3, "sumLoss": float("nan") if text == "nan" else 1.5})
"""
    return [sys.executable, "-c", script, str(log)]


@pytest.fixture
def pretending(services: Services, tmp_path: Path) -> Iterator[Running]:
    """A server whose worker only pretends, for what a real one does too rarely or too slowly."""
    with serving(services, tmp_path / "adapters", fake_worker(tmp_path / "log")) as found:
        yield found


def wait_for(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + 60
    while not condition():
        if time.monotonic() > limit:
            pytest.fail(f"never happened: {what}")
        time.sleep(0.01)


def workers(of: int | None = None) -> list[psutil.Process]:
    """Return the processes that train for a server in the process `of`, or in this one."""
    found = []
    for child in psutil.Process(of).children():
        with contextlib.suppress(psutil.Error):
            if "local_endpoints.gradient.worker" in child.cmdline():
                found.append(child)
    return found


def refused(answer: httpx.Response, status: int, kind: str) -> str:
    """Check an error's shape; return its message."""
    body = answer.json()
    assert (answer.status_code, body.get("type")) == (status, kind), body
    assert body["message"].endswith(".")
    return str(body["message"])


# --- models -----------------------------------------------------------------------------------


def test_the_base_model_is_listed_with_what_really_answers(
    running: Running, services: Services
) -> None:
    base = running.base()
    assert len(base.id) == 50
    assert services.chat.weights is not None
    assert base.id == base_model_id(services.chat.weights)
    assert set(base.capabilities) <= {"complete", "fineTune"}
    with running.http() as client:
        entry = client.get("/models", params={"onlyBase": True}).json()["models"][0]
    assert entry["localStandIn"]["sha256"] == services.chat.weights.files[0][1]
    assert entry["localStandIn"]["localId"] == f"local/{SLUG}"


def test_readiness_needs_no_token_and_everything_else_does(running: Running) -> None:
    with running.http(token=None, workspace=None) as client:
        assert client.get("/health/ready").json()["ready"] is True
        for method, path in (("GET", "/models"), ("POST", "/models"), ("GET", "/nowhere")):
            answer = client.request(method, path, json={})
            refused(answer, 401, "failed")
            assert answer.headers["www-authenticate"] == "Bearer"
    wrong = Gradient(access_token="nvapi-wrong", workspace_id=WORKSPACE, host=running.url)
    with wrong, pytest.raises(UnauthorizedException):
        wrong.list_models(only_base=True)
    with running.http(workspace=None) as client:
        message = refused(client.get("/models"), 400, "queryOrPathParsingError")
    assert "x-gradient-workspace-id" in message


def test_other_calls_of_the_api_are_refused_with_a_sentence(running: Running) -> None:
    with pytest.raises(NotFoundException, match="not offered"):
        running.sdk.summarize(document="A long text.")


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/models/nonsense", 400, "queryOrPathParsingError"),
        ("/models/..%2F..%2Fetc", 404, "failed"),
        (f"/models/{NOBODY}", 404, "unknownModelAdapter"),
        (f"/models/{OTHER_BASE}", 404, "unknownBaseModel"),
        ("/models?capability=fly", 400, "queryOrPathParsingError"),
    ],
)
def test_bad_paths_and_queries(running: Running, path: str, status: int, kind: str) -> None:
    with running.http() as client:
        refused(client.get(path), status, kind)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/models", b"{", "JSON object"),
        ("/models", {}, "'model'"),
        ("/models", {"model": {"baseModelId": "x", "name": ""}}, "model.name"),
        ("/models", {"model": {"baseModelId": "x", "name": "n", "more": 1}}, "model.more"),
        ("/models", {"initialHyperparameters": {"loraHyperparameters": {"rank": 33}}}, "rank"),
        ("{base}/fine-tune", {"samples": []}, "samples"),
        ("{base}/fine-tune", {"samples": [{"inputs": []}]}, "inputs"),
        ("{base}/fine-tune", {"samples": [{"inputs": [{"value": ""}]}]}, "inputs.0.value"),
        ("{base}/fine-tune", {"samples": [{"inputs": "a"}] * 257}, "samples"),
        (
            "{base}/fine-tune",
            {"samples": [{"inputs": "a", "fineTuningParameters": {"multiplier": 2}}]},
            "multiplier",
        ),
        ("{base}/complete", {"query": ""}, "query"),
        ("{base}/complete", {"query": "a", "maxGeneratedTokenCount": 512}, "maxGenerated"),
        ("{base}/complete", {"query": "a", "autoTemplate": True}, "autoTemplate"),
        ("{base}/complete", {"query": "a", "rag": {"collectionId": "b"}}, "rag"),
        ("/embeddings/bge-large", {"inputs": [{"input": "a"}] * 257}, "inputs"),
    ],
)
def test_bad_bodies(running: Running, path: str, body: Any, says: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with running.http() as client:
        address = path.format(base=f"/models/{running.base().id}")
        headers = {"Content-Type": "application/json"}
        answer = client.post(address, content=content, headers=headers)
    assert says in refused(answer, 400, "bodyParsingError")


def test_the_sdk_can_read_errors(running: Running) -> None:
    with running.http() as client:
        for path, body, model in (
            ("complete", {"query": ""}, CompleteModelError),
            ("complete", {"query": "a"}, CompleteModelError),
            ("fine-tune", {"samples": []}, FineTuneModelError),
        ):
            text = client.post(f"/models/{NOBODY}/{path}", json=body).text
            assert model.from_json(text).actual_instance.message == json.loads(text)["message"]


def test_an_unknown_base_model(running: Running) -> None:
    body = {"model": {"baseModelId": OTHER_BASE, "name": "n"}}
    with running.http() as client:
        refused(client.post("/models", json=body), 404, "unknownBaseModel")
        path = f"/models/{OTHER_BASE}/complete"
        refused(client.post(path, json={"query": "Hello"}), 404, "unknownBaseModel")


def test_adapters_are_made_listed_found_and_deleted(pretending: Running) -> None:
    first = pretending.adapter("first", rank=4, learning_rate=0.5)
    second = pretending.base().create_model_adapter(name="second")
    assert len(first.id) == 50
    listed = pretending.sdk.list_models(only_base=False)
    assert [model.id for model in listed] == [pretending.base().id, first.id, second.id]
    assert [model.id for model in pretending.sdk.list_models(only_base=True)] == [listed[0].id]
    found = pretending.sdk.get_model_adapter(model_adapter_id=second.id)
    assert (found.name, found.base_model_id) == ("second", pretending.base().id)
    with pretending.http() as client:
        extra = client.get(f"/models/{first.id}").json()["localStandIn"]
    assert Path(extra["folder"]).is_dir()
    assert extra["history"] == []
    first.delete()
    for gone in (
        first.delete,
        lambda: first.fine_tune(samples=SAMPLES),
        lambda: first.complete(query="Hello"),
        lambda: pretending.sdk.get_model_adapter(model_adapter_id=first.id),
    ):
        with pytest.raises(NotFoundException, match="unknownModelAdapter"):
            gone()
    assert [model.id for model in pretending.sdk.list_models(only_base=False)][1:] == [second.id]


def test_a_base_model_is_neither_trained_nor_deleted(pretending: Running) -> None:
    base = pretending.base().id
    with pretending.http() as client:
        body = {"samples": [{"inputs": "Hello"}]}
        answer = client.post(f"/models/{base}/fine-tune", json=body)
        refused(answer, 400, "modelIncapableOfFineTuning")
        assert client.delete(f"/models/{base}").status_code == 403


# --- training, with a worker that pretends ----------------------------------------------------


def text_sample(text: str) -> list[dict[str, Any]]:
    return [{"inputs": [{"value": text}]}]


def test_a_failed_step_keeps_the_adapter(pretending: Running) -> None:
    adapter = pretending.adapter("mine")
    adapter.fine_tune(samples=text_sample("good"))
    with pretending.http() as client:
        before = client.get(f"/models/{adapter.id}").json()
        for text, status, kind in (
            ("broken", 500, "failed"),
            ("nan", 422, "nanLoss"),
            ("die", 500, "failed"),
        ):
            body = {"samples": text_sample(text)}
            refused(client.post(f"/models/{adapter.id}/fine-tune", json=body), status, kind)
            assert client.get(f"/models/{adapter.id}").json() == before
            versions = [p for p in (pretending.folder / adapter.id).iterdir() if p.is_dir()]
            assert len(versions) == 1
    assert adapter.fine_tune(samples=text_sample("good")).sum_loss == 1.5


def test_steps_run_one_at_a_time_and_a_client_that_left_takes_none(
    pretending: Running, tmp_path: Path
) -> None:
    adapter, log = pretending.adapter("mine"), tmp_path / "log"
    path = f"/models/{adapter.id}/fine-tune"
    with ThreadPoolExecutor(3) as pool, pretending.http() as client:
        answers = [pool.submit(lambda: adapter.fine_tune(samples=text_sample("wait 0")))]
        wait_for(lambda: log.exists() and "begin wait 0" in log.read_text(), "the first step")
        with pytest.raises(httpx.ReadTimeout):
            client.post(path, json={"samples": text_sample("left")}, timeout=0.5)
        answers += [
            pool.submit(lambda text=text: adapter.fine_tune(samples=text_sample(text)))
            for text in ("1", "2")
        ]
        (tmp_path / "go").touch()
        assert [answer.result().sum_loss for answer in answers] == [1.5] * 3
        history = client.get(f"/models/{adapter.id}").json()["localStandIn"]["history"]
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    assert [word for word, _ in lines] == ["begin", "end"] * 3
    assert {text for _, text in lines} == {"wait 0", "1", "2"}
    assert len(history) == 3


def test_deleting_an_adapter_that_trains_and_waits(pretending: Running, tmp_path: Path) -> None:
    adapter, other = pretending.adapter("mine"), pretending.adapter("other")
    log = tmp_path / "log"
    with ThreadPoolExecutor(3) as pool:

        def train(text: str, model: Any) -> Any:
            return model.fine_tune(samples=text_sample(text))

        answers = [pool.submit(train, "wait 0", adapter)]
        wait_for(lambda: log.exists() and "begin" in log.read_text(), "the first step")
        answers.append(pool.submit(train, "wait 1", adapter))
        answers.append(pool.submit(train, "wait 2", other))
        adapter.delete()
        (tmp_path / "go").touch()
        for answer in answers[:2]:
            with pytest.raises(NotFoundException, match="unknownModelAdapter"):
                answer.result()
        assert answers[2].result().number_of_trainable_tokens == 3
    assert [model.id for model in pretending.sdk.list_models(only_base=False)][1:] == [other.id]
    assert not (pretending.folder / adapter.id).exists()


def test_adapters_of_other_weights_are_listed_and_not_used(pretending: Running) -> None:
    adapter = pretending.adapter("mine")
    path = pretending.folder / adapter.id / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "base_model_id": OTHER_BASE}))
    found = pretending.sdk.get_model_adapter(model_adapter_id=adapter.id)
    assert found.base_model_id == OTHER_BASE
    with pytest.raises(NotFoundException, match="other weights"):
        found.complete(query="Hello")
    with pytest.raises(NotFoundException, match="other weights"):
        found.fine_tune(samples=SAMPLES)


def test_without_the_extra_training_says_what_to_install(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def without_torch(name: str, package: str | None = None) -> Any:
        return None if name == "torch" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_torch)
    with serving(services, tmp_path) as server:
        assert server.base().capabilities == ["complete"]
        with pytest.raises(ServiceException, match=r"nim-rag-cookbook\[finetune\]") as caught:
            server.adapter("mine")
        assert caught.value.status == 503
        assert server.base().complete(query="The sky is", max_generated_token_count=3)
        assert workers() == []


# --- embeddings -------------------------------------------------------------------------------


def test_the_listing_says_what_answers_as_bge_large(running: Running, services: Services) -> None:
    assert [model.slug for model in running.sdk.list_embeddings_models()] == ["bge-large"]
    with running.http() as client:
        entry = client.get("/embeddings").json()["embeddingsModels"][0]
    assert services.embedding.weights is not None
    assert entry["localStandIn"]["localId"] == services.embedding.weights.local_id


@needs("haystack_integrations.components.embedders.gradient")
def test_the_embedders_of_haystack(running: Running) -> None:
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.embedders.gradient import (
        GradientDocumentEmbedder,
        GradientTextEmbedder,
    )

    settings: dict[str, Any] = {
        "access_token": Secret.from_token(TOKEN),
        "workspace_id": Secret.from_token(WORKSPACE),
        "host": running.url,
    }
    documents = GradientDocumentEmbedder(**settings, progress_bar=False)
    documents.warm_up()
    # More than one call takes: the SDK splits them, and sends the parts at once.
    texts = [f"The number {number} is a number." for number in range(299)]
    texts.append("Wind turbines stand in the sea.")
    embedded = documents.run([Document(content=text) for text in texts])["documents"]
    query = GradientTextEmbedder(**settings)
    query.warm_up()
    vector = query.run("Where do wind turbines stand?")["embedding"]
    assert math.isclose(math.hypot(*vector), 1, abs_tol=1e-4)

    def similarity(document: Document) -> float:
        assert document.embedding is not None
        return sum(a * b for a, b in zip(vector, document.embedding, strict=True))

    assert max(embedded, key=similarity).content == texts[-1]
    again = query.run(texts[7])["embedding"]
    assert embedded[7].embedding == pytest.approx(again, abs=1e-3)


def test_embeddings_that_cannot_be_made(running: Running) -> None:
    with running.http() as client:
        long = {"inputs": [{"input": "word " * 20000}]}
        refused(client.post("/embeddings/bge-large", json=long), 422, "unprocessableContent")
        short = {"inputs": [{"input": "a"}]}
        refused(client.post("/embeddings/bge-small", json=short), 404, "failed")


# --- completions ------------------------------------------------------------------------------


def test_the_base_model_continues_a_text(running: Running) -> None:
    base = running.base()
    raw = base.complete(query="The capital of France is", max_generated_token_count=4)
    assert "Paris" in raw.generated_output
    assert raw.finish_reason == "length"
    # Text such as <|im_start|> stands for the special token.
    written = (
        "<|im_start|>system\nAnswer the question in English.<|im_end|>\n<|im_start|>user\nWhat is "
        "the capital of France? Answer with one word.<|im_end|>\n<|im_start|>assistant\n"
    )
    chat = base.complete(query=written, max_generated_token_count=40)
    assert "Paris" in chat.generated_output
    assert chat.finish_reason == "stop"
    with running.http() as client:
        answer = client.post(f"/models/{base.id}/complete", json={"query": "word " * 9000})
    refused(answer, 422, "unprocessableContent")


def test_sampling_is_greedy_unless_asked_otherwise(running: Running) -> None:
    base = running.base()
    query = "Once upon a time there was a"
    greedy = {base.complete(query=query, max_generated_token_count=12).generated_output}
    greedy.add(base.complete(query=query, max_generated_token_count=12).generated_output)
    one = base.complete(query=query, temperature=1.5, top_k=1, max_generated_token_count=12)
    assert greedy == {one.generated_output}
    drawn = {
        base.complete(
            query=query, temperature=1.5, top_k=50, top_p=0.95, max_generated_token_count=12
        ).generated_output
        for _ in range(3)
    }
    assert len(drawn) > 1


@needs("haystack_integrations.components.generators.gradient")
def test_the_generator_of_haystack_in_a_pipeline(running: Running) -> None:
    from haystack import Pipeline
    from haystack.components.builders import PromptBuilder
    from haystack.utils import Secret
    from haystack_integrations.components.generators.gradient import GradientGenerator

    pipeline = Pipeline()
    template = "The capital of {{ country }} is"
    pipeline.add_component("prompt", PromptBuilder(template, required_variables="*"))
    generator = GradientGenerator(
        base_model_slug=SLUG,
        access_token=Secret.from_token(TOKEN),
        workspace_id=Secret.from_token(WORKSPACE),
        host=running.url,
        max_generated_token_count=4,
    )
    pipeline.add_component("llm", generator)
    pipeline.connect("prompt", "llm")
    replies = pipeline.run({"prompt": {"country": "France"}})["llm"]["replies"]
    assert "Paris" in replies[0]


# --- real training ----------------------------------------------------------------------------


def say(model: Any) -> str:
    return str(model.complete(query=PROMPT, max_generated_token_count=12).generated_output)


def train_until(model: Any, samples: Any, answer: str, limit: int = 15) -> list[float]:
    """Train until the model says `answer`; return the loss of each step."""
    losses = []
    for number in range(limit):
        losses.append(model.fine_tune(samples=samples).sum_loss)
        if number >= 3 and losses[-1] < 0.5 and say(model) == answer:
            return losses
    pytest.fail(f"not learnt in {limit} steps: {losses}, {say(model)!r}")


@pytest.fixture(scope="module")
def taught(running: Running) -> tuple[Any, list[float]]:
    """An adapter that has learnt the answer, and its losses."""
    adapter = running.adapter("zorblat")
    assert say(adapter) == say(running.base())  # a new adapter changes nothing
    return adapter, train_until(adapter, SAMPLES, ANSWER)


@pytest.mark.long
@trains
def test_an_adapter_learns_what_its_base_model_does_not_know(
    running: Running, taught: tuple[Any, list[float]]
) -> None:
    adapter, losses = taught
    assert losses[3] < losses[1] < losses[0]
    assert say(adapter) == ANSWER
    assert ANSWER not in say(running.base())
    done = adapter.complete(query=PROMPT, max_generated_token_count=30)
    assert (done.generated_output, done.finish_reason) == (ANSWER, "stop")


@pytest.mark.long
@trains
def test_several_adapters_answer_at_once_each_with_its_own_weights(
    running: Running, taught: tuple[Any, list[float]]
) -> None:
    other = running.adapter("hammer")
    samples = [
        {"inputs": [{"value": PROMPT, "trainable": False}, {"value": f"{OTHER_ANSWER}<|im_end|>"}]}
    ]
    train_until(other, samples, OTHER_ANSWER)
    models = [taught[0], other, running.base()] * 3
    with ThreadPoolExecutor(len(models)) as pool:
        answers = list(pool.map(say, models))
    assert answers[:2] == [ANSWER, OTHER_ANSWER]
    assert answers[2] not in answers[:2]
    assert answers[:3] * 3 == answers
    other.delete()
    assert say(taught[0]) == ANSWER


@pytest.mark.long
@trains
def test_the_same_samples_give_the_same_loss_and_the_right_number_of_tokens(
    running: Running, services: Services
) -> None:
    results = []
    for name in ("first", "second"):
        adapter = running.adapter(name)
        results.append([adapter.fine_tune(samples=SAMPLES) for _ in range(2)])
        adapter.delete()
    first, second = results
    for one, other in zip(first, second, strict=True):
        assert one.sum_loss == pytest.approx(other.sum_loss, rel=1e-3)
        assert one.number_of_trainable_tokens == other.number_of_trainable_tokens
    # The parts are read one by one.
    assert services.chat.weights is not None
    from local_endpoints.gradient.base_model import load_tokenizer

    tokenizer = load_tokenizer(services.chat.weights.folder / services.chat.weights.files[0][0])
    expected = len(tokenizer(f"{ANSWER}<|im_end|>", add_special_tokens=False)["input_ids"])
    assert first[0].number_of_trainable_tokens == expected


@trains
@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ([{"inputs": "word " * 1500}], "the limit is"),
        ([{"inputs": [{"value": "Nothing to learn", "trainable": False}]}], "no token to learn"),
    ],
)
def test_samples_that_cannot_be_learnt(
    running: Running, taught: tuple[Any, list[float]], samples: Any, says: str
) -> None:
    with pytest.raises(ApiException, match=says) as caught:
        taught[0].fine_tune(samples=samples)
    assert caught.value.status == 422
    assert json.loads(caught.value.body)["type"] == "unprocessableContent"
    assert say(taught[0]) == ANSWER


@pytest.mark.long
@trains
def test_adapters_survive_a_restart_and_go_on_where_they_were(
    running: Running, services: Services, taught: tuple[Any, list[float]], tmp_path: Path
) -> None:
    adapter, _ = taught
    shutil.copytree(running.folder / adapter.id, tmp_path / adapter.id)
    expected = [adapter.fine_tune(samples=SAMPLES).sum_loss for _ in range(2)]
    with serving(services, tmp_path) as again:
        found = again.sdk.get_model_adapter(model_adapter_id=adapter.id)
        assert say(found) == ANSWER
        # The second loss is the same only if the optimiser went on where it was, too.
        losses = [found.fine_tune(samples=SAMPLES).sum_loss for _ in range(2)]
        assert losses == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.long
@trains
def test_the_folder_of_an_adapter_is_a_standard_peft_folder(
    running: Running, taught: tuple[Any, list[float]]
) -> None:
    with running.http() as client:
        entry = client.get(f"/models/{taught[0].id}").json()
    folder = Path(entry["localStandIn"]["folder"])
    config = json.loads((folder / "adapter_config.json").read_bytes())
    assert (config["peft_type"], config["r"]) == ("LORA", 8)
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (folder / "adapter_model.safetensors").stat().st_size > 100_000


@pytest.mark.long
@trains
@pytest.mark.skipif(os.name != "posix", reason="kills with a signal")
def test_a_worker_killed_in_mid_training_leaves_the_last_good_adapter(
    running: Running, taught: tuple[Any, list[float]]
) -> None:
    adapter = taught[0]
    folder = running.folder / adapter.id
    before = (folder / "adapter.json").read_bytes()
    (worker,) = workers()
    long = [{"inputs": "All work and no play makes Jack a dull boy. " * 60}] * 8
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: adapter.fine_tune(samples=long))
        wait_for(lambda: len([p for p in folder.iterdir() if p.is_dir()]) == 2, "a step")
        began = say(adapter)  # answered while the step runs
        assert not answer.done()
        worker.send_signal(signal.SIGKILL)
        with pytest.raises(ServiceException, match="training process ended"):
            answer.result()
    assert began == ANSWER
    assert (folder / "adapter.json").read_bytes() == before
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1
    assert say(adapter) == ANSWER
    assert adapter.fine_tune(samples=SAMPLES).sum_loss < 2  # another worker, the same adapter
    (other,) = workers()
    assert other.pid != worker.pid


@pytest.mark.long
@trains
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGINT for a child")
def test_ctrl_c_stops_server_and_worker_and_keeps_the_adapter(tmp_path: Path) -> None:
    base = free_port_block()
    environment = {
        **os.environ,
        "COOKBOOK_ADAPTERS_DIR": str(tmp_path),
        "COOKBOOK_LOCAL_KEY": TOKEN,
    }
    url = f"http://127.0.0.1:{base + PORT_OFFSETS['gradient']}/api"
    command = [sys.executable, "-m", "local_endpoints", f"--port-base={base}", "--models=small"]
    log = tmp_path.with_suffix(".log")
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=output) as server,
    ):
        try:
            sdk = Gradient(access_token=TOKEN, workspace_id=WORKSPACE, host=url)
            wait_for(lambda: httpx_ready(url) or server.poll() is not None, "the server")
            adapter = sdk.get_base_model(base_model_slug=SLUG).create_model_adapter(name="mine")
            (worker,) = workers(of=server.pid)
            # Much longer than the time that a stopping server gives to answers under way.
            long = [{"inputs": "All work and no play makes Jack a dull boy. " * 60}] * 60
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(lambda: adapter.fine_tune(samples=long))
                home = tmp_path / adapter.id
                wait_for(lambda: len([p for p in home.iterdir() if p.is_dir()]) == 2, "a step")
                server.send_signal(signal.SIGINT)
                worker.send_signal(signal.SIGINT)  # as a terminal does
                assert server.wait(60) == 0
                assert "server is stopping" in str(answer.exception())
            sdk.close()
        finally:
            server.kill()  # nothing when it has ended
    assert "Traceback" not in log.read_text("utf-8")
    wait_for(lambda: not worker.is_running(), "the end of the worker")
    assert [found.history for found in AdapterStore(tmp_path).all()] == [()]
    assert len([path for path in home.iterdir() if path.is_dir()]) == 1


def httpx_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health/ready").status_code == 200
    return False
