"""A read-only stand-in for the Notion API, over a workspace kept as Markdown files.

Source of shapes, limits and error codes: https://developers.notion.com/reference. It answers both
`Notion-Version: 2022-06-28` and `2025-09-03`.
"""

from local_endpoints.notion.app import build_app
from local_endpoints.notion.limits import RateLimit
from local_endpoints.notion.workspace import Workspace, load_workspace

__all__ = ["RateLimit", "Workspace", "build_app", "load_workspace"]
