"""Settings: where a value comes from, and one message for everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from flexinfer.errors import InvalidInput
from flexinfer.process.procfs import MARK_VARIABLE
from flexinfer.settings import Section, Settings, exposed_keys, load


def _refusal(environ: dict[str, str], *files: Path) -> str:
    with pytest.raises(InvalidInput) as refused:
        load(Settings, environ, files=files)
    assert refused.value.code == "bad_settings"
    return refused.value.message


def test_the_environment_wins_over_the_first_file_and_that_over_the_second(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("[serve]\nport = 2\nhost = 'first'\n")
    second.write_text("[serve]\nport = 3\nhost = 'second'\nadmin_port = 3\n")
    serve = load(Settings, {"FLEXINFER_SERVE__PORT": "1"}, files=(first, second)).serve
    assert (serve.port, serve.host, serve.admin_port) == (1, "first", 3)


def test_every_bad_setting_is_named_at_once_and_in_full(tmp_path: Path) -> None:
    file = tmp_path / "flexinfer.toml"
    file.write_text("[serve]\nadmin_port = -1\n")
    message = _refusal({"FLEXINFER_LOG__LEVEL": "loud", "FLEXINFER_SERVE__PORT": "70000"}, file)
    assert "FLEXINFER_LOG__LEVEL: Input should be 'debug'" in message
    assert "FLEXINFER_SERVE__PORT: Input should be less than or equal to 65535" in message
    assert f"{file}: serve.admin_port: " in message


@pytest.mark.parametrize("variable", ["FLEXINFER_SERVE__PROT", "FLEXINFER_SERV__PORT"])
def test_an_unknown_variable_names_the_nearest_setting(variable: str) -> None:
    assert f"{variable}: unknown setting; did you mean 'FLEXINFER_SERVE__PORT'?" in _refusal(
        {variable: "1"}
    )


def test_an_unknown_name_in_a_file_names_the_file_and_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "flexinfer.toml"
    file.write_text("stray = 1\n[serve]\nprot = 1\n[srve]\n")
    message = _refusal({}, file)
    assert f"{file}: serve.prot: unknown setting; did you mean 'port'?" in message
    assert f"{file}: srve: unknown section; did you mean 'serve'?" in message
    assert f"{file}: stray: unknown section" in message


def test_a_section_that_is_no_table_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "flexinfer.toml"
    file.write_text("serve = 1\n")
    assert f"{file}: serve: expected a table, found int" in _refusal({}, file)


def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "flexinfer.toml"
    file.write_text("[serve\n")
    assert str(file) in _refusal({}, file)


def test_a_file_that_is_absent_says_nothing(tmp_path: Path) -> None:
    regular = tmp_path / "regular"
    regular.write_text("")
    # A home below a regular file is reported by whoever prepares the home.
    assert load(Settings, {}, files=(tmp_path / "absent.toml", regular / "flexinfer.toml"))


def test_lists_are_split_and_an_empty_variable_is_an_empty_list() -> None:
    settings = load(
        Settings,
        {
            "FLEXINFER_SERVE__API_KEYS": "one, two",
            "FLEXINFER_SERVE__CORS_ORIGINS": "",
            "FLEXINFER_CATALOG__PATHS": "/a:/b",
        },
    )
    assert [key.get_secret_value() for key in settings.serve.api_keys] == ["one", "two"]
    assert settings.serve.cors_origins == ()
    assert settings.catalog.paths == (Path("/a"), Path("/b"))
    assert load(Settings, {"FLEXINFER_CATALOG__PATHS": ""}).catalog.paths == ()


def test_a_key_is_never_part_of_a_refusal_or_of_the_settings_text() -> None:
    environ = {"FLEXINFER_SERVE__API_KEYS": "topsecret"}
    assert "topsecret" not in repr(load(Settings, environ))
    assert "topsecret" not in _refusal({**environ, "FLEXINFER_SERVE__PORT": "x"})


@pytest.mark.parametrize(
    ("host", "reached_at"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("localhost", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("fd00::2", "http://[fd00::2]:8080"),
        ("box.lan", "http://box.lan:8080"),
    ],
)
def test_a_program_of_this_machine_is_told_where_the_router_is(host: str, reached_at: str) -> None:
    serve = Settings.model_validate({"serve": {"host": host, "admin_host": host}}).serve
    assert serve.address == reached_at
    assert serve.base_url == f"{reached_at}/v1"
    assert serve.admin_address == reached_at.replace("8080", "8081")


def test_the_first_key_is_what_own_programs_send() -> None:
    serve = Settings.model_validate({"serve": {"api_keys": "one, two"}}).serve
    assert serve.authorization == {"authorization": "Bearer one"}
    assert Settings().serve.authorization == {}


@pytest.mark.parametrize(
    ("text", "mode", "is_exposed"),
    [
        ("[serve]\napi_keys = ['one']\n", 0o644, True),
        ("[serve]\napi_keys = 'one'\n", 0o640, True),
        ("[serve]\napi_keys = ['one']\n", 0o600, False),
        ("[serve]\napi_keys = []\nport = 1\n", 0o644, False),
        ("serve = 1\n", 0o644, False),
        ("[serve", 0o644, False),
    ],
)
def test_a_file_with_keys_that_others_can_read_is_found(
    tmp_path: Path, text: str, mode: int, is_exposed: bool
) -> None:
    file = tmp_path / "flexinfer.toml"
    file.write_text(text)
    file.chmod(mode)
    assert exposed_keys((file, tmp_path / "absent.toml")) == ((file,) if is_exposed else ())


def test_a_lease_that_the_operator_would_cut_is_refused() -> None:
    assert Settings.model_validate({"operator": {"lease_ttl_s": 120}}).operator.lease_ttl_s == 120
    said = _refusal({"FLEXINFER_OPERATOR__LEASE_TTL_S": "121"})
    assert "FLEXINFER_OPERATOR__LEASE_TTL_S" in said and "120" in said


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"SERVE__PORT": "9", "SERVE__ADMIN_PORT": "9"}, ("SERVE__PORT", "SERVE__ADMIN_PORT")),
        ({"SERVE__PORT": "8081"}, ("SERVE__PORT", "SERVE__ADMIN_PORT (by default)")),
        ({"SERVE__ADMIN_PORT": "4200"}, ("SERVE__ADMIN_PORT", "PREFECT__PORT (by default)")),
        ({"PREFECT__PORT": "8080"}, ("SERVE__PORT (by default)", "PREFECT__PORT")),
        (
            {"SERVE__PORT": "8081", "SERVE__HOST": "0.0.0.0", "SERVE__ADMIN_HOST": "10.0.0.1"},
            ("SERVE__PORT", "SERVE__ADMIN_PORT (by default)"),
        ),
    ],
)
def test_a_port_that_is_wanted_twice_is_refused_with_both_names(
    environ: dict[str, str], named: tuple[str, str]
) -> None:
    one, two = (f"FLEXINFER_{name}" for name in named)
    assert f"{one} and {two}: both are " in _refusal(
        {f"FLEXINFER_{name}": value for name, value in environ.items()}
    )


def test_a_port_from_a_file_that_is_wanted_twice_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "flexinfer.toml"
    file.write_text("[serve]\nadmin_port = 9\n")
    message = _refusal({"FLEXINFER_SERVE__PORT": "9"}, file)
    assert f"FLEXINFER_SERVE__PORT and {file}: serve.admin_port: both are 9" in message


@pytest.mark.parametrize(
    "environ",
    [
        {"SERVE__PORT": "0", "SERVE__ADMIN_PORT": "0", "PREFECT__PORT": "0"},
        {"SERVE__PORT": "8081", "SERVE__HOST": "10.0.0.1"},
        {"SERVE__PORT": "4200", "PREFECT__ENABLED": "false"},
        # A router that `up` started is not given what Prefect's section says.
        {"SERVE__PORT": "4200", "PROCESS": "abc"},
    ],
)
def test_a_port_that_can_be_taken_is_no_clash(environ: dict[str, str]) -> None:
    assert load(Settings, {f"FLEXINFER_{name}": value for name, value in environ.items()})


@pytest.mark.parametrize(
    "origin",
    [
        "localhost", "localhost:3000", "http://localhost:3000/", "http://ui/app", "http://", "*.example",
        "https://UI.example", "http://me@ui", "http://ui:port",
    ],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    message = _refusal({"FLEXINFER_SERVE__CORS_ORIGINS": f"http://good, {origin}"})
    assert message.startswith(f"bad settings: FLEXINFER_SERVE__CORS_ORIGINS: {origin!r} is what no")
    assert "such as http://localhost:3000, or *" in message


@pytest.mark.parametrize(
    "origins",
    ["*", "null", "http://localhost:3000,https://ui.example", "http://[::1]:3000", "app://obsidian.md"],
)  # fmt: skip
def test_an_origin_as_browsers_send_it_is_taken(origins: str) -> None:
    serve = load(Settings, {"FLEXINFER_SERVE__CORS_ORIGINS": origins}).serve
    assert serve.cors_origins == tuple(origins.split(","))


@pytest.mark.parametrize(
    "host",
    ["http://my.host", "my.host:8080", "cafe:80", "my.host/", "*", "*.my.host", "my host", "[::1]", "fe80::1%eth0"],
)  # fmt: skip
def test_a_host_that_no_request_names_is_refused(host: str) -> None:
    message = _refusal({"FLEXINFER_SERVE__ALLOWED_HOSTS": f"good, {host}"})
    assert message.startswith(
        f"bad settings: FLEXINFER_SERVE__ALLOWED_HOSTS: {host!r} is the host of no"
    )


def test_a_host_by_name_or_address_is_taken() -> None:
    hosts = "my.host,My_Box,10.0.0.7,fe80::1"
    serve = load(Settings, {"FLEXINFER_SERVE__ALLOWED_HOSTS": hosts}).serve
    assert serve.allowed_hosts == tuple(hosts.split(","))


def test_a_wait_cannot_be_endless() -> None:
    assert "finite" in _refusal({"FLEXINFER_SERVE__CONNECT_TIMEOUT_S": "inf"})


def test_what_a_parent_tells_its_children_is_no_setting() -> None:
    reserved = {"FLEXINFER_HOME": "/x", "FLEXINFER_LIFELINE": "5", MARK_VARIABLE: "abc"}
    assert load(Settings, reserved) == Settings()


def test_a_process_may_have_a_section_of_its_own() -> None:
    class Own(Section):
        depth: int = 1

    class OwnSettings(Settings):
        own: Own = Field(default_factory=Own)

    assert load(OwnSettings, {"FLEXINFER_OWN__DEPTH": "3"}).own.depth == 3


@given(
    st.dictionaries(
        st.sampled_from(["SERVE", "LOG", "BUILD", "NONE"]).flatmap(
            lambda section: st.sampled_from(
                [f"FLEXINFER_{section}__PORT", f"FLEXINFER_{section}__NICE"]
            )
        ),
        st.text(max_size=10),
        max_size=4,
    )
)
def test_every_refusal_names_each_variable_that_is_unknown(environ: dict[str, str]) -> None:
    known = {"FLEXINFER_SERVE__PORT", "FLEXINFER_BUILD__NICE"}
    try:
        load(Settings, environ)
    except InvalidInput as error:
        for variable in set(environ) - known:
            assert f"{variable}: unknown setting" in error.message
    else:
        assert set(environ) <= known
