"""`flexinfer chat`: talk to a model in the terminal, over the same HTTP interface that every client uses."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TextIO
from urllib.parse import quote, urlsplit

import httpx
import typer

from flexinfer.endpoint import KEY_ADVICE, Endpoint, find_endpoint
from flexinfer.errors import (
    FlexInferError,
    InvalidInput,
    NotFound,
    Overloaded,
    Unauthorized,
    Unavailable,
)
from flexinfer.places import Home
from flexinfer.settings import Settings, load, setting_files
from flexinfer_serving.chat_stream import (
    Done,
    Failed,
    Finished,
    Lines,
    Note,
    Text,
    event,
    failure,
)

DEFAULT_URL = "http://127.0.0.1:8080/v1"
# Small models, such as the starter, ramble at an engine's default.
TEMPERATURE = 0.2
# A held request gets a comment every few seconds; a silence this long means that nobody is there any more.
SILENCE_S = 180.0
MAX_ERROR_BYTES = 64 * 1024
MAX_KEY_BYTES = 4096
_KEY_ADVICE = f"; name one with --key-file or, for this machine's own router, {KEY_ADVICE}"
HELP = "/new starts over, /exit or Ctrl-D leaves, Ctrl-C stops an answer"

_BY_STATUS: dict[int, type[FlexInferError]] = {
    400: InvalidInput,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    413: InvalidInput,
    422: InvalidInput,
    429: Overloaded,
}


def chat(
    model: Annotated[str, typer.Argument(help="The model's name, as `flexinfer model ls` has it.")],
    url: Annotated[
        str | None,
        typer.Option(help="The router's address; by default that of `flexinfer up`, else as set."),
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Ask this, print the answer, and end.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 512,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="0: always the likeliest word; 1: as trained.")
    ] = TEMPERATURE,
    key_file: Annotated[
        Path | None, typer.Option(help="A file with the API key; none is needed on this machine.")
    ] = None,
) -> None:
    """Talk to a model. A sleeping one is woken, and you see how long that takes.

    Example: flexinfer chat smollm2-135m-instruct -m "What is the capital of France?"
    """
    headers = {"authorization": f"Bearer {_key(key_file)}"} if key_file else {}
    is_own = url is None
    if url is None:
        own = own_router(os.environ)
        url, headers = own.url, headers or own.headers
    elif not urlsplit(url).path.strip("/"):
        url = url.rstrip("/") + "/v1"
    timeout = httpx.Timeout(SILENCE_S, connect=5.0)
    # A router on this machine is never reached through a proxy, which would be told its key.
    is_local = is_own or urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    with httpx.Client(headers=headers, timeout=timeout, trust_env=not is_local) as client:
        talk = Talk(
            client=client,
            url=url.rstrip("/"),
            model=model,
            system=system,
            max_tokens=max_tokens,
            temperature=temperature,
        )
        if message is None:
            talk.check()
            converse(talk, _prompt)
            return
        try:
            talk.ask(message)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def own_router(environ: Mapping[str, str]) -> Endpoint:
    """Return this machine's router: where it is, and what header it wants.

    Raises:
        InvalidInput: code `bad_settings`.
    """
    home = Home.find(environ)
    return find_endpoint(home, load(Settings, environ, files=setting_files(home.root)))


def converse(talk: Talk, read: Callable[[], str | None]) -> None:
    """Ask what *read* gives, until it gives None. Errors and Ctrl-C end an answer, not the conversation."""
    talk.say(f"{talk.model} at {talk.url}: {HELP}\n")
    while (line := read()) is not None:
        match line.strip():
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/new":
                talk.forget()
                talk.say("(forgotten)\n")
            case "/help":
                talk.say(HELP + "\n")
            case text if text.startswith("/"):
                talk.say(f"unknown command {text.split()[0]!r}: {HELP}\n")
            case text:
                try:
                    talk.ask(text)
                except KeyboardInterrupt:
                    talk.say("\n(stopped)\n")
                except FlexInferError as error:
                    talk.say(f"error[{error.code}]: {error.message}{_advice(error)}\n")


@dataclass(slots=True, kw_only=True)
class Talk:
    """A conversation: what was said, and how the next thing is asked. Answers go to `out`, the rest to `err`."""

    client: httpx.Client
    url: str
    model: str
    system: str | None = None
    max_tokens: int = 512
    temperature: float = TEMPERATURE
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)
    messages: list[dict[str, str]] = field(default_factory=list)

    def check(self) -> None:
        """Ask for the model itself: who is told of a wrong name or key has typed nothing yet.

        Raises:
            FlexInferError: there is no such model, the key is refused, or nobody answers. Other answers are no
                verdict: not every server has this path, and a router that has just started knows no models.
        """
        try:
            with self.client.stream(
                "GET", f"{self.url}/models/{quote(self.model, safe='')}"
            ) as got:
                if got.status_code == 200:
                    return
                refused = _refusal(got)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        if isinstance(refused, Unauthorized) or refused.code == "model_not_found":
            raise refused

    def ask(self, text: str) -> str:
        """Ask, show the answer while it comes, remember both, and return it.

        A stopped answer is remembered as far as it came; one that failed is forgotten with its question.

        Raises:
            KeyboardInterrupt: the user stopped the answer; the connection is closed.
            FlexInferError: the server's refusal, or it cannot be reached.
        """
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            with closing(self._answer()) as answer:
                for piece in answer:
                    pieces.append(piece)
                    self.out.write(piece)
                    self.out.flush()
        except FlexInferError:
            self.messages.pop()
            if pieces:
                self.out.write("\n")
            raise
        except KeyboardInterrupt:
            self._remember(pieces)
            raise
        self._remember(pieces)
        self.out.write("\n")
        self.out.flush()
        return "".join(pieces)

    def forget(self) -> None:
        """Start over, with the system's words alone."""
        self.messages.clear()

    def say(self, text: str) -> None:
        """Show *text* that is not part of an answer."""
        self.err.write(text)
        self.err.flush()

    def _remember(self, pieces: list[str]) -> None:
        if pieces:
            self.messages.append({"role": "assistant", "content": "".join(pieces)})
        else:
            self.messages.pop()  # two questions in a row would not be an alternation

    def _body(self) -> dict[str, object]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, object] = {
            "model": self.model,
            "messages": [*first, *self.messages],
            "max_tokens": self.max_tokens,
            "stream": True,
            "temperature": self.temperature,
        }
        return body

    def _answer(self) -> Generator[str, None, None]:
        try:
            with (
                _waiting(self.err) as arrived,
                self.client.stream(
                    "POST", f"{self.url}/chat/completions", json=self._body()
                ) as got,
            ):
                if got.status_code != 200:
                    arrived("")
                    raise _refusal(got)
                yield from self._pieces(got, arrived)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error

    def _pieces(self, got: httpx.Response, arrived: Callable[[str], None]) -> Iterator[str]:
        lines, is_cut = Lines(), True
        for data in got.iter_bytes():
            for line in lines.feed(data):
                match event(line):
                    case Note(text):
                        arrived(text)
                    case Text(text):
                        arrived("")
                        is_cut = False
                        yield text
                    case Finished(reason):
                        arrived("")
                        is_cut = False
                        if reason == "length":
                            yield " …"
                    case Failed(code, message):
                        arrived("")
                        raise Unavailable(message, code=code)
                    case Done():
                        arrived("")
                        return
                    case None:
                        pass
        words = "nothing" if is_cut else "no end"
        raise Unavailable(f"the answer broke off: the stream had {words}", code="stream_broken")

    def _unreachable(self, error: Exception) -> FlexInferError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Unavailable(
                f"no router answers at {self.url}; start one with `flexinfer up`",
                code="router_unreachable",
            )
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return InvalidInput(
                f"url {self.url!r}: expected a form such as {DEFAULT_URL}", code="url_invalid"
            )
        if isinstance(error, httpx.ReadTimeout):
            return Unavailable(
                f"{self.url} said nothing for {SILENCE_S:.0f} s", code="router_silent"
            )
        return Unavailable(
            f"the connection to {self.url} broke: {type(error).__name__}", code="stream_broken"
        )


