"""A read-only stand-in for the Notion API, over a workspace kept as Markdown files.

It answers what notion-exporter and notion-client send to read pages, in the API versions
2022-06-28 and 2025-09-03, and refuses the rest in Notion's own form.
Source of objects and error codes: https://developers.notion.com/reference
"""

from local_endpoints.notion.app import build_app
from local_endpoints.notion.workspace import Workspace, load_workspace

__all__ = ["Workspace", "build_app", "load_workspace"]
