from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flexinfer.artifact import PREDICATE_TEST_RESULT, FileEntry, ModelConfig, pack, statement
from flexinfer.commands.artifact import app
from flexinfer.errors import IntegrityError, InvalidInput, NotFound
from flexinfer.oci import digest_of
from flexinfer.places import Home
from flexinfer.store import Store

Run = Callable[..., Result]


@pytest.fixture
def run(home: Home) -> Run:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env={"FLEXINFER_HOME": str(home.root)})

    return invoke


@pytest.fixture
def published(home: Home, publish: Callable[..., Any]) -> Any:
    return publish(Store(home.store))


def test_an_empty_store_says_what_to_do(run: Run) -> None:
    assert "flexinfer build" in run("ls").stdout
    assert json.loads(run("ls", "--json").stdout) == []


def test_ls_lists_what_others_read_from_it(run: Run, published: Any) -> None:
    (row,) = json.loads(run("ls", "--json").stdout)
    (evidence,) = row.pop("evidence")
    assert row == {
        "reference": "smol:q8-0",
        "digest": published.manifest.digest,
        "format": "gguf",
        "quantization": "Q8_0",
        "sizeBytes": 512_006,
        "architecture": "llama",
        "createdAt": "1970-01-01T00:00:00Z",
        "error": "",
    }
    assert evidence["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert evidence["result"] == "PASSED"
    assert evidence["digest"] != published.manifest.digest


def test_the_table_is_plain_where_there_is_no_terminal(run: Run, published: Any) -> None:
    head, row = run("ls").stdout.splitlines()
    assert head.split() == ["reference", "digest", "format", "quantization", "size", "evidence"]
    assert row.split()[:4] == ["smol:q8-0", published.manifest.digest[:19], "gguf", "Q8_0"]
    assert row.endswith("test-result PASSED")


def test_a_build_is_listed_only_where_it_has_no_other_name(run: Run, published: Any) -> None:
    store = published.store
    store.tag("smol:build-0f", published.manifest)

    def names(*more: str) -> list[str]:
        return [row["reference"] for row in json.loads(run("ls", "--json", *more).stdout)]

    assert names() == ["smol:q8-0"]
    assert names("--all") == ["smol:build-0f", "smol:q8-0"]
    store.untag("smol:q8-0")
    assert names() == ["smol:build-0f"]
    store.untag("smol:build-0f")
    assert names() == []
    assert names("--all") == [""]


def test_what_cannot_be_read_is_listed_with_its_reason(
    run: Run, published: Any, flip: Callable[[Path], None]
) -> None:
    flip(published.store.path(published.manifest.digest))
    (row,) = json.loads(run("ls", "--json").stdout)
    assert row["error"].startswith("manifest_digest")


def test_inspect_takes_a_name_a_digest_or_its_first_digits(run: Run, published: Any) -> None:
    digest = published.manifest.digest
    for reference in ("smol:q8-0", digest, digest[7:19], digest[:19], f"smol:q8-0@{digest}"):
        about = json.loads(run("inspect", reference, "--json").stdout)
        assert about["digest"] == digest
        assert {file["path"] for file in about["files"]} == {"model.gguf", "docs/LICENSE"}
        assert about["annotations"]["ai.flexinfer.source"] == "pypi://x==1/y"
        assert about["statements"][0]["predicate"]["passedTests"] == ["smoke"]


def test_inspect_is_readable(run: Run, published: Any) -> None:
    text = run("inspect", "smol:q8-0").stdout
    for words in (published.manifest.digest, "model.gguf", "500.0 KiB", "PASSED", "llama"):
        assert words in text


def test_what_an_artifact_says_of_itself_is_no_command_to_the_terminal(
    run: Run, home: Home
) -> None:
    store = Store(home.store)
    file = FileEntry(path="model.gguf", digest=store.put_bytes(b"weights"), size=7)
    config = ModelConfig(name="smol", architecture="ll\x9bama", format="gguf", quantization="Q8_0")
    found = store.put_artifact(pack([file], config, {"note": "one\ntwo\u202e"}))
    store.tag("hostile:1", found)
    shown = run("inspect", "hostile:1").stdout
    assert r"note: one\ntwo\u202e" in shown
    assert r"ll\x9bama" in shown
    assert (
        json.loads(run("inspect", "hostile:1", "--json").stdout)["annotations"]["note"]
        == "one\ntwo\u202e"
    )


def test_a_damaged_statement_is_shown_beside_the_whole_ones(
    run: Run, published: Any, flip: Callable[[Path], None]
) -> None:
    store, subject = published.store, published.manifest
    result = {"result": "FAILED", "passedTests": [], "failedTests": ["smoke"]}
    said = statement("smol", subject.digest, PREDICATE_TEST_RESULT, result)
    store.attest(subject, said)
    flip(store.path(digest_of(said)))
    (row,) = json.loads(run("ls", "--json").stdout)
    assert [one["result"] for one in row["evidence"]] == ["PASSED"]
    assert row["error"].startswith(f"digest_mismatch: statement {digest_of(said)}")
    shown = run("inspect", "smol:q8-0")
    assert f"damaged     {digest_of(said)}: digest_mismatch" in shown.stdout
    assert "test-result/v0.1: PASSED" in shown.stdout and shown.exit_code == 0
    about = json.loads(run("inspect", "smol:q8-0", "--json").stdout)
    assert [one["digest"] for one in about["damagedStatements"]] == [digest_of(said)]
    assert len(about["statements"]) == 1
    assert isinstance(run("verify", "smol:q8-0").exception, IntegrityError)


def test_inspect_of_nothing_is_not_found(run: Run, published: Any) -> None:
    assert isinstance(run("inspect", "smol:other").exception, NotFound)


def test_inspect_of_too_few_digits_is_no_guess(run: Run, published: Any) -> None:
    assert isinstance(run("inspect", published.manifest.digest[:10]).exception, InvalidInput)


def test_verify_hashes_every_byte(run: Run, published: Any) -> None:
    (report,) = json.loads(run("verify", "--json").stdout)
    assert report["verified"] is True
    assert report["hashedBytes"] > 512_000
    assert run("verify", "smol:q8-0").stdout.startswith("ok     smol:q8-0")


def test_verify_names_a_flipped_byte_and_exits_with_7(
    home: Home, published: Any, flip: Callable[[Path], None]
) -> None:
    flip(published.store.path(published.weights))
    done = subprocess.run(
        [sys.executable, "-m", "flexinfer", "artifact", "verify"],
        env={**os.environ, "FLEXINFER_HOME": str(home.root)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 7
    assert done.stderr.startswith("error[digest_mismatch]: ")
    for words in ("model.gguf", published.weights):
        assert words in done.stderr
        assert words in done.stdout
    assert published.manifest.digest in done.stdout


def test_verify_of_what_is_missing_fails_too(
    run: Run, published: Any, flip: Callable[[Path], None]
) -> None:
    flip(published.store.path(published.weights))
    assert isinstance(run("verify").exception, IntegrityError)
    again = run("verify").exception
    assert isinstance(again, IntegrityError)
    assert again.code == "blob_missing"


def test_what_verify_put_aside_is_no_longer_listed_as_good(
    run: Run, published: Any, flip: Callable[[Path], None]
) -> None:
    artifact = published.store.artifact(published.manifest.digest)
    weights = max(artifact.files, key=lambda file: file.size)
    flip(published.store.path(weights.digest))
    assert run("verify", "smol:q8-0").exit_code != 0
    (row,) = json.loads(run("ls", "--json").stdout)
    assert row["error"] == f"blob_missing: {weights.path} not in the store"
    assert "PASSED" not in run("ls").stdout


def test_scrub_counts_and_fails(run: Run, published: Any, flip: Callable[[Path], None]) -> None:
    assert run("scrub").stdout.startswith("7 blobs are right")
    flip(published.store.path(published.weights))
    failed = run("scrub", "--json")
    assert isinstance(failed.exception, IntegrityError)
    assert json.loads(failed.stdout)["failures"][0]["path"] == "model.gguf"


@pytest.mark.parametrize("command", ["ls", "inspect", "verify", "scrub"])
def test_help_has_an_example(run: Run, command: str) -> None:
    assert f"Example: flexinfer artifact {command}" in run(command, "--help").stdout
