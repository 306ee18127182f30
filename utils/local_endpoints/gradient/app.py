"""The API server: routes, token and workspace, and what they call.

Source: the client `gradientai` 1.13.1, whose calls are all that is known of this API; the service
itself closed in 2024.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import re
import secrets
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from local_endpoints.gradient import errors, schemas
from local_endpoints.gradient.completions import Completer
from local_endpoints.gradient.errors import GradientError
from local_endpoints.gradient.store import (
    ADAPTERS_VARIABLE,
    Adapter,
    AdapterStore,
    ChangedMeanwhile,
    DamagedAdapter,
    Draft,
    Step,
    UnknownAdapter,
    is_adapter_id,
    now,
)
from local_endpoints.gradient.training import (
    MAX_WAITING,
    QueueFull,
    TrainingFailed,
    TrainingQueue,
    Worker,
    WorkerDied,
    missing_packages,
    worker_command,
)
from local_endpoints.nim.chat import Service as ChatService
from local_endpoints.nim.common import BodyLimit, FastJSONResponse, until_disconnect
from local_endpoints.nim.embedding import Service as EmbeddingService
from local_endpoints.nim.engines.chat import EngineRefusal, PromptTooLong
from local_endpoints.nim.engines.encoder import InputTooLong
from local_endpoints.nim.errors import ApiError
from local_endpoints.nim.service import RoleService
from local_endpoints.weights import ResolvedWeights
from nim_cookbook.errors import CookbookError

Json = dict[str, Any]

PREFIX = "/api"
READY_PATH = f"{PREFIX}/health/ready"
BASE_SUFFIX = "_base_ml_model"  # after a UUID: 50 characters, which the SDK checks
EMBEDDING_SLUG = "bge-large"  # the SDK accepts no other; the listing says what really answers
STAND_IN_FIELD = "localStandIn"

DEFAULT_RANK = 8
DEFAULT_LEARNING_RATE = 5e-4
DEFAULT_GENERATED_TOKENS = 100
# The most likely token always: a small model says more sense so, and a run can be repeated.
DEFAULT_TEMPERATURE = 0.0

_NAMESPACE = uuid.UUID("7a0c9a4e-3f0e-5d53-9d3a-8f0d6f1f7a11")  # ours, for ids of base models
_BASE_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}" + BASE_SUFFIX)

Capability = Literal["any", "fineTune", "complete"]


def base_model_id(weights: ResolvedWeights) -> str:
    """Return the base model's id, which is the same wherever these very weights are served."""
    return f"{uuid.uuid5(_NAMESPACE, weights.files[0][1])}{BASE_SUFFIX}"


def base_model_slug(weights: ResolvedWeights) -> str:
    """Return the base model's slug: the true name of its weights."""
    return weights.local_id.removeprefix("local/")


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _require(service: RoleService[Any]) -> ResolvedWeights:
    """Return a role's weights.

    Raises:
        GradientError: 503 while they are loading.
    """
    if service.weights is None:
        raise errors.failed(
            503, f"The {service.role} model is still loading; try again in a moment."
        )
    return service.weights


def _check_id(identity: str) -> None:
    if not (is_adapter_id(identity) or _BASE_ID.fullmatch(identity)):
        raise errors.bad_request(
            "path",
            f"'{identity[:80]}' is no model id: ids are a UUID with _model_adapter or "
            "_base_ml_model behind it, as GET /api/models lists them.",
        )


