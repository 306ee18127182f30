"""Hayhooks names the pipeline after this folder: `ask`."""

from rag_service.query import Ask


class PipelineWrapper(Ask):
    """See `rag_service.query.Ask`."""
