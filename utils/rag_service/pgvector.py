"""Search in PostgreSQL that leaves the chunks' vectors behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from haystack import Document, component
from haystack_integrations.components.retrievers.pgvector import PgvectorEmbeddingRetriever

Function = Literal["cosine_similarity", "inner_product", "l2_distance"]


@component
class LeanEmbeddingRetriever(PgvectorEmbeddingRetriever):
    """Haystack's retriever, whose chunks come without their vectors.

    Nothing after it looks at them, and a pipeline copies what each step gets: with 20 chunks of 384
    numbers each, these copies were half the function calls of a question. Qdrant's store can be
    told not to send them (`return_embedding`), PostgreSQL's cannot.
    """

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        vector_function: Function | None = None,
    ) -> dict[str, list[Document]]:
        """Return the chunks nearest to a vector."""
        found = PgvectorEmbeddingRetriever.run(
            self, query_embedding, filters, top_k, vector_function
        )
        return {"documents": _without_vectors(found["documents"])}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        vector_function: Function | None = None,
    ) -> dict[str, list[Document]]:
        """Return the chunks nearest to a vector."""
        # In turns, as on the one connection they would be anyhow: at a start, or after an outage,
        # all would open connections, and PostgreSQL has a hundred.
        async with self.__dict__.setdefault("_turn", asyncio.Lock()):
            found = await PgvectorEmbeddingRetriever.run_async(
                self, query_embedding, filters, top_k, vector_function
            )
        return {"documents": _without_vectors(found["documents"])}


def _without_vectors(chunks: Sequence[Document]) -> list[Document]:
    return [replace(chunk, embedding=None) for chunk in chunks]
