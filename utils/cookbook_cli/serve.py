"""`nim-cookbook serve`: the local endpoints in the foreground, or the variables of running ones."""

from __future__ import annotations

import os
import shlex

from nim_cookbook import local
from nim_cookbook.errors import EndpointUnreachable
from nim_cookbook.local import LocalServer

NOT_RUNNING = "No local endpoints are running: start them with `nim-cookbook serve` first."


def running(port_base: int | None) -> LocalServer:
    """Return local endpoints that answer.

    Raises:
        EndpointUnreachable: There are none.
    """
    if port_base is not None:
        os.environ["COOKBOOK_PORT_BASE"] = str(port_base)
    server = local.find_running()
    if server is None:
        raise EndpointUnreachable(NOT_RUNNING)
    return server


def export_lines(server: LocalServer) -> list[str]:
    """Return the `export` lines that point the client packages at local endpoints.

    The variables are those of nvidia-haystack (`NVIDIA_API_URL`), of the LlamaIndex clients
    (`NVIDIA_BASE_URL`), of the plain OpenAI client, and of the cookbook; the key is the servers'
    throw-away one.
    """
    catalog = server.urls["catalog"]
    variables = {
        "NVIDIA_API_KEY": server.key,
        "NVIDIA_BASE_URL": catalog,
        "NVIDIA_API_URL": catalog,
        "OPENAI_API_KEY": server.key,
        "OPENAI_BASE_URL": catalog,
        "NIM_CHAT_URL": server.urls["chat"],
        "NIM_EMBEDDING_URL": server.urls["embedding"],
        "NIM_RERANKING_URL": server.urls["reranking"],
        "COOKBOOK_LOCAL_KEY": server.key,
        "COOKBOOK_PORT_BASE": str(server.port_base),
    }
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
