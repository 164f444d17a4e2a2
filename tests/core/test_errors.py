"""What every error holds to."""

from __future__ import annotations

from flexinfer.errors import NotFound


def test_a_path_that_is_no_utf8_is_written_out_in_the_message() -> None:
    error = NotFound("no entry in caf\udce9.yaml: \u00e9 stays")
    assert error.message == str(error) == "no entry in caf\\udce9.yaml: \u00e9 stays"
    error.message.encode()
