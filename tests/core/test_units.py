"""Durations and sizes: what is accepted, what is refused, and how they read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer.units import (
    MAX_DURATION_S,
    MAX_SIZE_BYTES,
    format_bytes,
    format_duration,
    parse_duration_s,
    parse_size_bytes,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        (" 90s ", 90.0),
        ("1.5m", 90.0),
        ("1m30s", 90.0),
        ("250ms", 0.25),
        ("1d2h3m4s5ms", 93784.005),
        (5, 5.0),
        (0.5, 0.5),
        ("0", 0.0),
    ],
)
def test_durations_are_read_in_seconds(text: str | float, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "5x",
        "-5s",
        "5m5m",
        "30m1h",
        "1:30",
        "٥m",
        "1e3",
        "5 m",
        True,
        float("nan"),
        float("inf"),
    ],
)
def test_what_is_no_duration_is_refused(text: str | float) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        parse_duration_s(text)


def test_a_duration_above_a_year_is_a_mistake_in_units() -> None:
    with pytest.raises(InvalidInput, match="0 to 31622400 seconds"):
        parse_duration_s("367d")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        (4096, 4096),
        ("50Gi", 50 * 2**30),
        ("64MiB", 64 * 2**20),
        ("10GB", 10**10),
        ("10 kB", 10_000),
        ("1.5Ki", 1536),
        # 2**53 + 1 does not fit a double.
        ("9007199254740993", 9007199254740993),
        ("9007199254740993B", 9007199254740993),
    ],
)
def test_sizes_are_read_in_bytes_exactly(text: str | int, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "Gi", "5i", "5iB", "-1", "5Zi", "0x10", "5  Gi", True, -1, "9Pi" * 9]
)
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        parse_size_bytes(text)


def test_a_size_beyond_a_file_system_is_refused() -> None:
    with pytest.raises(InvalidInput, match="9223372036854775807 bytes"):
        parse_size_bytes("9000000P")


def test_a_refusal_of_a_megabyte_of_text_is_short_and_quick() -> None:
    for parse in (parse_duration_s, parse_size_bytes):
        with pytest.raises(InvalidInput) as refused:
            parse("9" * 1_000_000 + "x")
        assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (98_360_128, "93.8 MiB"),
        (2**30 - 1, "1.0 GiB"),  # never 1024.0 MiB
        (5 * 2**40, "5.0 TiB"),
    ],
)
def test_bytes_are_shown_in_the_unit_that_fits(count: int, shown: str) -> None:
    assert format_bytes(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.85, "850ms"),
        (0.9999, "1.0s"),  # never 1000ms
        (7.1, "7.1s"),
        (59.97, "1m"),  # never 60.0s
        (125, "2m5s"),
        (11040, "3h4m"),
        (7200, "2h"),
    ],
)
def test_durations_are_shown_in_two_units_at_most(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


@given(st.text(max_size=60) | st.from_regex(r"[0-9.]{1,30}[a-zA-Z]{0,3}", fullmatch=True))
def test_any_text_is_read_within_bounds_or_refused(text: str) -> None:
    for parse, most in ((parse_duration_s, MAX_DURATION_S), (parse_size_bytes, MAX_SIZE_BYTES)):
        try:
            assert 0 <= parse(text) <= most
        except InvalidInput as error:
            assert error.exit_code == 2


@given(
    st.integers(0, 300),
    st.integers(0, 23),
    st.integers(0, 59),
    st.integers(0, 59),
    st.integers(0, 999),
)
def test_a_duration_is_the_sum_of_its_parts(d: int, h: int, m: int, s: int, ms: int) -> None:
    whole = (d * 24 + h) * 3600 + m * 60 + s + ms / 1000
    assert parse_duration_s(f"{d}d{h}h{m}m{s}s{ms}ms") == pytest.approx(whole)


@given(st.integers(0, MAX_SIZE_BYTES // 2**40), st.sampled_from(["", "Ki", "Mi", "Gi", "Ti"]))
def test_a_binary_prefix_multiplies_exactly(number: int, prefix: str) -> None:
    power = ["", "Ki", "Mi", "Gi", "Ti"].index(prefix)
    assert parse_size_bytes(f"{number}{prefix}") == number * 1024**power
