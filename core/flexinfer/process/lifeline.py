"""How a child learns that its parent is gone, however it went: `kill -9` included.

The protocol is one pipe. The parent holds the writing end and never writes. The child inherits the reading
end; its number is in the environment variable `FLEXINFER_LIFELINE`. When the parent ends, the kernel
closes the writing end and a read returns no bytes (EOF): then the child ends itself. A program that does not know
the variable ignores it.

A script that cannot import this package, in a tool environment for example, needs these five lines:

    import os, threading
    lifeline = os.environ.pop("FLEXINFER_LIFELINE", "")
    if lifeline:
        ended = lambda: (os.read(int(lifeline), 1), os.killpg(0, 9))
        threading.Thread(target=ended, daemon=True).start()

`killpg(0, 9)` ends the script and what it started: each child leads a process group of its own. `GUARD` is the same
as a text, to be put in front of what is run with `python -c`.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable, MutableMapping

VARIABLE = "FLEXINFER_LIFELINE"
GUARD = (
    "import os, threading\n"
    f"lifeline = os.environ.pop({VARIABLE!r}, '')\n"
    "if lifeline:\n"
    "    ended = lambda: (os.read(int(lifeline), 1), os.killpg(0, 9))\n"
    "    threading.Thread(target=ended, daemon=True).start()\n"
)


def watch_lifeline(
    loop: asyncio.AbstractEventLoop,
    callback: Callable[[], object],
    *,
    environ: MutableMapping[str, str] | None = None,
) -> bool:
    """Call *callback* in *loop*, once, when the parent is gone. Return False where there is no lifeline.

    The variable is taken out of the environment: descendants must not take the number for theirs.
    """
    descriptor = _take(os.environ if environ is None else environ)
    if descriptor is None:
        return False

    def look() -> None:
        if os.read(descriptor, 1) == b"":
            loop.remove_reader(descriptor)
            os.close(descriptor)
            callback()

    loop.add_reader(descriptor, look)
    return True


def watch_lifeline_in_thread(
    callback: Callable[[], object], *, environ: MutableMapping[str, str] | None = None
) -> bool:
    """Call *callback* from a thread, once, when the parent is gone. Return False where there is no lifeline.

    For programs without an event loop; a callback that cannot end them otherwise sends them a signal.
    """
    descriptor = _take(os.environ if environ is None else environ)
    if descriptor is None:
        return False

    def look() -> None:
        while os.read(descriptor, 1):
            continue
        os.close(descriptor)
        callback()

    threading.Thread(target=look, name="lifeline", daemon=True).start()
    return True


def _take(environ: MutableMapping[str, str]) -> int | None:
    text = environ.pop(VARIABLE, "")
    if not text.isdecimal():
        return None
    descriptor = int(text)
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except (OSError, OverflowError):
        return None  # the variable came down from a grandparent, its pipe did not
    if not is_pipe:
        return None
    os.set_inheritable(descriptor, False)
    return descriptor
