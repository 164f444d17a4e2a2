"""Structured logs: one JSON object per line, from us and from the libraries alike.

An event is a constant in the past tense (`replica_started`); what varies is a field. Prompts, answers and
secrets are never fields; what looks like a secret is struck out at the last step all the same.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from itertools import islice
from pathlib import PurePath
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from flexinfer.settings import LogSection

# Frame locals hold tokens and prompts, so tracebacks come without them.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)
_STRUCK = "***"
# One event must fit into a line that a reader accepts (64 KiB), however much somebody logs.
_MAX_TEXT = 8192
_MAX_ITEMS = 100
_MAX_DEPTH = 8
_SECRET_FIELD = re.compile(
    r"(?:.*[_-])?(?:authorization|password|passwd|secret|token|api[_-]?key|engine[_-]?key|cookie)s?",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"((?:Bearer|Basic)\s+)[^\s\"',]+"
    r"|\b(?:hf|ghp|gho|fxi)_[A-Za-z0-9_]{8,}"
    r"|\bsk-[A-Za-z0-9_-]{16,}"
    r"|\bAKIA[A-Z0-9]{12,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|([?&](?:X-Amz-[A-Za-z-]+|Signature|sig|token|access_token|api_key)=)[^&\s\"']+",
    re.IGNORECASE,
)


def configure(section: LogSection, *, stream: TextIO | None = None) -> None:
    """Send everything that the process logs to *stream* (default: standard error), once, at start."""
    named: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    foreign: list[structlog.typing.Processor] = [*named, structlog.stdlib.ExtraAdder()]
    renderer: structlog.typing.Processor
    tracebacks: structlog.typing.Processor
    if section.format == "json":
        tracebacks = _TRACEBACKS
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        # As text before secrets are struck: the console renderer would format it after.
        tracebacks = structlog.processors.format_exc_info
        renderer = structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        )
    tail: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        tracebacks,
        strike_secrets,
        renderer,
    ]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=foreign, processors=tail)
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(section.level.upper())
    # At `info` these name every request with its address.
    for noisy in ("httpx", "httpcore", "hpack", "asyncio"):
        logging.getLogger(noisy).setLevel("WARNING")
    structlog.configure(
        processors=[
            *named,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[section.level.upper()]
        ),
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> Any:
    """Return a logger whose methods take the event and its fields."""
    return structlog.stdlib.get_logger(name)


def strike_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace what is called or looks like a credential in *event* by `***`.

    What is not JSON becomes text here, so that no credential hides in an object that is written later.
    """
    return {str(key): _struck_field(str(key), value, depth=0) for key, value in event.items()}


def strike(text: str) -> str:
    """Return *text* without what looks like a credential."""
    return _SECRET.sub(lambda m: (m.group(1) or m.group(2) or "") + _STRUCK, text)


def _struck_field(key: str, value: Any, *, depth: int) -> Any:
    # A number under such a name is a count, and an empty value says that there is none.
    if value and not isinstance(value, (bool, int, float)) and _SECRET_FIELD.fullmatch(key):
        return _STRUCK
    return _struck(value, depth=depth)


def _struck(value: Any, *, depth: int) -> Any:
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)  # JSON has no NaN
        case str():
            return _shown(value)
        case dict() if depth < _MAX_DEPTH:
            items = islice(value.items(), _MAX_ITEMS)
            return {str(k): _struck_field(str(k), v, depth=depth + 1) for k, v in items}
        case list() | tuple() | set() | frozenset() if depth < _MAX_DEPTH:
            return [_struck(item, depth=depth + 1) for item in islice(value, _MAX_ITEMS)]
        case PurePath() | BaseException():
            return _shown(str(value))
        case _:
            return _shown(repr(value))


def _shown(text: str) -> str:
    """Return *text* struck and cut; struck first, so that no half of a credential is left at the cut."""
    left_out = len(text) - _MAX_TEXT
    struck = strike(text[: 2 * _MAX_TEXT])
    return struck if left_out <= 0 else f"{struck[:_MAX_TEXT]}… and {left_out} characters more"
