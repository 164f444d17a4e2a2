"""Write docs/settings.md from the settings themselves; `--check` only tells whether it is current."""

from __future__ import annotations

import sys
from pathlib import Path

from flexinfer.settings import Section, Settings

FILE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
_HEAD = """\
# Settings

From the environment (`FLEXINFER_<SECTION>__<NAME>`), else `flexinfer.toml` in the working folder, else
`$FLEXINFER_HOME/flexinfer.toml`: the first wins. One message names every bad setting. `FLEXINFER_HOME` names the state
folder (default: `$XDG_DATA_HOME/flexinfer`, else `~/.local/share/flexinfer`). Names that end in `_S` are seconds, in
`_BYTES` bytes. Lists are separated by commas, paths by colons. Written by `tools/settings_doc.py`.
"""


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for name, field in Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, Section)
        parts.append(f"\n## {name}\n\n| variable | default | meaning |\n|---|---|---|\n")
        defaults = section()
        for key, one in section.model_fields.items():
            variable = f"FLEXINFER_{name.upper()}__{key.upper()}"
            parts.append(
                f"| `{variable}` | {shown(getattr(defaults, key))} | {one.description or ''} |\n"
            )
    return "".join(parts)


def shown(value: object) -> str:
    """Return a default as one would write it."""
    if value in ((), ""):
        return "–"
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(
            0
            if FILE.read_text("utf-8") == page()
            else "docs/settings.md is not current: run tools/settings_doc.py"
        )
    FILE.write_text(page(), "utf-8")
