"""One tree of errors. Each has a stable `code`; each shell maps classes by one table.

    FlexInferError
    ├── InvalidInput        the caller's fault; asking again is useless
    │   └── UnknownPlugin
    ├── Unauthorized        no or wrong credentials
    ├── NotFound
    ├── Conflict            somebody else changed it; read again
    ├── Overloaded          full; try again after `retry_after_s`
    ├── Unavailable         not there yet; try again after `retry_after_s`
    ├── ResourceExhausted   no disk, memory or port left on this machine
    ├── DeadlineExceeded
    ├── IntegrityError      bytes or evidence are not what they must be
    │   └── QualityError    measured worse than the thresholds ask
    ├── TransferError       moving bytes failed, at the `side` named
    ├── ProcessFailed       a program that we started failed
    └── PluginError
        └── PluginNotInstalled

An exception outside the tree is a bug: shells log it with a traceback and never dress it up.
"""

from __future__ import annotations

from typing import ClassVar, Literal


class FlexInferError(Exception):
    """What went wrong, in one line that names the thing, what was expected and what was found.

    `code` is lower snake case and never changes its meaning: CLI, API, conditions and flows share it.
    `param` names the field at fault, None where there is none.
    `retry_after_s` is set where a later try may succeed.
    """

    default_code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        # A path may hold bytes that are no UTF-8, which no JSON, database or terminal takes.
        message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidInput(FlexInferError):
    """The caller asked for something that cannot be done as asked."""

    default_code = "invalid_input"
    exit_code = 2


class UnknownPlugin(InvalidInput):
    """Nothing is published under that name."""

    default_code = "unknown_plugin"


class Unauthorized(FlexInferError):
    """Credentials are missing, wrong or too narrow."""

    default_code = "unauthorized"
    exit_code = 3


class NotFound(FlexInferError):
    """The thing named does not exist."""

    default_code = "not_found"
    exit_code = 4


class Conflict(FlexInferError):
    """The thing changed since it was read: read again, decide again."""

    default_code = "conflict"
    retryable = True
    exit_code = 5


class Overloaded(FlexInferError):
    """No room now; there will be later."""

    default_code = "overloaded"
    retryable = True
    exit_code = 6


class Unavailable(FlexInferError):
    """Not there now; it may be later."""

    default_code = "unavailable"
    retryable = True
    exit_code = 6


class DeadlineExceeded(FlexInferError):
    """The caller's own time ran out."""

    default_code = "deadline_exceeded"
    exit_code = 6


class ResourceExhausted(FlexInferError):
    """This machine has no disk, memory or port left for it. Not retried blindly."""

    default_code = "resource_exhausted"


class IntegrityError(FlexInferError):
    """Bytes or evidence are not what they must be. The bytes are not used."""

    default_code = "integrity_error"
    exit_code = 7


class QualityError(IntegrityError):
    """A measurement is worse than its threshold. The message has both numbers."""

    default_code = "quality"


class TransferError(FlexInferError):
    """Moving bytes failed at one side of a copy."""

    default_code = "transfer_failed"
    retryable = True
    exit_code = 6

    def __init__(
        self,
        message: str,
        *,
        side: Literal["source", "target"],
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s)
        self.side = side


class ProcessFailed(FlexInferError):
    """A program that we started ended badly; the message says with what and shows its last words."""

    default_code = "process_failed"


class PluginError(FlexInferError):
    """A plug-in broke its contract."""

    default_code = "plugin_error"


class PluginNotInstalled(PluginError):
    """The plug-in is published, but something that it needs is not installed."""

    default_code = "plugin_not_installed"
