from __future__ import annotations

import http.server
import io
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flexinfer.errors import (
    FlexInferError,
    InvalidInput,
    NotFound,
    Overloaded,
    Unauthorized,
    Unavailable,
)
from flexinfer.places import Home
from flexinfer.process import SingleInstance, free_port
from flexinfer_serving.chat import Talk, chat, converse
from flexinfer_serving.chat_stream import (
    MAX_LINE_BYTES,
    Done,
    Failed,
    Finished,
    Lines,
    Note,
    Text,
    event,
)

WITHIN_S = 30.0


def piece(text: str) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]}) + "\n\n"


END = 'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


@dataclass
class Router:
    """A router that answers what the test says, and remembers what it was asked."""

    url: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = (piece("Pa"), piece("ris."), END)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    looked_for: list[str] = field(default_factory=list)
    looked: tuple[int, str] = (200, "{}")
    """The status and body of a look for a model."""
    is_endless: bool = False
    client_left: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def router() -> Iterator[Router]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.asked.append(body)
            told.keys.append(self.headers.get("authorization"))
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for part in told.parts:
                    self.wfile.write(part.encode())
                    self.wfile.flush()
                while told.is_endless:
                    self.wfile.write(piece("more ").encode())
            except OSError:
                told.client_left.set()

        def do_GET(self) -> None:
            told.looked_for.append(self.path)
            self.send_response(told.looked[0])
            self.end_headers()
            self.wfile.write(told.looked[1].encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told = Router(url=f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join(WITHIN_S)


@pytest.fixture
def talk(router: Router) -> Iterator[Talk]:
    with httpx.Client(timeout=WITHIN_S, trust_env=False) as client:
        yield Talk(
            client=client, url=router.url, model="smol", out=io.StringIO(), err=io.StringIO()
        )


def shown(stream: Any) -> str:
    text: str = stream.getvalue()
    return text


def lines_of(*lines: str) -> Callable[[], str | None]:
    left = list(lines)
    return lambda: left.pop(0) if left else None


def test_an_answer_is_shown_and_remembered(talk: Talk, router: Router) -> None:
    assert talk.ask("Capital of France?") == "Paris."
    assert shown(talk.out) == "Paris.\n"
    talk.ask("And of Spain?")
    assert router.asked[1]["messages"] == [
        {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Spain?"},
    ]
    assert router.asked[1]["stream"] is True
    assert router.asked[1]["temperature"] == 0.2


def test_what_the_system_says_comes_first_and_stays_after_new(talk: Talk, router: Router) -> None:
    talk.system = "Be brief."
    converse(talk, lines_of("one", "/new", "two"))
    system = {"role": "system", "content": "Be brief."}
    assert router.asked[1]["messages"] == [system, {"role": "user", "content": "two"}]


def test_a_comment_of_the_server_is_told_as_a_model_that_wakes(talk: Talk, router: Router) -> None:
    router.parts = (": flexinfer loading\n\n", ": flexinfer cold-start=7.1s\n\n", *router.parts)
    assert talk.ask("x") == "Paris."
    assert shown(talk.err) == "waking the model…\n"


def test_a_refusal_comes_with_its_code_and_is_forgotten(talk: Talk, router: Router) -> None:
    router.status = 404
    router.parts = ('{"error":{"message":"no model \'smol\'","code":"model_not_found"}}',)
    with pytest.raises(NotFound, match="no model 'smol'") as refused:
        talk.ask("x")
    assert refused.value.code == "model_not_found"
    assert talk.messages == []


def test_a_router_that_is_full_says_when_to_come_again(talk: Talk, router: Router) -> None:
    router.status, router.headers = 429, {"retry-after": "7"}
    router.parts = ('{"error":{"message":"full","code":"model_overloaded"}}',)
    converse(talk, lines_of("x"))
    assert "error[model_overloaded]: full (again in 7 s)\n" in shown(talk.err)
    with pytest.raises(Overloaded):
        talk.ask("x")


def test_an_answer_that_is_not_json_is_still_an_error(talk: Talk, router: Router) -> None:
    router.status, router.parts = 502, ("<html>bad gateway</html>",)
    with pytest.raises(Unavailable) as refused:
        talk.ask("x")
    assert refused.value.code == "http_502"


def test_an_error_inside_a_stream_ends_the_answer(talk: Talk, router: Router) -> None:
    broken = 'data: {"error":{"message":"the engine ended","code":"engine_lost"}}\n\n'
    router.parts = (piece("Pa"), broken)
    with pytest.raises(Unavailable, match="the engine ended") as refused:
        talk.ask("x")
    assert refused.value.code == "engine_lost"
    assert talk.messages == []


def test_a_stream_without_its_end_is_no_answer(talk: Talk, router: Router) -> None:
    router.parts = (piece("Pa"),)
    with pytest.raises(Unavailable) as refused:
        talk.ask("x")
    assert refused.value.code == "stream_broken"


def test_an_answer_cut_by_its_length_shows_so(talk: Talk, router: Router) -> None:
    router.parts = (piece("a b"), END.replace("stop", "length"))
    assert talk.ask("x") == "a b …"


def test_where_nobody_answers_the_way_to_start_one_is_told(talk: Talk) -> None:
    talk.url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(Unavailable, match="flexinfer up") as refused:
        talk.ask("x")
    assert refused.value.code == "router_unreachable"


@pytest.mark.parametrize("url", ["ftp://x/v1", "nowhere", "http://[::1/v1"])
def test_a_url_that_is_none_is_the_callers_mistake(talk: Talk, url: str) -> None:
    talk.url = url
    with pytest.raises(InvalidInput):
        talk.ask("x")


class Impatient(io.StringIO):
    """A terminal whose user presses Ctrl-C at the second piece."""

    def write(self, text: str) -> int:
        if self.getvalue():
            raise KeyboardInterrupt
        return super().write(text)


def test_ctrl_c_stops_the_answer_and_not_the_program(talk: Talk, router: Router) -> None:
    router.is_endless = True
    patient, talk.out = talk.out, Impatient()
    asked = iter(["first"])

    def read() -> str | None:
        text = next(asked, None)
        if text is None and len(router.asked) == 1:
            assert router.client_left.wait(WITHIN_S)  # the router hears of it at once
            router.is_endless, talk.out = False, patient
            return "second"
        return text

    converse(talk, read)
    assert "(stopped)" in shown(talk.err)
    roles = [message["role"] for message in router.asked[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert shown(patient).endswith("Paris.\n")


def test_commands_are_not_sent(talk: Talk, router: Router) -> None:
    converse(talk, lines_of("", "/help", "/nonsense", "/exit", "never"))
    assert router.asked == []
    assert "unknown command '/nonsense'" in shown(talk.err)


def test_a_terminal_is_not_commanded_by_a_model(talk: Talk, router: Router) -> None:
    router.parts = (piece("\x1b]0;title\x07a\x1b[31mb\u202ec\n\td"), END)
    assert talk.ask("x") == "]0;titlea[31mbc\n\td"


def run(*arguments: str, typed: str | None = None) -> Any:
    app = typer.Typer()
    app.command()(chat)
    return CliRunner().invoke(app, list(arguments), input=typed)


def test_one_question_is_answered_on_standard_output(router: Router, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("fxi_1\n")
    result = run(
        "smol", "--url", router.url + "/", "-m", "Capital?", "--max-tokens", "9",
        "--temperature", "0", "--key-file", str(key),
    )  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, "Paris.\n")
    assert router.asked[0]["max_tokens"] == 9
    assert router.asked[0]["temperature"] == 0
    assert router.keys == ["Bearer fxi_1"]


def test_without_an_address_the_settings_name_the_router_and_the_key(
    router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLEXINFER_HOME", str(tmp_path))
    monkeypatch.setenv("FLEXINFER_SERVE__PORT", str(urlsplit(router.url).port))
    monkeypatch.setenv("FLEXINFER_SERVE__API_KEYS", "fxi_own")
    assert run("smol", "-m", "x").exit_code == 0
    assert router.keys == ["Bearer fxi_own"]


def test_without_an_address_the_running_up_says_where_it_listens(
    router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLEXINFER_HOME", str(tmp_path))
    monkeypatch.setenv("FLEXINFER_SERVE__PORT", str(free_port()))
    lock = Home(tmp_path).prepare().up_lock
    with SingleInstance.acquire(lock, {"what": "up", "address": router.url}):
        result = run("smol", "-m", "x")
    assert (result.exit_code, result.stdout) == (0, "Paris.\n")


def test_the_own_routers_key_is_told_to_no_proxy(
    router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that listens beyond loopback is this machine's all the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLEXINFER_HOME", str(tmp_path))
    monkeypatch.setenv("FLEXINFER_SERVE__HOST", "127.0.0.2")  # nobody listens there
    monkeypatch.setenv("FLEXINFER_SERVE__PORT", str(free_port()))
    monkeypatch.setenv("FLEXINFER_SERVE__API_KEYS", "fxi_own")
    monkeypatch.setenv("HTTP_PROXY", router.url.removesuffix("/v1"))
    assert run("smol", "-m", "x").exit_code != 0
    assert (router.keys, router.asked) == ([], [])


def test_no_prompt_is_written_where_nobody_types(router: Router) -> None:
    result = run("smol", "--url", router.url, typed="hi\n")
    assert (result.exit_code, result.stdout) == (0, "Paris.\n")
    assert "> " not in result.stderr
    assert router.looked_for == ["/v1/models/smol"]


def test_a_model_that_is_not_there_is_said_before_anything_is_typed(router: Router) -> None:
    router.looked = (404, '{"error":{"message":"there is none","code":"model_not_found"}}')
    result = run("a/b?", "--url", router.url, typed="hi\n")
    assert isinstance(result.exception, NotFound)
    assert router.looked_for == ["/v1/models/a%2Fb%3F"]
    assert (router.asked, result.stdout) == ([], "")


def test_a_wrong_key_is_said_with_where_keys_are_set(router: Router) -> None:
    refused = '{"error":{"message":"no or wrong API key","code":"invalid_api_key"}}'
    router.looked, router.status, router.parts = (401, refused), 401, (refused,)
    for more in ((), ("-m", "x")):
        result = run("smol", "--url", router.url, *more)
        assert isinstance(result.exception, Unauthorized)
        assert "FLEXINFER_SERVE__API_KEYS" in result.exception.message
        assert "--key-file" in result.exception.message


@pytest.mark.parametrize("looked", [(404, "not found"), (503, "{}")])
def test_a_server_that_does_not_tell_of_its_models_is_asked_all_the_same(
    router: Router, looked: tuple[int, str]
) -> None:
    router.looked = looked
    assert run("smol", "--url", router.url, typed="hi\n").stdout == "Paris.\n"


def test_a_conversation_with_nobody_does_not_begin() -> None:
    result = run("smol", "--url", f"http://127.0.0.1:{free_port()}/v1", typed="hi\n")
    assert isinstance(result.exception, Unavailable)
    assert result.exception.code == "router_unreachable"


def test_without_a_key_none_is_sent(router: Router) -> None:
    assert run("smol", "--url", router.url, "-m", "x").exit_code == 0
    assert router.keys == [None]


def test_one_question_that_fails_raises_for_the_command_line(router: Router) -> None:
    router.status, router.parts = 404, ('{"error":{"message":"m","code":"model_not_found"}}',)
    result = run("smol", "--url", router.url, "-m", "x")
    assert isinstance(result.exception, FlexInferError)
    assert result.exception.code == "model_not_found"


@pytest.mark.parametrize("text", ["", "two keys", "schlüssel"])
def test_a_key_file_without_one_key_is_refused(router: Router, tmp_path: Path, text: str) -> None:
    key = tmp_path / "key"
    key.write_text(text, encoding="utf-8")
    result = run("smol", "--url", router.url, "-m", "x", "--key-file", str(key))
    assert isinstance(result.exception, InvalidInput)
    assert router.asked == []


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        (": flexinfer cold-start=7.1s", Note("flexinfer cold-start=7.1s")),
        (":", None),
        ("", None),
        ("event: x", None),
        ("data: [DONE]", Done()),
        ("data:[DONE]", Done()),
        ('data: {"choices":[{"delta":{"content":"a"}}]}', Text("a")),
        ('data: {"choices":[{"delta":{"role":"assistant","content":null}}]}', None),
        ('data: {"choices":[{"delta":{},"finish_reason":"length"}]}', Finished("length")),
        ('data: {"choices":[],"usage":{}}', None),
        ('data: {"error":{"message":"m","code":"c"}}', Failed("c", "m")),
        ('data: {"error":"m"}', Failed("upstream_error", "m")),
    ],
)
def test_a_line_of_a_stream_means_one_thing(line: str, meaning: object) -> None:
    assert event(line) == meaning


def test_a_line_without_end_is_refused() -> None:
    lines = Lines()
    lines.feed(b"x" * MAX_LINE_BYTES)
    with pytest.raises(Unavailable) as refused:
        lines.feed(b"x")
    assert refused.value.code == "stream_invalid"


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_where_the_bytes_are_cut_does_not_matter(data: bytes, cuts: list[int]) -> None:
    whole = Lines().feed(data)
    lines, found, places = Lines(), [], [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(places):
        found += lines.feed(data[start:end])
    assert found == whole


@given(st.text(max_size=60))
def test_no_line_is_too_strange_to_be_read(line: str) -> None:
    for text in (line, f"data: {line}", f"data: {json.dumps({'choices': [line]})}"):
        meaning = event(text)
        assert meaning is None or isinstance(meaning, Note | Text | Finished | Failed | Done)
