"""The only module that reads the configuration: where the endpoints are, which models and keys.

A notebook calls `connect()` and never needs to know the mode:

    nim = connect()
    NvidiaTextEmbedder(
        model=nim.embedding.model,
        api_url=nim.embedding.url,
        api_key=Secret.from_env_var(nim.embedding.key_variable),
    )

`COOKBOOK_ENDPOINTS` chooses the mode: `local` (the default; real small models on this machine,
no key), `hosted` (NVIDIA's API catalog, `NVIDIA_API_KEY`) or `self-hosted` (your own NIM
containers, `NIM_CHAT_URL`, `NIM_EMBEDDING_URL`, `NIM_RERANKING_URL`). In hosted mode
`NVIDIA_EMBEDDINGS_URL`, `NVIDIA_EMBEDDINGS_KEY` and `NVIDIA_EMBEDDINGS_MODEL`, each optional, take
the embedding model elsewhere; the key holds in self-hosted mode too. `COOKBOOK_THINKING` is `off`,
as when it is not set, or the tokens that a chat model may think before it answers. A `.env` file is
read and does not override the environment.
"""

from __future__ import annotations

import os
import re
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import httpx
from dotenv import find_dotenv, load_dotenv

from nim_cookbook import explain, keys, local
from nim_cookbook.errors import (
    ConfigurationError,
    EndpointUnreachable,
    MissingKeyError,
    UnknownModelError,
)
from nim_cookbook.hosts import is_loopback
from nim_cookbook.models import ROLES, Role, load_registry

if TYPE_CHECKING:
    from nim_cookbook.display import Check

Mode = Literal["local", "hosted", "self-hosted"]
Api = Literal["any", "catalog", "nim"]

HOSTED_URL = "https://integrate.api.nvidia.com/v1"
# With keys.EMBEDDINGS_KEY: an embedding model with an address, key and id of its own.
EMBEDDINGS_URL = "NVIDIA_EMBEDDINGS_URL"
EMBEDDINGS_MODEL = "NVIDIA_EMBEDDINGS_MODEL"
PEFT_SOURCE = "NIM_PEFT_SOURCE"
THINKING = "COOKBOOK_THINKING"
# The most that NVIDIA's API reference allows as `reasoning_budget`, read 2026-11-27.
MOST_THINKING = 32768
# Hosted models may have to be woken up; nothing local takes that long.
PROGRESS_SECONDS = 5.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CALL_TIMEOUT = httpx.Timeout(30.0, connect=5.0)

CHECK_CALLS: dict[Role, tuple[str, dict[str, Any]]] = {
    "chat": (
        "chat/completions",
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1},
    ),
    "embedding": ("embeddings", {"input": ["Hello"], "input_type": "query"}),
    "reranking": ("ranking", {"query": {"text": "Hello"}, "passages": [{"text": "Hello"}]}),
}

