"""An analysis as a page: sentences, tables, plots, strips of pictures, in the style of `fss report`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from markupsafe import Markup

from pipelines.base.storage import Store, join
from pipelines.base.version import code_version
from pipelines.bundles.bundle import BundleInfo
from pipelines.config.recipe import Recipe
from pipelines.data.shardset import Shards
from pipelines.pages.template import page_template

Cells = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """Rows of text under column names; the first column says what the row is."""

    columns: Cells
    rows: Sequence[Cells]
    title: str = ""

    def text(self) -> str:
        """For a terminal: the first column to the left, the others to the right."""
        lines = [list(self.columns), *(list(r) for r in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in
                                   enumerate(zip(line, widths, strict=True))).rstrip() for line in lines)


@dataclass(frozen=True, kw_only=True)
class PictureStrip:
    """Pictures side by side: (caption, data URL)."""

    title: str
    panels: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What an analysis found.

    said     the result in sentences, the first one the main; table is also what the terminal shows
    notes    what a reader must know to read the figures right
    figures  the same as plain values
    setting  what tells this analysis from another of the same bundle, such as `fold 0, 1-shot`: also in the file's name
    """

    name: str
    title: str
    setting: str
    said: Sequence[str]
    table: TextTable
    figures: dict[str, Any]
    tables: Sequence[TextTable] = ()
    plots: Sequence[str] = ()
    strips: Sequence[PictureStrip] = ()
    notes: Sequence[str] = ()
    legend: Sequence[tuple[str, str]] = ()  # (colour, meaning)


@dataclass(frozen=True)
class AnalysisFile:
    """A finished analysis and its page."""

    analysis: Analysis
    url: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        """What --json prints and what lies beside the page."""
        return {"analysis": self.analysis.name, "setting": self.analysis.setting, "page": self.url, **self.about,
                "said": list(self.analysis.said), "notes": list(self.analysis.notes), **self.analysis.figures}


def write_page(analysis: Analysis, recipe: Recipe, shards: Shards,
               bundles: Sequence[tuple[str, BundleInfo]]) -> AnalysisFile:
    """Write `<out>/analysis/<name>-<bundle id>/<dataset>-<setting>.html` and the figures beside it as JSON."""
    ids = "-".join(info.bundle_id[:16 if len(bundles) == 1 else 8] for _, info in bundles)
    folder = Store(join(recipe.out, "analysis", f"{analysis.name}-{ids}"))
    stem = re.sub(r"[^\w-]+", "-", f"{recipe.data.name} {analysis.setting}")
    about = {"dataset": recipe.data.name, "data_hash": shards.manifest.content_hash, "code": code_version(),
             "bundles": [{"url": url, "bundle_id": info.bundle_id, "method": info.method, "preset": info.preset}
                         for url, info in bundles]}
    written = AnalysisFile(analysis, folder.path(f"{stem}.html"), about)
    folder.write_bytes(f"{stem}.html", render(written, recipe).encode())
    folder.write_json(f"{stem}.json", written.document)
    return written


def render(written: AnalysisFile, recipe: Recipe) -> str:
    """The page's HTML."""
    template = page_template("pipelines.papers.analysis", "analysis.html")
    return template.render(
        a=written.analysis, about=written.about, plots=[Markup(p) for p in written.analysis.plots],
        config=yaml.safe_dump(recipe.model_dump(include={"name", "data", "eval"}), sort_keys=False))


def pct(value: float) -> str:
    """A fraction in percent with one decimal."""
    return f"{value * 100:.1f}"


def points(value: float) -> str:
    """A difference of fractions in points, with its sign."""
    return f"{round(value * 100, 1) + 0.0:+.1f}"  # no -0.0


def between(pair: tuple[float, float]) -> str:
    """An interval of fractions in percent."""
    return f"{pct(pair[0])} – {pct(pair[1])}"
