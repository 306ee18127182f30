"""Hayhooks names the pipeline after this folder: `ask`."""

from cookbook_services.query import Ask


class PipelineWrapper(Ask):
    """See `cookbook_services.query.Ask`."""
