from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexinfer.formats.sniff import PICKLES, Kind, sniff


def kind(raw: bytes) -> Kind:
    return sniff(raw[:8192], len(raw))


class Bomb:
    """Unpickling one makes a folder: no test may ever see it made."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: [b], lambda b: {"state_dict": {"w": b}}])
def test_a_pickle_of_every_protocol_is_seen_and_never_run(
    tmp_path: Path, protocol: int, wrap: Any
) -> None:
    marker = tmp_path / "marker"
    assert kind(pickle.dumps(wrap(Bomb(marker)), protocol=protocol)) in PICKLES
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_longer_than_what_is_looked_at_is_seen(tmp_path: Path, protocol: int) -> None:
    value = [Bomb(tmp_path / "marker"), list(range(20_000)), "x" * 50_000]
    assert kind(pickle.dumps(value, protocol=protocol)) is Kind.PICKLE


def test_a_checkpoint_in_a_zip_is_seen_even_with_a_bad_checksum(tmp_path: Path) -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(tmp_path / "marker")))
    broken = bytearray(raw.getvalue())
    broken[14:18] = b"\xde\xad\xbe\xef"  # the CRC in the local header
    assert kind(bytes(broken)) is Kind.ZIP_PICKLE
    assert not (tmp_path / "marker").exists()


def test_archives_are_told_apart() -> None:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.txt", "x")
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a"), io.BytesIO())
    assert kind(zipped.getvalue()) is Kind.ZIP
    assert kind(tarred.getvalue()) is Kind.TAR
    assert kind(gzip.compress(b"x")) is Kind.GZIP


def npy(descr: str) -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", Kind.EMPTY),
        (b"GGUF\x03\x00\x00\x00", Kind.GGUF),
        (b"\x89HDF\r\n\x1a\n" + bytes(8), Kind.HDF5),
        (b"\x7fELF\x02\x01\x01", Kind.ELF),
        (b"MZ\x90\x00", Kind.EXECUTABLE),
        (b"#!/bin/sh\necho", Kind.SCRIPT),
        (b"\xef\xbb\xbf#!/bin/sh\n", Kind.SCRIPT),
        (b"\x28\xb5\x2f\xfd\x00", Kind.ZSTD),
        (b"\xfd7zXZ\x00\x00", Kind.XZ),
        (b"BZh91AY", Kind.BZIP2),
        (b"\x89PNG\r\n\x1a\n", Kind.IMAGE),
        (b"RIFF\x00\x00\x00\x00WEBPVP8", Kind.IMAGE),
        (b"%PDF-1.7", Kind.PDF),
        (npy("'<f4'"), Kind.NPY),
        (npy("'|O'"), Kind.NPY_OBJECT),
        (npy("[('a', '<f4'), ('b', 'O')]"), Kind.NPY_OBJECT),
        (b'{"a": 1}', Kind.JSON),
        (b" \n[1]", Kind.JSON),
        (b'\xef\xbb\xbf{"a": 1}', Kind.JSON),
        (b"plain text\n", Kind.TEXT),
        ("naïve – text".encode(), Kind.TEXT),
        (b"\xff\xfe\x00bin", Kind.BINARY),
        (b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02", Kind.BINARY),  # a sentencepiece model
        (zlib.compress(pickle.dumps(["x"] * 100, 0) + b""), Kind.PICKLE),
    ],
)
def test_content_is_told_by_its_first_bytes(raw: bytes, expected: Kind) -> None:
    assert kind(raw) is expected


def test_safetensors_is_told_by_a_length_that_fits_and_a_brace(build: Any) -> None:
    assert kind(build.small_safetensors()) is Kind.SAFETENSORS
    assert kind(struct.pack("<Q", 1 << 40) + b"{}") is not Kind.SAFETENSORS


@pytest.mark.parametrize(
    "text",
    [
        "Copyright (c) 2024\n\nPermission is hereby granted, free of charge, to any person\n",
        "I am a model.\n",
        "N.\n",
        "MIT License\n",
        "category\nitem\n.",
        "# Model card\n\nSmolLM2 is a family of compact language models.\n",
        "(a) first.\n(b) second.\n",
        "0.1\n0.2\n",
        "h e\nt h\n#version: 0.2\n",
        "",
    ],
)
def test_prose_is_not_taken_for_a_pickle(text: str) -> None:
    assert kind(text.encode()) in (Kind.TEXT, Kind.EMPTY)


def test_a_character_cut_at_the_border_is_still_text() -> None:
    assert kind(b"x" + "é".encode() * 8000) is Kind.TEXT


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_any_bytes_have_a_kind(raw: bytes, more: int) -> None:
    assert sniff(raw, len(raw) + more) in Kind


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=8) | st.binary(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    ),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_whatever_is_pickled_with_something_to_run_is_seen(value: Any, protocol: int) -> None:
    raw = pickle.dumps([Bomb(Path("/nonexistent/x")), value], protocol=protocol)
    assert kind(raw) is Kind.PICKLE


def test_a_strange_escape_in_what_is_no_pickle_raises_no_warning() -> None:
    assert sniff(b"c\\\x00\n", 4) is not Kind.PICKLE
