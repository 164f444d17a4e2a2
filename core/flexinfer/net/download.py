"""One file by HTTP: streamed, resumed where it stopped, tried again while it makes progress."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

from flexinfer.clock import Clock, SystemClock
from flexinfer.errors import FlexInferError, IntegrityError, TransferError, Unavailable
from flexinfer.log import get_logger
from flexinfer.net.client import Client, status_error
from flexinfer.net.policy import origin_of
from flexinfer.net.ranges import Complete, Continue, Restart, read_answer, request_headers
from flexinfer.net.retry import PASSING, Retry, retry_after_s

log = get_logger(__name__)
_PROGRESS = 64 * 1024
# Slower than this over a whole stall period is as good as nothing: 5 GB would take a month.
_LEAST_BYTES_PER_S = 1024


class SourceChanged(IntegrityError):
    """The bytes that are here do not belong to what the source has now: drop them and start again."""

    default_code = "source_changed"
    retryable = True


class Downloader:
    """Downloads through a client. Time, chance and sleep are passed in."""

    def __init__(
        self,
        client: Client,
        *,
        retry: Retry | None = None,
        chance: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Clock | None = None,
    ) -> None:
        self._client = client
        self._retry = retry or Retry()
        self._chance = chance or random.SystemRandom()
        self._sleep = sleep
        self._clock = clock or SystemClock()

    async def chunks(
        self,
        url: str,
        *,
        offset: int = 0,
        max_bytes: int,
        size: int | None = None,
        etag: str = "",
        headers: Mapping[str, str] | None = None,
        on_size: Callable[[int], None] | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of *url* from *offset* on.

        *size* is the whole file's, where it is known beforehand; *etag* the tag that the bytes before *offset* had.
        *on_size* hears how large the server says that it is.

        Raises:
            SourceChanged: what came before *offset*, or before a break, is no longer the file's beginning.
            StatusError: a refusal that will not pass (401, 403, 404, …).
            TransferError: it went on failing. Codes `transfer_stalled`, `connect_failed`, `transfer_failed`,
                `answer_too_large`, `size_mismatch`.
            Unavailable: the server asked for a longer wait than we are ready for.
        """
        state = _State(offset=offset, etag=etag, size=size)
        failed = tries = 0
        while True:
            before = state.offset
            try:
                async for chunk in self._once(url, state, headers or {}, max_bytes, on_size):
                    yield chunk
                return
            except SourceChanged:
                raise
            except FlexInferError as error:
                if not error.retryable:
                    raise
                failed = 1 if state.offset - before >= _PROGRESS else failed + 1
                tries += 1
                if failed > self._retry.attempts or tries > self._retry.total:
                    raise
                asked = error.retry_after_s
                if asked is not None and asked > self._retry.longest_retry_after_s:
                    raise Unavailable(
                        f"{origin_of(url)}: asked to wait {asked:.0f} s", retry_after_s=asked
                    ) from error
                delay = self._retry.delay_s(failed, jitter=self._chance.random(), asked_s=asked)
                log.info(
                    "download_retried",
                    host=origin_of(url).host,
                    offset=state.offset,
                    code=error.code,
                    delay_s=round(delay, 2),
                )
                await self._sleep(delay)

    async def _once(
        self,
        url: str,
        state: _State,
        headers: Mapping[str, str],
        max_bytes: int,
        on_size: Callable[[int], None] | None,
    ) -> AsyncGenerator[bytes, None]:
        asked = {**headers, **request_headers(state.offset, state.etag)}
        async with self._client.stream("GET", url, asked) as answer:
            if answer.status not in (200, 206, 416):
                error = await status_error(answer)
                error.retryable = answer.status in PASSING  # type: ignore[misc]  # per answer
                error.retry_after_s = retry_after_s(answer.headers, now_unix_s=self._clock.unix_s())
                raise error
            if answer.headers.get("content-encoding", "identity") not in ("", "identity"):
                raise _failed(url, "an encoded answer that was not asked for", "answer_invalid")
            meaning = read_answer(
                answer.status, answer.headers, offset=state.offset, etag=state.etag
            )
            match meaning:
                case Restart(reason):
                    raise SourceChanged(f"{origin_of(url)}: {reason}")
                case Complete():
                    return
                case Continue(skip=skip, total=total):
                    pass
            whole = state.learn(url, total, answer.headers.get("etag", ""))
            if whole is not None and whole > max_bytes:
                raise _failed(
                    url, f"{whole} bytes, at most {max_bytes} allowed", "answer_too_large"
                )
            if whole is not None and on_size is not None:
                on_size(whole)
            pace = _Pace(self._clock, self._client.timeouts.stall_s)
            async for chunk in answer.chunks():
                pace.moved(url, len(chunk))
                if skip:
                    dropped = min(skip, len(chunk))
                    skip -= dropped
                    chunk = chunk[dropped:]
                    if not chunk:
                        continue
                state.offset += len(chunk)
                if state.offset > max_bytes or (whole is not None and state.offset > whole):
                    raise _failed(
                        url,
                        f"more than the {whole if whole is not None else max_bytes} bytes expected",
                        "answer_too_large",
                    )
                yield chunk
            if whole is not None and state.offset < whole:
                raise TransferError(
                    f"{origin_of(url)}: ended after {state.offset} of {whole} bytes", side="source"
                )


class _State:
    """Where a download stands."""

    def __init__(self, *, offset: int, etag: str, size: int | None) -> None:
        self.offset = offset
        self.etag = etag
        self.size = size

    def learn(self, url: str, total: int | None, etag: str) -> int | None:
        """Return the whole size, from the caller or the server; they may not differ."""
        if total is not None:
            if self.size is not None and total != self.size:
                raise SourceChanged(
                    f"{origin_of(url)}: expected {self.size} bytes, the source has {total}",
                    code="size_mismatch",
                )
            self.size = total
        self.etag = etag or self.etag
        return self.size


class _Pace:
    """Notices a transfer that trickles."""

    def __init__(self, clock: Clock, stall_s: float) -> None:
        self._clock = clock
        self._stall_s = stall_s
        self._since = clock.now_s()
        self._bytes = 0

    def moved(self, url: str, count: int) -> None:
        self._bytes += count
        now = self._clock.now_s()
        if now - self._since < self._stall_s:
            return
        if self._bytes < _LEAST_BYTES_PER_S * self._stall_s:
            raise TransferError(
                f"{origin_of(url)}: {self._bytes} bytes in {now - self._since:.0f} s",
                side="source",
                code="transfer_stalled",
            )
        self._since, self._bytes = now, 0


def _failed(url: str, what: str, code: str) -> TransferError:
    error = TransferError(f"{origin_of(url)}: {what}", side="source", code=code)
    error.retryable = False  # type: ignore[misc]  # asking again gives the same
    return error
