"""Text from outside, made fit to be shown: nothing that a terminal would obey."""

from __future__ import annotations


def one_line(text: str, *, most: int | None = None) -> str:
    """Return *text* as one line, a space for each character that is not printable; longer than *most*, cut with "…"."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if most is None or len(plain) <= most else plain[: most - 1] + "…"


def escaped(text: str, *, keep: str = "") -> str:
    r"""Return *text* with each character that is neither printable nor in *keep* as Python writes it: ``\x1b``."""
    return "".join(c if c in keep or c.isprintable() else ascii(c)[1:-1] for c in text)
