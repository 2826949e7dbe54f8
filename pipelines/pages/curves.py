"""Learning curves and intervals as SVG that takes its text colour from the page, in light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

FOLD_COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#14b8a6", "#eab308", "#ec4899")
Rows = Sequence[Mapping[str, float]]


def learning_curves(runs: Mapping[str, Rows], key: str, title: str) -> str:
    """`key` against the step as inline SVG, with one line for each run; empty if no run has two such values.

    runs: name -> rows with "step" and, where it was measured, `key`.
    """
    lines = {name: [(r["step"], r[key]) for r in rows if key in r] for name, rows in runs.items()}
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return ""
    figure, axes = new_figure(4.6, 2.7)
    for i, (name, points) in enumerate(lines.items()):
        axes.plot(*zip(*points, strict=True), label=name, color=FOLD_COLOURS[i % len(FOLD_COLOURS)], linewidth=1.6)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.legend(fontsize=8, frameon=False, ncols=2)
    return as_svg(figure, title)


def interval_bars(rows: Sequence[tuple[str, float, float, float]], title: str) -> str:
    """Points with their intervals as inline SVG; a row is (name, value, low, high) in percent, `title` the x axis."""
    if not rows:
        return ""
    figure, axes = new_figure(7.2, 0.75 + 0.42 * len(rows))
    for i, (_, value, low, high) in enumerate(rows):
        axes.plot([low, high], [i, i], color=FOLD_COLOURS[0], linewidth=5, alpha=0.35, solid_capstyle="round")
        axes.plot([value], [i], "o", color=FOLD_COLOURS[0], markersize=7)
        axes.annotate(f"{value:.1f}", (value, i), textcoords="offset points", xytext=(0, 8), ha="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [r[0] for r in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_xlabel(title)
    axes.grid(axis="y", visible=False)
    return as_svg(figure, title)


def new_figure(width: float, height: float) -> Any:
    """A new matplotlib (figure, axes) of a size in inches, without background and without frame."""
    from matplotlib.figure import Figure  # not pyplot: no state, no display

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9)
    return figure, axes


def as_svg(figure: Any, title: str) -> str:
    """The figure as inline SVG whose black is the page's text colour."""
    import matplotlib as mpl

    buffer = io.StringIO()
    # the salt is fixed and the date left out, so that the same results give the same page
    with mpl.rc_context({"svg.hashsalt": "fss", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("#000000", "currentColor").replace('<svg ', f'<svg role="img" aria-label="{title}" ', 1)
    return re.sub(r"(<text [^>]*style=\")", r"\1fill: currentColor; ", text)