@contextmanager
def _waiting(err: TextIO) -> Iterator[Callable[[str], None]]:
    """Show seconds while nothing has come. The function given is told a note, or "" for the first piece."""
    began, over, noted = time.monotonic(), threading.Event(), threading.Event()
    is_terminal = err.isatty()

    def tick() -> None:
        while not over.wait(1.0):
            seconds = time.monotonic() - began
            if is_terminal and (noted.is_set() or seconds >= 2):
                err.write(f"\r\x1b[Kwaking the model… {seconds:.0f} s")
                err.flush()

    def arrived(note: str) -> None:
        if over.is_set():
            return
        if note:
            if not noted.is_set() and not is_terminal:
                err.write("waking the model…\n")
                err.flush()
            noted.set()
            return
        end()

    def end() -> None:
        over.set()
        thread.join()
        if is_terminal:
            err.write("\r\x1b[K")
            err.flush()

    thread = threading.Thread(target=tick, name="waiting", daemon=True)
    thread.start()
    try:
        yield arrived
    finally:
        if not over.is_set():
            end()


def _refusal(got: httpx.Response) -> FlexInferError:
    body = b""
    for data in got.iter_bytes():
        body += data
        if len(body) > MAX_ERROR_BYTES:
            break
    try:
        tree = json.loads(body[:MAX_ERROR_BYTES])
    except (ValueError, RecursionError):
        tree = None
    told = failure(tree)
    kind = _BY_STATUS.get(got.status_code, Unavailable)
    code = told.code if tree is not None else f"http_{got.status_code}"
    after = got.headers.get("retry-after", "")
    advice = _KEY_ADVICE if code == "invalid_api_key" else ""
    return kind(
        told.message + advice, code=code, retry_after_s=float(after) if after.isdecimal() else None
    )


def _advice(error: FlexInferError) -> str:
    if error.code == "context_length_exceeded":
        return " (/new starts over)"
    if error.retry_after_s is not None:
        return f" (again in {error.retry_after_s:.0f} s)"
    return ""


def _key(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            key = file.read(MAX_KEY_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"key file {path}: {error}", code="key_file") from error
    if not key or any(character.isspace() for character in key):
        raise InvalidInput(f"key file {path}: expected one key, nothing else", code="key_file")
    return key


def _prompt() -> str | None:
    """Return the next line that the user types; None when there is none. Ctrl-C only drops the line."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            if not sys.stdout.isatty():  # there `input` writes its prompt among the answers
                sys.stderr.write(prompt)
                sys.stderr.flush()
                return input()
            return input(prompt)
        except EOFError:
            return None
        except KeyboardInterrupt:
            sys.stderr.write(f"\n({HELP})\n")