class _Api:
    """The answers."""

    def __init__(
        self,
        chat: ChatService,
        embedding: EmbeddingService,
        store: AdapterStore,
        worker: Sequence[str] | None,
    ) -> None:
        self.chat = chat
        self.embedding = embedding
        self.store = store
        self.queue = TrainingQueue()
        self.completer = Completer(store)
        self._command = worker
        self._worker: Worker | None = None

    async def close(self) -> None:
        """End the worker and the engine."""
        await self.queue.close()
        if self._worker is not None:
            await self._worker.close()
        await self.completer.close()
        self.store.close()

    # --- models -----------------------------------------------------------------------------

    def base(self) -> Json:
        """Return the base model's object."""
        weights = _require(self.chat)
        trainable = self._command is not None or not missing_packages()
        return {
            "id": base_model_id(weights),
            "name": weights.description,
            "slug": base_model_slug(weights),
            "type": "baseModel",
            "capabilities": ["complete", "fineTune"] if trainable else ["complete"],
            STAND_IN_FIELD: self.chat.provenance()[0],
        }

    def adapter(self, adapter: Adapter) -> Json:
        """Return an adapter's object; the SDK ignores the fields that are only here."""
        return {
            "id": adapter.id,
            "name": adapter.name,
            "baseModelId": adapter.base_model_id,
            "type": "modelAdapter",
            "latestUpdateTime": _time(adapter.updated),
            STAND_IN_FIELD: {
                "folder": str(self.store.peft(adapter)),
                "rank": adapter.rank,
                "learningRate": adapter.learning_rate,
                "created": _time(adapter.created),
                "steps": adapter.steps,
                "trainedTokens": adapter.trained_tokens,
                "history": [
                    {"tokens": step.tokens, "sumLoss": step.sum_loss, "seconds": step.seconds}
                    for step in adapter.history
                ],
            },
        }

    async def models(self, capability: Capability, only_base: bool) -> Json:
        """Return the base model, and unless `only_base` all adapters of it or of others."""
        base = self.base()
        found = [base] if capability == "any" or capability in base["capabilities"] else []
        if not only_base:
            found += [self.adapter(one) for one in await asyncio.to_thread(self.store.all)]
        return {"models": found}

    async def find(self, identity: str) -> Adapter:
        """Return an adapter.

        Raises:
            GradientError: There is none of that id, or it is damaged.
        """
        _check_id(identity)
        try:
            return await asyncio.to_thread(self.store.get, identity)
        except UnknownAdapter:
            raise errors.unknown_adapter(identity) from None
        except DamagedAdapter as error:
            raise errors.damaged_adapter(identity, error.folder) from None

    async def delete(self, identity: str) -> None:
        """Delete an adapter at once; see `build_app` for what happens to work on it."""
        _check_id(identity)
        if _BASE_ID.fullmatch(identity):
            raise errors.failed(403, "A base model cannot be deleted: only adapters can.")

        async def change() -> None:
            await asyncio.to_thread(self.store.delete, identity)

        try:
            await self.completer.undisturbed(change)
        except UnknownAdapter:
            raise errors.unknown_adapter(identity) from None
        except OSError as error:
            raise errors.failed(
                500, f"The adapter cannot be deleted ({error.strerror}): check {self.store.folder}."
            ) from error

    # --- training ---------------------------------------------------------------------------

    def worker(self) -> Worker:
        """Return the worker, which starts when it is first asked.

        Raises:
            GradientError: 503 without the extra `finetune`.
        """
        if self._worker is None:
            weights = _require(self.chat)
            missing = missing_packages() if self._command is None else []
            if missing:
                raise errors.failed(
                    503,
                    f"Training needs {', '.join(missing)}, which this server lacks: install it "
                    'with `pip install "nim-rag-cookbook[finetune]"` (in a clone: '
                    "`make setup-dev`) and start the server again.",
                )
            self._worker = Worker(self._command or worker_command(weights))
        return self._worker

    async def _queued(self, job: Callable[[], Awaitable[Json]]) -> Json:
        try:
            return await self.queue.run(job)
        except QueueFull:
            raise errors.failed(
                503,
                f"{MAX_WAITING} trainings wait already, which is the limit: try again when one "
                "has ended.",
            ) from None

    async def _write(self, identity: str, steps: int, request: Json) -> tuple[Draft, Json]:
        """Have the worker write a version; it is not current yet.

        Raises:
            GradientError: It could not; nothing is left of it.
        """
        worker = self.worker()
        draft = None
        try:
            draft = await asyncio.to_thread(self.store.draft, identity, steps)
            where = "folder" if request["op"] == "create" else "target"
            return draft, await worker.ask({**request, where: str(draft.peft)})
        except (TrainingFailed, WorkerDied, OSError) as error:
            if draft is not None:
                await self._discard(identity, draft)
            raise _training_error(error) from error

    async def _publish(self, adapter: Adapter, draft: Draft, before: Adapter | None) -> None:
        async def change() -> None:
            await asyncio.to_thread(self.store.publish, adapter, before)

        try:
            await self.completer.undisturbed(change)
        except (UnknownAdapter, DamagedAdapter):
            await self._discard(adapter.id, draft)
            raise errors.unknown_adapter(adapter.id) from None
        except (ChangedMeanwhile, OSError) as error:
            await self._discard(adapter.id, draft)
            raise _training_error(error) from error

    async def _discard(self, identity: str, draft: Draft) -> None:
        await asyncio.to_thread(self.store.discard, identity, draft)

    async def create(self, body: schemas.CreateModel) -> Json:
        """Make a new adapter, which answers as its base model until it is trained."""
        weights = _require(self.chat)
        if body.model.base_model_id != base_model_id(weights):
            raise errors.unknown_base(body.model.base_model_id[:80])
        self.worker()
        given = body.initial_hyperparameters or schemas.InitialHyperparameters()
        lora = given.lora_hyperparameters or schemas.LoraHyperparameters()
        arguments = given.training_arguments or schemas.TrainingArguments()
        rank = lora.rank or DEFAULT_RANK
        learning_rate = arguments.learning_rate or DEFAULT_LEARNING_RATE
        identity = self.store.new_id()

        async def job() -> Json:
            request = {"op": "create", "rank": rank, "learningRate": learning_rate}
            draft, _ = await self._write(identity, 0, request)
            adapter = Adapter(
                id=identity,
                name=body.model.name,
                base_model_id=body.model.base_model_id,
                rank=rank,
                learning_rate=learning_rate,
                created=(moment := now()),
                updated=moment,
                version=draft.version,
            )
            await self._publish(adapter, draft, None)
            return {"id": identity}

        return await self._queued(job)

    async def fine_tune(self, identity: str, body: schemas.FineTune) -> Json:
        """Take one optimiser step over all samples, on what the last one left."""
        weights = _require(self.chat)
        _check_id(identity)
        if _BASE_ID.fullmatch(identity):
            raise errors.incapable(
                "A base model is not trained itself: create an adapter of it with POST "
                "/api/models, and train that."
            )
        found = await self.find(identity)
        if found.base_model_id != base_model_id(weights):
            raise errors.incapable(errors.other_base(found.name).message)
        self.worker()
        samples = [_sample(sample) for sample in body.samples]

        async def job() -> Json:
            before = await self.find(identity)  # as the trainings before this one left it
            source = str(self.store.peft(before))
            request = {"op": "step", "source": source, "samples": samples}
            began = time.monotonic()
            try:
                draft, result = await self._write(identity, before.steps + 1, request)
            except GradientError as error:
                if error.status >= 500:  # was it deleted in the middle?
                    await self.find(identity)
                raise
            tokens, sum_loss = int(result["tokens"]), float(result["sumLoss"])
            if not math.isfinite(sum_loss):
                await self._discard(identity, draft)
                raise GradientError(
                    422,
                    "nanLoss",
                    "The loss is no number any more, so this step was not kept: make a new "
                    "adapter with a lower learning rate.",
                )
            step = Step(tokens=tokens, sum_loss=sum_loss, seconds=time.monotonic() - began)
            after = before.model_copy(
                update={
                    "version": draft.version,
                    "updated": now(),
                    "steps": before.steps + 1,
                    "trained_tokens": before.trained_tokens + tokens,
                    "history": (*before.history, step),
                }
            )
            await self._publish(after, draft, before)
            return {"numberOfTrainableTokens": tokens, "sumLoss": sum_loss}

        return await self._queued(job)

    # --- completions ------------------------------------------------------------------------

    async def complete(self, identity: str, body: schemas.Complete) -> Json:
        """Continue a text on the base model or an adapter."""
        weights = _require(self.chat)
        _check_id(identity)
        adapter_id = None
        if _BASE_ID.fullmatch(identity):
            if identity != base_model_id(weights):
                raise errors.unknown_base(identity)
        else:
            adapter_id = identity
            found = await self.find(identity)
            if found.base_model_id != base_model_id(weights):
                raise errors.other_base(found.name)
        path, request = _completion(body, weights)
        try:
            answer = await self.completer.complete(weights, path, request, adapter_id)
        except UnknownAdapter:
            raise errors.unknown_adapter(identity) from None
        except DamagedAdapter as error:
            raise errors.damaged_adapter(identity, error.folder) from None
        except CookbookError as error:  # of converting or loading the weights
            raise errors.failed(500, str(error)) from error
        except PromptTooLong as error:
            raise errors.unprocessable(
                f"The query has {error.tokens} tokens, and the model reads at most {error.limit}: "
                "shorten it."
            ) from error
        except EngineRefusal as error:
            raise errors.unprocessable(f"The model's engine cannot do that: {error}.") from error
        choice = answer["choices"][0]
        text = choice["message"]["content"] if body.auto_template else choice["text"]
        return {"finishReason": choice["finish_reason"], "generatedOutput": text or ""}

    # --- embeddings -------------------------------------------------------------------------

    def embedding_models(self) -> Json:
        """Return the one embedding model, under the only name that the SDK accepts."""
        _require(self.embedding)
        entry = {"slug": EMBEDDING_SLUG, STAND_IN_FIELD: self.embedding.provenance()[0]}
        return {"embeddingsModels": [entry]}

    async def embed(self, slug: str, body: schemas.Embed) -> Json:
        """Return one vector a text, of length one."""
        _require(self.embedding)
        if slug != EMBEDDING_SLUG:
            raise errors.failed(
                404, f"There is no embedding model '{slug[:80]}': use '{EMBEDDING_SLUG}'."
            )
        try:
            engine = self.embedding.require_engine()
            result = await engine.embed([entry.input for entry in body.inputs])
        except InputTooLong as error:
            raise errors.unprocessable(
                f"An input has {error.length} tokens, and the model reads at most {error.limit}: "
                "split it."
            ) from error
        except ApiError as error:
            raise errors.failed(error.status, error.detail) from error
        vectors = [
            {"index": index, "embedding": vector} for index, vector in enumerate(result.vectors)
        ]
        return {"embeddings": vectors}


