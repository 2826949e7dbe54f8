"""The page of an analysis: sentences, tables, plots and strips of pictures, in the style of `fss report`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from markupsafe import Markup

from pipelines.base.storage import Store, join
from pipelines.base.text_table import text_table
from pipelines.base.version import code_version
from pipelines.config.recipe import Recipe
from pipelines.pages.template import page_template
from pipelines.papers.analysis.study import Study

Cells = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """Rows of text under column names; the first column names the row."""

    columns: Cells
    rows: Sequence[Cells]
    title: str = ""

    def text(self) -> str:
        """The table for a terminal: the first column aligned to the left, the others to the right."""
        return text_table(self.rows, head=self.columns, rule=False)


@dataclass(frozen=True, kw_only=True)
class PictureStrip:
    """Pictures side by side; each panel is (caption, data URL)."""

    title: str
    panels: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The results of an analysis.

    findings  the result in sentences; the terminal shows the first one and `table`
    notes     what a reader needs to know to interpret the figures
    figures   the results as plain values, for the JSON file
    setting   distinguishes analyses of one bundle, such as `fold 0, 1-shot`; it is part of the file's name
    """

    name: str
    title: str
    setting: str
    findings: Sequence[str]
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
        """The results as JSON: printed with --json and written beside the page."""
        return {"analysis": self.analysis.name, "setting": self.analysis.setting, "page": self.url, **self.about,
                "said": list(self.analysis.findings), "notes": list(self.analysis.notes), **self.analysis.figures}


def write_page(analysis: Analysis, *studies: Study) -> AnalysisFile:
    """Write `<out>/analysis/<name>-<bundle id>/<dataset>-<setting>.html`, and the results beside it as JSON.

    The studies are of several bundles on one recipe's data.
    """
    recipe, shards, infos = studies[0].recipe, studies[0].shards, [s.info for s in studies]
    ids = "-".join(info.bundle_id[:16 if len(infos) == 1 else 8] for info in infos)
    folder = Store(join(recipe.out, "analysis", f"{analysis.name}-{ids}"))
    stem = re.sub(r"[^\w-]+", "-", f"{recipe.data.name} {analysis.setting}")
    about = {"dataset": recipe.data.name, "data_hash": shards.manifest.content_hash, "code": code_version(),
             "bundles": [{"url": s.url, "bundle_id": s.info.bundle_id, "method": s.info.method,
                          "preset": s.info.preset} for s in studies]}
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
