"""Ports are found, and their holders named."""

from __future__ import annotations

import os
import socket

import pytest

from flexinfer.errors import ResourceExhausted
from flexinfer.process import free_port, procfs, who_listens


def test_a_free_port_can_be_taken() -> None:
    port = free_port()
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        assert server.getsockname()[1] == port  # bound to port 0 it would be another
        assert free_port() != port


def test_the_holder_of_a_port_is_named() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert who_listens(port) is None  # taken, but nobody listens
        server.listen()
        found = procfs.stat(os.getpid())
        assert found is not None
        assert who_listens(port) == f"{found.command} (pid {os.getpid()})"
    assert who_listens(port) is None


def test_an_address_that_is_not_ours_has_no_port() -> None:
    with pytest.raises(ResourceExhausted, match=r"192\.0\.2\.1") as caught:
        free_port("192.0.2.1")
    assert caught.value.code == "no_free_port"
