"""llama.cpp, through the server of the package xllamacpp: chat, completions and embeddings of one GGUF file.

Sizes. A request may use `contextTokens`; the engine gets that for each of its `slots`, kept apart. An embedding
has to fit one physical batch, so with `embeddings` the batch is as large as the context, up to MAX_BATCH_TOKENS
(its buffers take batch × vocabulary × 4 bytes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from flexinfer.engine import (
    Cause,
    Endpoint,
    Engine,
    EngineArtifact,
    EngineError,
    Launch,
    Limits,
    Probe,
    Problem,
    Resources,
    Substage,
)
from flexinfer.errors import InvalidInput
from flexinfer_serving.engines import llamacpp_causes, llamacpp_config, llamacpp_errors

_PROGRAM = Path(__file__).with_name("programs") / "llamacpp.py"
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
# Models without a decoder: they embed and cannot write.
_ENCODERS = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert",
     "modern-bert", "eurobert", "gemma-embedding"}
)  # fmt: skip
# Between two parts of a computation the threads wait for one another. By default they spin, and where
# another process wants the core, a factor of ten is lost (docs/notes/llamacpp-threads.md).
_ENVIRONMENT = {"GOMP_SPINCOUNT": "100"}


class LlamaCpp(Engine):
    """One process that serves one GGUF file on the loopback interface, behind its own key."""

    name: ClassVar[str] = "llamacpp"
    tool: ClassVar[str] = "llamacpp"
    formats: ClassVar[frozenset[str]] = frozenset({"gguf"})

    def problems(self, config: Mapping[str, Any]) -> tuple[Problem, ...]:
        return llamacpp_config.problems(config)

    def limits(self, config: Mapping[str, Any], artifact: EngineArtifact | None = None) -> Limits:
        known = llamacpp_config.parse(config)
        return Limits(
            context_tokens=known.context(0 if artifact is None else artifact.context_length),
            slots=known.slots,
        )

    def endpoints(self, config: Mapping[str, Any], artifact: EngineArtifact) -> frozenset[Endpoint]:
        found = set()
        if artifact.architecture not in _ENCODERS:
            found.add(Endpoint.COMPLETIONS)
            if artifact.has_chat_template:
                found.add(Endpoint.CHAT)
        if llamacpp_config.parse(config).embeddings:
            found.add(Endpoint.EMBEDDINGS)
        return frozenset(found)

    def launch(
        self, config: Mapping[str, Any], artifact: EngineArtifact, resources: Resources
    ) -> Launch:
        """Return how to start a replica.

        Raises:
            InvalidInput: code `backend_unsupported` (not a GGUF, or not one model), `config_invalid` (a problem
                of `config`), `context_too_long` (more than the model was trained for).
        """
        wrong = self.problems(config)
        if wrong:
            words = "; ".join(f"{one.key}: {one.message}" for one in wrong)
            raise InvalidInput(f"config: {words}", code="config_invalid", param=wrong[0].key)
        known = llamacpp_config.parse(config)
        model = _model_file(artifact)
        context = known.context(artifact.context_length)
        if 0 < artifact.context_length < context:
            raise InvalidInput(
                f"contextTokens is {context}, and the model was trained for "
                f"{artifact.context_length}; set contextTokens to at most that",
                code="context_too_long",
                param="contextTokens",
            )
        argv = [
            "{python}", "-I", "{program}",
            "--model", "{artifact}/" + model,
            "--alias", "{model}",
            "--port", "{port:http}",
            "--key-file", "{secret:engine-key}",
            "--context-tokens", str(context),
            "--slots", str(known.slots),
            "--threads", str(known.threads or max(1, resources.threads)),
            "--batch-tokens", str(known.batch(context)),
            "--cache-ram-mib", str(known.cache_ram_mib),
        ]  # fmt: skip
        if known.embeddings:
            argv += ["--pooling", "model" if artifact.architecture in _ENCODERS else "mean"]
        return Launch(
            tool=self.tool,
            program=_PROGRAM,
            argv=tuple(argv),
            environment=dict(_ENVIRONMENT),
            readiness=Probe(path="/health"),
        )

    def path(self, endpoint: Endpoint) -> str:
        return f"/v1/{endpoint.value}"

    def headers(self, key: str) -> Mapping[str, str]:
        return {"authorization": f"Bearer {key}"}

    def error(self, status: int, body: bytes, endpoint: Endpoint | None = None) -> EngineError:
        return llamacpp_errors.error(status, body, endpoint)

    def substage(self, line: str) -> Substage | None:
        return llamacpp_causes.substage(line)

    def cause(self, lines: Sequence[str], exit_code: int | None) -> Cause:
        return llamacpp_causes.cause(lines, exit_code)

    def metric_names(self) -> Mapping[str, str]:
        return {
            "running": "llamacpp:requests_processing",
            "waiting": "llamacpp:requests_deferred",
            "prompt_tokens": "llamacpp:prompt_tokens_total",
            "generated_tokens": "llamacpp:tokens_predicted_total",
        }


def _model_file(artifact: EngineArtifact) -> str:
    """Return the file to load: the only GGUF, or the first part of the only one in parts."""
    if artifact.format != "gguf":
        raise _unsupported(artifact, f"expected format gguf, found {artifact.format or 'none'}")
    files = sorted(file for file in artifact.files if file.lower().endswith(".gguf"))
    if any("{" in file or "}" in file for file in files):
        raise _unsupported(artifact, "a file name has a brace in it")
    if len(files) == 1:
        return files[0]
    parts = [_SPLIT.fullmatch(file) for file in files]
    wanted = len(files)
    whole = [
        match
        for number, match in enumerate(parts, start=1)
        if match and int(match["part"]) == number and int(match["parts"]) == wanted
    ]
    if files and len(whole) == wanted and len({match["stem"] for match in whole}) == 1:
        return files[0]
    raise _unsupported(
        artifact, f"expected one GGUF file or all parts of one, found {len(files)}: {files[:4]}"
    )


def _unsupported(artifact: EngineArtifact, words: str) -> InvalidInput:
    return InvalidInput(
        f"llamacpp cannot load artifact {artifact.digest}: {words}", code="backend_unsupported"
    )
