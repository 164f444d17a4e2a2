"""`flexinfer catalog`: what a user sees, and the exit code that a script reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flexinfer.commands.catalog import app

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXINFER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def _run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_lint_counts_what_is_good(write: Write) -> None:
    result = _run("lint", write("m.yaml"))
    assert (result.exit_code, result.stdout) == (0, "ok: 1 entry, 2 variants\n")


def test_lint_prints_one_line_for_each_problem_and_exits_with_two(write: Write) -> None:
    slip = write("slip.yaml", "slip")
    slip.write_text(slip.read_text().replace("license", "licence").replace("variants", "variant"))
    kind = write("x/quantizer.yaml", "other")
    kind.write_text(kind.read_text().replace("format: gguf", "format: gugf", 1))
    result = _run("lint", slip, kind.parent)
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        f"{slip}:4:1: missing key 'license'",
        f"{slip}:4:1: missing key 'variants'",
        f"{slip}:6:3: unknown key 'licence'; did you mean 'license'?",
        f"{slip}:8:3: unknown key 'variant'; did you mean 'variants'?",
        f"{kind}:9:39: no quantizer named 'gugf' (known: none, gguf); did you mean 'gguf'?",
        "5 problems; usable: 1 entry, 1 variant",
    ]


def test_a_variant_that_nothing_makes_is_not_usable(write: Write) -> None:
    file = write("one.yaml", "one")
    file.write_text(file.read_text().replace("Q8_0", "Q4_K_M"))
    result = _run("lint", file)
    assert result.exit_code == 2
    assert "no type 'Q4_K_M': gguf makes" in result.stdout
    assert "did you mean" not in result.stdout
    assert "1 problem; usable: 1 entry, 1 variant" in result.stdout


def test_lint_warns_of_an_entry_that_is_not_used_and_of_one_that_moves(write: Write) -> None:
    first = write("a/m.yaml", uri="hf://Org/repo/m.gguf")
    second = write("b/m.yaml")
    result = _run("lint", first.parent, second.parent)
    assert result.exit_code == 0
    assert f"{second}:3:18: warning: entry 'm' is not used: {first} comes first" in result.stdout
    assert f"{first}:5:17: warning: no revision" in result.stdout


def test_lint_warns_of_a_file_that_is_not_there(tmp_path: Path, write: Write) -> None:
    file = tmp_path / "m.gguf"
    entry = write("m.yaml", uri=f"file://{file}")
    result = _run("lint", entry)
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            f"{entry}:5:17: warning: no file '{file}' here: a build of it ends with source_not_found",
            "ok: 1 entry, 2 variants",
        ],
    )
    file.touch()
    assert _run("lint", entry).stdout == "ok: 1 entry, 2 variants\n"


def test_lint_names_a_path_that_is_not_there() -> None:
    result = _run("lint", "absent")
    assert result.exit_code == 2
    assert "absent:1:1: cannot be used: No such file" in result.stdout


def test_lint_without_a_path_looks_where_builds_look(write: Write) -> None:
    write("catalogs/bad.yaml").write_text("kind: [\n")
    result = _run("lint")
    assert result.exit_code == 2
    assert "catalogs/bad.yaml:2:1: not YAML" in result.stdout


def test_list_shows_each_entry_with_where_it_is_from(write: Write) -> None:
    file = write("catalogs/m.yaml", "mine")
    result = _run("list", "--wide")
    row = next(line for line in result.stdout.splitlines() if line.startswith("mine "))
    assert row.split() == ["mine", "q8-0", "q4-0", "MIT", "pypi://d==1/m.gguf", str(file)]
    assert any(line.startswith("smollm2-135m-instruct ") for line in result.stdout.splitlines())


def test_list_says_on_the_side_that_files_are_not_usable(write: Write) -> None:
    write("catalogs/bad.yaml").write_text("")
    result = _run("list", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)
    assert "1 file is not usable" in _run("list").stderr


def test_json_has_the_reference_of_each_variant(write: Write) -> None:
    file = write("catalogs/m.yaml", "mine", repository="team/mine")
    rows = {row["entry"]: row for row in json.loads(_run("list", "--json").stdout)}
    assert rows["mine"] == {
        "entry": "mine",
        "source": "pypi://d==1/m.gguf",
        "license": "MIT",
        "repository": "team/mine",
        "variants": [
            {"name": "q8-0", "format": "gguf", "type": "Q8_0", "reference": "team/mine:q8-0"},
            {"name": "q4-0", "format": "gguf", "type": "Q4_0", "reference": "team/mine:q4-0"},
        ],
        "file": str(file),
    }


def test_an_entry_in_the_home_is_found_and_gone_when_it_is_removed(
    tmp_path: Path, write: Write
) -> None:
    write("home/catalogs/m.yaml", "mine")
    assert "mine " in _run("list").stdout
    shutil.rmtree(tmp_path / "home")
    assert "mine " not in _run("list").stdout


@pytest.mark.parametrize("command", ["lint", "list"])
def test_help_has_an_example(command: str) -> None:
    assert f"Example: flexinfer catalog {command}" in _run(command, "--help").stdout


def test_the_list_fits_into_eighty_columns_and_wide_shows_the_rest(write: Write) -> None:
    write("catalogs/m.yaml")
    head, *rows = _run("list").stdout.splitlines()
    assert head.split() == ["entry", "variants", "licence"]
    assert rows and all(len(row) <= 80 for row in rows)
    head, *rows = _run("list", "--wide").stdout.splitlines()
    assert head.split() == ["entry", "variants", "licence", "source", "file"]
    assert rows[0].endswith("m.yaml")


def test_lint_asks_the_quantizer_and_spdx_s_list(write: Write) -> None:
    entry = write("m.yaml")
    text = entry.read_text()
    entry.write_text(text.replace("Q8_0", "Q8_1").replace("expression: MIT", "expression: llama-3"))
    result = _run("lint", entry)
    assert result.exit_code == 2
    assert "no type 'Q8_1': gguf makes Q8_0, " in result.stdout
    assert "warning: licence 'llama-3': SPDX lists no such identifier" in result.stdout
    entry.write_text(
        text.replace("expression: MIT", "expression: DocumentRef-a:LicenseRef-llama-3")
    )
    assert _run("lint", entry).stdout == "ok: 1 entry, 2 variants\n"


def test_an_entry_without_variants_is_told_so_in_our_words(write: Write) -> None:
    entry = write("m.yaml")
    head = entry.read_text().split("  variants:")[0]
    entry.write_text(f"{head}  variants: []\n")
    assert "expected at least 1 variant, found none" in _run("lint", entry).stdout
