"""The API server: routes, token and workspace, and the functions behind the routes.

Source: the calls of the client `gradientai` 1.13.1; the service itself closed in 2024.
"""

import asyncio
import contextlib
import math
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from local_endpoints.gradient import errors, schemas
from local_endpoints.gradient.completions import Completer
from local_endpoints.gradient.errors import GradientError
from local_endpoints.gradient.store import (
    ADAPTER_ID,
    ADAPTERS_VARIABLE,
    Adapter,
    AdapterStore,
    Step,
    UnknownAdapter,
    new_adapter,
    now,
)
from local_endpoints.gradient.training import Worker, missing_packages, worker_command
from local_endpoints.nim.chat import Service as ChatService
from local_endpoints.nim.chat import api_error
from local_endpoints.nim.common import BodyLimit, FastJSONResponse, until_disconnect
from local_endpoints.nim.embedding import Service as EmbeddingService
from local_endpoints.nim.engines.chat import EngineRefusal, EngineStopped, PromptTooLong
from local_endpoints.nim.engines.encoder import InputTooLong
from local_endpoints.nim.errors import ApiError, ClientGone
from local_endpoints.nim.service import RoleService
from local_endpoints.routes import METHODS, without_fastapi_errors
from local_endpoints.strict_json import StrictRoute
from local_endpoints.weights import ResolvedWeights
from nim_cookbook.errors import CookbookError

Json = dict[str, Any]

PREFIX = "/api"
BASE_SUFFIX = "_base_ml_model"  # after a UUID: 50 characters, which the SDK checks
EMBEDDING_SLUG = "bge-large"  # the SDK accepts no other; the listing says what really answers
STAND_IN_FIELD = "localStandIn"

DEFAULT_RANK = 8
DEFAULT_LEARNING_RATE = 5e-4
DEFAULT_GENERATED_TOKENS = 100
# Greedy by default: a run can be repeated, and a small model answers better.
DEFAULT_TEMPERATURE = 0.0

_NAMESPACE = uuid.UUID("7a0c9a4e-3f0e-5d53-9d3a-8f0d6f1f7a11")  # ours, for ids of base models


def base_model_id(weights: ResolvedWeights) -> str:
    """Return the base model's id, which is the same wherever these very weights are served."""
    return f"{uuid.uuid5(_NAMESPACE, weights.files[0][1])}{BASE_SUFFIX}"


def base_model_slug(weights: ResolvedWeights) -> str:
    """Return the base model's slug: the true name of its weights."""
    return weights.local_id.removeprefix("local/")


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


