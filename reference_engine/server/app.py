"""The web application: routes, the API key, and every failure as an error envelope."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from reference_engine.detokenizer import TokenTable
from reference_engine.server.api import JSON, GenerationApi, ServedModel
from reference_engine.server.errors import ApiError
from reference_engine.server.info import InfoApi
from reference_engine.server.loop import EngineLoop

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPEN_PATHS = frozenset({"/health"})


def create_app(
    model: ServedModel,
    loop: EngineLoop,
    tokens: TokenTable,
    *,
    max_body_bytes: int,
    api_key: str | None = None,
    debug_endpoints: bool = False,
    faults: Callable[[], list[dict[str, object]]] = list,
) -> web.Application:
    """The application.  ``api_key``: required of every call but /health, as ``Authorization: Bearer KEY``."""
    middlewares = [_envelope(max_body_bytes)]
    if api_key is not None:
        middlewares.append(_require_key(api_key))
    app = web.Application(middlewares=middlewares, client_max_size=max_body_bytes)
    api = GenerationApi(model, loop, tokens)
    info = InfoApi(model, loop, api, tokens)
    app.add_routes(
        [
            web.post("/v1/completions", api.completions),
            web.post("/v1/chat/completions", api.chat_completions),
            web.get("/v1/models", info.models),
            web.get("/v1/models/{name:.+}", info.model),
            web.post("/tokenize", info.tokenize),
            web.post("/detokenize", info.detokenize),
            web.get("/health", info.health),
            web.get("/version", info.version),
            web.get("/metrics", info.metrics),
            web.post("/reset_prefix_cache", info.reset_prefix_cache),
            web.post("/flush_cache", info.reset_prefix_cache),  # SGLang's name for it
        ]
    )
    if debug_endpoints:
        from reference_engine.server.debug import DebugApi

        async def debug_faults(request: web.Request) -> web.Response:
            """The injected faults and how often each has struck."""
            return web.json_response({"faults": faults()})

        app.add_routes([web.get("/debug/kv", info.debug_kv), web.get("/debug/faults", debug_faults)])
        app.add_routes(DebugApi(loop).routes())
    return app


def _answer(error: ApiError, extra: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=error.body(), status=error.status, content_type=JSON, headers={**error.headers, **(extra or {})}
    )


def _envelope(max_body_bytes: int) -> Middleware:
    @web.middleware
    async def envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            return _answer(error)
        except web.HTTPRequestEntityTooLarge as error:
            message = f"the body is larger than the {max_body_bytes} bytes that are accepted"
            return _answer(ApiError(message, status=error.status))
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.method} is not possible on {request.path}; use {allowed}"
            return _answer(ApiError(message, status=error.status), {"Allow": allowed})
        except web.HTTPException as error:
            message = f"there is nothing at {request.path}" if error.status == 404 else error.reason
            return _answer(ApiError(message, status=error.status))
        except ConnectionResetError:
            raise  # the client has gone; there is nobody to tell
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            return _answer(ApiError("the server failed to answer; its log has the details", status=500))

    return envelope


def _require_key(api_key: str) -> Middleware:
    expected = f"Bearer {api_key}".encode()

    @web.middleware
    async def require_key(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if request.path not in OPEN_PATHS and not hmac.compare_digest(given, expected):
            raise ApiError(
                "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                status=401,
                code="invalid_api_key",
            )
        return await handler(request)

    return require_key