_VERDICTS = {
    202: "not yet: the model is being started (202)",
    401: "no: the key is refused (401)",
    403: "no: the key is refused (403)",
    404: "no: the model is not served (404)",
    410: "no: the model is retired (410)",
    429: "busy: too many requests (429)",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one role is served.

    Attributes:
        role: `chat`, `embedding` or `reranking`.
        url: Base URL, ending in `/v1`.
        model: The model id to ask for.
        key_variable: Name of the environment variable that holds the key.
        weights: What really answers, for captions: the local weights' name, or the model id and
            who serves it.
        rerank_url: For reranking, the address to post to, or its base: on NVIDIA's hosts each
            model has a full URL of its own, elsewhere it is the same as `url`.
        refusal_logit: For reranking, the least logit of the best chunk for a question to be
            answered, where the registry has one for the model that answers.
        thinking: For chat, the tokens that the model may think before it answers, which a limit on
            the answer has to leave room for: 0 where it does not think.
        extra_body: For chat, the fields beyond OpenAI's that say so in a request; empty where
            nothing needs to be said.
    """

    role: Role
    url: str
    model: str
    key_variable: str
    weights: str
    rerank_url: str | None = None
    refusal_logit: float | None = None
    thinking: int = 0
    extra_body: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The key itself, read from the environment; never part of the repr."""
        return os.environ.get(self.key_variable, "")


class Endpoints:
    """The endpoints of all roles. Made by `connect()`.

    Attributes:
        mode: Where they are: `local`, `hosted` or `self-hosted`.
    """

    def __init__(
        self, mode: Mode, endpoints: Mapping[Role, Endpoint], peft_source: str | None = None
    ) -> None:
        """Take the endpoints that there are; a missing one is an error when it is asked for."""
        self.mode: Mode = mode
        self._endpoints = dict(endpoints)
        self._peft_source = peft_source

    @property
    def chat(self) -> Endpoint:
        """The chat endpoint."""
        return self._get("chat")

    @property
    def embedding(self) -> Endpoint:
        """The embedding endpoint."""
        return self._get("embedding")

    @property
    def reranking(self) -> Endpoint:
        """The reranking endpoint."""
        return self._get("reranking")

    @property
    def weights(self) -> dict[str, str]:
        """What really answers, by role, for the captions of tables and plots."""
        return {role: endpoint.weights for role, endpoint in self._endpoints.items()}

    @property
    def peft_source(self) -> Path:
        """The folder from which the chat NIM loads LoRA adapters, its `NIM_PEFT_SOURCE`.

        Raises:
            ConfigurationError: There is none, or it is not known where it is.
        """
        folder = self._peft_source
        remedy = "stop the local servers, and start them again with `nim-cookbook serve`"
        if self.mode == "hosted":
            remedy = "set COOKBOOK_ENDPOINTS=local, or self-hosted with a chat NIM that loads some"
        elif self.mode == "self-hosted":
            folder = os.environ.get(PEFT_SOURCE, "").strip()
            remedy = (
                f"set {PEFT_SOURCE} to the folder on this machine that is mounted as the chat "
                f"NIM's {PEFT_SOURCE}"
            )
        if not folder:
            raise ConfigurationError(f"The chat endpoint loads no adapters: {remedy}.")
        return Path(folder).expanduser()

    def check(self) -> Check:
        """Make the smallest real call to each endpoint and tell what answered.

        A listing alone proves nothing: NVIDIA's lists models that an account may not use.

        Returns:
            A table; `.ok` tells whether all answered. Nothing is raised for an endpoint that
            does not.
        """
        from nim_cookbook.display import Check  # needs pandas, which connect() does not

        return Check([_check_row(endpoint) for endpoint in self._endpoints.values()])

    def close(self) -> None:
        """Stop the local servers that this process started, once no other connection uses them.

        May be called twice.
        """
        local.release(self)

    def _get(self, role: Role) -> Endpoint:
        try:
            return self._endpoints[role]
        except KeyError:
            raise ConfigurationError(
                f"No {role} endpoint is configured: set NIM_{role.upper()}_URL to the base URL of "
                f"a {role} NIM, such as http://localhost:8000/v1."
            ) from None

    def _standing(self, endpoint: Endpoint) -> str:
        """Return when NVIDIA was last known to serve a model; nothing has asked it yet."""
        if not keys.is_nvidia_url(endpoint.url):
            return ""
        try:
            return f"; {load_registry().model(endpoint.model).standing}"
        except UnknownModelError:
            return "; not in the registry"

    def __repr__(self) -> str:
        """Show the mode and the endpoints, one a line, without keys."""
        lines = (
            f"  {e.role}: {e.model} at {e.url} ({e.weights}{self._standing(e)})"
            for e in self._endpoints.values()
        )
        return "\n".join([f"{self.mode} endpoints", *lines])


def connect(api: Api = "any", *, start: bool = True, wait: float = 0) -> Endpoints:
    """Find the endpoints that the configuration asks for; start the local ones when needed.

    Args:
        api: `"catalog"` for the one base URL that serves all models, `"nim"` for one URL per
            role as self-hosted containers have, `"any"` for what the mode does best.
        start: With False no local server is started.
        wait: Seconds to wait for self-hosted NIMs that are still starting, with a line of
            progress now and then; a container loads its model for minutes.

    Returns:
        Endpoints whose key variables are set in the environment.

    Raises:
        ConfigurationError: An unknown mode, or a URL or other setting that cannot be used.
        MissingKeyError: A key is needed and there is none.
        EndpointUnreachable: An endpoint does not answer.
        UnknownModelError: A self-hosted NIM does not serve the model asked for.
    """
    if api not in get_args(Api):
        raise ConfigurationError(
            f"connect({api!r}) is not possible: use one of {', '.join(get_args(Api))}."
        )
    explain.install()
    found = _found(mode(), api, start, wait)
    keep_proxies_off_loopback(*(endpoint.url for endpoint in found._endpoints.values()))
    return found


def _found(chosen: Mode, api: Api, start: bool, wait: float) -> Endpoints:
    if chosen == "hosted" and api != "nim":
        return _hosted()
    if chosen == "self-hosted" and api != "catalog":
        return _self_hosted(wait)
    if chosen == "hosted" and any(_nim_urls().values()):
        return _self_hosted(wait)
    if chosen != "local":
        # Never NVIDIA's hosts from self-hosted mode, whatever keys there are: the documents may
        # not be allowed to leave the machine.
        part = "an API catalog" if api == "catalog" else "self-hosted NIMs"
        print(f"In {chosen} mode there is no address of {part}: the local stand-in serves instead.")
    return _local(api, start)


def mode() -> Mode:
    """Return the mode that `COOKBOOK_ENDPOINTS` asks for, after `read_env_file()`.

    Raises:
        ConfigurationError: It is set to something else.
    """
    read_env_file()
    text = os.environ.get("COOKBOOK_ENDPOINTS", "").strip().lower() or "local"
    if text not in get_args(Mode):
        raise ConfigurationError(
            f"COOKBOOK_ENDPOINTS is {shown(text)}: set it to local, hosted or self-hosted."
        )
    return cast(Mode, text)


def read_env_file() -> None:
    """Take over the settings of the nearest `.env` file that the environment does not have.

    Raises:
        ConfigurationError: The file cannot be read as text.
    """
    path = find_dotenv(usecwd=True)
    try:
        load_dotenv(path)
    except (OSError, ValueError) as error:  # another encoding, or a NUL in a value
        raise ConfigurationError(
            f"{path} cannot be read ({error}): write it as UTF-8 text, one NAME=value a line."
        ) from None


def base_url(text: str, variable: str) -> str:
    """Bring a base URL into the form that all clients accept: `scheme://host[:port]/.../v1`.

    Args:
        text: What the user wrote; a missing `/v1` is added.
        variable: Where it was written, for the message.

    Raises:
        ConfigurationError: It is no such URL.
    """
    fault = url_fault(text) or _path_fault(text)
    if fault:
        raise ConfigurationError(
            f"{variable} is {shown(text)}, {fault}: write the base URL, such as "
            "http://localhost:8000/v1."
        )
    stripped = text.strip().rstrip("/")
    return stripped if stripped.endswith("/v1") else f"{stripped}/v1"


def url_fault(text: str) -> str | None:
    """Say what is wrong with the address of a server, without showing it; None if nothing is."""
    text = text.strip()
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        return "which is not a URL"
    faults = {
        "which does not begin with http:// or https://": not re.match(r"https?://", text),
        "which is not a URL": not url.host or re.search(r"[\s\\]", text) or not text.isprintable(),
        "which names no possible port": url.port is not None and not 0 < url.port < 65536,
        "which holds a name or a password": url.userinfo or "@" in text,
        "which has a query or a fragment": "?" in text or "#" in text,
    }
    return next((fault for fault, found in faults.items() if found), None)


def _path_fault(text: str) -> str | None:
    path = httpx.URL(text.strip()).path.rstrip("/")
    return "which goes on after /v1" if "/v1/" in path and not path.endswith("/v1") else None


def shown(text: str) -> str:
    """Quote a wrong value for a message, without what may be a secret in it."""
    if "@" in text:
        return "set (not shown, it may hold a password)"
    return repr(re.sub(r"(nvapi-|ntn_|secret_)\S+", r"\1...", text[:80], flags=re.IGNORECASE))


def _local(api: Api, start: bool) -> Endpoints:
    server = local.ensure_running(start=start)
    os.environ[keys.LOCAL_KEY] = server.key
    endpoints: dict[Role, Endpoint] = {}
    for role in ROLES:
        url = server.urls["catalog" if api == "catalog" else role]
        endpoints[role] = Endpoint(
            role=role,
            url=url,
            model=load_registry().default(role).id,
            key_variable=keys.LOCAL_KEY,
            rerank_url=url if role == "reranking" else None,
            **stand_in(url, role, server.key) or {"weights": "local weights"},
        )
    found = Endpoints("local", endpoints, server.peft_source)
    local.use(found)
    return found


def _hosted() -> Endpoints:
    key = keys.nvidia_key()
    url = base_url(os.environ.get("NVIDIA_BASE_URL", "").strip() or HOSTED_URL, "NVIDIA_BASE_URL")
    keys.guard(key, url, key_variable=keys.NVIDIA_KEY, url_variable="NVIDIA_BASE_URL")

    endpoints: dict[Role, Endpoint] = {}
    for role in ROLES:
        model = load_registry().default(role)
        endpoints[role] = Endpoint(
            role=role,
            url=url,
            model=model.id,
            key_variable=keys.NVIDIA_KEY,
            weights=f"{model.id} (hosted by NVIDIA)",
            rerank_url=model.hosted_url,
            refusal_logit=model.refusal_logit,
            **(thinking(model.id) if role == "chat" else {}),
        )
    endpoints["embedding"] = _own_embedding(endpoints["embedding"])
    return Endpoints("hosted", endpoints)


def _own_embedding(usual: Endpoint) -> Endpoint:
    """Give the embedding model a URL, a key and an id of its own, where those are configured.

    Vectors cannot be mixed, so people keep the embedding model where it is when the others move.
    """
    text = os.environ.get(EMBEDDINGS_URL, "").strip()
    key = keys.find_key(keys.EMBEDDINGS_KEY)
    wanted = os.environ.get(EMBEDDINGS_MODEL, "").strip()
    if not (text or key or wanted):
        return usual
    url = base_url(text, EMBEDDINGS_URL) if text else usual.url
    at_nvidia = keys.is_nvidia_url(url)
    variable = keys.EMBEDDINGS_KEY if key or not at_nvidia else usual.key_variable
    key = keys.embeddings_key() if variable == keys.EMBEDDINGS_KEY else usual.key
    keys.guard(key, url, key_variable=variable, url_variable=EMBEDDINGS_URL)
    model = wanted or usual.model
    answering: dict[str, Any] = {"weights": f"{model} (hosted by NVIDIA)"}
    if not at_nvidia:
        model = _served_model("embedding", url, key, EMBEDDINGS_URL, EMBEDDINGS_MODEL, variable)
        answering = stand_in(url, "embedding", key) or _own(model)
    return replace(usual, url=url, model=model, key_variable=variable, **answering)


def _self_hosted(wait: float = 0) -> Endpoints:
    urls = {role: text for role, text in _nim_urls().items() if text}
    if not urls:
        raise ConfigurationError(
            "COOKBOOK_ENDPOINTS is self-hosted, but none of NIM_CHAT_URL, NIM_EMBEDDING_URL and "
            "NIM_RERANKING_URL is set: set those that the recipe uses, such as "
            "NIM_CHAT_URL=http://localhost:8000/v1."
        )
    endpoints: dict[Role, Endpoint] = {}
    deadline = time.monotonic() + wait
    for role, text in urls.items():
        variable = f"NIM_{role.upper()}_URL"
        url = base_url(text, variable)
        own_key = role == "embedding" and keys.find_key(keys.EMBEDDINGS_KEY)
        key_variable = keys.EMBEDDINGS_KEY if own_key else keys.SELF_HOSTED_KEY
        key = keys.embeddings_key() if own_key else keys.self_hosted_key()
        keys.guard(key, url, key_variable=key_variable, url_variable=variable)
        if wait > 0:
            _wait_until_ready(role, url, key, deadline)
        named = f"NIM_{role.upper()}_MODEL"
        model = _served_model(role, url, key, variable, named, key_variable)
        local = stand_in(url, role, key)
        endpoints[role] = Endpoint(
            role=role,
            url=url,
            model=model,
            key_variable=key_variable,
            rerank_url=url if role == "reranking" else None,
            **local or _own(model),
            **(thinking(model) if role == "chat" and not local else {}),
        )
    return Endpoints("self-hosted", endpoints)


def _wait_until_ready(role: Role, url: str, key: str, deadline: float) -> None:
    """Ask a NIM's readiness until it answers 200 or the deadline has passed."""
    began = last_shown = time.monotonic()
    while True:
        try:
            status = f"it answers {request('GET', f'{url}/health/ready', key).status_code}"
        except httpx.HTTPError:
            status = "nobody answers"
        now = time.monotonic()
        if status == "it answers 200":
            print(f"The {role} NIM is ready after {now - began:.0f} s.", flush=True)
            return
        if now >= deadline:
            return  # what is wrong is said by the first real request
        if now - last_shown >= PROGRESS_SECONDS:
            print(f"Waiting for the {role} NIM at {url}: {status}.", flush=True)
            last_shown = now
        time.sleep(min(1.0, max(0.0, deadline - now)))


def _nim_urls() -> dict[Role, str]:
    return {role: os.environ.get(f"NIM_{role.upper()}_URL", "").strip() for role in ROLES}


def _served_model(
    role: Role, url: str, key: str, variable: str, model_variable: str, key_variable: str
) -> str:
    """Choose the model id: the one asked for, else the catalog's default, else the first."""
    fault = "lists no model"
    listed: list[str] = []
    try:
        response = request("GET", f"{url}/models", key)
        if response.status_code in (401, 403):
            raise MissingKeyError(
                f"{variable} ({url}) refuses the key ({response.status_code}): set "
                f"{key_variable} to the key that this endpoint wants."
            )
        response.raise_for_status()
        listed = [str(model["id"]) for model in response.json()["data"]]
    except httpx.HTTPStatusError as error:
        fault = f"answers /models with {error.response.status_code}"
    except httpx.TimeoutException:
        fault = "does not answer in time"
    except httpx.HTTPError:
        fault = "cannot be reached"
    except (ValueError, KeyError, TypeError):
        fault = "does not answer /models as a NIM does"
    if not listed:
        raise EndpointUnreachable(
            f"{variable} ({url}) {fault}: start the NIM and wait for {url}/health/ready, or "
            f"correct {variable}."
        )
    wanted = os.environ.get(model_variable, "").strip()
    if wanted and wanted not in listed:
        raise UnknownModelError(
            f"{model_variable} is {wanted[:80]!r}, which {url} does not serve: choose one of "
            f"{', '.join(listed[:8])}."
        )
    default = load_registry().default(role).id
    return wanted or (default if default in listed else listed[0])


def thinking(model: str) -> dict[str, Any]:
    """Return how long a model of NVIDIA's hosts or of one's own NIM thinks, and how that is said.

    A model that is known to think is told how long, or not to. One that is not in the registry is
    told only where `COOKBOOK_THINKING` is set: not every server takes the fields.

    Returns:
        The attributes `thinking` and `extra_body` of an `Endpoint`.

    Raises:
        ConfigurationError: `COOKBOOK_THINKING` is neither `off` nor a number of tokens.
    """
    text = os.environ.get(THINKING, "").strip().lower()
    budget = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0
    if text not in ("", "off") and not 1 <= budget <= MOST_THINKING:
        raise ConfigurationError(
            f"{THINKING} is {shown(text)}: set it to off, or to the tokens that the chat model may "
            f"think before it answers, from 1 to {MOST_THINKING}."
        )
    try:
        thinks = load_registry().model(model).thinks
    except UnknownModelError:
        thinks = bool(text)
    return {"thinking": budget, "extra_body": thinking_fields(budget)} if thinks else {}


def thinking_fields(budget: int) -> dict[str, Any]:
    """Return the fields of a chat request that let a Nemotron think for so many tokens; 0 for none.

    `chat_template_kwargs` is vLLM's and NIM's, `reasoning_budget` is in NVIDIA's API reference of
    the reasoning Nemotrons (docs.api.nvidia.com, read 2026-11-27).
    """
    fields: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": budget > 0}}
    return {**fields, "reasoning_budget": budget} if budget else fields


def stand_in(url: str, role: Role, key: str) -> dict[str, Any] | None:
    """Return what a local stand-in tells of the weights behind it, None if it is none.

    Returns:
        The attributes `weights` and `refusal_logit` of an `Endpoint`.
    """
    try:
        metadata = request("GET", f"{url}/metadata", key).json()
        if metadata.get("localStandIn") is True:
            for weights in metadata["weights"]:
                if weights["role"] == role:
                    return {
                        "weights": f"{weights['description']} (local stand-in)",
                        "refusal_logit": weights.get("refusalLogit"),
                    }
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        pass  # a real NIM's metadata has other keys, and need not be there
    return None


def _own(model: str) -> dict[str, Any]:
    """Return the same of a model that is served by the user: its id, or the registry's entry."""
    try:
        refusal_logit = load_registry().model(model).refusal_logit
    except UnknownModelError:
        refusal_logit = None
    return {"weights": f"{model} (self-hosted)", "refusal_logit": refusal_logit}


def _check_row(endpoint: Endpoint) -> dict[str, object]:
    path, body = CHECK_CALLS[endpoint.role]
    own = endpoint.rerank_url if endpoint.rerank_url != endpoint.url else None
    began = time.perf_counter()
    try:
        body = {**body, "model": endpoint.model}
        response = request("POST", own or f"{endpoint.url}/{path}", endpoint.key, body)
        status = response.status_code
        ready = "yes" if status == 200 else _VERDICTS.get(status, f"no: it answers {status}")
    except httpx.TimeoutException:
        ready = "no: it does not answer in time"
    except httpx.HTTPError:
        ready = "no: it cannot be reached"
    elapsed = time.perf_counter() - began
    return {
        "role": endpoint.role,
        "url": own or endpoint.url,
        "model id": endpoint.model,
        "weights that answer": endpoint.weights if ready == "yes" else "none",
        "ready": ready,
        "round trip, ms": round(elapsed * 1000) if ready == "yes" else None,
    }


def request(method: str, url: str, key: str, body: object = None) -> httpx.Response:
    """Send one request, and never a real NVIDIA key to anybody but NVIDIA.

    Raises:
        ConfigurationError: The key and the URL do not belong together; nothing was sent.
        httpx.HTTPError: There was no answer, or none in time.
    """
    keys.guard(key, url, key_variable="The key variable", url_variable=url)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # A proxy cannot reach a server on this machine's loopback address.
    outside = not is_loopback(httpx.URL(url).host)
    with httpx.Client(timeout=CALL_TIMEOUT, trust_env=outside) as client:
        return client.request(method, url, headers=headers, json=body)


def keep_proxies_off_loopback(*urls: str) -> None:
    """Add loopback to NO_PROXY where a proxy is set, or the clients would ask the proxy for it.

    So are the hosts of the URLs that are on loopback: 127.0.0.2, for example.

    Of the two spellings the lower-case one hides the other, so neither is created beside the other.
    `*` alone means every host, and means it only alone.
    """
    if not urllib.request.getproxies():
        return
    own = [host for url in urls if is_loopback(host := httpx.URL(url).host)]
    for variable in {"NO_PROXY", "no_proxy"} & os.environ.keys() or {"NO_PROXY"}:
        hosts = [h.strip() for h in os.environ.get(variable, "").split(",") if h.strip()]
        missing = [h for h in dict.fromkeys((*LOOPBACK, *own)) if h not in hosts]
        if hosts != ["*"]:
            os.environ[variable] = ",".join([*hosts, *missing])
