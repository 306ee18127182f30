"""Samples for fine-tuning, made from questions with evidence: a prompt to read, an answer to learn.

The prompt is written in ChatML, the chat markup of the local servers' models (Qwen2.5-Coder,
SmolLM2): a completion endpoint passes text on unchanged, and a chat endpoint makes the same text
from a system and a user message.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from haystack import Document
from haystack.components.builders import PromptBuilder
from haystack.document_stores.in_memory import InMemoryDocumentStore

from nim_cookbook import corpus
from nim_cookbook.corpus import Query
from nim_cookbook.errors import DataError

#: The system message of training, evaluation and use; an adapter expects the prompt it was
#: trained with.
SYSTEM = "Answer the question briefly from the passage."
#: The user message: a Jinja template over `documents` and `question`.
USER = """{% for document in documents %}{{ document.content[:2000] }}

{% endfor %}Question: {{ question }}"""
#: The whole prompt for a completion endpoint, in ChatML. It ends with two line breaks because Jinja
#: drops the last one.
TEMPLATE = f"""<|im_start|>system
{SYSTEM}<|im_end|>
<|im_start|>user
{USER}<|im_end|>
<|im_start|>assistant

"""
END = "<|im_end|>"

#: As `gradientai` takes it: `{"inputs": [{"value", "trainable", "parse_special_tokens"}, ...]}`.
Sample = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A question with the chunks that a perfect retriever would have found for it.

    Attributes:
        query: The question, with its reference answers.
        chunks: Chunks that hold its evidence; for a question that nothing answers the chunk
            that comes closest by its words.
    """

    query: Query
    chunks: tuple[Document, ...]

    @property
    def prompt(self) -> str:
        """The model's input."""
        return prompt(self.query.question, self.chunks)


def prompt(question: str, chunks: Sequence[Document]) -> str:
    """Return the prompt of a question about chunks, as `PromptBuilder(TEMPLATE)` writes it."""
    builder = PromptBuilder(TEMPLATE, required_variables="*")
    text: str = builder.run(question=question, documents=list(chunks))["prompt"]
    return text


def cases(queries: Iterable[Query], chunks: Sequence[Document]) -> list[Case]:
    """Give each question the chunks that hold its evidence.

    This measures reading apart from retrieval: a wrong answer is then the generator's fault.

    Args:
        queries: The questions. One whose evidence lies in no chunk is left out.
        chunks: All chunks, with the id of their document in `meta["document"]`.
    """
    of_document: dict[str, list[Document]] = {}
    for chunk in chunks:
        of_document.setdefault(chunk.meta["document"], []).append(chunk)
    store = InMemoryDocumentStore()
    store.write_documents(list(chunks))
    found = []
    for query in queries:
        held = _evidence(query, of_document) if query.answerable else _nearest(query, store)
        if held:
            found.append(Case(query, tuple(held)))
    return found


def _evidence(query: Query, of_document: Mapping[str, list[Document]]) -> list[Document]:
    held: dict[str, Document] = {}
    for evidence in query.evidence:
        for chunk in of_document.get(evidence.document, []):
            if corpus.relevant(chunk.content or "", evidence, evidence.document):
                held[chunk.id] = chunk
                break
    return list(held.values())


def _nearest(query: Query, store: InMemoryDocumentStore) -> list[Document]:
    """Return the chunk that BM25 ranks first among documents without evidence."""
    values = sorted({evidence.document for evidence in query.evidence})
    others = {"field": "meta.document", "operator": "not in", "value": values}
    return store.bm25_retrieval(query.question, filters=others if values else None, top_k=1)


def samples(cases: Sequence[Case], *, seed: int = 0) -> list[Sample]:
    """Return one sample a case, shuffled: the prompt to read and the first reference to learn.

    Args:
        cases: Answerable questions with their chunks.
        seed: Of the order.

    Raises:
        DataError: A case has no reference answer.
    """
    made = []
    for case in random.Random(seed).sample(list(cases), len(cases)):
        if not case.query.answers:
            raise DataError(f"Question {case.query.id} has no reference answer to learn.")
        learnt = case.query.answers[0] + END
        parts = ((case.prompt, False), (learnt, True))
        made.append(
            {
                "inputs": [
                    {"value": text, "trainable": trainable, "parse_special_tokens": True}
                    for text, trainable in parts
                ]
            }
        )
    return made


def fingerprint(batches: Sequence[Sequence[Sample]], **settings: object) -> str:
    """Return twelve digits that change with any sample, their order, or a setting.

    An adapter with them in its name was trained on these samples, so it can be used again.
    """
    text = json.dumps([batches, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
