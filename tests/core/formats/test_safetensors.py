from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexinfer.errors import FlexInferError, InvalidInput
from flexinfer.formats import safetensors

FAST = settings(max_examples=300, deadline=None)


def read(raw: bytes, size: int | None = None) -> safetensors.SafetensorsHeader:
    return safetensors.read_header(
        io.BytesIO(raw), len(raw) if size is None else size, name="m.safetensors"
    )


def entry(dtype: Any = "F32", shape: Any = (4,), begin: Any = 0, end: Any = 16) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_a_valid_file_tells_its_tensors_in_the_order_of_their_bytes(build: Any) -> None:
    header = read(build.small_safetensors())
    assert header.metadata == {"format": "pt"}
    assert [(t.name, t.dtype, t.shape, t.begin, t.end) for t in header.tensors] == [
        ("a", "F32", (4,), 0, 16),
        ("b", "F16", (2, 2), 16, 24),
    ]
    assert header.parameter_count == 8
    assert header.main_dtype == "F32" and header.dtypes == {"F32": 1, "F16": 1}


def test_scalars_empty_tensors_and_padding_are_allowed(build: Any) -> None:
    header = {"s": entry(shape=(), end=4), "e": entry(shape=(0, 7), begin=4, end=4)}
    raw = json.dumps(header).encode() + b"   \n"
    assert len(read(build.safetensors(None, raw=raw, data=4)).tensors) == 2
    assert read(build.safetensors({})).tensors == ()


def test_types_below_a_byte_are_measured_in_bits(build: Any) -> None:
    header = {"q": entry("F4", (2, 3), 0, 3), "r": entry("F6_E2M3", (4,), 3, 6)}
    assert read(build.safetensors(header, data=6)).parameter_count == 10


def test_a_header_longer_than_the_window_is_read_whole(build: Any) -> None:
    header = {f"layers.{n}.é": entry("U8", (1,), n, n + 1) for n in range(20_000)}
    raw = json.dumps(header, ensure_ascii=False).encode()
    assert len(raw) > 1 << 20
    tensors = read(build.safetensors(None, raw=raw, data=20_000)).tensors
    assert [tensor.name for tensor in tensors] == list(header)


