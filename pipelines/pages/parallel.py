"""Parallel coordinates: each trial of a search as a line over its settings and its score, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.pages.curves import FOLD_COLOURS, as_svg, new_figure


@dataclass(frozen=True)
class Axis:
    """A vertical axis: its name, and where each line crosses it (0 bottom to 1 top), with labelled places."""

    name: str
    places: tuple[float, ...]
    labels: tuple[tuple[float, str], ...]


def number_axis(name: str, values: Sequence[float], *, log: bool = False) -> Axis:
    """The axis of numbers, from the least to the greatest; `log`: uniform in the logarithm."""
    low, high = min(values), max(values)
    scaled = np.log(values) if log else np.asarray(values, dtype=float)
    span = float(scaled.max() - scaled.min())
    places = (scaled - scaled.min()) / span if span else np.full(len(scaled), 0.5)
    ends = ((0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")) if span else ((0.5, f"{low:.3g}"),)
    return Axis(name, tuple(float(p) for p in places), ends)


def choice_axis(name: str, values: Sequence[str], choices: Sequence[str]) -> Axis:
    """The axis of a choice, its values evenly spaced."""
    places = {c: i / max(len(choices) - 1, 1) for i, c in enumerate(choices)}
    return Axis(name, tuple(places[v] for v in values), tuple((p, c) for c, p in places.items()))


def parallel_coordinates(axes: Sequence[Axis], scores: Sequence[float], title: str) -> str:
    """A line for each trial over `axes`, the darker the better its score; empty with fewer than two trials."""
    if len(scores) < 2:
        return ""
    figure, plot = new_figure(1.6 + 1.5 * len(axes), 3.2)
    low, high = min(scores), max(scores)
    for i in np.argsort(scores, kind="stable"):  # the best are drawn on top
        weight = (scores[i] - low) / (high - low) if high > low else 1.0
        plot.plot(range(len(axes)), [axis.places[i] for axis in axes], color=FOLD_COLOURS[0],
                  alpha=0.3 + 0.7 * weight, linewidth=1.0 + 1.2 * weight)
    for x, axis in enumerate(axes):
        plot.axvline(x, color="#000000", linewidth=0.6)
        for place, label in axis.labels:
            plot.annotate(label, (x, place), textcoords="offset points", xytext=(4, 2), fontsize=8)
    plot.set_xticks(range(len(axes)), [axis.name for axis in axes])
    plot.set_xlim(-0.1, len(axes) - 0.5)
    plot.set_yticks([])
    plot.grid(visible=False)
    plot.spines["left"].set_visible(False)
    plot.set_title(title, loc="left", fontsize=10)
    return as_svg(figure, title)
