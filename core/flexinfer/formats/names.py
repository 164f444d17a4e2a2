"""What a file's name promises: which kinds of content may stand under it."""

from __future__ import annotations

from enum import Enum, auto

from flexinfer.formats.sniff import Kind


class Rule(Enum):
    """What is done with a file of that name."""

    SAFETENSORS = auto()
    GGUF = auto()
    JSON = auto()
    TEMPLATE = auto()
    TEXT = auto()
    TOKENIZER = auto()
    IMAGE = auto()
    ARRAY = auto()
    ONNX = auto()
    PICKLE = auto()
    CODE = auto()
    OTHER = auto()


_BY_SUFFIX: dict[str, Rule] = {
    ".safetensors": Rule.SAFETENSORS,
    ".gguf": Rule.GGUF,
    ".json": Rule.JSON,
    ".jinja": Rule.TEMPLATE,
    ".jinja2": Rule.TEMPLATE,
    ".model": Rule.TOKENIZER,
    ".spm": Rule.TOKENIZER,
    ".tiktoken": Rule.TOKENIZER,
    ".onnx": Rule.ONNX,
    ".npy": Rule.ARRAY,
    **dict.fromkeys((".md", ".txt", ".rst", ".yaml", ".yml", ".toml", ".cfg", ".vocab"), Rule.TEXT),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp"), Rule.IMAGE),
    **dict.fromkeys(
        (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".npz", ".t7"),
        Rule.PICKLE,
    ),
    **dict.fromkeys(
        ".py .pyc .pyo .pyd .pyi .ipynb .so .dll .dylib .exe .sh .bash .bat .cmd .ps1 .js .mjs"
        " .jar .whl .egg .wasm .lua .pl .rb".split(),
        Rule.CODE,
    ),
}
# Content that a rule accepts. JSON is text too, for a LICENSE or a vocabulary may begin with `{`.
ALLOWED: dict[Rule, frozenset[Kind]] = {
    Rule.SAFETENSORS: frozenset({Kind.SAFETENSORS}),
    Rule.GGUF: frozenset({Kind.GGUF}),
    Rule.JSON: frozenset({Kind.JSON}),
    Rule.TEMPLATE: frozenset({Kind.TEXT, Kind.JSON}),
    Rule.TEXT: frozenset({Kind.TEXT, Kind.JSON, Kind.EMPTY}),
    Rule.TOKENIZER: frozenset({Kind.TEXT, Kind.BINARY}),
    Rule.IMAGE: frozenset({Kind.IMAGE}),
    Rule.ARRAY: frozenset({Kind.NPY}),
    Rule.ONNX: frozenset({Kind.BINARY}),
    Rule.PICKLE: frozenset(),
    Rule.CODE: frozenset(),
    Rule.OTHER: frozenset({Kind.TEXT, Kind.JSON, Kind.IMAGE, Kind.EMPTY}),
}


def rule_for(path: str) -> Rule:
    """Return the rule for the file at the relative *path*, by its last extension."""
    name = path.rsplit("/", 1)[-1].lower()
    dot = name.rfind(".")
    return _BY_SUFFIX.get(name[dot:], Rule.OTHER) if dot > 0 else Rule.OTHER
