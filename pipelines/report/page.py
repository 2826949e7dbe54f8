"""`write_report`: one self-contained HTML page about a workspace. Every figure on it is read from the workspace."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import psutil
import yaml
from markupsafe import Markup

from pipelines.base.progress import say
from pipelines.base.storage import Store
from pipelines.base.version import code_version
from pipelines.config.recipe import Recipe
from pipelines.data.shardset import copies_across
from pipelines.pages.curves import interval_bars, learning_curves
from pipelines.pages.template import page_template
from pipelines.report.collect import BASELINE, ReportMaterial, collect, versus_baseline
from pipelines.report.examples import KINDS, make_examples
from pipelines.report.gallery import KINDS as LABEL_KINDS
from pipelines.report.gallery import make_galleries
from pipelines.selection.choose import FOUNDATION, count_text, difference_text
from pipelines.selection.trials import draw_search

PACKAGES = ("torch", "ray", "mlflow", "sam2", "timm", "pyarrow", "numpy", "pandas", "pycocotools")
NO_VERDICT = " Parts of the model that need training have random values: this is no verdict on the method."
CURVES = {"loss": "loss", "episodes_per_s": "episodes per second"}


def write_report(recipe: Recipe, *, labels: str = "", target: str = "") -> str:
    """Write the page of the recipe's workspace to `target` (default `<out>/report.html`); returns its path or URL.

    `labels`: the folder of one more labelling job to show. Raises `FssError` if the workspace has no leaderboard, or
    that folder no finished job.
    """
    material = collect(recipe, labels)
    html = render(material)
    url = target or material.workspace.report
    Store(url).write_bytes("", html.encode())
    return url


def render(material: ReportMaterial) -> str:
    """The page's HTML."""
    say("report: predicting the example episodes")
    shown, why_none = make_examples(material)
    say("report: drawing labels and plots")
    template = page_template("pipelines.report", "report.html", pct=_pct, difference=difference_text, count=count_text,
                             duration=_duration, spread=_spread)
    return template.render(
        m=material, board=material.board, winner=material.winner, recipe=material.recipe,
        folds=sorted({f for r in material.board.rows for f in r.folds}, key=int), verdicts=_verdicts(material),
        searches=[(m, Markup(draw_search(m))) for m in material.search.methods] if material.search else [],
        versus=versus_baseline(material), baseline=BASELINE, intervals=_intervals(material), curves=_curves(material),
        classes=_class_table(material), examples={k: [e for e in shown if e.kind == k] for k in KINDS},
        why_no_examples=why_none, galleries=[g for s in material.labels for g in make_galleries(s, material.shards)],
        label_kinds=LABEL_KINDS,
        failures=_failures(material), config=yaml.safe_dump(material.recipe.model_dump(), sort_keys=False),
        machine=_machine(), versions={p: version(p) for p in PACKAGES}, code=code_version(),
        total_s=sum(s["seconds"] for s in material.stages),
    )


def _verdicts(material: ReportMaterial) -> list[str]:
    """A sentence on each method that says how it compares with the baseline."""
    level = f"{material.board.confidence:.0%}"
    sentences = []
    for label, (gain, low, high) in versus_baseline(material).items():
        row = next(r for r in material.board.rows if r.label == label)
        spread = f"{level} interval of the paired difference {low * 100:+.1f} to {high * 100:+.1f}"
        verb = "above" if gain > 0 else "below"
        sure = "" if low > 0 or high < 0 else ", which may be chance"
        note = NO_VERDICT if row.untrained else ""
        sentences.append(f"{label} is {abs(gain) * 100:.1f} points {verb} {BASELINE}{sure} ({spread}).{note}")
    return sentences


def _intervals(material: ReportMaterial) -> Markup:
    notes = {r.label: (" (untrained)" if r.untrained else "") + (f" ({FOUNDATION})" if r.foundation else "")
             for r in material.board.rows}
    rows = [(r.label + notes[r.label], getattr(r, material.board.metric) * 100,
             r.interval[0] * 100, r.interval[1] * 100) for r in material.board.rows if r.complete]
    name = {"miou": "mIoU", "fb_iou": "FB-IoU"}[material.board.metric]
    title = f"mean {name} over the folds, percent, with its {material.board.confidence:.0%} interval"
    return Markup(interval_bars(rows, title))


def _curves(material: ReportMaterial) -> list[Markup]:
    """Plots of the loss and of the speed of every method that was trained, with one line for each run."""
    found = []
    for row in material.board.rows:
        runs = material.runs_of(row)
        several = len({r.spec.seed for r in runs}) > 1
        histories = {f"fold {r.spec.fold}" + (f", seed {r.spec.seed}" if several else ""): material.histories[r.run]
                     for r in runs if r.run in material.histories}
        figures = (learning_curves(histories, key, f"{row.label}: {name}") for key, name in CURVES.items())
        found += [Markup(f) for f in figures if f]
    return found


def _class_table(material: ReportMaterial) -> list[dict[str, Any]]:
    """One row for each class: its fold and every method's IoU, the mean over seeds."""
    table: dict[tuple[int, str], dict[str, list[float]]] = {}
    for row in material.board.rows:
        for run in material.runs_of(row):
            for name, iou in run.per_class.items():
                table.setdefault((run.spec.fold or 0, name), {}).setdefault(row.label, []).append(iou)
    labels = [r.label for r in material.board.rows]
    return [{"fold": fold, "name": name, "scores": [_mean(scores.get(label)) for label in labels]}
            for (fold, name), scores in sorted(table.items())]


def _mean(values: list[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def _failures(material: ReportMaterial) -> list[dict[str, str]]:
    """The failed runs, the photos that the shard build left out and the classes left out.

    Failures of labelling jobs are shown with their job.
    """
    rows = [{"where": "run", "what": name, "why": error} for name, error in material.failed.items()]
    if material.shards is not None:
        rows += [{"where": f"shards ({f['stage']})", "what": f["file_name"], "why": f["reason"]}
                 for f in material.shards.failures.to_pylist()]
        rows += [{"where": "train and test", "what": test, "why": f"a copy of the train photo {train}"}
                 for train, test in copies_across(material.shards)]
        rows += [{"where": "class left out", "what": name, "why": why}
                 for name, why in material.shards.manifest.dropped_classes.items()]
    return rows


def _machine() -> str:
    memory = psutil.virtual_memory().total / 1e9
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {memory:.0f} GB, {system}"


def _pct(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.1f}"


def _spread(scores: Sequence[float]) -> str:
    return f"{_pct(min(scores))} – {_pct(max(scores))}" if len(scores) > 1 else "–"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


