"""Helpers for the recipes: where the endpoints are, data, scoring and display.

The package only does what distracts from a lesson. Without it, a notebook needs a URL, a model id
and a key, and nothing else changes.
"""

from nim_cookbook.errors import CookbookError

__all__ = ["CookbookError"]
