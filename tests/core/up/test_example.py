"""The request that a person is shown can be copied, and shows no key."""

from __future__ import annotations

import json
import shlex

from flexinfer.up.example import curl

URL = "http://127.0.0.1:8080/v1"


def test_the_body_is_one_word_of_the_shell_whatever_is_asked() -> None:
    words = shlex.split(curl(URL, "smol", 'What\'s "up"?', is_key_wanted=False))
    assert words[:4] == ["curl", "-s", f"{URL}/chat/completions", "-d"]
    body = json.loads(words[4])
    assert body["messages"][0]["content"] == 'What\'s "up"?'
    assert (body["model"], body["temperature"]) == ("smol", 0)


def test_a_router_with_keys_is_asked_with_one_that_is_named_and_not_shown() -> None:
    shown = curl(URL, "smol", "Hello!", is_key_wanted=True)
    assert ' -H "Authorization: Bearer $OPENAI_API_KEY" ' in shown
    assert "Authorization" not in curl(URL, "smol", "Hello!", is_key_wanted=False)
