"""The admin listener's routes: never on the public port."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from flexinfer.errors import NotFound
from flexinfer.log import get_logger
from flexinfer.metrics import CONTENT_TYPE
from flexinfer_serving.api.openai import ready
from flexinfer_serving.router import Router

log = get_logger(__name__)


def routes(router: Router) -> APIRouter:
    """Return the admin routes. `/drain` is about readiness and nothing else: what stops the process is a signal."""
    api = APIRouter()

    @api.get("/metrics")
    async def metrics() -> Response:
        return Response(router.metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    @api.get("/livez")
    async def livez() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @api.get("/readyz")
    async def readyz() -> JSONResponse:
        return ready(router)

    @api.post("/drain")
    async def begin() -> JSONResponse:
        router.begin_drain()
        log.info("drain_begun", active=len(router.active))
        return JSONResponse({"status": "draining", "active": len(router.active)})

    @api.delete("/drain")
    async def take_back() -> JSONResponse:
        router.end_drain()
        log.info("drain_ended", active=len(router.active))
        return JSONResponse({"status": "not draining", "active": len(router.active)})

    @api.get("/explain/{name}")
    async def explain(name: str) -> JSONResponse:
        found = router.decisions.find(name)
        if found is None:
            raise NotFound(f"no decision {name[:80]!r} is remembered", code="explain_not_found")
        return JSONResponse(found)

    return api
