"""The branches that clients take only for NVIDIA's own host names.

Inside the transport, and nowhere else, those hosts are redirected to the local catalog: the
clients believe that they talk to NVIDIA, and nothing leaves this machine.
"""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

import httpx
import openai
import pytest
import requests.adapters
from haystack import Document
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from haystack_integrations.components.embedders.nvidia import NvidiaTextEmbedder
from haystack_integrations.components.generators.nvidia import NvidiaChatGenerator
from haystack_integrations.components.rankers.nvidia import NvidiaRanker
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.nvidia import NVIDIAEmbedding
from llama_index.llms.nvidia import NVIDIA
from llama_index.postprocessor.nvidia_rerank import NVIDIARerank
from llama_index.postprocessor.nvidia_rerank.base import KNOWN_URLS

from nim_cookbook.models import load_registry

HOSTS = ("integrate.api.nvidia.com", "ai.api.nvidia.com")
HOSTED = "https://integrate.api.nvidia.com/v1"
REGISTRY = load_registry()
RANKERS = [model for model in REGISTRY.models("reranking") if model.hosted_url]


@pytest.fixture
def hosted(servers, monkeypatch) -> list[str]:
    """Redirect NVIDIA's hosts to the local catalog; return the list of URLs asked for."""
    asked: list[str] = []
    target = urlsplit(servers.url("catalog"))

    def local(address: str) -> str:
        parts = urlsplit(address)
        assert parts.hostname in HOSTS, f"a request left for {parts.hostname}"
        asked.append(address)
        return urlunsplit((target.scheme, target.netloc, parts.path, parts.query, ""))

    send = requests.adapters.HTTPAdapter.send
    handle = httpx.HTTPTransport.handle_request

    def send_here(self, request, **more):
        request.url = local(request.url)
        return send(self, request, **more)

    def handle_here(self, request):
        request.url = httpx.URL(local(str(request.url)))
        return handle(self, request)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send_here)
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle_here)
    monkeypatch.setenv("NVIDIA_API_KEY", servers.key)
    return asked


def test_haystack_defaults(hosted):
    """Without a URL and a model, every component goes to the hosted catalog's default."""
    reply = NvidiaChatGenerator().run([ChatMessage.from_user("What's the capital of France")])
    assert reply["replies"][0].text
    assert len(NvidiaTextEmbedder(api_url=HOSTED).run("a cat")["embedding"]) > 0
    ranked = NvidiaRanker().run("a kitten", [Document(content="a cat"), Document(content="tax")])
    assert ranked["documents"][0].content == "a cat"
    assert hosted[0] == f"{HOSTED}/chat/completions"
    assert hosted[1] == f"{HOSTED}/embeddings"
    assert hosted[2].startswith("https://ai.api.nvidia.com/v1/retrieval/nvidia/")
    assert hosted[2].endswith("/reranking")


def test_haystack_refuses_ids_outside_its_table(hosted):
    embedder = NvidiaTextEmbedder(model="nobody/nothing", api_url=HOSTED)
    with pytest.raises(ValueError, match="unknown"):
        embedder.warm_up()
    assert hosted == []


@pytest.mark.parametrize("model", RANKERS, ids=lambda model: model.id)
def test_registry_has_the_url_that_haystack_uses(hosted, model):
    """Each hosted reranker has a URL of its own; ours must be the client's."""
    try:
        ranker = NvidiaRanker(model=model.id, api_url=HOSTED)
        ranker.warm_up()
    except ValueError:
        pytest.skip(f"nvidia-haystack does not know {model.id}")
    assert len(ranker.run("a", [Document(content="b")])["documents"]) == 1
    assert hosted == [model.hosted_url]


@pytest.mark.parametrize("model", RANKERS, ids=lambda model: model.id)
def test_llamaindex_rerank_needs_a_full_url_that_it_knows(hosted, model):
    """Any other URL, also that of a newer model of NVIDIA's, it takes for a self-hosted NIM."""
    if model.hosted_url not in KNOWN_URLS:
        with pytest.raises(httpx.HTTPStatusError):
            NVIDIARerank(model=model.id, base_url=model.hosted_url)
        assert hosted == [f"{model.hosted_url}/models"]
        return
    rerank = NVIDIARerank(model=model.id, base_url=model.hosted_url, top_n=1)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("tax", "a cat")]
    best = rerank.postprocess_nodes(nodes, query_str="a kitten")
    assert best[0].node.get_content() == "a cat"
    assert hosted[-1] == model.hosted_url


def test_llamaindex_llm(hosted):
    model = REGISTRY.default("chat").id
    with pytest.warns(UserWarning):
        llm = NVIDIA(model=model, is_chat_model=True, max_tokens=16)
    assert llm.complete("What's the capital of France").text
    assert all(url.startswith("https://integrate.api.nvidia.com/v1") for url in hosted)


def test_wrong_key_is_403_and_missing_key_401(hosted):
    model = REGISTRY.default("chat").id
    with pytest.raises(openai.PermissionDeniedError, match="Authorization failed"):
        NvidiaChatGenerator(model=model, api_key=Secret.from_token("nvapi-fake-wrong")).run(
            [ChatMessage.from_user("hi")]
        )
    with pytest.raises(ValueError, match="Authorization failed"):
        NvidiaTextEmbedder(api_url=HOSTED, api_key=Secret.from_token("nvapi-fake-wrong")).run("hi")
    with pytest.warns(UserWarning, match="API key is required"):
        embedder = NvidiaTextEmbedder(api_url=HOSTED, api_key=None)
        embedder.warm_up()
    with pytest.raises(ValueError, match="401"):
        embedder.run("hi")


def test_llamaindex_rerank_takes_an_address_set_later(hosted):
    """The way round: construct with a URL that the class knows, then set the model's own."""
    model = REGISTRY.default("reranking")
    with pytest.warns(UserWarning, match="Unable to determine validity"):
        rerank = NVIDIARerank(model=model.id, base_url=KNOWN_URLS[0], top_n=1)
    assert hosted == []
    rerank.base_url = model.hosted_url
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("tax", "a cat")]
    best = rerank.postprocess_nodes(nodes, query_str="a kitten")
    assert best[0].node.get_content() == "a cat"
    assert hosted == [model.hosted_url]


def test_llamaindex_embeds_questions_as_passages(hosted):
    """When this fails the section on the trap in recipe 05 is to be rewritten."""
    sent = []
    client = httpx.Client(event_hooks={"request": [lambda r: sent.append(r.content)]})
    with pytest.warns(UserWarning, match="Unable to determine validity"):
        embedder = NVIDIAEmbedding(model=REGISTRY.default("embedding").id, http_client=client)
    embedder.get_query_embedding("a cat")
    assert b'"input_type":"passage"' in sent[0]
    assert hosted[-1] == f"{HOSTED}/embeddings"
