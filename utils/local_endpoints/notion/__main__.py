"""``python -m local_endpoints.notion``: the Notion stand-in alone, on loopback."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import uvicorn

from local_endpoints.access import choose_key
from local_endpoints.notion.app import build_app
from local_endpoints.notion.limits import NOTION_BURST, RateLimit
from local_endpoints.notion.workspace import load_workspace
from local_endpoints.ports import bind
from nim_cookbook.data import data_path
from nim_cookbook.errors import ConfigurationError, CookbookError

HOST = "127.0.0.1"


def _limit(per_second: float, burst: int) -> RateLimit | None:
    try:
        return RateLimit(per_second, burst) if per_second else None
    except ValueError:
        raise ConfigurationError(
            "--rate-limit must be a number above 0 (0 for no limit) and --burst at least 1."
        ) from None


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped; return 2 after a user's mistake, which is printed as one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m local_endpoints.notion", description="A read-only stand-in for Notion."
    )
    parser.add_argument("--port", type=int, default=8005)
    parser.add_argument("--workspace", type=Path, help="folder of workspace.toml and wiki/")
    parser.add_argument(
        "--rate-limit",
        type=float,
        default=0,
        metavar="N",
        help="requests a second on average before answering 429 (Notion: about 3; 0: no limit)",
    )
    parser.add_argument("--burst", type=int, default=NOTION_BURST, help="requests at once")
    options = parser.parse_args(arguments)
    try:
        folder = options.workspace or data_path("notion")
        limit = _limit(options.rate_limit, options.burst)
        token = choose_key("notion-local")
        app = build_app(load_workspace(folder), token, limit)
        listener = bind(HOST, options.port, "notion")
    except CookbookError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"ready: notion     http://{HOST}:{options.port}", file=sys.stderr)
    if "COOKBOOK_LOCAL_KEY" not in os.environ:
        print(f"Token of this start: {token}", file=sys.stderr, flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
