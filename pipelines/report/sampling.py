"""A page that compares a training stream with a published sampler: how often each class, query and pair is drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.data.marginals import CountTable, Marginals
from pipelines.pages.template import page_template


def sampling_page(marginals: Marginals, names: Mapping[int, str], title: str, lines: list[str]) -> str:
    """The page's HTML, with the figure inside; `names` maps class ids to names, `lines` are shown above the figure."""
    image = io.BytesIO()
    sampling_figure(marginals, names).savefig(image, format="png", dpi=110)
    template = page_template("pipelines.report", "sampling.html")
    return template.render(title=title, lines=lines, image=base64.b64encode(image.getvalue()).decode())


def sampling_figure(marginals: Marginals, names: Mapping[int, str]) -> Figure:
    """Plots of classes (bars), of queries and pairs (drawn against expected counts), and of supports from one block."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    first, *others = figure.subplot_mosaic([["classes"] * 3, ["queries", "pairs", "blocks"]]).values()
    at = np.arange(len(marginals.classes))
    first.bar(at, marginals.by_class.drawn / marginals.episodes, color="#7aa6c2", label="drawn")
    first.plot(at, marginals.by_class.expected / marginals.episodes, "k_", markersize=8, label="published")
    first.set_xticks(at, [names[c] for c in marginals.classes], rotation=90, fontsize=7)
    first.set(title="share of the episodes by class")
    first.legend()
    _scatter(others[0], marginals.by_query, "queries (cells of a class)")
    _scatter(others[1], marginals.by_pair, "(query, support) pairs of cells")
    _blocks(others[2], marginals)
    return figure


def _scatter(axes: Axes, table: CountTable, title: str) -> None:
    """Drawn against expected counts, with the band that contains 99.9 % of counts of this `CountTable.spread`."""
    order = np.argsort(table.expected)
    e = table.expected[order]
    axes.plot(e, table.drawn[order], ".", markersize=3, color="#2c6e91")
    axes.plot(e, e, color="black", linewidth=0.8)
    wide = 3.29 * np.sqrt(e * table.spread)
    axes.fill_between(e, np.maximum(e - wide, 0), e + wide, alpha=0.15, color="black")
    axes.set(title=f"{title}\np = {table.pvalue:.3f}", xlabel="expected count", ylabel="drawn count")


def _blocks(axes: Axes, marginals: Marginals) -> None:
    axes.set(title="two supports from one block", ylim=(0, 1))
    if marginals.same_block is None or marginals.same_block_independent is None:
        axes.text(0.5, 0.5, "one support", ha="center")
        return
    axes.bar(["stream", "independent"], [marginals.same_block, marginals.same_block_independent],
             color=["#7aa6c2", "#bbb"])
