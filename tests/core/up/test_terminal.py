"""What a person sees of the children's logs."""

from __future__ import annotations

import json
import subprocess
import sys

from flexinfer.up.terminal import installing, render


def line(**fields: object) -> str:
    return json.dumps({"event": "something_happened", "level": "info", "logger": "x"} | fields)


def test_what_is_meant_for_people_is_shown_as_it_is() -> None:
    assert render("operator", line(human="smol is ready (1.9 s)")) == "smol is ready (1.9 s)"


def test_ordinary_events_stay_in_the_log() -> None:
    assert render("operator", line()) is None


def test_warnings_name_their_process_and_fields() -> None:
    shown = render("serve", line(level="warning", model="smol"))
    assert shown == "serve: something_happened (model=smol)"


def test_an_error_shows_its_cause() -> None:
    shown = render(
        "serve", line(level="error", exception=[{"exc_type": "OSError", "exc_value": "no"}])
    )
    assert shown == "serve: something_happened: OSError: no"


def test_a_librarys_own_output_stays_in_the_log() -> None:
    assert render("prefect", "  ___ ___ ___ banner") is None
    assert render("prefect", "[1, 2]") is None


def test_a_log_cannot_drive_the_terminal() -> None:
    shown = render("serve", line(human="red \x1b[31m\r\nforged"))
    assert shown is not None
    assert shown.isprintable()


def test_a_long_line_is_cut() -> None:
    shown = render("serve", line(human="x" * 10_000))
    assert shown is not None
    assert len(shown) == 400


def test_what_pip_does_is_said_in_whole_words() -> None:
    said = [
        installing("Collecting numpy==2.2.6 (from -r /a/b/requirements/tools/gguf.txt (line 3))"),
        installing("  Downloading numpy-2.2.6-cp311-cp311-manylinux_2_17_x86_64.whl (16.8 MB)"),
        installing("Installing collected packages: numpy, gguf"),
        installing("Successfully installed numpy-2.2.6"),
    ]
    assert said == [
        "looking for numpy==2.2.6",
        "fetching numpy 2.2.6 (16.8 MB)",
        "unpacking numpy, gguf",
        "",
    ]


def test_an_output_that_is_full_costs_its_words_and_nothing_else() -> None:
    code = (
        "import sys; from flexinfer.up.terminal import Terminal; one = Terminal(); one.say('a');"
        "one.say('b'); print(one.look(), file=sys.stderr)"
    )
    with open("/dev/full", "wb") as full:
        found = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert (found.returncode, found.stderr) == (0, b"False\n")


def test_a_line_that_is_nested_too_deeply_is_no_event() -> None:
    assert render("serve", "[" * 100_000) is None