class _Api:
    """The answers; each public method is a route."""

    def __init__(
        self,
        chat: ChatService,
        embedding: EmbeddingService,
        store: AdapterStore,
        worker: Sequence[str] | None,
    ) -> None:
        self._chat = chat
        self._embedding = embedding
        self._store = store
        self._turn = asyncio.Lock()  # first come, first served
        self._completer = Completer(store)
        self._command = worker
        self._worker: Worker | None = None

    async def close(self) -> None:
        """End the worker and the engine."""
        if self._worker is not None:
            await self._worker.close()
        await self._completer.close()

    # --- models -----------------------------------------------------------------------------

    def _base(self) -> Json:
        weights = _require(self._chat)
        trainable = self._command is not None or not missing_packages()
        return {
            "id": base_model_id(weights),
            "name": weights.description,
            "slug": base_model_slug(weights),
            "type": "baseModel",
            "capabilities": ["complete", "fineTune"] if trainable else ["complete"],
            STAND_IN_FIELD: self._chat.provenance()[0],
        }

    def _adapter(self, adapter: Adapter) -> Json:
        updated = adapter.updated.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        history = [
            {"tokens": step.tokens, "sumLoss": step.sum_loss, "seconds": step.seconds}
            for step in adapter.history
        ]
        return {
            "id": adapter.id,
            "name": adapter.name,
            "baseModelId": adapter.base_model_id,
            "type": "modelAdapter",
            "latestUpdateTime": updated,
            STAND_IN_FIELD: {"folder": str(self._store.peft(adapter)), "history": history},
        }

    async def _find(self, identity: str) -> Adapter | None:
        """Return an adapter; None for the id of the base model.

        Raises:
            GradientError: There is no model of that id.
        """
        if identity == base_model_id(_require(self._chat)):
            return None
        if identity.endswith(BASE_SUFFIX):
            raise errors.unknown_base(identity[:80])
        if not ADAPTER_ID.fullmatch(identity):
            raise errors.bad_request(
                f"'{identity[:80]}' is no model id: ids are a UUID with _model_adapter or "
                "_base_ml_model behind it, as GET /api/models lists them."
            )
        try:
            return await asyncio.to_thread(self._store.get, identity)
        except UnknownAdapter:
            raise errors.unknown_adapter(identity) from None

    async def models(
        self, capability: Literal["any", "fineTune", "complete"] = "any", onlyBase: bool = False
    ) -> Json:
        """List the base model, and unless `onlyBase` all adapters of it or of others."""
        base = self._base()
        found = [base] if capability == "any" or capability in base["capabilities"] else []
        if not onlyBase:
            found += [self._adapter(one) for one in await asyncio.to_thread(self._store.all)]
        return {"models": found}

    async def get(self, identity: str) -> Json:
        """Return the base model or an adapter."""
        found = await self._find(identity)
        return self._base() if found is None else self._adapter(found)

    async def delete(self, identity: str) -> Json:
        """Delete an adapter at once; see `build_app` for the requests that use it."""
        if await self._find(identity) is None:
            raise errors.failed(403, "A base model cannot be deleted: only adapters can.")
        async with self._completer.files:
            with contextlib.suppress(UnknownAdapter):
                await asyncio.to_thread(self._store.delete, identity)
        return {}

    # --- training ---------------------------------------------------------------------------

    def _require_worker(self) -> Worker:
        """Return the worker, which starts when it is first asked.

        Raises:
            GradientError: 503 without the extra `finetune`.
        """
        if self._worker is None:
            weights = _require(self._chat)
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

    async def _write(self, adapter: Adapter, request: Json) -> Json:
        """Have the worker write a version of an adapter, and make it current.

        Raises:
            GradientError: It could not; the version before stays current.
        """
        draft = None
        try:
            draft = await asyncio.to_thread(self._store.draft, adapter)
            began = time.monotonic()
            folder = str(self._store.peft(draft))
            answer = await self._require_worker().ask({**request, "folder": folder})
            if request["op"] == "step":
                tokens, sum_loss = answer["tokens"], answer["sumLoss"]
                if not math.isfinite(sum_loss):
                    raise GradientError(
                        422,
                        "nanLoss",
                        "The loss is not finite, so this step was not kept: create a new adapter "
                        "with a lower learning rate.",
                    )
                step = Step(tokens=tokens, sum_loss=sum_loss, seconds=time.monotonic() - began)
                change = {"updated": now(), "history": (*draft.history, step)}
                draft = draft.model_copy(update=change)
            async with self._completer.files:
                self._store.publish(draft)  # no await: a cancelled request must not interrupt it
            return answer
        except BaseException as error:
            if draft is not None:
                await asyncio.to_thread(self._store.discard, draft)
            if isinstance(error, UnknownAdapter):
                raise errors.unknown_adapter(adapter.id) from None
            if isinstance(error, OSError):
                raise errors.failed(
                    500,
                    f"The adapter cannot be written ({error.strerror}) and stays as it was: make "
                    f"room, or set {ADAPTERS_VARIABLE} to a folder that this server may write.",
                ) from error
            raise

    async def create(self, body: schemas.CreateModel) -> Json:
        """Make a new adapter, which answers as its base model until it is trained."""
        weights = _require(self._chat)
        if body.model.base_model_id != base_model_id(weights):
            raise errors.unknown_base(body.model.base_model_id[:80])
        self._require_worker()
        given = body.initial_hyperparameters or schemas.InitialHyperparameters()
        lora = given.lora_hyperparameters or schemas.LoraHyperparameters()
        arguments = given.training_arguments or schemas.TrainingArguments()
        adapter = new_adapter(
            body.model.name,
            body.model.base_model_id,
            rank=lora.rank or DEFAULT_RANK,
            learning_rate=arguments.learning_rate or DEFAULT_LEARNING_RATE,
        )
        settings = {"rank": adapter.rank, "learningRate": adapter.learning_rate}
        async with _until_stopped(self._turn):
            await self._write(adapter, {"op": "create", **settings})
        return {"id": adapter.id}

    async def fine_tune(self, identity: str, body: schemas.FineTune, request: Request) -> Json:
        """Take one optimiser step over all samples.

        Steps run one at a time, in the order of the requests. A step that has begun runs to its
        end, also if the client disconnects.
        """
        found = await self._find(identity)
        if found is None:
            raise GradientError(
                400,
                "modelIncapableOfFineTuning",
                "A base model is not trained itself: create an adapter of it with POST "
                "/api/models, and train that.",
            )
        self._check_base(found)
        self._require_worker()
        samples = [sample.model_dump() for sample in body.samples]
        async with _until_stopped(self._turn):
            if await request.is_disconnected():
                raise ClientGone
            before = await self._find(identity)  # the steps before this one have changed it
            assert before is not None
            source = str(self._store.peft(before))
            try:
                answer = await self._write(
                    before, {"op": "step", "source": source, "samples": samples}
                )
            except GradientError:
                await self._find(identity)  # 404 if it was deleted during the step
                raise
        return {"numberOfTrainableTokens": answer["tokens"], "sumLoss": answer["sumLoss"]}

    def _check_base(self, adapter: Adapter) -> None:
        if adapter.base_model_id != base_model_id(_require(self._chat)):
            raise errors.other_base(adapter.name)

    # --- completions ------------------------------------------------------------------------

    async def complete(self, identity: str, body: schemas.Complete, request: Request) -> Json:
        """Continue a text on the base model or an adapter.

        The engine parses special tokens such as `<|im_start|>` in the text, as training does.
        """
        weights, adapter = _require(self._chat), await self._find(identity)
        if adapter is not None:
            self._check_base(adapter)
        asked: Json = {
            "model": weights.local_id,
            "prompt": body.query,
            "max_tokens": body.max_generated_token_count or DEFAULT_GENERATED_TOKENS,
            "temperature": DEFAULT_TEMPERATURE if body.temperature is None else body.temperature,
        }
        asked |= body.model_dump(include={"top_k", "top_p"}, exclude_none=True)
        try:
            work = self._completer.complete(weights, asked, adapter.id if adapter else None)
            answer = await until_disconnect(request, work)
        except UnknownAdapter:
            raise errors.unknown_adapter(identity) from None
        except CookbookError as error:  # the weights cannot be converted or loaded
            raise errors.failed(500, str(error)) from error
        except PromptTooLong as error:
            raise errors.unprocessable(
                f"The query has {error.tokens} tokens, and the model reads at most {error.limit}: "
                "shorten it."
            ) from error
        except EngineRefusal as error:
            raise errors.unprocessable(f"The model's engine refuses that: {error}.") from error
        except EngineStopped as error:
            raise errors.failed(503, api_error(error, weights.max_tokens).detail) from error
        (choice,) = answer["choices"]
        return {"finishReason": choice["finish_reason"], "generatedOutput": choice["text"] or ""}

    # --- embeddings -------------------------------------------------------------------------

    async def embedding_models(self) -> Json:
        """List the one embedding model, under the only name that the SDK accepts."""
        _require(self._embedding)
        entry = {"slug": EMBEDDING_SLUG, STAND_IN_FIELD: self._embedding.provenance()[0]}
        return {"embeddingsModels": [entry]}

    async def embed(self, slug: str, body: schemas.Embed, request: Request) -> Response:
        """Return one vector a text, of length one."""
        _require(self._embedding)
        if slug != EMBEDDING_SLUG:
            raise errors.failed(
                404, f"There is no embedding model '{slug[:80]}': use '{EMBEDDING_SLUG}'."
            )
        try:
            engine = self._embedding.require_engine()
            texts = [entry.input for entry in body.inputs]
            result = await until_disconnect(request, engine.embed(texts))
        except InputTooLong as error:
            raise errors.unprocessable(
                f"An input has {error.length} tokens, and the model reads at most {error.limit}: "
                "split it."
            ) from error
        except ApiError as error:
            raise errors.failed(error.status, error.detail) from error
        vectors = [{"index": i, "embedding": vector} for i, vector in enumerate(result.vectors)]
        return FastJSONResponse({"embeddings": vectors})


