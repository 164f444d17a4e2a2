"""How far apart two next-token distributions are, when only the top of each is known. Pure.

The true divergence needs all tokens. Merging outcomes can only bring two distributions closer (the data
processing inequality), so the divergence over "the tokens that both lists name, and all the rest" is a lower
bound of it: a candidate that exceeds a threshold here exceeds it in truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# What float32 logarithms, printed, may be wrong by; the rest of the candidate is taken to be that much more.
_SLACK = 1e-6


def lower_bound(base: Mapping[int, float], candidate: Mapping[int, float]) -> float:
    """Return a lower bound of KL(base ‖ candidate) in nats, at least 0.

    Both map token ids to natural log-probabilities: the most probable tokens, not all. 0 where nothing is common.
    """
    total = 0.0
    base_rest = candidate_rest = 1.0
    for token in base.keys() & candidate.keys():
        p, q = math.exp(base[token]), math.exp(candidate[token])
        if p > 0.0:
            total += p * (base[token] - candidate[token])
        base_rest -= p
        candidate_rest -= q
    base_rest = max(base_rest, 0.0)
    # More mass for the candidate's rest lowers the sum, so the bound stays one.
    candidate_rest = max(candidate_rest, 0.0) + _SLACK
    if base_rest > 0.0:
        total += base_rest * math.log(base_rest / candidate_rest)
    return max(total, 0.0)


def top_token(found: Mapping[int, float]) -> int:
    """Return the most probable token; of equal ones the smallest id."""
    return min(found, key=lambda token: (-found[token], token))


def same_top_rate(
    base: Sequence[Mapping[int, float]], candidate: Sequence[Mapping[int, float]]
) -> float:
    """Return the share of contexts after which both think the same token most probable."""
    pairs = list(zip(base, candidate, strict=True))
    return sum(top_token(b) == top_token(c) for b, c in pairs) / len(pairs)


def mean_lower_bound(
    base: Sequence[Mapping[int, float]], candidate: Sequence[Mapping[int, float]]
) -> float:
    """Return the mean of the lower bounds over the contexts."""
    pairs = list(zip(base, candidate, strict=True))
    return sum(lower_bound(b, c) for b, c in pairs) / len(pairs)
