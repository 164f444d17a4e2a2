"""What a chat client reads from a stream: bytes to events, events to what is shown. Pure.

bytes ──Lines──► lines ──event──► Note (a comment: the model wakes) | Text | Finished | Failed | Done
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from flexinfer.errors import Unavailable

MAX_LINE_BYTES = 1024 * 1024
MAX_MESSAGE_CHARACTERS = 500
# Everything that could move the cursor, colour the terminal or set its title; not newline and tab.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Note:
    """A comment of the server: it is still there, and says what it is at."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Why the answer ends: `stop`, `length`, …"""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The stream ends with an error."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing follows."""


Event = Note | Text | Finished | Failed | Done


class Lines:
    """Cuts a stream of bytes into lines. At most MAX_LINE_BYTES wait for the end of theirs."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that *data* completes, without their ends.

        Raises:
            Unavailable: code `stream_invalid`: a line is too long.
        """
        self._rest += data
        *whole, rest = self._rest.split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise Unavailable(
                f"the stream has a line of more than {MAX_LINE_BYTES} bytes", code="stream_invalid"
            )
        self._rest = bytearray(rest)
        return [line.rstrip(b"\r").decode("utf-8", "replace") for line in whole]


def event(line: str) -> Event | None:
    """Return what *line* of a chat stream means; None for what is not shown."""
    if line.startswith(":"):
        text = line[1:].strip()
        return Note(text) if text else None
    if not line.startswith("data:"):
        return None
    data = line[5:].strip()
    if data == "[DONE]":
        return Done()
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return Failed(code="stream_invalid", message="the server sent something that is not JSON")
    if isinstance(tree, dict) and "error" in tree:
        return failure(tree)
    return _piece(tree)


def failure(tree: Any) -> Failed:
    """Return the error that an answer in OpenAI's shape holds, or a general one."""
    error = tree.get("error") if isinstance(tree, dict) else None
    if not isinstance(error, dict):
        error = {"message": error} if isinstance(error, str) else {}
    code, message = error.get("code"), error.get("message")
    return Failed(
        code=visible(code)[:80] if isinstance(code, str) else "upstream_error",
        message=visible(message)[:MAX_MESSAGE_CHARACTERS]
        if isinstance(message, str) and message
        else "the server answered with an error that says nothing",
    )


def visible(text: str) -> str:
    """Return *text* without what a terminal would obey: a model's answer is not trusted with it."""
    return _CONTROL.sub("", text)


def _piece(tree: Any) -> Event | None:
    try:
        choice = tree["choices"][0]
    except (KeyError, IndexError, TypeError):
        return None  # the usage, or a chunk of another kind
    if not isinstance(choice, dict):
        return None
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else None
    if isinstance(text, str) and text:
        return Text(visible(text))
    reason = choice.get("finish_reason")
    return Finished(visible(reason)) if isinstance(reason, str) else None
