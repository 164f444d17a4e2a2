"""How the engines of one machine share it. Pure."""

from __future__ import annotations

from flexinfer.engine import Resources


def share(cpus: int, memory_bytes: int, *, models: int, max_loaded: int) -> Resources:
    """Return what each engine may use when as many run as there are Models, up to *max_loaded*.

    Memory is divided; processors are not: an engine that waits takes none, and two that both take every one lose
    nothing as long as their threads do not spin (docs/notes/llamacpp-threads.md). A Model that must not slow another
    says so with `config.threads`.
    """
    engines = max(1, min(models, max_loaded))
    return Resources(threads=max(1, cpus), memory_bytes=memory_bytes // engines)
