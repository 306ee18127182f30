"""The packages that the recipes use, against the servers: the real clients, nothing mocked."""

from __future__ import annotations

import httpx
import pytest
from haystack import Document
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.utils import Secret
from haystack_integrations.components.embedders.nvidia import (
    NvidiaDocumentEmbedder,
    NvidiaTextEmbedder,
)
from haystack_integrations.components.generators.nvidia import NvidiaChatGenerator
from haystack_integrations.components.rankers.nvidia import NvidiaRanker
from llama_index.core.llms import ChatMessage as LlamaMessage
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.llms.nvidia import NVIDIA
from llama_index.postprocessor.nvidia_rerank import NVIDIARerank

from nim_cookbook.models import load_registry

REGISTRY = load_registry()
CHAT, EMBEDDING, RERANKING = (
    REGISTRY.default(role).id for role in ("chat", "embedding", "reranking")
)
WIDTH = REGISTRY.weights_for("embedding").dimensions
QUESTION = "What's the capital of France"
PLACES = ["catalog", "nim"]


def url(servers, place: str, role: str) -> str:
    return servers.url("catalog" if place == "catalog" else role)


@pytest.mark.parametrize("place", PLACES)
class TestHaystack:
    def test_chat(self, servers, place):
        generator = NvidiaChatGenerator(
            model=CHAT,
            api_base_url=url(servers, place, "chat"),
            api_key=Secret.from_token(servers.key),
            generation_kwargs={"temperature": 0, "seed": 1},
        )
        reply = generator.run([ChatMessage.from_user(QUESTION)])["replies"][0]
        assert "Paris" in reply.text
        assert reply.meta["model"] == CHAT
        assert reply.meta["usage"]["completion_tokens"] > 0

    def test_chat_streams(self, servers, place):
        chunks: list[StreamingChunk] = []
        generator = NvidiaChatGenerator(
            model=CHAT,
            api_base_url=url(servers, place, "chat"),
            api_key=Secret.from_token(servers.key),
            streaming_callback=chunks.append,
            generation_kwargs={"temperature": 0},
        )
        reply = generator.run([ChatMessage.from_user(QUESTION)])["replies"][0]
        assert "".join(chunk.content for chunk in chunks) == reply.text
        assert len(chunks) > 3

    def test_embedders_and_ranker(self, servers, place):
        key = Secret.from_token(servers.key)
        address = url(servers, place, "embedding")
        documents = [Document(content="a cat"), Document(content="a report")]
        embedder = NvidiaDocumentEmbedder(
            model=EMBEDDING, api_url=address, api_key=key, progress_bar=False
        )
        embedded = embedder.run(documents)
        assert all(len(document.embedding) == WIDTH for document in embedded["documents"])
        query = NvidiaTextEmbedder(model=EMBEDDING, api_url=address, api_key=key).run("a kitten")
        assert len(query["embedding"]) == WIDTH
        ranker = NvidiaRanker(
            model=RERANKING, api_url=url(servers, place, "reranking"), api_key=key, top_k=1
        )
        assert ranker.run("a kitten", documents)["documents"][0].content == "a cat"


class TestHaystackWithoutModel:
    """On a URL that is not NVIDIA's, clients without a model take the first one listed."""

    def test_embedder_takes_the_first_listed(self, servers):
        embedder = NvidiaTextEmbedder(api_url=servers.url("embedding"), api_key=None)
        with pytest.warns(UserWarning, match="Default model is set as"):
            embedder.warm_up()
        assert embedder.model == EMBEDDING
        assert len(embedder.run("a cat")["embedding"]) == WIDTH

    def test_ranker_sends_null(self, servers):
        ranker = NvidiaRanker(api_url=servers.url("reranking"), api_key=None)
        assert len(ranker.run("a cat", [Document(content="a cat")])["documents"]) == 1

    def test_too_long_text_comes_back_in_the_documented_words(self, servers):
        embedder = NvidiaTextEmbedder(
            model=EMBEDDING, api_url=servers.url("embedding"), api_key=None
        )
        with pytest.raises(ValueError, match="exceeds maximum allowed token size"):
            embedder.run("word " * 900)


class TestLlamaIndex:
    def test_llm(self, servers):
        llm = NVIDIA(
            model=CHAT,
            base_url=servers.url("chat"),
            api_key="not-needed",
            is_chat_model=True,
            temperature=0,
        )
        assert "Paris" in llm.chat([LlamaMessage(role="user", content=QUESTION)]).message.content
        parts = list(llm.stream_chat([LlamaMessage(role="user", content=QUESTION)]))
        assert len(parts) > 3
        assert "Paris" in parts[-1].message.content

    def test_llm_without_model_takes_the_first_listed(self, servers):
        with pytest.warns(UserWarning, match="Default model is set as"):
            llm = NVIDIA(base_url=servers.url("chat"), api_key="not-needed")
        assert llm.model == CHAT

    def test_llm_refuses_an_unlisted_model(self, servers):
        with pytest.raises(ValueError, match="No locally hosted"):
            NVIDIA(model="nobody/nothing", base_url=servers.url("chat"), api_key="not-needed")

    @pytest.mark.parametrize("model", [RERANKING, None])
    @pytest.mark.filterwarnings("ignore:Default model is set as")
    def test_rerank(self, servers, model):
        rerank = NVIDIARerank(
            model=model,
            base_url=servers.url("reranking"),
            api_key="not-needed",
            top_n=2,
            http_client=httpx.Client(timeout=60),
        )
        texts = ["Bread is baked.", "Rome is the capital of Italy.", "Cats sleep."]
        nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
        ranked = rerank.postprocess_nodes(nodes, query_str="What is the capital of Italy?")
        assert len(ranked) == 2
        assert ranked[0].node.get_content() == texts[1]
        assert ranked[0].score > ranked[1].score

    def test_a_batch_of_sixty_four_passages(self, servers):
        """httpx gives up after five seconds, unless the reranker gets a client that waits."""
        rerank = NVIDIARerank(
            model=RERANKING,
            base_url=servers.url("reranking"),
            api_key="not-needed",
            top_n=3,
            http_client=httpx.Client(timeout=60),
        )
        passage = "The committee met on Tuesday and discussed the budget of the coming year. " * 8
        nodes = [NodeWithScore(node=TextNode(text=f"{n}. {passage}")) for n in range(64)]
        assert len(rerank.postprocess_nodes(nodes, query_str="Who met on Tuesday?")) == 3
