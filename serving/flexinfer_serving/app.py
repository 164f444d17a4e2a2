"""The two ASGI applications of a router: the public one behind its guard, and the admin one."""

from __future__ import annotations

from collections.abc import Collection

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from flexinfer.errors import FlexInferError, InvalidInput, NotFound
from flexinfer.exposure import is_loopback
from flexinfer.settings import ServeSection
from flexinfer_serving.api import admin, openai
from flexinfer_serving.api.guard import App, Guard
from flexinfer_serving.openai import errors
from flexinfer_serving.router import Router

_BASE = "/v1"


def create_app(router: Router) -> App:
    """Return the public application."""
    app = _serving(openai.routes(router))
    return Guard(app, router)


def create_admin_app(router: Router) -> App:
    """Return the admin application. On loopback it asks for no key: it is for the machine and its monitoring."""
    app = _serving(admin.routes(router))
    given = router.section
    section = ServeSection(
        host=given.admin_host,
        api_keys=() if is_loopback(given.admin_host) else given.api_keys,
        allowed_hosts=given.allowed_hosts,
    )
    return Guard(app, router, section=section)


def _serving(api: APIRouter) -> FastAPI:
    """Return an application of *api* without documentation pages, whose errors are all in OpenAI's shape."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(api)
    served = frozenset(str(getattr(route, "path", "")) for route in api.routes)

    @app.exception_handler(FlexInferError)
    async def ours(request: Request, error: FlexInferError) -> Response:
        return _response(error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        path, method = request.url.path[:128], request.method
        if error.status_code == 405:
            refused = _response(
                InvalidInput(f"{method} is not served at {path}", code="method_not_allowed")
            )
            refused.headers.update(error.headers or {})  # Allow
            return refused
        if error.status_code == 404:
            message = f"there is nothing at {path}{_near(path, served)}"
            return _response(NotFound(message, code="unknown_path"))
        return _response(InvalidInput(str(error.detail)[:256], code="bad_request"))

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        return _response(InvalidInput("the request is not of the expected form"))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        # Answered here, then raised on to the guard, which logs it.
        return _response(FlexInferError("internal error; the router's log has it"))

    return app


def _near(path: str, served: Collection[str]) -> str:
    """Return where *path* is, if its `/v1` is missing or there twice, as it is with a wrong base URL."""
    meant = path.removeprefix(_BASE) if path.startswith(_BASE * 2) else _BASE + path
    return f"; it is at {meant}: a base URL ends with {_BASE}, once" if meant in served else ""


def _response(error: FlexInferError) -> Response:
    answer = errors.answer(error)
    headers = {str(name, "latin-1"): str(value, "latin-1") for name, value in answer.headers()}
    return Response(answer.body(), status_code=answer.status, headers=headers)
