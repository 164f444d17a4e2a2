"""What llama.cpp's log and exit code say: the stage of a load, and why it ended.

The messages are ours and hold no path: they reach clients. Patterns are of xllamacpp 2026.10.11549.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from flexinfer.engine import Cause, Substage

MAX_LINES = 400
MAX_LINE_CHARACTERS = 2000

# What the starter script says, in order.
_STAGES = (
    ("flexinfer: initializing", Substage.INITIALIZING),
    ("flexinfer: loading weights", Substage.LOADING_WEIGHTS),
    ("flexinfer: serving", Substage.HEALTH_CHECK_PENDING),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A cause and the line that gives it away; `{0}` in the message is the pattern's first group."""

    pattern: re.Pattern[str]
    code: str
    message: str
    remedy: str
    retryable: bool = False


def _known(
    pattern: str, code: str, message: str, remedy: str, *, retryable: bool = False
) -> _Known:
    return _Known(
        pattern=re.compile(pattern), code=code, message=message, remedy=remedy, retryable=retryable
    )


_MEMORY = "lower contextTokens, slots or batchTokens, or stop another model"
_FETCH = "verify the artifact and build it again"
_TOOL = "remove the tool environment and start again: it is installed anew"
_CONVERT = "update the tool environment, or convert the model with a newer tool"
_SYSTEM = "install the system's package that holds it (libgomp1 on Debian and Ubuntu)"

# The first that matches any line wins: what is more certain stands first.
_CAUSES = (
    _known(
        r"couldn't bind HTTP server socket, hostname: \S+, port: (\d+)",
        "port_taken", "port {0} was taken by another program", "start again on another port",
        retryable=True,
    ),
    _known(
        r"cannot import xllamacpp: (lib[\w.+-]+): cannot open shared object",
        "engine_missing", "the engine needs the system library {0}", _SYSTEM,
    ),
    _known(
        r"cannot import xllamacpp|No module named|can't open file '",
        "engine_missing", "the engine's package is not in its tool environment", _TOOL,
    ),
    _known(
        r"unknown model architecture: '([\w.-]{1,64})'",
        "architecture_unsupported", "the engine does not know the architecture {0}", _CONVERT,
    ),
    _known(
        r"unknown (?:pre-)?tokenizer(?: type)?: '([\w.-]{1,64})'",
        "architecture_unsupported", "the engine does not know the tokenizer {0}", _CONVERT,
    ),
    _known(
        r"chat template parsing error|failed to initialize chat template",
        "template", "the engine cannot parse the model's chat template",
        "use an artifact with another chat template",
    ),
    _known(
        r"insufficient memory \(attempted to allocate ([\d.]+ MB)\)",
        "out_of_memory", "there is not enough memory: {0} could not be had", _MEMORY, retryable=True,
    ),
    _known(
        r"Cannot allocate memory|failed to allocate|std::bad_alloc|MemoryError"
        r"|Resource temporarily unavailable",
        "out_of_memory", "there is not enough memory", _MEMORY, retryable=True,
    ),
    _known(
        r"failed to open GGUF file",
        "model_missing", "the model's file cannot be opened", _FETCH,
    ),
    _known(
        r"tensor '([\w.-]{1,128})' data is not within the file bounds",
        "model_corrupt", "the model's file ends before tensor {0}", _FETCH,
    ),
    _known(
        r"tensor '([\w.-]{1,128})' not found",
        "model_corrupt", "the model's file has no tensor {0}", _FETCH,
    ),
    _known(
        r"gguf_init_from_\w+: |error loading model: |corrupted or incomplete",
        "model_corrupt", "the model's file is damaged or is no GGUF", _FETCH,
    ),
)  # fmt: skip

_BY_SIGNAL = {
    signal.SIGKILL: "by the kernel for want of memory, or by somebody",
    signal.SIGTERM: "by somebody who asked it to end",
    signal.SIGABRT: "by itself, on an error that it did not expect",
    signal.SIGBUS: "on a read past the end of the model's file: it was shortened, or the disk failed",
    signal.SIGSEGV: "on an error in its memory",
}


def substage(line: str) -> Substage | None:
    """Return what *line* says the load is at; None if it says nothing."""
    return next((stage for words, stage in _STAGES if words in line), None)


def cause(lines: Sequence[str], exit_code: int | None) -> Cause:
    """Return why the engine ended."""
    shown = [line[:MAX_LINE_CHARACTERS] for line in lines[-MAX_LINES:]]
    # A line of an earlier start in the same log says nothing of this one.
    first = max((n for n, line in enumerate(shown) if _STAGES[0][0] in line), default=0)
    for known in _CAUSES:
        for line in reversed(shown[first:]):
            match = known.pattern.search(line)
            if match:
                return Cause(
                    code=known.code,
                    message=known.message.format(*(match.groups() or ("",))),
                    remedy=known.remedy,
                    retryable=known.retryable,
                )
    return _by_exit(exit_code)


def _by_exit(code: int | None) -> Cause:
    if code is not None and code < 0:
        if -code == signal.SIGILL:
            return Cause(
                code="cpu_unsupported",
                message="the engine uses an instruction that this processor lacks",
                remedy="use a build of the engine for this processor",
                retryable=False,
            )
        words = _BY_SIGNAL.get(signal.Signals(-code)) if -code in _SIGNALS else None
        name = signal.Signals(-code).name if -code in _SIGNALS else f"signal {-code}"
        return Cause(
            code="engine_killed",
            message=f"the engine was ended with {name}" + (f" {words}" if words else ""),
            remedy="look at its log and at the free memory",
            retryable=True,
        )
    if code in (126, 127):
        return Cause(
            code="engine_missing",
            message="the engine's program could not be run",
            remedy=_TOOL,
            retryable=False,
        )
    how = "for an unknown reason" if code is None else f"with exit code {code}"
    return Cause(
        code="engine_failed",
        message=f"the engine ended {how}, and its log does not say why",
        remedy="look at its log",
        retryable=True,
    )


_SIGNALS = frozenset(int(one) for one in signal.Signals)
