"""From a question to an answer with its sources, or to a refusal: the recipes' query pipeline.

The question's vector finds candidates, the reranker orders them, and the best of them go to the
chat model. When even the best candidate's logit is below a threshold, the model is not asked at
all: a weak model hardly ever says by itself that the sources do not hold an answer.

All parts are Haystack's and NVIDIA's own; recipe 03 builds the same step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.routers import ConditionalRouter
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from haystack_integrations.components.embedders.nvidia import NvidiaTextEmbedder
from haystack_integrations.components.generators.nvidia import NvidiaChatGenerator
from haystack_integrations.components.rankers.nvidia import NvidiaRanker
from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from nim_cookbook.endpoints import THINKING, Endpoint, Endpoints

#: What is said when no chunk is good enough; `nim_cookbook.scoring.refuses` knows it.
REFUSAL = "The documents do not tell."
#: Chunks that the vectors find for the reranker.
CANDIDATES = 20
#: Chunks that the chat model sees. An update and what it replaces are both among three.
TOP_K = 3
#: The steps that may find the chunks of an answer, the last one first.
FINDING = ("ranker", "joiner", "retriever", "keywords")
#: Longest answer in tokens.
MAX_TOKENS = 120

#: The system message. Asked for the sources' own words a small model is right more often than when
#: it rephrases, and asked for the shortest answer it adds nothing of its own.
SYSTEM = """Answer the question from the sources.
Give only the shortest answer, a few words copied from a source, no sentence.
If the sources do not hold the answer, say so."""
#: The user message. Chunks are cut at a length that no ordinary one has, because a hundred words
#: may be of any length.
PROMPT = """{% for document in documents -%}
{{ document.content[:2000] }}

{% endfor -%}
Question: {{ question }}"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one question.

    Attributes:
        question: The question.
        text: The answer, or `REFUSAL`; empty when the model said nothing that can be used.
        refused: Whether no chunk was good enough, so that the model was not asked. A model may
            also refuse in its own words; `nim_cookbook.scoring.refuses` tells.
        sources: The chunks that the model was shown, the best first, with the reranker's logits
            as their scores; none after a refusal.
        finish_reason: Why the model ended, as it said: `stop`, or `length` when the answer was cut
            off; None when it was not asked.
        score: The logit of the best chunk, whether it was shown or not; None when nothing was
            found.
    """

    question: str
    text: str
    refused: bool
    sources: tuple[Document, ...]
    score: float | None = None
    finish_reason: str | None = None


def query_pipeline(
    api: Endpoints,
    store: QdrantDocumentStore,
    *,
    candidates: int = CANDIDATES,
    top_k: int = TOP_K,
    threshold: float | None = None,
) -> Pipeline:
    """Return the pipeline from a question to an answer or a refusal; `ask` runs it.

    Inputs `text_embedder.text`, `ranker.query` and `prompt_builder.question`, all of them the
    question, and `retriever.filters` if wanted. Output `generator.replies`, or `router.refusal`.
    It holds no key, only the names of the variables that do, so that it can be saved as YAML.

    Args:
        api: Where the models are.
        store: The chunks, with vectors of `api.embedding`.
        candidates: How many chunks the vectors find for the reranker.
        top_k: How many of them the chat model sees.
        threshold: Least logit of the best chunk; below it the question is refused. With None
            only a question for which nothing is found is.
    """
    pipeline = Pipeline()
    pipeline.add_component("text_embedder", text_embedder(api.embedding))
    pipeline.add_component("retriever", QdrantEmbeddingRetriever(store, top_k=candidates))
    pipeline.add_component("ranker", ranker(api.reranking, top_k))
    pipeline.add_component("router", router(threshold))
    pipeline.add_component("prompt_builder", prompt_builder())
    pipeline.add_component("generator", chat_generator(api.chat, MAX_TOKENS))
    pipeline.connect("text_embedder.embedding", "retriever.query_embedding")
    pipeline.connect("retriever.documents", "ranker.documents")
    pipeline.connect("ranker.documents", "router.documents")
    pipeline.connect("router.sources", "prompt_builder.documents")
    pipeline.connect("prompt_builder.prompt", "generator.messages")
    return pipeline


def text_embedder(embedding: Endpoint) -> NvidiaTextEmbedder:
    """Return what embeds questions."""
    return NvidiaTextEmbedder(
        model=embedding.model,
        api_url=embedding.url,
        api_key=Secret.from_env_var(embedding.key_variable),
        truncate="END",
    )


def ranker(reranking: Endpoint, top_k: int) -> NvidiaRanker:
    """Return the reranker, without `truncate`: one that has it cannot be saved as YAML."""
    return NvidiaRanker(
        model=reranking.model,
        api_url=reranking.url,
        api_key=Secret.from_env_var(reranking.key_variable),
        top_k=top_k,
    )


def prompt_builder(system: str = SYSTEM) -> ChatPromptBuilder:
    """Return what makes the prompt, with a system message and `PROMPT`."""
    messages = [ChatMessage.from_system(system), ChatMessage.from_user(PROMPT)]
    return ChatPromptBuilder(messages, required_variables="*")


def chat_generator(chat: Endpoint, max_tokens: int) -> NvidiaChatGenerator:
    """Return the chat model as a step that answers the same each time.

    Args:
        chat: Where the chat model is.
        max_tokens: Longest answer; what a model may think comes on top.
    """
    return NvidiaChatGenerator(
        model=chat.model,
        api_base_url=chat.url,
        api_key=Secret.from_env_var(chat.key_variable),
        generation_kwargs={
            "temperature": 0,
            "seed": 1,
            "max_tokens": max_tokens + chat.thinking,
            "extra_body": chat.extra_body,
        },
    )


def router(threshold: float | None) -> ConditionalRouter:
    """Return the step of the query pipeline that lets chunks pass, or refuses.

    Args:
        threshold: See `query_pipeline`.
    """
    enough = "documents|length > 0"
    if threshold is not None:
        enough += f" and documents[0].score >= {threshold!r}"
    return ConditionalRouter(
        [
            {
                "condition": f"{{{{ {enough} }}}}",
                "output": "documents",
                "output_name": "sources",
                "output_type": list[Document],
                "output_passthrough": True,
            },
            {
                "condition": "{{ True }}",
                "output": REFUSAL,
                "output_name": "refusal",
                "output_type": str,
            },
        ]
    )


def ask(pipeline: Pipeline, question: str, filters: Mapping[str, Any] | None = None) -> Answer:
    """Ask one question.

    Args:
        pipeline: See `query_pipeline`.
        question: The question.
        filters: Which chunks may be found, as Haystack writes filters, such as
            `{"field": "meta.kind", "operator": "==", "value": "report"}`.
    """
    result = pipeline.run(inputs(pipeline, question, filters), include_outputs_from=set(FINDING))
    return answer_of(question, result)


def inputs(
    pipeline: Pipeline, question: str, filters: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the inputs of a query pipeline, for those of the usual steps that it has.

    Args:
        pipeline: See `query_pipeline`; steps may be missing, and `keywords` may search too.
        question: The question.
        filters: See `ask`.
    """
    chosen = {"filters": dict(filters) if filters else None}
    given: dict[str, dict[str, Any]] = {
        "text_embedder": {"text": question},
        "retriever": chosen,
        "keywords": {"query": question, **chosen},
        "ranker": {"query": question},
        "prompt_builder": {"question": question},
    }
    return {step: values for step, values in given.items() if step in pipeline.graph}