HUGE = 1 << 63
Case = Callable[[Any], bytes]
HOSTILE: dict[str, tuple[Case, str]] = {
    "empty": (lambda b: b"", "header length"),
    "seven bytes": (lambda b: bytes(7), "header length"),
    "header of 2^63": (lambda b: b.safetensors({}, length=HUGE), "at most 100000000"),
    "header of 2 GiB": (lambda b: b.safetensors({}, length=2 << 30), "at most 100000000"),
    "header past the end": (lambda b: b.safetensors({}, length=5000), "remain"),
    "header of no bytes": (lambda b: struct.pack("<Q", 0) + bytes(8), "begin with '{'"),
    "space before the brace": (lambda b: b.safetensors(None, raw=b" {}"), "begin with '{'"),
    "an array": (lambda b: b.safetensors([]), "begin with '{'"),
    "a pickle": (lambda b: b.safetensors(None, raw=b"\x80\x04N."), "not UTF-8"),
    "not closed": (lambda b: b.safetensors(None, raw=b"{"), "a tensor's name"),
    "not closed after an entry": (
        lambda b: b.safetensors(None, raw=json.dumps({"a": entry()})[:-1].encode(), data=16),
        "expected ','",
    ),
    "text after the brace": (lambda b: b.safetensors(None, raw=b"{} {}"), "text after"),
    "zero after the brace": (lambda b: b.safetensors(None, raw=b"{}\x00"), "text after"),
    "comma at the end": (
        lambda b: b.safetensors(
            None, raw=json.dumps({"a": entry()})[:-1].encode() + b",}", data=16
        ),
        "expected a name",
    ),
    "not UTF-8": (lambda b: b.safetensors(None, raw=b'{"\xff": 1}'), "not UTF-8"),
    "UTF-8 cut": (lambda b: b.safetensors(None, raw=b'{"a\xc3'), "not UTF-8"),
    "lone surrogate": (
        lambda b: b.safetensors({"\ud800": entry()}, data=16),
        "not valid JSON",
    ),
    "NaN": (
        lambda b: b.safetensors(
            None, raw=b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,0]}}'
        ),
        "not valid JSON",
    ),
    "number of 5000 digits": (
        lambda b: b.safetensors(
            None, raw=b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}'
        ),
        "not valid JSON",
    ),
    "nested 30000 deep": (lambda b: b.safetensors(None, raw=b'{"a":' + b"[" * 30_000), "not valid"),
    "objects nested deep": (
        lambda b: b.safetensors(None, raw=b'{"a":' * 9000),
        "not valid",
    ),
    "an entry of a megabyte": (
        lambda b: b.safetensors({"a" * (1 << 20): entry()}, data=16),
        "too long",
    ),
    "tensor twice": (
        lambda b: b.safetensors(
            None,
            raw=b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2),
            data=16,
        ),
        "occurs twice",
    ),
    "field twice": (
        lambda b: b.safetensors(
            None,
            raw=b'{"a":{"dtype":"F32","dtype":"F16","shape":[4],"data_offsets":[0,16]}}',
            data=16,
        ),
        "occurs twice",
    ),
    "metadata twice": (
        lambda b: b.safetensors(None, raw=b'{"__metadata__":{},"__metadata__":{}}'),
        "occurs twice",
    ),
    "metadata a list": (lambda b: b.safetensors({"__metadata__": []}), "not an object"),
    "metadata of numbers": (lambda b: b.safetensors({"__metadata__": {"a": 1}}), "not a string"),
    "name empty": (lambda b: b.safetensors({"": entry()}, data=16), "without a name"),
    "entry null": (lambda b: b.safetensors({"a": None}), "expected exactly"),
    "field missing": (
        lambda b: b.safetensors({"a": {"dtype": "F32", "shape": [4]}}, data=16),
        "expected exactly",
    ),
    "field unknown": (
        lambda b: b.safetensors({"a": {**entry(), "x": 1}}, data=16),
        "expected exactly",
    ),
    "names of 9 MiB": (
        lambda b: b.safetensors(
            {f"{n:0999}": entry("U8", (1,), n, n + 1) for n in range(9500)}, data=9500
        ),
        "names take more",
    ),
    "dtype unknown": (lambda b: b.safetensors({"a": entry("F128")}, data=16), "unknown dtype"),
    "dtype a list": (lambda b: b.safetensors({"a": entry(["F32"])}, data=16), "unknown dtype"),
    "shape a string": (
        lambda b: b.safetensors(
            {"a": {"dtype": "F32", "shape": "4", "data_offsets": [0, 16]}}, data=16
        ),
        "not a list",
    ),
    "shape negative": (lambda b: b.safetensors({"a": entry(shape=(-4,))}, data=16), "2**63"),
    "shape a float": (lambda b: b.safetensors({"a": entry(shape=(4.0,))}, data=16), "2**63"),
    "shape a bool": (lambda b: b.safetensors({"a": entry(shape=(True,))}, data=16), "2**63"),
    "shape of 2^64": (lambda b: b.safetensors({"a": entry(shape=(1 << 64,))}, data=16), "2**63"),
    "shape that wraps": (
        lambda b: b.safetensors({"a": entry(shape=(1 << 62, 1 << 62))}, data=16),
        "63 bits",
    ),
    "overflow behind a zero": (
        lambda b: b.safetensors({"a": entry(shape=(1 << 62, 1 << 62, 0), end=0)}),
        "63 bits",
    ),
    "rank of 1000": (
        lambda b: b.safetensors({"a": entry(shape=(1,) * 1000, end=4)}, data=4),
        "1000 dimensions",
    ),
    "three offsets": (
        lambda b: b.safetensors(
            {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 16]}}, data=16
        ),
        "[begin, end]",
    ),
    "offsets reversed": (
        lambda b: b.safetensors({"a": entry(begin=16, end=0)}, data=16),
        "[begin, end]",
    ),
    "span not the shape": (
        lambda b: b.safetensors({"x": entry("F16", (32, 32), 0, 4096)}, data=4096),
        "tensor 'x' span 4096 != shape 32x32 F16 2048",
    ),
    "half a byte": (lambda b: b.safetensors({"a": entry("F4", (3,), 0, 1)}, data=1), "1.5"),
    "first not at 0": (
        lambda b: b.safetensors({"a": entry(begin=8, end=24)}, data=24),
        "a hole",
    ),
    "hole": (
        lambda b: b.safetensors({"a": entry(), "b": entry(begin=24, end=40)}, data=40),
        "a hole",
    ),
    "overlap": (
        lambda b: b.safetensors({"a": entry(), "b": entry(begin=8, end=24)}, data=24),
        "an overlap",
    ),
    "the same bytes twice": (
        lambda b: b.safetensors({"a": entry(), "b": entry()}, data=16),
        "an overlap",
    ),
    "data past the end": (lambda b: b.safetensors({"a": entry()}, data=15), "the file has"),
    "bytes after the data": (lambda b: b.safetensors({"a": entry()}, data=17), "the file has"),
    "data without tensors": (lambda b: b.safetensors({}, data=4096), "the file has"),
}


@pytest.mark.parametrize("case", HOSTILE, ids=str)
def test_a_hostile_file_is_refused_by_name_and_reason(build: Any, case: str) -> None:
    make, reason = HOSTILE[case]
    with pytest.raises(InvalidInput) as refused:
        read(make(build))
    assert refused.value.code == "safetensors"
    assert refused.value.message.startswith("m.safetensors: ")
    assert reason in refused.value.message


