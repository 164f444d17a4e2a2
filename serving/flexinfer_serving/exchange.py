"""One request, from its first byte to its end: read, admit, forward, answer. Plain ASGI.

The work runs in a task of its own. A hang-up, the caller's deadline and the router's end cut it in the same way, in
every phase: the task is cancelled, its place is freed, the engine's socket is closed. There is exactly one
terminal outcome: a full answer, an error in OpenAI's shape, or a stream that ends with an error event.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from flexinfer.engine import Endpoint, Engine
from flexinfer.errors import (
    DeadlineExceeded,
    FlexInferError,
    IntegrityError,
    NotFound,
)
from flexinfer.fleet import FleetReplica
from flexinfer.log import get_logger
from flexinfer_serving import steering
from flexinfer_serving.account import STREAM_HEADERS, Account
from flexinfer_serving.client import LINGER_S, Client, ClientGone
from flexinfer_serving.forward import Head, Reply, UpstreamFault
from flexinfer_serving.openai import errors, sse
from flexinfer_serving.openai.request import read
from flexinfer_serving.replies import (
    EngineRefusal,
    check_kind,
    drain,
    fault_error,
    next_chunk,
    read_json,
    read_refusal,
)
from flexinfer_serving.router import Router, proof
from flexinfer_serving.tickets import Admission, Ticket

log = get_logger(__name__)

MAX_RETRIES = 2
_FAREWELL_S = 1.0 + LINGER_S

Cut = Literal["", "client", "deadline", "stop"]


class Exchange:
    """One request for one endpoint."""

    def __init__(self, router: Router, endpoint: Endpoint, client: Client) -> None:
        self._router = router
        self._endpoint = endpoint
        self._client = client
        self._account = Account(router, endpoint, client.scope["state"]["request_id"])
        self._is_stream = False
        self._body = b""
        self._cut: Cut = ""
        self._work: asyncio.Task[None] | None = None
        self._has_moved = False
        self._idle_s = router.section.stream_idle_timeout_s

    async def run(self) -> None:
        code = "internal_error"
        self._router.active.add(self)
        try:
            self._body = await self._client.body(
                limit_bytes=self._router.section.max_body_bytes,
                timeout_s=self._router.section.body_timeout_s,
            )
            await self._race()
            code = "ok"
        except ClientGone:
            code = "client_gone"
            self._account.left()
        except FlexInferError as error:
            code = error.code
            await self._fail(error)
        except Exception:
            log.exception("request_crashed", request_id=self._account.record.request_id)
            await self._fail(FlexInferError("internal error; the router's log has it"))
        finally:
            self._router.active.discard(self)
            self._account.ended(code)

    def stop(self) -> None:
        """The router ends: so does this request, with an error that says so."""
        self._cut_off("stop")

    # Racing -----------------------------------------------------------------------------------------------

    async def _race(self) -> None:
        """Do the work, unless something cuts it."""
        loop = asyncio.get_running_loop()
        patience_s = steering.patience_s(self._client)
        deadline_s = self._account.started_s + patience_s
        self._work = loop.create_task(self._serve(deadline_s))
        watch = loop.create_task(self._client.gone())
        watch.add_done_callback(lambda _: self._cut_off("client"))
        timer = None
        if math.isfinite(patience_s):
            left_s = deadline_s - self._router.clock.now_s()
            timer = loop.call_later(max(0.0, left_s), self._cut_off, "deadline")
        try:
            await asyncio.wait({self._work})
        finally:
            watch.cancel()
            if timer is not None:
                timer.cancel()
            if not self._work.done():
                self._work.cancel()
            await asyncio.wait({self._work, watch})
        if not self._work.cancelled():
            self._work.result()
        elif self._cut == "deadline":
            raise DeadlineExceeded(
                f"the caller's deadline of {patience_s:g} s passed", code="deadline_exceeded"
            )
        elif self._cut == "stop":
            raise self._router.stopping_error()
        else:
            raise ClientGone

    def _cut_off(self, cut: Cut) -> None:
        if self._work is not None and not self._work.done() and not self._client.has_ended:
            self._cut = self._cut or cut
            self._work.cancel()

    # Work -------------------------------------------------------------------------------------------------

    async def _serve(self, deadline_s: float) -> None:
        request = read(self._endpoint, self._body, limits=self._router.tokens)
        self._body = b""
        self._is_stream = request.is_stream
        self._account.read(is_stream=request.is_stream, dropped=request.dropped)
        model = self._router.dispatcher.find(request.model)
        self._account.found(model)
        if model.endpoints and str(self._endpoint) not in model.endpoints:
            raise NotFound(
                f"engine {model.backend!r} does not serve /v1/{self._endpoint} for model {model.name!r}",
                code="unsupported_endpoint",
            )
        payload = request.body(
            model=model.name, context_tokens=model.context_tokens, limits=self._router.tokens
        )
        del request  # it holds the client's bytes; a long wait needs ours only
        self._account.record.size_bytes = len(payload)
        self._router.retries.arrived()
        self._account.phase = "queued"
        ticket = self._router.dispatcher.arrive(
            model,
            size_bytes=len(payload),
            route=steering.route(self._client),
            deadline_s=deadline_s,
            record=self._account.record,
        )
        try:
            await self._forward(ticket, payload)
        finally:
            ticket.finish()

    async def _forward(self, ticket: Ticket, payload: bytes) -> None:
        for retry in range(MAX_RETRIES + 1):
            self._account.phase = "queued"
            admission = await self._admitted(ticket)
            self._account.admitted(admission.held_s)
            engine = self._router.engine(admission.model)
            reply = await self._attempt(ticket, admission.replica, engine, payload, retry)
            if reply is None:
                continue
            try:
                await self._answer(ticket, admission, engine, reply)
            finally:
                await reply.close()
            return

    async def _admitted(self, ticket: Ticket) -> Admission:
        """Wait for the gate; a stream gets comments meanwhile."""
        every_s = self._router.section.keepalive_comment_s if self._is_stream else None
        while True:
            await asyncio.wait({ticket.decision}, timeout=every_s)
            if ticket.decision.done():
                return ticket.decision.result()
            if not self._client.has_started:
                await self._client.start(
                    200, [*STREAM_HEADERS, *self._account.headers(ticket.model)]
                )
            await self._client.write(sse.comment(self._account.progress(ticket.model)))

    async def _attempt(
        self, ticket: Ticket, replica: FleetReplica, engine: Engine, payload: bytes, retry: int
    ) -> Reply | None:
        """Return the replica's answer; None if the ticket was given back for another try."""
        head = Head(
            path=engine.path(self._endpoint),
            headers=(
                (b"content-type", b"application/json"),
                (b"accept", b"text/event-stream" if self._is_stream else b"application/json"),
                (b"user-agent", b"flexinfer"),
                (b"x-request-id", self._account.record.request_id.encode()),
                *proof(engine, replica),
            ),
        )
        error: FlexInferError
        self._account.sent()
        try:
            reply = await self._send(ticket, head, payload, replica, retry)
        except TimeoutError:
            self._account.failed(replica, "lost")
            self._account.retried("lost")
            ticket.give_back(replica)
            return None
        except UpstreamFault as fault:
            cause: str = fault.kind
            error = fault_error(fault.kind, f"model {self._account.model!r}: ")
        else:
            if reply.status != 503:
                return reply
            await reply.close()
            cause = "unavailable"
            error = fault_error("connect", f"model {self._account.model!r}: ")
        self._account.failed(replica, cause)
        # A refused connection has cost the engine nothing; everything else counts against the budget.
        may_retry = cause != "timeout" and retry < MAX_RETRIES
        if may_retry and (cause == "connect" or self._router.retries.take()):
            self._account.retried(cause)
            ticket.give_back(replica)
            return None
        ticket.suspect(replica)
        raise error

    async def _send(
        self, ticket: Ticket, head: Head, payload: bytes, replica: FleetReplica, retry: int
    ) -> Reply:
        """Return the replica's answer.

        Raises:
            UpstreamFault: as `Forwarder.send`.
            TimeoutError: the fleet gave the replica up while another one is ready; one retry is taken for it.
        """

        def lost() -> None:
            # The engine may still compute, so this is a retry like others. One that may not move waits on.
            if retry < MAX_RETRIES and not self._has_moved and self._router.retries.take():
                self._has_moved = True
                cut.reschedule(asyncio.get_running_loop().time())

        async with asyncio.timeout(None) as cut:
            ticket.when_lost = lost
            try:
                return await self._router.forwarder.send(
                    head, payload, replica, timeout_s=self._router.section.first_byte_timeout_s
                )
            finally:
                ticket.when_lost = None

    # Answers ----------------------------------------------------------------------------------------------

    async def _answer(
        self, ticket: Ticket, admission: Admission, engine: Engine, reply: Reply
    ) -> None:
        self._account.phase = "answering"
        if reply.status >= 400:
            raise await read_refusal(engine, reply, self._endpoint, idle_s=self._idle_s)
        check_kind(reply, is_stream=self._is_stream)
        heard = partial(ticket.heard, admission.replica)
        if not self._is_stream:
            await self._whole(reply, admission)
        elif self._client.has_started:
            await self._client.write(
                sse.comment(self._account.comment(admission.model, admission.replica))
            )
            await self._stream(reply, heard)
        else:
            about = self._account.headers(admission.model, admission.replica)
            await self._client.start(200, [*STREAM_HEADERS, *about])
            await self._stream(reply, heard)

    async def _whole(self, reply: Reply, admission: Admission) -> None:
        about = self._account.headers(admission.model, admission.replica)
        body = await read_json(reply, idle_s=self._idle_s)
        self._account.first_byte()  # of the whole answer: it says nothing of the first token
        framing = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await self._client.start(200, [*framing, *about])
        await self._client.end(body)

    async def _stream(self, reply: Reply, heard: Callable[[float], None]) -> None:
        framer = sse.Framer()
        while not framer.is_done:
            data = await next_chunk(reply, idle_s=self._idle_s)
            if not data:
                break
            events = framer.feed(data)
            if events:
                self._account.first_byte(heard)
                await self._client.write(events)
        if not framer.is_done and not framer.has_failed:
            raise IntegrityError(
                f"model {self._account.model!r}: the stream ended without its end mark",
                code="upstream_incomplete",
            )
        await self._client.end(framer.rest())
        if framer.is_done:
            await drain(reply)

    async def _fail(self, error: FlexInferError) -> None:
        """Tell the client, in the way that is still open."""
        answer = error.answer if isinstance(error, EngineRefusal) else errors.answer(error)
        if self._client.has_ended:
            return
        try:
            async with asyncio.timeout(_FAREWELL_S):
                if not self._client.has_started:
                    await self._client.answer(
                        answer.status,
                        [*answer.headers(), *self._account.headers(None)],
                        answer.body(),
                    )
                elif self._is_stream:
                    self._account.broke_off(answer.code)
                    await self._client.write(sse.error_event(answer))
                    await self._client.end()
                else:
                    self._client.abort()
        except (TimeoutError, ClientGone):
            self._client.abort()
