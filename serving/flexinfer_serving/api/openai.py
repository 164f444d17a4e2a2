"""OpenAI's routes: the three that are served, the Models, and the known ones that no engine here has."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from flexinfer.engine import Endpoint
from flexinfer.errors import FlexInferError, InvalidInput, NotFound
from flexinfer.fleet import FleetModel
from flexinfer_serving.client import Client, ClientGone, Message, Receive, Scope, Send
from flexinfer_serving.exchange import Exchange
from flexinfer_serving.openai.request import model_of, read_object
from flexinfer_serving.router import Router

# Part of OpenAI's API (and its neighbours'), so a client deserves to hear who does not serve it.
KNOWN_PATHS = (
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/images/variations",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/moderations",
    "/v1/rerank",
    "/v1/responses",
    "/v1/messages",
)


class ExchangeResponse(Response):
    """A response that reads the request itself, so that it alone reads `receive`."""

    def __init__(self, router: Router, endpoint: Endpoint) -> None:
        self._router = router
        self._endpoint = endpoint
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        section = self._router.section
        client = Client(scope, receive, send, write_timeout_s=section.write_timeout_s)
        await Exchange(self._router, self._endpoint, client).run()


def routes(router: Router) -> APIRouter:
    """Return the routes of the public listener."""
    api = APIRouter()

    def serve(endpoint: Endpoint) -> None:
        async def exchange() -> Response:
            return ExchangeResponse(router, endpoint)

        api.add_api_route(f"/v1/{endpoint}", exchange, methods=["POST"], name=str(endpoint))

    for endpoint in Endpoint:
        serve(endpoint)

    async def unsupported(request: Request) -> Response:
        raise await _unsupported(router, request)

    for path in KNOWN_PATHS:
        api.add_api_route(path, unsupported, methods=["POST"], name=path)

    @api.get("/v1/models")
    async def models() -> JSONResponse:
        snapshot = router.dispatcher.snapshot
        found = sorted(snapshot.offered if snapshot else (), key=lambda model: model.name)
        return JSONResponse({"object": "list", "data": [_described(model) for model in found]})

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        return JSONResponse(_described(router.dispatcher.find(name)))

    @api.get("/livez")
    async def livez() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @api.get("/readyz")
    async def readyz() -> JSONResponse:
        return ready(router)

    return api


def ready(router: Router) -> JSONResponse:
    """Return 200 while new requests are welcome, 503 otherwise."""
    if router.is_ready:
        return JSONResponse({"status": "ok"})
    if not router.is_draining:
        return JSONResponse({"status": "no fleet yet"}, status_code=503)
    return JSONResponse({"status": "draining", "ending": router.is_ending}, status_code=503)


def _described(model: FleetModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_unix_s,
        "owned_by": "flexinfer",
        "aliases": list(model.aliases),
        "phase": model.phase,
        "engine": model.backend,
        "endpoints": list(model.endpoints),
        "context_tokens": model.context_tokens or None,
        "quantization": model.quantization,
    }


async def _unsupported(router: Router, request: Request) -> FlexInferError:
    """Return the refusal that names the engine of the Model asked for, or of all."""
    path = request.url.path
    section = router.section
    client = Client(request.scope, request.receive, _never)
    try:
        body = await client.body(
            limit_bytes=section.max_body_bytes, timeout_s=section.body_timeout_s
        )
        model = router.dispatcher.find(model_of(read_object(body)))
    except (ClientGone, InvalidInput):  # a form, say; then the Model is not known
        snapshot = router.dispatcher.snapshot
        engines = sorted({one.backend for one in snapshot.offered}) if snapshot else []
        named = ", ".join(engines) or "none"
        return NotFound(
            f"no engine here serves {path} (engines: {named})", code="unsupported_endpoint"
        )
    return NotFound(
        f"engine {model.backend!r} of model {model.name!r} does not serve {path}",
        code="unsupported_endpoint",
    )


async def _never(message: Message) -> None:
    raise AssertionError("this client is only read from")