Gate = Callable[..., Awaitable[None]]


def _gate(token: str) -> Gate:
    async def gate(
        bearer: Annotated[
            HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))
        ],
        x_gradient_workspace_id: Annotated[str, Header(description="Any id; 400 without.")] = "",
    ) -> None:
        """Check token and workspace."""
        given = bearer.credentials.strip() if bearer else ""
        if not secrets.compare_digest(given.encode(), token.encode()):
            raise errors.failed(
                401,
                "The access token is missing or wrong: send it as 'Authorization: Bearer <token>' "
                "(GRADIENT_ACCESS_TOKEN).",
            )
        if not x_gradient_workspace_id.strip():
            raise errors.bad_request(
                "The header x-gradient-workspace-id is missing: send any workspace id "
                "(GRADIENT_WORKSPACE_ID); this local stand-in has one workspace for all."
            )

    return gate


def _routes(api: _Api, gate: Gate) -> APIRouter:
    router = APIRouter(
        route_class=StrictRoute,
        prefix=PREFIX,
        dependencies=[Depends(gate)],
        responses=errors.documented(400, 401, 503),
    )
    unknown, work = errors.documented(404), errors.documented(404, 413, 422)
    router.get("/models")(api.models)
    router.post("/models", responses=errors.documented(404, 413, 500))(api.create)
    router.get("/models/{identity}", responses=unknown)(api.get)
    router.delete("/models/{identity}", responses=errors.documented(403, 404))(api.delete)
    router.post("/models/{identity}/fine-tune", responses=work | errors.documented(500))(
        api.fine_tune
    )
    router.post("/models/{identity}/complete", responses=work | errors.documented(500))(
        api.complete
    )
    router.get("/embeddings")(api.embedding_models)
    router.post("/embeddings/{slug}", response_model=None, responses=work)(api.embed)
    return router


