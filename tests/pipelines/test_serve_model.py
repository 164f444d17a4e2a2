"""From a source to a Model file, and how it is told that it answers."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from flexinfer.cli import app
from flexinfer.errors import Conflict, InvalidInput, Unauthorized, Unavailable
from flexinfer.places import Home
from flexinfer.process import SingleInstance
from flexinfer.resources.document import parse_document
from flexinfer.resources.model import Model
from flexinfer.settings import Settings
from flexinfer_pipelines.serve_model import Served, show_or_become_up, write_model
from flexinfer_pipelines.target import parse_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smollm2/q8-0", "catalog://smollm2/q8-0"),
        ("smollm2", "catalog://smollm2"),
        ("HF://org/repo@main/m.gguf", "hf://org/repo@main/m.gguf"),
        ("/models/mine.gguf", "file:///models/mine.gguf"),
        ("/models/../m/mine.gguf", "file:///m/mine.gguf"),
    ],
)
def test_a_target_is_an_entry_a_source_or_a_file(text: str, expected: str) -> None:
    assert str(parse_target(text)) == expected


def test_a_relative_file_is_meant_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("mine.gguf", "./mine.gguf"):
        assert str(parse_target(text)) == f"file://{tmp_path}/mine.gguf"


@pytest.mark.parametrize("text", ["", "what is this", "UPPER/case", "a/b/c", "xyz://a"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_target(text)
    assert caught.value.code == "source_invalid"


def test_a_scheme_that_is_none_is_refused_with_those_that_can_be_built() -> None:
    with pytest.raises(InvalidInput, match=r"a scheme of catalog, file, hf, pypi$"):
        parse_target("https://example.com/m.gguf")


def test_the_model_file_is_a_valid_model(tmp_path: Path, home: Home) -> None:
    found = write_model(f"{tmp_path}/My Model (v2).gguf", "", home, Settings())
    assert found.is_new
    path = Path(found.path)
    assert path == home.models / f"{found.name}.yaml"
    model = parse_document(Model, path.read_text(), str(path))
    assert model.metadata.name == found.name == "my-model-v2"
    assert model.spec.source == f"file://{tmp_path}/My Model (v2).gguf"
    assert [one.name for one in home.models.iterdir()] == [path.name]


def test_the_same_again_changes_nothing(tmp_path: Path, home: Home) -> None:
    source = f"{tmp_path}/mine.gguf"
    first = write_model(source, "", home, Settings())
    Path(first.path).write_text(Path(first.path).read_text() + "# edited\n")
    assert not write_model(source, "", home, Settings()).is_new
    assert "# edited" in Path(first.path).read_text()


def test_a_name_that_serves_something_else_is_not_taken_over(tmp_path: Path, home: Home) -> None:
    first = write_model(f"{tmp_path}/mine.gguf", "", home, Settings())
    before = Path(first.path).read_bytes()
    with pytest.raises(Conflict, match="--name") as caught:
        write_model(f"{tmp_path}/other/mine.gguf", "", home, Settings())
    assert caught.value.code == "model_exists"
    assert Path(first.path).read_bytes() == before
    other = write_model(f"{tmp_path}/other/mine.gguf", "Mine Too", home, Settings())
    assert other.name == "mine-too"


def test_a_broken_file_of_that_name_is_not_overwritten(tmp_path: Path, home: Home) -> None:
    (home.models / "mine.yaml").write_text("spec: [")
    with pytest.raises(Conflict):
        write_model(f"{tmp_path}/mine.gguf", "", home, Settings())


def _alias_of_another(home: Home) -> Path:
    file = home.models / "starter.yaml"
    file.write_text("metadata: {name: big}\nspec: {source: 'hf://a/b', aliases: [smol, tiny]}\n")
    return file


def test_another_models_alias_is_not_taken_over(tmp_path: Path, home: Home) -> None:
    file = _alias_of_another(home)
    with pytest.raises(Conflict, match="'smol' is an alias of the Model 'big'") as caught:
        write_model(f"{tmp_path}/third.gguf", "smol", home, Settings())
    assert caught.value.code == "model_exists"
    assert str(file) in caught.value.message
    assert list(home.models.iterdir()) == [file]
    assert write_model(f"{tmp_path}/third.gguf", "small", home, Settings()).is_new


def test_a_model_of_that_name_in_a_file_of_another_name_is_seen(tmp_path: Path, home: Home) -> None:
    _alias_of_another(home)
    with pytest.raises(Conflict, match=r"starter\.yaml: a Model 'big' is there"):
        write_model(f"{tmp_path}/big.gguf", "", home, Settings())


@pytest.mark.parametrize("name", ["smol", "big"])
def test_run_refuses_a_taken_name_before_it_builds(
    name: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _alias_of_another(home)
    monkeypatch.setenv("FLEXINFER_HOME", str(home.root))
    result = CliRunner().invoke(app, ["run", f"{tmp_path}/absent.gguf", "--name", name])
    assert isinstance(result.exception, Conflict)  # a build would have missed the file
    assert result.exception.code == "model_exists"


def test_a_catalog_entry_is_bound_by_its_variant(home: Home) -> None:
    found = write_model("smollm2-135m-instruct", "", home, Settings())
    tree = yaml.safe_load(Path(found.path).read_text())
    assert tree["spec"]["source"] == "catalog://smollm2-135m-instruct/q8-0"


@pytest.fixture
def router() -> Iterator[SimpleNamespace]:
    """A router that lists `mine` from the third look on, to who sends the key, where there is one."""
    state = SimpleNamespace(looks=0, url="", keys=[], key="")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.looks += 1
            state.keys.append(self.headers.get("authorization"))
            listed = [{"id": "mine"}] if state.looks > 2 else []
            body = json.dumps({"data": listed}).encode()
            is_known = not state.key or state.keys[-1] == f"Bearer {state.key}"
            self.send_response(200 if is_known else 401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def test_where_up_runs_the_model_is_shown_when_it_is_listed(
    home: Home, router: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings.model_validate({"serve": {"api_keys": ["fxi_key"]}})
    with SingleInstance.acquire(home.up_lock, {"what": "up", "address": router.url}):
        show_or_become_up(Served(name="mine", path="mine.yaml", is_new=True), home, settings)
    shown = capsys.readouterr().out
    assert f"ready {router.url}" in shown
    assert f"curl -s {router.url}/chat/completions" in shown
    assert '"Authorization: Bearer $OPENAI_API_KEY"' in shown
    assert "fxi_key" not in shown
    assert router.looks == 3
    assert set(router.keys) == {"Bearer fxi_key"}


def test_a_model_that_is_never_listed_is_said_so(home: Home, router: SimpleNamespace) -> None:
    served = Served(name="other", path="x", is_new=True)
    with SingleInstance.acquire(home.up_lock, {"what": "up", "address": router.url}):
        with pytest.raises(Unavailable, match="'other'") as caught:
            show_or_become_up(served, home, Settings(), wait_s=0.5)
    assert caught.value.code == "model_not_listed"


def test_a_router_that_wants_another_key_is_not_waited_for(
    home: Home, router: SimpleNamespace
) -> None:
    router.key = "fxi_key"
    served = Served(name="mine", path="mine.yaml", is_new=True)
    with SingleInstance.acquire(home.up_lock, {"what": "up", "address": router.url}):
        with pytest.raises(Unauthorized, match="set FLEXINFER_SERVE__API_KEYS") as caught:
            show_or_become_up(served, home, Settings())
    assert caught.value.code == "invalid_api_key"
    assert router.looks == 1


def test_the_model_file_says_what_made_it_and_how_to_undo_it(tmp_path: Path, home: Home) -> None:
    found = write_model(f"{tmp_path}/mine.gguf", "", home, Settings())
    first, second, *_ = Path(found.path).read_text("utf-8").splitlines()
    assert first == f"# Made by `flexinfer run` of file://{tmp_path}/mine.gguf"
    assert second.startswith("# To undo, delete this file")