def found(result: Mapping[str, Any]) -> list[Document]:
    """Return the chunks that a run of a query pipeline found: those of its last finding step."""
    last = next(step for step in FINDING if step in result)
    documents: list[Document] = result[last]["documents"]
    return documents


def answer_of(question: str, result: Mapping[str, Any]) -> Answer:
    """Return what came of a run of the query pipeline."""
    ranked = found(result)
    best = ranked[0].score if ranked else None
    if "generator" not in result:
        return Answer(question, result["router"]["refusal"], True, (), best)
    reply: ChatMessage = result["generator"]["replies"][0]
    return Answer(
        question, answer_text(reply), False, tuple(ranked), best, reply.meta.get("finish_reason")
    )


def answer_text(reply: ChatMessage) -> str:
    """Return what a model answered; empty when it was cut off before its end.

    Half an answer may say the contrary of the whole one. What a model thought is in
    `reply.reasoning`, and is no answer.
    """
    cut_off = reply.meta.get("finish_reason") == "length"
    return "" if cut_off else (reply.text or "").strip()


def no_answer(model: str, finish_reason: str | None) -> str:
    """Return the sentence for an answer that is empty: what happened and what to do."""
    if finish_reason == "length":
        return (
            f"{model} used up its tokens before its answer ended: allow it more with `max_tokens`, "
            f"and if it thinks first, set {THINKING} to off."
        )
    return f"{model} answered with nothing: ask again, or choose another model."


def citation(document: Document) -> str:
    """Return where a chunk is from: the file, and the page if it has pages.

    The file is named by its path where that is the document's id, else by its name alone.
    """
    name = str(document.meta.get("file_path") or document.meta.get("document") or document.id)
    whole = str(document.meta.get("document", ""))
    shown = whole if whole.endswith(f"/{name}") else name
    number = page(document)
    return f"{shown}, p. {number}" if number else shown


def page(document: Document) -> int | None:
    """Return the page that a chunk begins on, counted from 1; None if its file has no pages."""
    name = str(document.meta.get("file_path") or document.meta.get("document") or document.id)
    number = document.meta.get("page_number")
    return int(number) if number and name.lower().endswith(".pdf") else None
