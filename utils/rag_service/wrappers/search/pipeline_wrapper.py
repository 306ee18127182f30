"""Hayhooks names the pipeline after this folder: `search`."""

from rag_service.query import Search


class PipelineWrapper(Search):
    """See `rag_service.query.Search`."""
