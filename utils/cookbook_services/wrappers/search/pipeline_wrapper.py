"""Hayhooks names the pipeline after this folder: `search`."""

from cookbook_services.query import Search


class PipelineWrapper(Search):
    """See `cookbook_services.query.Search`."""
