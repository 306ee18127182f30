"""What a NIM LLM 2.x has beside the chat routes: its tokenizer, and paths not served here."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from local_endpoints.nim.answers import Tokenized
from local_endpoints.nim.chat import ENGINE_ERRORS, ChatTranslator, Service, api_error, check_size
from local_endpoints.nim.common import FastJSONResponse, until_disconnect
from local_endpoints.nim.engines.adaptable import AdaptableEngine
from local_endpoints.nim.errors import VLLM_ERRORS, ApiError
from local_endpoints.nim.schemas import TokenizeRequest, VllmChatRequest
from local_endpoints.strict_json import StrictRoute

NOT_SERVED = (
    *("/v1/responses", "/v1/messages", "/v1/messages/count_tokens"),
    *("/v1/chat/completions/render", "/v1/completions/render", "/detokenize"),
)


async def _tokens(body: TokenizeRequest, engine: AdaptableEngine) -> list[tuple[int, str]]:
    """Return the tokens of the prompt, or of what the model would read of a chat."""
    text = body.prompt
    if text is None:
        chat = VllmChatRequest(model="", messages=body.messages or [], tools=body.tools)
        text = await engine.render(ChatTranslator(chat, engine).request)
    else:
        check_size(engine.context, text.encode())
    return await engine.tokenize(text, body.add_special_tokens)


def router(service: Service) -> APIRouter:
    """Return these routes over `service`."""
    routes = APIRouter(
        route_class=StrictRoute,
        tags=["chat"],
        responses=VLLM_ERRORS.documented(400, 404, 413, 503),
    )

    @routes.post("/tokenize", response_model=None, responses={200: {"model": Tokenized}})
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        """Return the tokens of a text, or of a chat in the model's template."""
        if body.model is not None and body.model not in service.adapters:
            service.check(body.model)
        engine = service.require_engine()
        try:
            tokens = await until_disconnect(request, _tokens(body, engine))
        except ENGINE_ERRORS as error:
            raise api_error(error, engine.context) from error
        return FastJSONResponse(
            {
                "count": len(tokens),
                "max_model_len": engine.context,
                "tokens": [token for token, _ in tokens],
                "token_strs": [piece for _, piece in tokens] if body.return_token_strs else None,
            }
        )

    def refuse(path: str) -> None:
        @routes.post(path, include_in_schema=False)
        async def not_served() -> None:
            raise ApiError(
                501, f"{path} is not served here: ask /v1/chat/completions, or a NIM of your own."
            )

    for path in NOT_SERVED:
        refuse(path)
    return routes
