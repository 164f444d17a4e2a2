"""Read an engine's answer: bounded, checked, and its faults in the words that clients get."""

from __future__ import annotations

import msgspec

from flexinfer.engine import Endpoint, Engine
from flexinfer.errors import DeadlineExceeded, FlexInferError, IntegrityError, Unavailable
from flexinfer_serving.forward import Reply, UpstreamFault
from flexinfer_serving.openai import errors

MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
# How long a finished stream may take to end its connection, so that it can be used again.
_TAIL_S = 0.25
_TAIL_CHUNKS = 4


class EngineRefusal(FlexInferError):
    """The engine answered with an error; the plug-in put it into OpenAI's words."""

    def __init__(self, answer: errors.Answer) -> None:
        super().__init__(answer.message, code=answer.code, param=answer.param)
        self.answer = answer


def fault_error(kind: str, where: str = "") -> FlexInferError:
    """Return what a client is told of an `UpstreamFault` of that kind; *where* leads the message."""
    if kind == "connect":
        return Unavailable(
            f"{where}no replica took the request", code="upstream_unavailable", retry_after_s=1.0
        )
    if kind == "timeout":
        return DeadlineExceeded(
            f"{where}the engine was silent for too long", code="upstream_timeout"
        )
    return IntegrityError(f"{where}the engine broke off", code="upstream_disconnected")


def invalid(what: str) -> IntegrityError:
    return IntegrityError(f"the engine answered with {what}", code="upstream_invalid")


def check_kind(reply: Reply, *, is_stream: bool) -> None:
    """Refuse an answer that is not what was asked for: HTML, a wrong type, compressed bytes.

    Raises:
        IntegrityError: code `upstream_invalid`.
    """
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    wanted = "text/event-stream" if is_stream else "application/json"
    if reply.status != 200 or kind != wanted:
        raise invalid(f"status {reply.status}, content type {kind[:64]!r}; expected {wanted!r}")
    encoding = reply.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise invalid(f"content encoding {encoding[:32]!r}, which was not asked for")


async def next_chunk(reply: Reply, *, idle_s: float) -> bytes:
    """Return the next bytes, b"" at the end. Raises what `fault_error` gives."""
    try:
        return await reply.next_chunk(idle_s)
    except UpstreamFault as fault:
        raise fault_error(fault.kind) from fault


async def read_json(reply: Reply, *, idle_s: float) -> bytes:
    """Return the whole body, as it came.

    Raises:
        IntegrityError: code `upstream_invalid`: too large, or not JSON.
    """
    body = await _read(reply, MAX_ANSWER_BYTES, idle_s=idle_s)
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise invalid("a body that is not JSON") from error
    return body


async def read_refusal(
    engine: Engine, reply: Reply, endpoint: Endpoint, *, idle_s: float
) -> EngineRefusal:
    """Return what a client is told of an answer with a status of 400 or more.

    Raises:
        IntegrityError: the engine refuses the router itself: our fault, not the client's.
    """
    body = await _read(reply, MAX_ERROR_BYTES, idle_s=idle_s)
    if reply.status in (401, 403):
        raise invalid(f"status {reply.status}: it refused the router's key")
    found = engine.error(reply.status, body, endpoint)
    return EngineRefusal(
        errors.Answer(
            status=found.status,
            code=found.code,
            message=found.message,
            type=found.type,
            param=found.param,
            retry_after_s=1.0 if found.status in (429, 503) else None,
        )
    )


async def drain(reply: Reply) -> None:
    """Read the little that follows `[DONE]`, so that the connection can be used again."""
    try:
        for _ in range(_TAIL_CHUNKS):
            if not await reply.next_chunk(_TAIL_S):
                return
    except UpstreamFault:
        return  # the answer was complete: how the engine hangs up is no matter


async def _read(reply: Reply, limit_bytes: int, *, idle_s: float) -> bytes:
    found = bytearray()
    while data := await next_chunk(reply, idle_s=idle_s):
        found += data
        if len(found) > limit_bytes:
            raise invalid(f"more than {limit_bytes} bytes")
    return bytes(found)
