"""Serve one GGUF file with llama.cpp's HTTP server on the loopback interface, until a signal ends it.

Run by path by the interpreter of the tool environment `llamacpp`: imports xllamacpp and the standard library.
Everything that the server offers beyond answering requests with the key is switched off. The log holds the
stages of the load, in lines that begin with `flexinfer:`, and the engine's errors: at any higher verbosity it
quotes malformed requests, and with them prompts.

Exit codes: 2 bad arguments, 3 the engine's package cannot be imported, 4 the server did not start (the log says
why). A signal ends the process at once, also in the middle of a load or an answer.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

# 1: errors. Warnings (2) quote the request that they are about.
ERRORS_ONLY = 1
EXIT_NO_PACKAGE = 3
EXIT_NOT_STARTED = 4
MIN_KEY_CHARACTERS = 16
# Where the kernel has to end a process for memory, let it be an engine, which is started again by itself, not
# the router or something else of the user's.
OOM_SCORE_ADJUST = 300


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    key = options.key_file.read_text("ascii").strip()
    if len(key) < MIN_KEY_CHARACTERS:
        _say(f"engine key of {len(key)} characters: expected {MIN_KEY_CHARACTERS} or more")
        return 2
    _harden()
    _end_with_parent()
    _say("initializing")
    try:
        import xllamacpp
    except ImportError as error:
        _say(f"cannot import xllamacpp: {error}")
        return EXIT_NO_PACKAGE
    _say("loading weights")
    try:
        server = xllamacpp.Server(_parameters(xllamacpp, options, key))
    except Exception as error:  # whatever the binding raises: the log has the reason
        _say(f"server did not start: {type(error).__name__}: {error}")
        return EXIT_NOT_STARTED
    _say(f"serving on {server.listening_address}")
    while True:
        signal.pause()


def _end_with_parent() -> None:
    """End when who started us is gone, if it gave us a pipe to see that by; one who adopts us gives none."""
    lifeline = os.environ.pop("FLEXINFER_LIFELINE", "")
    if not lifeline:
        return

    def watch() -> None:
        os.read(int(lifeline), 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _say(words: str) -> None:
    """Write one line to the log. On a full disk it is lost, and the model is served all the same."""
    with suppress(OSError):
        os.write(1, f"flexinfer: {words}\n".encode("utf-8", "replace"))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--alias", required=True, help="what answers name the model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key-file", type=Path, required=True)
    parser.add_argument(
        "--context-tokens", type=int, required=True, help="what one request may use"
    )
    parser.add_argument("--slots", type=int, required=True, help="requests computed at once")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch-tokens", type=int, required=True)
    parser.add_argument("--cache-ram-mib", type=int, required=True)
    parser.add_argument(
        "--pooling", choices=("mean", "model"), help="offer embeddings, pooled so; absent: none"
    )
    return parser.parse_args(arguments)


def _harden() -> None:
    """End at the first signal, leave no memory image with prompts behind, be the first to go when memory ends."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJUST))
    except OSError as error:
        _say(f"oom_score_adj not set: {error}")


def _parameters(xllamacpp: Any, options: argparse.Namespace, key: str) -> Any:
    params = xllamacpp.CommonParams()
    params.verbosity = ERRORS_ONLY
    params.model.path = str(options.model)
    params.model_alias = {options.alias}
    params.n_parallel = options.slots
    params.n_ctx = options.context_tokens * options.slots
    params.kv_unified = False  # each slot owns its share: one request cannot take another's context
    params.ctx_shift = False  # an answer that fills the context ends; nothing is forgotten silently
    params.n_batch = params.n_ubatch = options.batch_tokens
    params.embedding = options.pooling is not None
    if options.pooling == "mean":
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = options.threads
        cpu.poll = 0  # threads without work sleep
    params.fit_params = False  # sizes are given; fitting them would load the model's outline twice
    params.warmup = False  # the first request warms what it needs, sooner than a run of its own
    params.cache_ram_mib = options.cache_ram_mib

    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.reuse_port = False  # a port that is taken is an error, not a share
    params.api_keys = [key]
    params.cors_origins = params.cors_methods = params.cors_headers = ""
    params.cors_credentials = False
    params.ui = params.ui_mcp_proxy = False
    params.endpoint_slots = params.endpoint_props = False
    params.endpoint_metrics = True  # behind the key
    params.server_tools = []
    params.slot_save_path = params.media_path = ""
    params.offline = True  # it has its file; it fetches nothing
    return params


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(sys.argv[1:]))
