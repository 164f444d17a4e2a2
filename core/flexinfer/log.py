"""Structured logs: one JSON object per line, from us and from the libraries alike.

An event is a constant in the past tense (`replica_started`); what varies is a field. Prompts, answers and
secrets are never fields; what looks like a secret is struck out at the last step all the same.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from flexinfer.settings import LogSection

# Frame locals hold tokens and prompts, so tracebacks come without them.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)
_SECRET = re.compile(
    r"(Bearer\s+)[^\s\"',]+"
    r"|\b(?:hf|ghp|gho|fxi)_[A-Za-z0-9_]{8,}"
    r"|\bAKIA[A-Z0-9]{12,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|([?&](?:X-Amz-[A-Za-z-]+|Signature|sig|token|access_token|api_key)=)[^&\s\"']+",
    re.IGNORECASE,
)


def configure(section: LogSection, *, stream: TextIO | None = None) -> None:
    """Send everything that the process logs to *stream* (default: standard error), once, at start."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor
    if section.format == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        )
    tail: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        *([_TRACEBACKS] if section.format == "json" else []),
        strike_secrets,
        renderer,
    ]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=tail)
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(section.level.upper())
    # These two name every request and its address at `info`.
    for noisy in ("httpx", "httpcore", "hpack", "asyncio"):
        logging.getLogger(noisy).setLevel("WARNING")
    structlog.configure(
        processors=[
            *shared[:3],
            *shared[5:],
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
    """Replace what looks like a credential in any text of *event* by `***`, and break no line."""
    return {key: _struck(value, depth=0) for key, value in event.items()}


def strike(text: str) -> str:
    """Return *text* without what looks like a credential."""
    return _SECRET.sub(lambda m: (m.group(1) or m.group(2) or "") + "***", text)


def _struck(value: Any, *, depth: int) -> Any:
    if isinstance(value, str):
        return strike(value)
    if depth < 8:
        if isinstance(value, dict):
            return {k: _struck(v, depth=depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [_struck(v, depth=depth + 1) for v in value]
    return value
