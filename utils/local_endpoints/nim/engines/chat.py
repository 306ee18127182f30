"""The chat engine: llama.cpp's own server, inside this process, behind a private door.

`xllamacpp` runs llama.cpp's HTTP server on threads of this process. It is reached through a UNIX
socket in a folder that only this user may enter, and with a random key; it opens no TCP port
(on Windows, which lacks that, a loopback port with the same key). Talking HTTP to it gives what a
call-back cannot: a request whose client went away is cancelled at once, also while its prompt is
being read, and concurrent requests share llama.cpp's continuous batches.

LoRA adapters are loaded with the model and chosen by each request. Tool calls are llama.cpp's own:
it learns their form from the model's chat template.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

# llama.cpp's threads wait for each other hundreds of times a token. By default they spin, and one
# that loses its core to another program holds up all others: on two cores with one other program
# busy, two spinning threads wrote 8 tokens a second, two that sleep 15, one alone 17; on idle
# cores 29, 26 and 17, and the prompt is read twice as fast by two. libgomp reads this once, when
# it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import xllamacpp

from local_endpoints.weights import ResolvedWeights
from nim_cookbook.errors import WeightsError

Json = dict[str, Any]

PARALLEL_SLOTS = 4
HTTP_THREADS = 64

# What these models' files say about tool calls is not what the models do: see the template.
CODER = "qwen2.5-coder"
CODER_TEMPLATE = Path(__file__).with_name("qwen2.5-coder.jinja")
CODER_CALLS_BEGIN = "```json\n"


def default_threads() -> int:
    """Return how many threads read and write: one a core; threads that share one do not count."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


class PromptTooLong(Exception):
    """The prompt does not fit the context window.

    Attributes:
        tokens: Tokens of the prompt.
        limit: Tokens of the context window.
    """

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(f"{tokens} tokens exceed {limit}")
        self.tokens = tokens
        self.limit = limit


class EngineRefusal(Exception):
    """llama.cpp refused the request, such as a JSON schema that it cannot turn into a grammar."""


class EngineStopped(Exception):
    """llama.cpp is there no more: its server stopped during the request."""


class UnknownAdapter(Exception):
    """The engine has no adapter of that name, or has it no more."""


