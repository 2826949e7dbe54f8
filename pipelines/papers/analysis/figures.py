"""The figures of an analysis as text."""

from __future__ import annotations


def pct(value: float) -> str:
    """A fraction in percent with one decimal."""
    return f"{value * 100:.1f}"


def signed_points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign and one decimal."""
    return f"{round(value * 100, 1) + 0.0:+.1f}"  # + 0.0 turns -0.0 into 0.0


def interval_text(pair: tuple[float, float]) -> str:
    """An interval of fractions as text, in percent."""
    return f"{pct(pair[0])} – {pct(pair[1])}"