GROWTH = """
import re, sys
from pathlib import Path
from flexinfer.errors import InvalidInput
from flexinfer.formats import safetensors
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text()).group(1))
before = peak()
path = Path(sys.argv[1])
with path.open("rb") as stream:
    try:
        kept = safetensors.read_header(stream, path.stat().st_size)
    except InvalidInput as refused:
        print(refused.message, file=sys.stderr)
print(peak() - before)
"""


def many_tensors(path: Path) -> None:
    text = ",".join(
        f'"{n:060}":{{"dtype":"U8","shape":[1,1],"data_offsets":[{n},{n + 1}]}}'
        for n in range(safetensors.MAX_TENSORS)
    )
    write(path, b"{" + text.encode() + b"}", safetensors.MAX_TENSORS)


def much_metadata(path: Path) -> None:
    text = json.dumps({"__metadata__": {"a": "😀" * (1 << 20)}}, ensure_ascii=False)
    write(path, text.encode(), 0)


def much_space(path: Path) -> None:
    write(path, b"{" + b" " * 60_000_000 + b"}", 0)


def write(path: Path, header: bytes, data: int) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + data)


@pytest.mark.parametrize("make", [many_tensors, much_metadata, much_space])
def test_the_largest_allowed_headers_grow_a_process_by_less_than_64_mib(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    make(path)
    command = [sys.executable, "-c", GROWTH, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert ran.stderr == ""
    assert int(ran.stdout) < 64 * 1024


# --- the index over shards


def test_an_index_that_names_every_tensor_once_passes(build: Any) -> None:
    shards = {"1.safetensors": read(build.small_safetensors("x."))}
    index = {"metadata": {}, "weight_map": {"x.a": "1.safetensors", "x.b": "1.safetensors"}}
    assert safetensors.check_index("i", index, shards) == index["weight_map"]


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": "1", "b": "1", "c": "2"}, "tensor 'c' expected in 2, found in None"),
        ({"a": "1", "b": "2"}, "expected in 2, found in 1"),
        ({"a": "1", "b": "1", "c": "3"}, "shard '3' missing"),
        ({"a": "1"}, "tensor 'b' of 1 is not listed"),
        ({"a": "../1"}, "not a plain file name"),
        ({"a": "x/1"}, "not a plain file name"),
        ({"a": "x\\1"}, "not a plain file name"),
        ({"a": ".."}, "not a plain file name"),
        ({"a": ""}, "not a plain file name"),
        ({"a": 1}, "expected a file name"),
        ({"a": "1", "b": "1", "x.a": "2", "x.b": "4"}, "is in 1 and 4"),
        ({}, "at least one tensor"),
        ([], "at least one tensor"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(
    build: Any, weight_map: Any, reason: str
) -> None:
    small = read(build.small_safetensors())
    shards = {"1": small, "2": read(build.small_safetensors("x.")), "4": small}
    with pytest.raises(InvalidInput) as refused:
        safetensors.check_index("model.safetensors.index.json", {"weight_map": weight_map}, shards)
    assert refused.value.code == "index"
    assert reason in refused.value.message


# --- properties


@FAST
@given(st.binary(max_size=300))
def test_random_headers_raise_only_the_typed_error(body: bytes) -> None:
    try:
        read(struct.pack("<Q", len(body)) + body)
    except FlexInferError as refused:
        assert refused.code == "safetensors"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@FAST
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]),
        JSON
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "F4", "X"]),
                "shape": st.lists(st.integers(-1, 5), max_size=3),
                "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2),
            }
        ),
    ),
    st.integers(0, 64),
)
def test_any_json_is_read_or_refused_and_never_lies(
    build: Any, header: dict[str, Any], data: int
) -> None:
    raw = build.safetensors(header, data=data)
    try:
        found = read(raw)
    except FlexInferError as refused:
        assert refused.code == "safetensors"
        return
    spans = [(tensor.begin, tensor.end) for tensor in found.tensors]
    edges = [0, *(end for _, end in spans)]
    assert [begin for begin, _ in spans] == edges[:-1] and edges[-1] == data


@FAST
@given(st.lists(st.tuples(st.sampled_from(sorted(safetensors.DTYPES)), st.integers(0, 6))))
def test_what_is_written_is_read_back(build: Any, tensors: list[tuple[str, int]]) -> None:
    header, offset = {}, 0
    for index, (dtype, groups) in enumerate(tensors):
        end = offset + groups * safetensors.DTYPES[dtype]  # eight elements are that many bytes
        header[f"t{index}"] = entry(dtype, (groups, 8), offset, end)
        offset = end
    found = read(build.safetensors(header, data=offset))
    assert {tensor.name: tensor.dtype for tensor in found.tensors} == {
        name: about["dtype"] for name, about in header.items()
    }
