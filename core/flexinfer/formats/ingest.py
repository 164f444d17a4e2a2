"""The gate every file of a model passes before anything else reads it.

A file is taken for what its bytes are. Its name says what the bytes must be:

1. the path must be safe;
2. code is refused under every name that a loader imports or runs;
3. content and name must agree; pickles, archives and programs are refused under every name;
4. weights: the header is read with bounds, and must agree with itself;
5. JSON: decoded with bounds, no remote code;
6. chat templates, wherever they are: checked, then rendered;
7. text: hidden characters are pointed out.

Across the files of one model: no two paths that collide, split parts and shards complete.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from flexinfer.errors import InvalidInput, NotFound, Unavailable
from flexinfer.formats import gguf, json_rules, safetensors, template
from flexinfer.formats.cursor import shown
from flexinfer.formats.gguf_rules import check_model
from flexinfer.formats.inspection import CheckedTemplate, Inspection, Warned
from flexinfer.formats.names import ALLOWED, Rule, rule_for
from flexinfer.formats.paths import check_collisions, check_path
from flexinfer.formats.sniff import PICKLES, SNIFF_BYTES, Kind, sniff
from flexinfer.formats.unicode import find_hidden

MAX_FILES = 10_000
# Text beyond this is not searched for hidden characters.
MAX_TEXT_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 20
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_LOOKS: dict[Kind, str] = {
    Kind.ZIP_PICKLE: "begins with a ZIP header and holds a pickle (a PyTorch checkpoint?)",
    Kind.ZIP: "begins with a ZIP header (pickle checkpoint?)",
    Kind.PICKLE: "is a pickle",
    Kind.NPY_OBJECT: "is a NumPy array of Python objects, which is a pickle",
    Kind.EMPTY: "is empty",
}


def inspect_file(path: Path, name: str) -> Inspection:
    """Apply every rule for one file to the bytes at *path*; *name* is its path in the model.

    Raises:
        InvalidInput: with the code of the rule that it breaks: `path_unsafe`, `remote_code`,
            `pickle_refused`, `type_mismatch`, `gguf`, `safetensors`, `config`, `template`.
        NotFound: `file_not_found`. Unavailable: `file_unreadable`.
        ProcessFailed: `template_sandbox_failed`.
    """
    return _inspect(path, name, rendered={})


def inspect_files(files: Mapping[str, Path]) -> tuple[Inspection, ...]:
    """Inspect all files of one model (path in the model → where its bytes are), then their sum.

    Raises:
        InvalidInput: what `inspect_file` raises, and `path_collision`, `gguf_split`, `index`.
    """
    if len(files) > MAX_FILES:
        raise InvalidInput(f"expected at most {MAX_FILES} files, got {len(files)}")
    for name in files:
        check_path(name)
    check_collisions(files)
    # One template often comes in several files; its verdict is the same in each.
    rendered: dict[str, str] = {}
    found = tuple(_inspect(path, name, rendered=rendered) for name, path in sorted(files.items()))
    _check_splits(found)
    for name, path in files.items():
        if json_rules.is_index(name):
            _check_index(path, name, found)
    return found


def _inspect(path: Path, name: str, *, rendered: dict[str, str]) -> Inspection:
    check_path(name)
    rule = rule_for(name)
    if rule is Rule.CODE:
        raise InvalidInput(
            f"{shown(name)} is code, and code from a model's repository is not run;"
            " leave it out, or use a model whose architecture the engine has itself",
            code="remote_code",
        )
    with _opened(path, name) as (stream, size):
        kind = _checked_kind(stream, size, name, rule)
        match rule:
            case Rule.GGUF:
                return _inspect_gguf(stream, size, name, rendered)
            case Rule.SAFETENSORS:
                return _inspect_safetensors(stream, size, name)
            case Rule.JSON:
                return _inspect_json(stream, size, name, rendered)
            case Rule.TEMPLATE:
                return _inspect_template(stream, size, name, rendered)
            case _:
                warnings = _text_warnings(stream, name) if kind is Kind.TEXT else ()
                return Inspection(name=name, kind=kind, size_bytes=size, warnings=warnings)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file once; everything about it is read from this one descriptor."""
    try:
        # Not blocking: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidInput(f"{shown(name)} is not a regular file", code="type_mismatch")
            with open(descriptor, "rb", closefd=False) as stream:
                yield stream, status.st_size
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise NotFound(f"{shown(name)}: no file at {path}", code="file_not_found") from error
    except OSError as error:
        raise Unavailable(f"{shown(name)}: {path}: {error}", code="file_unreadable") from error


def _checked_kind(stream: BinaryIO, size: int, name: str, rule: Rule) -> Kind:
    kind = sniff(stream.read(SNIFF_BYTES), size)
    looks = _LOOKS.get(kind, f"holds {kind.value} data")
    if rule in (Rule.PICKLE, Rule.OTHER) and (kind in PICKLES or rule is Rule.PICKLE):
        if rule is Rule.PICKLE and kind in (Kind.SAFETENSORS, Kind.GGUF):
            raise InvalidInput(
                f"{shown(name)} {looks}: expected a name that ends in .{kind.value}",
                code="type_mismatch",
            )
        raise InvalidInput(
            f"{shown(name)} {looks if kind in _LOOKS else 'is named like a pickle checkpoint'}:"
            " loading one runs the code in it; use the safetensors or GGUF file of the model",
            code="pickle_refused",
        )
    if kind not in ALLOWED[rule]:
        expected = " or ".join(sorted(one.value for one in ALLOWED[rule]))
        raise InvalidInput(f"{shown(name)} {looks}; expected {expected}", code="type_mismatch")
    return kind