def _training_error(error: Exception) -> GradientError:
    """Return what to tell the client about a version that could not be written."""
    if isinstance(error, TrainingFailed) and error.kind == "sample":
        return errors.unprocessable(error.message)
    full = isinstance(error, TrainingFailed) and error.kind == "disk"
    if full or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return errors.failed(
            507,
            "The disk is full, so the adapter stays as it was before this call: make room, or "
            f"set {ADAPTERS_VARIABLE} to a folder on another disk.",
        )
    if isinstance(error, TrainingFailed):
        return errors.failed(
            500, f"The training failed ({error.message}); the adapter stays as it was before."
        )
    if isinstance(error, WorkerDied):
        return errors.failed(
            500,
            "The training process ended, perhaps for lack of memory; the adapter stays as it was "
            "before. Call again: another process starts by itself.",
        )
    if isinstance(error, ChangedMeanwhile):
        return errors.failed(
            503, "Another server trained this adapter at the same time: call again."
        )
    reason = error.strerror if isinstance(error, OSError) else error
    return errors.failed(
        500,
        f"The adapter cannot be written ({reason}): set {ADAPTERS_VARIABLE} to a folder that this "
        "server may write.",
    )


def _sample(sample: schemas.FineTuneSample) -> Json:
    """Return a sample in the worker's words; null is the API's default, that is true."""
    given = sample.inputs
    parts = [schemas.StructuredInput(value=given)] if isinstance(given, str) else given
    parameters = sample.fine_tuning_parameters or schemas.FineTuningParameters()
    return {
        "segments": [
            {
                "text": part.value,
                "trainable": part.trainable is not False,
                "parseSpecial": part.parse_special_tokens is not False,
            }
            for part in parts
        ],
        "multiplier": 1.0 if parameters.multiplier is None else float(parameters.multiplier),
    }


