"""Unix sockets at paths of any length, for their owner only.

The kernel takes at most about a hundred bytes of path (`sun_path`); a home folder may lie deeper. Where it does, the
folder is opened and named through `/proc/self/fd`, or, where there is no such thing, through a short link.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexinfer.errors import Conflict, ResourceExhausted

# 108 bytes with the final zero on Linux, 104 on BSD and macOS.
MAX_PATH_BYTES = 103
_LINE_BUFFER = 64 * 1024
_CONNECT_TIMEOUT_S = 5.0

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def serve(path: Path, handler: Handler) -> asyncio.Server:
    """Return a server at *path* that only its owner can reach; what a dead process left there is replaced.

    Whoever closes the server removes the file.

    Raises:
        Conflict: code `already_running`: somebody listens there.
        ResourceExhausted: code `socket_failed`: it cannot be made.
    """
    if await _is_answered(path):
        raise Conflict(f"{path}: another process listens there", code="already_running")
    # Under another name until it is its owner's alone and listens: nobody meets it half made.
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            scratch.unlink()
        with _address(scratch) as address:
            made.bind(address)
        os.chmod(scratch, 0o600)
        made.listen(64)
        made.setblocking(False)
        scratch.replace(path)
    except OSError as error:
        made.close()
        with suppress(OSError):
            scratch.unlink()
        raise ResourceExhausted(
            f"{path}: cannot listen there: {error.strerror or error}", code="socket_failed"
        ) from error
    return await asyncio.start_unix_server(handler, sock=made, limit=_LINE_BUFFER)


async def connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection to who listens at *path*.

    Raises:
        OSError: nobody does, or it may not be reached.
        TimeoutError: it does not take connections.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        with _address(path) as address:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await _connect(made, address)
        return await asyncio.open_unix_connection(sock=made, limit=_LINE_BUFFER)
    except BaseException:
        made.close()
        raise


async def _connect(made: socket.socket, address: str) -> None:
    while True:
        try:
            await asyncio.get_running_loop().sock_connect(made, address)
            return
        except BlockingIOError as error:
            if error.errno != errno.EAGAIN:
                raise
            await asyncio.sleep(0.01)  # its queue of connections is full


async def _is_answered(path: Path) -> bool:
    try:
        _, writer = await connect(path)
    except TimeoutError:
        return True
    except OSError:
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """Yield a name of *path* that fits."""
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield str(path)
        return
    if os.path.isdir("/proc/self/fd"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{folder}/{path.name}"
        finally:
            os.close(folder)
        return
    with tempfile.TemporaryDirectory(prefix="fxi") as short:
        link = Path(short) / "f"
        link.symlink_to(path.parent, target_is_directory=True)
        yield f"{link}/{path.name}"
