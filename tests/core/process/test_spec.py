"""What a child inherits is named, and holds no secret."""

from __future__ import annotations

from flexinfer.process import inherited_environment

OURS = {
    "PATH": "/bin", "HOME": "/h", "LC_TIME": "C", "XDG_CONFIG_HOME": "/c", "https_proxy": "p",
    "NO_PROXY": "n", "SSL_CERT_FILE": "/ca", "TZ": "UTC",
}  # fmt: skip
OTHERS = {
    "HF_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "s", "FLEXINFER_SERVE__PORT": "1", "PYTHONPATH": "/p",
    "LD_PRELOAD": "/l", "PIP_INDEX_URL": "u", "PATHS": "x", "VIRTUAL_ENV": "/v",
}  # fmt: skip


def test_what_programs_need_is_passed_on_and_nothing_else() -> None:
    assert inherited_environment(environ={**OURS, **OTHERS}) == OURS


def test_more_is_passed_on_by_name_and_by_prefix() -> None:
    found = inherited_environment("HF_TOKEN", "PIP_*", environ={**OURS, **OTHERS})
    assert found == {**OURS, "HF_TOKEN": "t", "PIP_INDEX_URL": "u"}
