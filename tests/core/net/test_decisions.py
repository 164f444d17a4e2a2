"""What an answer means, how long to wait, which proxy: the pure parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer.net.policy import origin_of
from flexinfer.net.ranges import Complete, Continue, Restart, read_answer, request_headers
from flexinfer.net.retry import Retry, retry_after_s
from flexinfer.net.trust import proxy_for, split_credentials, ssl_context


def test_a_partial_answer_goes_on_where_it_was_asked() -> None:
    headers = {"content-range": "bytes 5-9/10"}
    assert read_answer(206, headers, offset=5, etag="") == Continue(skip=0, total=10)


@pytest.mark.parametrize("span", ["bytes 4-9/10", "bytes 0-9/10", "bytes */10", "", "items 5-9/10"])
def test_a_partial_answer_from_elsewhere_starts_again(span: str) -> None:
    assert isinstance(read_answer(206, {"content-range": span}, offset=5, etag=""), Restart)


def test_an_ignored_range_skips_what_is_here() -> None:
    assert read_answer(200, {"content-length": "10"}, offset=5, etag="") == Continue(
        skip=5, total=10
    )


@pytest.mark.parametrize("status", [200, 206])
def test_another_tag_starts_again(status: int) -> None:
    headers = {"etag": '"b"', "content-range": "bytes 5-9/10"}
    assert isinstance(read_answer(status, headers, offset=5, etag='"a"'), Restart)


def test_not_satisfiable_is_complete_only_at_the_end() -> None:
    headers = {"content-range": "bytes */10"}
    assert read_answer(416, headers, offset=10, etag="") == Complete()
    assert isinstance(read_answer(416, headers, offset=12, etag=""), Restart)
    assert isinstance(read_answer(416, {}, offset=10, etag=""), Restart)


def test_a_weak_tag_is_never_a_condition() -> None:
    assert request_headers(5, 'W/"a"') == {"range": "bytes=5-"}
    assert request_headers(5, '"a"') == {"range": "bytes=5-", "if-range": '"a"'}
    assert request_headers(0, '"a"') == {}


@given(
    st.sampled_from([200, 206, 416]),
    st.integers(0, 100),
    st.integers(0, 100),
    st.one_of(st.none(), st.integers(0, 100)),
)
def test_an_answer_never_leaves_a_hole(
    status: int, offset: int, first: int, total: int | None
) -> None:
    span = f"bytes {first}-{max(first, 100)}/{'*' if total is None else total}"
    match read_answer(status, {"content-range": span}, offset=offset, etag=""):
        case Continue(skip=skip) if status == 206:
            assert skip == 0 and first == offset
        case Continue(skip=skip):
            assert skip == offset
        case Complete():
            assert status == 416 and total == offset
        case Restart():
            pass


@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_positive_and_bounded(failed: int, jitter: float) -> None:
    retry = Retry()
    assert 0 < retry.delay_s(failed, jitter=jitter) <= retry.cap_s
    assert retry.delay_s(failed, jitter=jitter, asked_s=7.0) >= 7.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", 2.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("soon", None),
        ("-3", None),
        ("9" * 400, None),
    ],
)
def test_retry_after_is_read_in_both_forms(text: str, expected: float | None) -> None:
    assert retry_after_s({"retry-after": text}, now_unix_s=60.0) == expected


PROXIES = {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "inside.example,.corp:8443, 10.0.0.1"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://hub.example", "http://proxy:3128"),
        ("http://hub.example", ""),
        ("https://inside.example", ""),
        ("https://a.inside.example", ""),
        ("https://notinside.example", "http://proxy:3128"),
        ("https://x.corp:8443", ""),
        ("https://x.corp", "http://proxy:3128"),
        ("https://10.0.0.1", ""),
    ],
)
def test_the_users_proxy_is_used_but_for_its_exceptions(url: str, expected: str) -> None:
    assert proxy_for(origin_of(url), PROXIES) == expected


def test_a_socks_proxy_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="socks5"):
        proxy_for(origin_of("https://hub.example"), {"ALL_PROXY": "socks5://u:secret@p:1"})


def test_credentials_leave_the_address() -> None:
    assert split_credentials("http://u:p%40x@proxy:1/") == ("http://proxy:1/", ("u", "p@x"))
    assert split_credentials("http://proxy:1/") == ("http://proxy:1/", None)


def test_a_bundle_that_is_not_there_is_named(tmp_path: object) -> None:
    with pytest.raises(InvalidInput, match=r"PIP_CERT=.*missing\.pem"):
        ssl_context({"PIP_CERT": f"{tmp_path}/missing.pem"})
