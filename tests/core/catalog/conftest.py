"""Entry files to put into folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[..., Path]

ENTRY = """\
apiVersion: ai.flexinfer/v1alpha2
kind: CatalogEntry
metadata: {{name: {name}}}
spec:
  source: {{uri: "{uri}"}}
  license: {{expression: {license}}}
  publish: {{repository: {repository}}}
  variants:
    - {{name: q8-0, quantize: {{format: gguf, type: Q8_0}}}}
    - {{name: q4-0, quantize: {{format: gguf, type: Q4_0}}}}
"""


def entry_text(
    name: str,
    *,
    repository: str = "",
    uri: str = "pypi://d==1/m.gguf",
    license: str = "MIT",
) -> str:
    return ENTRY.format(name=name, uri=uri, license=license, repository=repository or name)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an entry to a path below the test's folder; keywords change it."""

    def write_entry(place: str, name: str = "m", **change: str) -> Path:
        file = tmp_path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(entry_text(name, **change))
        return file

    return write_entry
