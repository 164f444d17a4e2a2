"""Who may be asked, and at which address."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer.net.policy import Policy, check_addresses, origin_of

HUB = Policy.of(("hub.example", "*.cdn.example"), configured=("http://127.0.0.1:9000",))


@pytest.mark.parametrize(
    "url",
    [
        "https://hub.example/a",
        "https://HUB.example./a",
        "https://eu.cdn.example/x?y",
        "http://127.0.0.1:9000/tree",
    ],
)
def test_allowed_hosts_may_be_asked(url: str) -> None:
    HUB.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://hub.example/a",
        "https://hub.example:8443/a",
        "https://cdn.example/a",
        "https://evilcdn.example/a",
        "https://hub.example.evil/a",
        "https://user@hub.example/a",
        "https://hub.example@evil/a",
        "http://127.0.0.1:9001/",
        "http://127.0.0.1/",
        "http://[::1]:9000/",
        "http://localhost:9000/",
        "http://169.254.169.254/latest",
        "https://10.0.0.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://[::ffff:127.0.0.1]/",
        "http://localhost./",
        "http://a@127.0.0.1:9000/",
        "file:///etc/passwd",
        "gopher://hub.example/",
        "https://hub.example\\@evil/",
        "https://hub.example/\r\nx: y",
        "https:///nohost",
        "https://hub.example:99999/",
    ],
)
def test_everything_else_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        HUB.check(url)
    assert caught.value.code == "source_not_allowed"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "::1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "::", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "not an address",
    ],
)  # fmt: skip
def test_addresses_off_the_public_internet_are_refused(address: str) -> None:
    with pytest.raises(InvalidInput):
        check_addresses("hub.example", [address])


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_pass(address: str) -> None:
    check_addresses("hub.example", [address])


def test_an_answer_that_mixes_public_and_private_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"10\.0\.0\.1"):
        check_addresses("hub.example", ["8.8.8.8", "10.0.0.1"])


@given(st.integers(0, 2**32 - 1))
def test_an_address_is_judged_the_same_in_each_of_its_spellings(number: int) -> None:
    plain = ipaddress.IPv4Address(number)
    spellings = [
        str(plain),
        f"::ffff:{plain}",
        str(ipaddress.IPv6Address((0x64FF9B << 96) | number)),
    ]

    def passes(text: str) -> bool:
        try:
            check_addresses("x", [text])
        except InvalidInput:
            return False
        return True

    assert len({passes(text) for text in spellings}) == 1


def test_an_origin_is_written_without_its_default_port() -> None:
    assert str(origin_of("https://A.example:443/x")) == "https://a.example"
    assert str(origin_of("http://[::1]:80/x")) == "http://[::1]"