def _inspect_gguf(stream: BinaryIO, size: int, name: str, rendered: dict[str, str]) -> Inspection:
    header = gguf.read_header(stream, size, name=name)
    check_model(header, name)
    templates: list[CheckedTemplate] = []
    warnings: list[Warned] = []
    for key, source in header.chat_templates:
        label = f"{name} {key}"
        if not isinstance(source, str):
            raise InvalidInput(
                f"{label} has {source.size_bytes} bytes, too many to be checked", code="template"
            )
        templates.append(_checked_template(label, source, rendered, warnings))
    if header.trailing_bytes:
        warnings.append(
            Warned(
                code="trailing_bytes",
                message=f"{name}: {header.trailing_bytes} bytes follow the last tensor",
            )
        )
    return Inspection(
        name=name,
        kind=Kind.GGUF,
        size_bytes=size,
        architecture=header.architecture,
        model_name=header.name,
        license=header.license,
        quantization=header.quantization,
        context_length=header.context_length,
        embedding_length=header.embedding_length,
        parameter_count=header.parameter_count,
        tensor_types=header.tensor_types,
        fallback_count=header.fallback_count,
        has_tokenizer=header.has_tokenizer,
        templates=tuple(templates),
        warnings=tuple(warnings),
        header=header,
    )


def _inspect_safetensors(stream: BinaryIO, size: int, name: str) -> Inspection:
    header = safetensors.read_header(stream, size, name=name)
    return Inspection(
        name=name,
        kind=Kind.SAFETENSORS,
        size_bytes=size,
        quantization=header.main_dtype,
        parameter_count=header.parameter_count,
        tensor_types=header.dtypes,
        header=header,
    )


def _inspect_json(stream: BinaryIO, size: int, name: str, rendered: dict[str, str]) -> Inspection:
    if json_rules.is_vocabulary(name):
        _check_utf8(stream, name)
        return Inspection(name=name, kind=Kind.JSON, size_bytes=size)
    parsed = json_rules.parse(name, _read_whole(stream, size, name, json_rules.limit_for(name)))
    warnings: list[Warned] = []
    templates = tuple(
        _checked_template(label, source, rendered, warnings)
        for label, source in json_rules.find_templates(name, parsed)
    )
    facts: dict[str, Any] = dict(json_rules.find_facts(name, parsed))
    return Inspection(
        name=name,
        kind=Kind.JSON,
        size_bytes=size,
        templates=templates,
        warnings=tuple(warnings),
        **facts,
    )


def _inspect_template(
    stream: BinaryIO, size: int, name: str, rendered: dict[str, str]
) -> Inspection:
    raw = _read_whole(stream, size, name, template.MAX_SOURCE_BYTES, code="template")
    try:
        source = raw.decode()
    except UnicodeDecodeError as error:
        problem = f"{name} is not UTF-8 at byte {error.start}"
        raise InvalidInput(problem, code="template") from error
    warnings: list[Warned] = []
    checked = _checked_template(name, source, rendered, warnings)
    return Inspection(
        name=name,
        kind=Kind.TEXT,
        size_bytes=size,
        templates=(checked,),
        warnings=tuple(warnings),
    )


def _checked_template(
    label: str, source: str, rendered: dict[str, str], warnings: list[Warned]
) -> CheckedTemplate:
    digest = "sha256:" + hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    if digest not in rendered:
        rendered[digest] = template.check_rendered(source, name=label)
    hidden = find_hidden(source)
    if hidden is not None:
        warnings.append(_hidden(label, hidden))
    return CheckedTemplate(name=label, digest=digest)


def _text_warnings(stream: BinaryIO, name: str) -> tuple[Warned, ...]:
    stream.seek(0)
    hidden = find_hidden(stream.read(MAX_TEXT_BYTES).decode("utf-8", "replace"))
    return () if hidden is None else (_hidden(name, hidden),)


def _hidden(label: str, hidden: tuple[int, str]) -> Warned:
    line, character = hidden
    return Warned(
        code="unicode_control",
        message=f"{label} line {line} has the hidden character {character}",
    )


def _read_whole(
    stream: BinaryIO, size: int, name: str, limit: int, *, code: str = "config"
) -> bytes:
    if size > limit:
        raise InvalidInput(f"{name} has {size} bytes; expected at most {limit}", code=code)
    stream.seek(0)
    return stream.read(limit)


def _check_utf8(stream: BinaryIO, name: str) -> None:
    stream.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    try:
        while chunk := stream.read(_CHUNK_BYTES):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name}: expected UTF-8: {error.reason}", code="config") from error


def _check_splits(found: tuple[Inspection, ...]) -> None:
    groups: dict[str, list[tuple[str, gguf.GgufHeader]]] = {}
    for inspection in found:
        header = inspection.header
        if isinstance(header, gguf.GgufHeader) and header.split and header.split[1] > 1:
            model = _PART.sub("", inspection.name)
            groups.setdefault(model, []).append((inspection.name, header))
    for parts in groups.values():
        gguf.check_split(parts)


def _check_index(path: Path, name: str, found: tuple[Inspection, ...]) -> None:
    folder = name.rpartition("/")[0]
    shards = {
        inspection.name.rpartition("/")[2]: inspection.header
        for inspection in found
        if inspection.name.rpartition("/")[0] == folder
        if isinstance(inspection.header, safetensors.SafetensorsHeader)
    }
    with _opened(path, name) as (stream, size):
        raw = _read_whole(stream, size, name, json_rules.MAX_INDEX_BYTES)
    safetensors.check_index(name, json_rules.parse(name, raw), shards)
