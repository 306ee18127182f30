"""Errors of an endpoint reach the reader of a notebook as one sentence that says what to do."""

from __future__ import annotations

import contextlib

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

START = """
import os
from gradientai import Gradient
from haystack import Document, Pipeline
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from haystack_integrations.components.embedders.nvidia import NvidiaTextEmbedder
from haystack_integrations.components.generators.nvidia import NvidiaChatGenerator
from llama_index.postprocessor.nvidia_rerank import NVIDIARerank
from nim_cookbook import endpoints, services
os.environ["COOKBOOK_ENDPOINTS"] = "local"
os.environ.pop("NVIDIA_API_KEY", None)
nim = endpoints.connect("catalog")
os.environ["WRONG_KEY"] = "nvapi-fake-wrong-key"
key, wrong = Secret.from_env_var(nim.chat.key_variable), Secret.from_env_var("WRONG_KEY")

def chat(**more):
    arguments = dict(model=nim.chat.model, api_base_url=nim.chat.url, api_key=key, max_retries=0)
    pipeline = Pipeline()
    pipeline.add_component("generator", NvidiaChatGenerator(**(arguments | more)))
    return lambda text: pipeline.run({"generator": {"messages": [ChatMessage.from_user(text)]}})

def embed(**more):
    arguments = dict(model=nim.embedding.model, api_url=nim.embedding.url, api_key=key)
    return NvidiaTextEmbedder(**(arguments | more)).run

gradient = services.connect_gradient()

def fine_tuning(**more):
    arguments = dict(access_token=nim.chat.key, workspace_id="w", host=gradient.host)
    return Gradient(**(arguments | more))
"""

NOBODY = "00000000-0000-4000-8000-000000000000_model_adapter"

CASES = {
    "chat, wrong key": ("chat(api_key=wrong)('hi')", ["answered 403", "check the key"]),
    "embedding, wrong key": ("embed(api_key=wrong)('hi')", ["answered 403", "check the key"]),
    "chat, unknown model": ("chat(model='a/b')('hi')", ["answered 404", "'a/b'", "/v1/models"]),
    "embedding, unknown model": ("embed(model='a/b')('hi')", ["answered 404", "/v1/models"]),
    "chat, too long": ("chat()('hi ' * 6000)", ["maximum context length", "shorten the text"]),
    "embedding, too long": ("embed()('hi ' * 900)", ["Input length 910", "truncate='END'"]),
    "chat, nobody there": (
        "chat(api_base_url='http://127.0.0.1:9/v1')('hi')",
        ["http://127.0.0.1:9/v1/chat/completions cannot be reached", "check the URL"],
    ),
    "embedding, nobody there": (
        "embed(api_url='http://127.0.0.1:9/v1')('hi')",
        ["http://127.0.0.1:9/v1/embeddings cannot be reached", "check the URL"],
    ),
    "reranking, wrong path": (
        "NVIDIARerank(model='a/b', base_url=nim.chat.url + '/nothing', api_key=nim.chat.key)",
        ["answered 404"],
    ),
    "fine-tuning, wrong token": (
        "fine_tuning(access_token=os.environ['WRONG_KEY']).list_models(only_base=True)",
        ["The Gradient server answered 401", "token"],
    ),
    "fine-tuning, unknown adapter": (
        f"fine_tuning().get_model_adapter(model_adapter_id='{NOBODY}')",
        ["The Gradient server answered 404", NOBODY],
    ),
    "fine-tuning, nobody there": (
        "fine_tuning(host='http://127.0.0.1:9/api').list_models(only_base=True)",
        ["http://127.0.0.1:9/api/models", "cannot be reached", "check the URL"],
    ),
    "a package of an extra": (
        "import sys; sys.modules['torch'] = None; import torch.nn",
        ["torch is not installed", 'nim-rag-cookbook[finetune]"`', "restart the kernel"],
    ),
    "unknown mode": (
        "os.environ['COOKBOOK_ENDPOINTS'] = 'moon'\nendpoints.connect()",
        ["COOKBOOK_ENDPOINTS is 'moon'", "set it to local"],
    ),
    "hosted without a key": (
        "os.environ['COOKBOOK_ENDPOINTS'] = 'hosted'\nendpoints.connect()",
        ["NVIDIA_API_KEY"],
    ),
}


@pytest.fixture(scope="module")
def shell(servers):
    """A running kernel; each case is one more cell, as after a mistake in a real notebook."""
    limits = {"timeout": 500, "startup_timeout": 300}
    client = NotebookClient(nbformat.v4.new_notebook(), **limits, kernel_name="python3")
    with client.setup_kernel():
        run(client, START)
        yield client


def run(client: NotebookClient, code: str) -> list[str]:
    """Run one cell; return the lines of the error that the reader sees, or none."""
    cell = nbformat.v4.new_code_cell(code)
    client.nb.cells.append(cell)
    with contextlib.suppress(CellExecutionError):
        client.execute_cell(cell, len(client.nb.cells) - 1)
    errors = [output for output in cell.outputs if output.output_type == "error"]
    return [line for error in errors for part in error.traceback for line in part.splitlines()]


@pytest.mark.parametrize("code, words", CASES.values(), ids=CASES)
def test_one_sentence(shell, code, words):
    lines = run(shell, code)
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]
    assert lines[0].rstrip().endswith((".", ".)"))


def test_the_whole_traceback_is_still_to_be_had(shell):
    run(shell, CASES["chat, unknown model"][0])
    assert any("NotFoundError" in line for line in run(shell, "%tb"))


def test_other_errors_keep_their_traceback(shell):
    lines = run(shell, "def broken():\n    return 1 / 0\nbroken()")
    assert len(lines) > 5
    assert any("ZeroDivisionError" in line for line in lines)
