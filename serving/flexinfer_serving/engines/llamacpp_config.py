"""What `spec.config` may hold for llama.cpp, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flexinfer.engine import Problem
from flexinfer.spelling import nearest

DEFAULT_CONTEXT_TOKENS = 4096
DEFAULT_SLOTS = 4
DEFAULT_CACHE_RAM_MIB = 256
# Without embeddings: what llama.cpp computes at once by default.
PLAIN_BATCH_TOKENS = 512
MAX_BATCH_TOKENS = 8192
# Beyond this the KV cache of even a small model is tens of gigabytes: a mistake, not a wish.
MAX_TOTAL_TOKENS = 4 * 1024 * 1024

# Whole numbers: key → (least, most).
_RANGES = {
    "contextTokens": (128, 1024 * 1024),
    "slots": (1, 64),
    "threads": (1, 256),
    "batchTokens": (32, 65536),
    "cacheRamMiB": (0, 65536),
}
_KEYS = (*_RANGES, "embeddings")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppConfig:
    """`spec.config`, parsed. 0: not given."""

    context_tokens: int = 0
    slots: int = DEFAULT_SLOTS
    threads: int = 0
    embeddings: bool = True
    batch_tokens: int = 0
    cache_ram_mib: int = DEFAULT_CACHE_RAM_MIB

    def context(self, trained_tokens: int) -> int:
        """Return what one request may use, for a model trained for *trained_tokens* (0: not known)."""
        if self.context_tokens:
            return self.context_tokens
        return min(DEFAULT_CONTEXT_TOKENS, trained_tokens or DEFAULT_CONTEXT_TOKENS)

    def batch(self, context: int) -> int:
        """Return how many tokens are computed at once: with embeddings, also the longest one."""
        wanted = min(context, MAX_BATCH_TOKENS) if self.embeddings else PLAIN_BATCH_TOKENS
        return min(self.batch_tokens or wanted, context)


def problems(config: Mapping[str, Any]) -> tuple[Problem, ...]:
    """Return what is wrong with *config*, in the order of its keys."""
    found = [problem for key, value in config.items() if (problem := _problem(key, value))]
    if not found:
        known = parse(config)
        total = known.context(0) * known.slots
        if total > MAX_TOTAL_TOKENS:
            words = f"contextTokens × slots is {total}, expected at most {MAX_TOTAL_TOKENS}"
            found.append(Problem(key="slots", message=words))
    return tuple(found)


def parse(config: Mapping[str, Any]) -> LlamaCppConfig:
    """Return the value of a *config* that has no problems."""
    return LlamaCppConfig(
        context_tokens=config.get("contextTokens", 0),
        slots=config.get("slots", DEFAULT_SLOTS),
        threads=config.get("threads", 0),
        embeddings=config.get("embeddings", True),
        batch_tokens=config.get("batchTokens", 0),
        cache_ram_mib=config.get("cacheRamMiB", DEFAULT_CACHE_RAM_MIB),
    )


def _problem(key: str, value: Any) -> Problem | None:
    if key == "embeddings":
        if isinstance(value, bool):
            return None
        return Problem(key=key, message=f"expected true or false, found {_shown(value)}")
    if key not in _RANGES:
        hint = nearest(str(key), _KEYS) or f" (known: {', '.join(_KEYS)})"
        return Problem(key=str(key), message=f"unknown key{hint}")
    least, most = _RANGES[key]
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return None
    words = f"expected a whole number from {least} to {most}, found {_shown(value)}"
    return Problem(key=key, message=words)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
