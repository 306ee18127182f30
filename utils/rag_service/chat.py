"""The chat page as a service: Hayhooks' Chainlit page, behind a sign-in, with no outside files.

    COOKBOOK_QUERY_URL=http://127.0.0.1:1416 python -m rag_service.chat

The page asks for a name and, as the password, for the query service's token. A content security
policy forbids what would be fetched from elsewhere: Chainlit's page names a font and a style sheet
for formulas on content delivery networks, and is readable without them.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.middleware.base import RequestResponseEndpoint
from starlette.responses import JSONResponse, RedirectResponse

from nim_cookbook.endpoints import read_env_file, shown, url_fault
from nim_cookbook.errors import ConfigurationError, CookbookError
from rag_service.children import OPTION, stop_cleanly
from rag_service.settings import QUERY_URL, service_token

HOST, PORT = "127.0.0.1", 8080
PATH = "/chat"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)
# Chainlit reads it from its folder; other settings keep Chainlit's defaults.
_CONFIG = """[project]
enable_telemetry = false
allow_origins = []
user_session_timeout = 28800

[features]
latex = false
unsafe_allow_html = false

[features.spontaneous_file_upload]
enabled = true
accept = ["application/pdf", "text/markdown", "text/html", "text/plain"]
max_files = 5
max_size_mb = 50

[UI]
name = "NIM RAG Cookbook"
cot = "hidden"

[meta]
generated_by = "{version}"
"""


def create(folder: Path) -> FastAPI:
    """Return the application.

    Args:
        folder: For Chainlit's files of this run; it writes beside the page that it loads.

    Raises:
        CookbookError: A setting is missing.
    """
    read_env_file()
    token = service_token()
    query_url()
    try:
        page = _prepare(folder, token)
        from hayhooks.server.utils.chainlit_utils import mount_chainlit_app
    except ImportError as error:
        raise ConfigurationError(
            f"The chat page needs {error.name}: install hayhooks[chainlit]."
        ) from None
    app = FastAPI(openapi_url=None)

    @app.get("/health/live")
    async def live() -> JSONResponse:
        return JSONResponse({"live": True})

    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": True})

    @app.get("/")
    async def root() -> RedirectResponse:
        return RedirectResponse(PATH)

    @app.middleware("http")
    async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    mount_chainlit_app(app, target=page, path=PATH)
    return app


def query_url() -> str:
    """Return the query service's address, `COOKBOOK_QUERY_URL`, and put it right.

    Raises:
        ConfigurationError: It is no URL.
    """
    text = os.environ.get(QUERY_URL, "").strip().rstrip("/") or "http://127.0.0.1:1416"
    fault = url_fault(text)
    if fault:
        raise ConfigurationError(
            f"{QUERY_URL} is {shown(text)}, {fault}: write it like http://127.0.0.1:1416."
        )
    os.environ[QUERY_URL] = text
    return text


def _prepare(folder: Path, token: str) -> Path:
    """Lay out Chainlit's folder before Chainlit is imported, which reads it at once."""
    from importlib.metadata import version

    page = folder / "chat_page.py"
    shutil.copy(Path(__file__).with_name("chat_page.py"), page)
    (folder / ".chainlit").mkdir(exist_ok=True)
    config = _CONFIG.replace("{version}", version("chainlit"))
    (folder / ".chainlit" / "config.toml").write_text(config, encoding="utf-8")
    (folder / "chainlit.md").write_text("", encoding="utf-8")  # no page of Chainlit's own
    os.environ["CHAINLIT_APP_ROOT"] = str(folder)
    # Signs the session's cookie; a new token ends all sessions.
    os.environ["CHAINLIT_AUTH_SECRET"] = hmac.new(
        token.encode(), b"chat page sessions", hashlib.sha256
    ).hexdigest()
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chat page; the command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m rag_service.chat",
        description="Serve the chat page of the query service.",
        epilog="Settings: COOKBOOK_SERVICE_TOKEN (needed), COOKBOOK_QUERY_URL.",
    )
    parser.add_argument("--host", default=HOST, help=f"address to bind (default {HOST})")
    parser.add_argument("--port", type=int, default=PORT, help=f"port (default {PORT})")
    parser.add_argument(OPTION, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    stop_cleanly(options.stop_with_stdin)
    try:
        with tempfile.TemporaryDirectory(prefix="cookbook-chat-") as folder:
            import uvicorn

            from nim_cookbook.impatient import ImpatientProtocol

            # One process: a conversation lives in it.
            uvicorn.run(
                create(Path(folder)),
                http=ImpatientProtocol,
                host=options.host,
                port=options.port,
                server_header=False,
            )
    except CookbookError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
