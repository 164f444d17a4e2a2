"""Unix sockets at any path, for their owner only."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from flexinfer import unixsocket
from flexinfer.errors import Conflict, ResourceExhausted


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def asked(path: Path) -> bytes:
    reader, writer = await unixsocket.connect(path)
    writer.write(b"hello\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("depth", [1, 12])
def test_a_path_of_any_length_is_reached(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*["a-folder-name"] * depth)
    folder.mkdir(parents=True)

    async def scene() -> bytes:
        async with await unixsocket.serve(folder / "operator.sock", echo):
            assert stat.S_IMODE((folder / "operator.sock").stat().st_mode) == 0o600
            return await asked(folder / "operator.sock")

    assert asyncio.run(scene()) == b"hello\n"
    assert [file.name for file in folder.iterdir()] in ([], ["operator.sock"])


def test_what_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def scene() -> bytes:
        async with await unixsocket.serve(path, echo):
            pass
        if not path.exists():
            path.write_text("left over")
        async with await unixsocket.serve(path, echo):
            return await asked(path)

    assert asyncio.run(scene()) == b"hello\n"


def test_a_second_server_at_the_same_path_is_refused(tmp_path: Path) -> None:
    async def scene() -> None:
        async with await unixsocket.serve(tmp_path / "s", echo):
            with pytest.raises(Conflict) as caught:
                await unixsocket.serve(tmp_path / "s", echo)
            assert caught.value.code == "already_running"
            assert await asked(tmp_path / "s") == b"hello\n"

    asyncio.run(scene())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted, match="nowhere"):
        asyncio.run(unixsocket.serve(tmp_path / "nowhere" / "s", echo))
