"""Short forms of texts and numbers, as tables and plots show them."""

from __future__ import annotations

#: `nim-cookbook run` collects outputs of this type into its table.
MEASURE_MIME = "application/vnd.nim-cookbook.measure+json"


def cut(text: str, limit: int) -> str:
    """Return a text on one line, cut at `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def duration(seconds: float) -> str:
    """Return a time in seconds or milliseconds."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s"


def size(size: float) -> str:
    """Return a number of bytes in the unit that fits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def count(number: int, what: str) -> str:
    """Return a number of things: 1 chunk, 2 chunks."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