def _everything_else(gate: Gate) -> APIRouter:
    """Return a route for what no other one is for; `errors` turns its 405 into a 404 where due."""
    router = APIRouter(prefix=PREFIX, dependencies=[Depends(gate)], include_in_schema=False)

    @router.api_route("/{path:path}", methods=list(METHODS))
    async def other() -> None:
        raise HTTPException(405)

    return router


@contextlib.asynccontextmanager
async def _until_stopped(turn: asyncio.Lock) -> AsyncIterator[None]:
    """Wait for a turn and keep it; answer 503 when the server stops and cancels its requests."""
    try:
        async with turn:
            yield
    except asyncio.CancelledError:
        raise HTTPException(503, "The local server is stopping; start it again.") from None


def build_app(
    chat: ChatService,
    embedding: EmbeddingService,
    token: str,
    store: AdapterStore,
    worker: Sequence[str] | None = None,
) -> FastAPI:
    """Return the API server.

    After an adapter is deleted, completions that run finish, and a training that waits or runs
    answers 404 `unknownModelAdapter`.

    Args:
        chat: The base model: its weights are trained and complete.
        embedding: The model that answers as `bge-large`.
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
        title="Gradient AI (local stand-in)",
        version=version("nim-rag-cookbook"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    without_fastapi_errors(app)

    # Not Gradient's: the launcher asks for it without a token.
    @app.get(f"{PREFIX}/health/ready", responses={200: {}, 503: {}})
    async def ready() -> JSONResponse:
        loading = [role.role for role in (chat, embedding) if not role.weights]
        message = f"loading: {', '.join(loading)}" if loading else "ready"
        body = {"message": message, "ready": not loading}
        return JSONResponse(body, status_code=503 if loading else 200)

    gate = _gate(token)
    app.include_router(_routes(api, gate))
    errors.install_handlers(app, list(app.router.routes))
    app.include_router(_everything_else(gate))
    app.add_middleware(BodyLimit)
    return app