def _completion(body: schemas.Complete, weights: ResolvedWeights) -> tuple[str, Json]:
    """Return the path and the body of llama.cpp's request.

    Without the template the query is continued as it is, and text such as `<|im_start|>` in it
    stands for the special token: a caller who writes out the base model's chat template, or
    trained an adapter on samples that hold it, needs it to mean the same here as there.

    Raises:
        GradientError: Something is asked for that this server does not do.
    """
    if body.guidance is not None:
        raise GradientError(
            400,
            "modelDoesNotSupportGuidance",
            "This local stand-in does not do guidance: leave it out.",
        )
    if body.rag is not None:
        raise GradientError(
            400,
            "unknownRagCollection",
            "This local stand-in keeps no RAG collections: retrieve in your own pipeline, and "
            "write what was found into the query.",
        )
    given = body.temperature
    request: Json = {
        "model": weights.local_id,
        "max_tokens": body.max_generated_token_count or DEFAULT_GENERATED_TOKENS,
        "temperature": DEFAULT_TEMPERATURE if given is None else given,
    }
    if body.top_k is not None:
        request["top_k"] = body.top_k
    if body.top_p is not None:
        request["top_p"] = body.top_p
    if not body.auto_template:
        return "/v1/completions", {**request, "prompt": body.query}
    messages = [{"role": "user", "content": body.query}]
    if weights.system:
        messages.insert(0, {"role": "system", "content": weights.system})
    return "/v1/chat/completions", {**request, "messages": messages}


