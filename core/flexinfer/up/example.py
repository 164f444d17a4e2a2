"""The request that a person is shown to try. Pure."""

from __future__ import annotations

import json
import shlex

# Not one of ours: those are settings, and an unknown one is refused.
KEY_VARIABLE = "OPENAI_API_KEY"


def curl(url: str, model: str, question: str, *, is_key_wanted: bool) -> str:
    """Return a command line that asks *model* at the base address *url*. A key is named by its variable, never shown.

    The temperature is 0: a small model's likeliest answer is its best one.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
    }
    header = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if is_key_wanted else ""
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    return f"curl -s {url}/chat/completions{header} -d {shlex.quote(text)}"