class ChatEngine:
    """A GGUF model behind llama.cpp.

    Args:
        weights: Where the GGUF file lies and what it is.
        threads: Threads for prompt and generation; `default_threads()` if not given.
        adapters: LoRA adapters that requests can choose: name and GGUF file.

    Raises:
        WeightsError: llama.cpp cannot load the file, or an adapter over it.
    """

    def __init__(
        self,
        weights: ResolvedWeights,
        threads: int | None = None,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        self.weights = weights
        self.context = weights.max_tokens
        self.adapters = dict(adapters or {})
        self.calls_begin = CODER_CALLS_BEGIN if weights.name.startswith(CODER) else ""
        self._folder = tempfile.TemporaryDirectory(prefix="nim-cookbook-")
        self._key = secrets.token_urlsafe(32)
        model = weights.folder / weights.files[0][0]
        try:
            self._server = xllamacpp.Server(self._parameters(model, threads or default_threads()))
        except RuntimeError as error:
            self._folder.cleanup()
            raise WeightsError(
                f"llama.cpp cannot load {model}{self._with_adapters()}: not a GGUF file that it "
                "knows, or not enough memory; choose another file with --chat-model."
            ) from error
        self._client = self._open_client()
        self.knows_tools = False

    def _with_adapters(self) -> str:
        return f" with the adapters {', '.join(self.adapters)}" if self.adapters else ""

    def _parameters(self, model: Path, threads: int) -> xllamacpp.CommonParams:
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        if self.calls_begin:
            params.chat_template = CODER_TEMPLATE.read_text(encoding="utf-8")
        params.n_ctx = self.context * PARALLEL_SLOTS
        params.n_parallel = PARALLEL_SLOTS
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.n_threads_http = HTTP_THREADS
        params.warmup = False
        params.ui = False
        params.verbosity = -1
        params.api_keys = [self._key]
        # llama.cpp keeps prompts of idle slots in memory and gives them to any request that begins
        # alike, whichever adapter had read them (its issue 26207; measured here, too). Within a
        # slot it drops what another adapter has read.
        params.cache_ram_mib = 0
        params.cache_idle_slots = False
        params.lora_init_without_apply = True
        params.lora_adapters = [_lora_info(path) for path in self.adapters.values()]
        if os.name == "posix":
            params.hostnames = [str(Path(self._folder.name) / "llama.sock")]
        return params

    def _open_client(self) -> httpx.AsyncClient:
        address = self._server.listening_address
        unix = address.startswith("unix://")
        transport = httpx.AsyncHTTPTransport(
            uds=address.removeprefix("unix://") if unix else None,
            # llama.cpp closes a connection after a streamed answer without saying so, and a request
            # that took it up again would be lost. A new one to a local socket costs nothing.
            limits=httpx.Limits(max_connections=HTTP_THREADS, max_keepalive_connections=0),
        )
        return httpx.AsyncClient(
            transport=transport,
            base_url="http://llama" if unix else address,
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=httpx.Timeout(None, connect=10),
            trust_env=False,
        )

    async def start(self) -> None:
        """Read what the model's chat template can do; the engine is ready after it."""
        properties = (await self._client.get("/props")).json()
        capabilities = properties.get("chat_template_caps", {})
        self.knows_tools = all(
            capabilities.get(name) for name in ("supports_tools", "supports_tool_calls")
        )

    async def busy_slots(self) -> int:
        """Return how many of the parallel slots are generating now."""
        slots = (await self._client.get("/slots")).json()
        return sum(bool(slot.get("is_processing")) for slot in slots)

    def _choose(self, body: Json, adapter: str | None) -> Json:
        """Return the request with the scale of every loaded adapter: 1 for the chosen, else 0.

        All are named, since llama.cpp takes an empty list for none given (its issue 28674).

        Raises:
            UnknownAdapter: No such adapter is loaded.
        """
        if adapter is not None and adapter not in self.adapters:
            raise UnknownAdapter(adapter)
        if not self.adapters:
            return body
        scales = [float(name == adapter) for name in self.adapters]
        return {**body, "lora": [{"id": i, "scale": scale} for i, scale in enumerate(scales)]}

    async def complete(self, path: str, body: Json, adapter: str | None = None) -> Json:
        """Return the whole answer of ``/v1/chat/completions`` or ``/v1/completions``.

        Args:
            path: Which of the two.
            body: The request as llama.cpp takes it; `model` is the id to answer under.
            adapter: The LoRA adapter to answer with; None for the base model alone.

        Raises:
            PromptTooLong: The prompt does not fit the context window.
            EngineRefusal: llama.cpp refused the request.
            UnknownAdapter: No such adapter is loaded.
            EngineStopped: llama.cpp stopped meanwhile.
        """
        answer = await self._post(path, {**self._choose(body, adapter), "stream": False})
        return self._public(answer, body["model"], adapter)

    async def _post(self, path: str, body: Json) -> Json:
        with _stop_noticed():
            answer = await self._client.post(path, json=body)
        if answer.status_code != 200:
            raise _failure(answer.content)
        return dict(answer.json())

    async def render(self, body: Json) -> str:
        """Return the text that the model reads of a chat; errors are those of `complete`."""
        return str((await self._post("/apply-template", body))["prompt"])

    async def tokenize(self, text: str, special: bool) -> list[tuple[int, str]]:
        """Return the tokens of a prompt as the model reads it, each with its text.

        Args:
            text: The prompt.
            special: Whether what the model puts before each prompt is added.
        """
        body = {"content": text, "add_special": special, "parse_special": True, "with_pieces": True}
        tokens = (await self._post("/tokenize", body))["tokens"]
        return [(token["id"], _piece(token["piece"])) for token in tokens]

    async def stream(
        self, path: str, body: Json, adapter: str | None = None
    ) -> AsyncGenerator[Json, None]:
        """Yield the answer's chunks as they are generated; closing the iterator cancels it.

        Arguments and errors are those of `complete`; errors come with the first chunk.
        """
        request = self._choose(body, adapter)
        request = {**request, "stream": True, "stream_options": {"include_usage": True}}
        with _stop_noticed():
            async with self._client.stream("POST", path, json=request) as answer:
                if answer.status_code != 200:
                    raise _failure(await answer.aread())
                async for line in answer.aiter_lines():
                    if line.startswith("error:"):
                        raise _failure(line.removeprefix("error:").encode())
                    data = line.removeprefix("data: ")
                    # Several prompts begin with a null.
                    if data == line or data in ("[DONE]", "null"):
                        continue
                    yield self._public(json.loads(data), body["model"], adapter)

    def _public(self, answer: Json, model: str, adapter: str | None) -> Json:
        """Replace what is llama.cpp's own by what a NIM would show, and name the weights."""
        if "error" in answer:
            raise _failure(json.dumps(answer).encode())
        answer.pop("timings", None)
        answer["model"] = model
        local_id = self.weights.local_id
        answer["system_fingerprint"] = f"{local_id}+{adapter}" if adapter else local_id
        for choice in answer.get("choices", []):
            delta = choice.get("delta")
            if delta is not None and "role" in delta and delta.get("content") is None:
                delta["content"] = ""
            message = choice.get("message", {})
            if message.get("tool_calls"):
                message["content"] = message["content"] or None
        return answer

    async def close(self) -> None:
        """Stop llama.cpp and remove its socket."""
        await self._client.aclose()
        del self._server
        self.abandon()

    def abandon(self) -> None:
        """Remove the socket alone, for a process that ends now."""
        self._folder.cleanup()


def _lora_info(path: Path) -> xllamacpp.CommonAdapterLoraInfo:
    info = xllamacpp.CommonAdapterLoraInfo()
    info.path = str(path)
    info.scale = 0.0
    return info


def _piece(piece: str | list[int]) -> str:
    """Return a token's text; one that is no UTF-8 comes as its bytes."""
    return piece if isinstance(piece, str) else bytes(piece).decode("utf-8", errors="replace")


@contextmanager
def _stop_noticed() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise EngineStopped(str(error)) from error


def _failure(body: bytes) -> Exception:
    try:
        error = json.loads(body)["error"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return RuntimeError(f"llama.cpp answered: {body[:500]!r}")
    if error.get("type") == "exceed_context_size_error":
        return PromptTooLong(int(error["n_prompt_tokens"]), int(error["n_ctx"]))
    if error.get("type") == "invalid_request_error" or error.get("code") == 400:
        return EngineRefusal(str(error.get("message", "")))
    return RuntimeError(f"llama.cpp failed: {error.get('message', error)}")