class Gate:
    """ASGI middleware that demands token and workspace on every path but readiness."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 without the token and 400 without a workspace."""
        if scope["type"] != "http" or scope["path"] == READY_PATH:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(dict(scope["headers"]))
        await (errors.response(refusal) if refusal else self._app)(scope, receive, send)

    def _refusal(self, headers: Mapping[bytes, bytes]) -> GradientError | None:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not secrets.compare_digest(given.strip(), self._token):
            return errors.unauthorized()
        if headers.get(b"x-gradient-workspace-id", b"").strip():
            return None
        return errors.bad_request(
            "header",
            "The header x-gradient-workspace-id is missing: send any workspace id "
            "(GRADIENT_WORKSPACE_ID); this local stand-in has one workspace for all.",
        )


def _routes(api: _Api) -> APIRouter:
    router = APIRouter(prefix=PREFIX)

    @router.get("/health/ready")
    async def ready() -> JSONResponse:
        loading = [role.role for role in (api.chat, api.embedding) if not role.weights]
        message = f"loading: {', '.join(loading)}" if loading else "ready"
        body = {"message": message, "ready": not loading}
        return JSONResponse(body, status_code=503 if loading else 200)

    @router.get("/models")
    async def models(capability: Capability = "any", onlyBase: bool = False) -> Json:
        return await api.models(capability, onlyBase)

    @router.post("/models")
    async def create(body: schemas.CreateModel, request: Request) -> Json:
        return await until_disconnect(request, api.create(body))

    @router.get("/models/{identity}")
    async def get_model(identity: str) -> Json:
        _check_id(identity)
        if _BASE_ID.fullmatch(identity):
            base = api.base()
            if identity != base["id"]:
                raise errors.unknown_base(identity)
            return base
        return api.adapter(await api.find(identity))

    @router.delete("/models/{identity}")
    async def delete(identity: str) -> Json:
        await api.delete(identity)
        return {}

    @router.post("/models/{identity}/fine-tune")
    async def fine_tune(identity: str, body: schemas.FineTune, request: Request) -> Json:
        return await until_disconnect(request, api.fine_tune(identity, body))

    @router.post("/models/{identity}/complete")
    async def complete(identity: str, body: schemas.Complete, request: Request) -> Json:
        return await until_disconnect(request, api.complete(identity, body))

    @router.get("/embeddings")
    async def embedding_models() -> Json:
        return api.embedding_models()

    @router.post("/embeddings/{slug}", response_model=None)
    async def embed(slug: str, body: schemas.Embed, request: Request) -> Response:
        return FastJSONResponse(await until_disconnect(request, api.embed(slug, body)))

    return router


def build_app(
    chat: ChatService,
    embedding: EmbeddingService,
    token: str,
    store: AdapterStore,
    worker: Sequence[str] | None = None,
) -> FastAPI:
    """Return the API server.

    An adapter that is deleted is gone at once: completions that run finish, a training that waits
    or runs answers 404 `unknownModelAdapter`.

    Args:
        chat: The base model: its weights are trained and complete.
        embedding: What answers as `bge-large`.
        token: Demanded as `Authorization: Bearer <token>`.
        store: The adapters.
        worker: Command line of the training process, in place of the one in this package.
    """
    if not token:
        raise ValueError("the Gradient stand-in needs a token")
    api = _Api(chat, embedding, store, worker)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(store.clean)
        yield
        await api.close()

    app = FastAPI(
        title="Gradient API (local stand-in)",
        version=version("nim-rag-cookbook"),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
    )
    errors.install_handlers(app)
    app.include_router(_routes(api))

    async def other(request: Request) -> Response:
        raise errors.not_offered(request)

    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    app.add_api_route("/{path:path}", other, methods=methods, include_in_schema=False)
    app.add_middleware(BodyLimit)
    app.add_middleware(Gate, token=token)
    return app


def warn(sentence: str) -> None:
    """Print a warning to standard error."""
    print(f"Warning: {sentence}", file=sys.stderr, flush=True)
