"""Recipe 17's search as an MCP tool: Hayhooks serves it, MCP's own client calls it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from haystack import Document
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret
from haystack_integrations.components.embedders.nvidia import NvidiaDocumentEmbedder

from nim_cookbook import data, endpoints
from tests.support import Servers, free_port_block, recipe_cells

mcp = pytest.importorskip("mcp", reason='MCP\'s client is in the extra "agent"')
pytest.importorskip("hayhooks", reason='Hayhooks is in the extra "agent"')

START_SECONDS = 300


@pytest.fixture(scope="module")
def url(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of Hayhooks' MCP server, with the recipe's wrapper over three sentences."""
    folder = tmp_path_factory.mktemp("mcp")
    (folder / "papers").mkdir()
    with contextlib.closing(endpoints.connect("nim")) as nim:
        embedder = NvidiaDocumentEmbedder(
            model=nim.embedding.model,
            api_url=nim.embedding.url,
            api_key=Secret.from_env_var(nim.embedding.key_variable),
            progress_bar=False,
        )
        store = InMemoryDocumentStore(index="papers", embedding_similarity_function="cosine")
        sentences = [Document(**record) for record in data.people()]
        store.write_documents(embedder.run(sentences)["documents"])
        cells = recipe_cells("17")
        found: dict[str, Any] = {"nim": nim, "store": store, "Secret": Secret}
        exec(cells["hybrid"], found)
        exec(cells["wrapper"], found)
        (folder / "papers" / "pipeline_wrapper.py").write_text(found["wrapper"])
        (folder / "papers" / "hybrid.yaml").write_text(found["hybrid"].dumps())
        store.save_to_disk(str(folder / "papers" / "store.json"))
        port = free_port_block()
        log = folder / "log"
        command = [Path(sys.executable).with_name("hayhooks"), "mcp", "run"]
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port), "--pipelines-dir", folder],
                env=os.environ | {"HAYHOOKS_DURABLE_MODE": "true"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            limit = time.monotonic() + START_SECONDS
            while not answers(f"http://127.0.0.1:{port}/status"):
                if process.poll() is not None or time.monotonic() > limit:
                    pytest.fail(f"Hayhooks does not answer:\n{log.read_text()[-3000:]}", False)
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/mcp/"
        finally:
            process.terminate()
            process.wait(30)


def answers(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(address, trust_env=False).is_success
    return False


@contextlib.asynccontextmanager
async def session(url: str) -> Any:
    from mcp.client.streamable_http import streamable_http_client

    async with (
        streamable_http_client(url) as (read, write, _),
        mcp.ClientSession(read, write) as client,
    ):
        await client.initialize()
        yield client


async def test_the_search_is_a_tool_with_a_schema(url: str) -> None:
    async with session(url) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert tools["papers"].description == "Search the papers of the company."
    assert tools["papers"].inputSchema["required"] == ["query"]
    assert tools["papers"].inputSchema["properties"]["query"]["type"] == "string"


async def test_a_call_searches(url: str) -> None:
    async with session(url) as client:
        found = await client.call_tool("papers", {"query": "Who lives in Rome?"})
    assert not found.isError
    assert found.content[0].text.startswith("My name is Giorgio and I live in Rome")


async def test_a_call_without_the_query_is_refused(url: str) -> None:
    async with session(url) as client:
        refused = await client.call_tool("papers", {"text": "Who lives in Rome?"})
    assert refused.isError
    assert "'query' is a required property" in refused.content[0].text


async def test_no_client_can_send_code(url: str, tmp_path: Path) -> None:
    """Hayhooks' own tool for it runs the code that it is sent, unless the pipelines are fixed."""
    proof = tmp_path / "ran"
    files = {"pipeline_wrapper.py": f"open({str(proof)!r}, 'w').close()"}
    code = {"name": "mine", "files": files, "save_files": False, "overwrite": True}
    async with session(url) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        refused = await client.call_tool("deploy_pipeline", code)
    assert names.isdisjoint({"deploy_pipeline", "undeploy_pipeline"})
    assert refused.isError
    assert not proof.exists()
