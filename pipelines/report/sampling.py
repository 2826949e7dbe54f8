"""One page: how often a training stream shows each class, query and pair, against a published sampler."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.data.marginals import CountTable, Marginals
from pipelines.pages.template import page_template


def sampling_page(found: Marginals, names: Mapping[int, str], title: str, lines: list[str]) -> str:
    """HTML with the figure inside."""
    image = io.BytesIO()
    sampling_figure(found, names).savefig(image, format="png", dpi=110)
    template = page_template("pipelines.report", "sampling.html")
    return template.render(title=title, lines=lines, image=base64.b64encode(image.getvalue()).decode())


def sampling_figure(found: Marginals, names: Mapping[int, str]) -> Figure:
    """Classes as bars; queries and pairs as drawn over expected counts; supports of one block."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    first, *others = figure.subplot_mosaic([["classes"] * 3, ["queries", "pairs", "blocks"]]).values()
    at = np.arange(len(found.classes))
    first.bar(at, found.by_class.drawn / found.episodes, color="#7aa6c2", label="drawn")
    first.plot(at, found.by_class.expected / found.episodes, "k_", markersize=8, label="published")
    first.set_xticks(at, [names[c] for c in found.classes], rotation=90, fontsize=7)
    first.set(title="share of the episodes by class")
    first.legend()
    _scatter(others[0], found.by_query, "queries (cells of a class)")
    _scatter(others[1], found.by_pair, "(query, support) pairs of cells")
    _blocks(others[2], found)
    return figure


def _scatter(axes: Axes, table: CountTable, title: str) -> None:
    """With the band in which 99.9 % of counts lie that vary from epoch to epoch as these do (`CountTable.spread`)."""
    order = np.argsort(table.expected)
    e = table.expected[order]
    axes.plot(e, table.drawn[order], ".", markersize=3, color="#2c6e91")
    axes.plot(e, e, color="black", linewidth=0.8)
    wide = 3.29 * np.sqrt(e * table.spread)
    axes.fill_between(e, np.maximum(e - wide, 0), e + wide, alpha=0.15, color="black")
    axes.set(title=f"{title}\np = {table.pvalue:.3f}", xlabel="expected count", ylabel="drawn count")


def _blocks(axes: Axes, found: Marginals) -> None:
    axes.set(title="two supports from one block", ylim=(0, 1))
    if found.same_block is None or found.same_block_independent is None:
        axes.text(0.5, 0.5, "one support", ha="center")
        return
    axes.bar(["stream", "independent"], [found.same_block, found.same_block_independent], color=["#7aa6c2", "#bbb"])
