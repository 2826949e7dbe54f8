"""Runs the cells of a table: one sweep for all cells that differ only in the method, one sweep after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from fss_models.metrics import Counts
from pipelines.base.cluster import cluster
from pipelines.base.progress import say
from pipelines.base.workspace import Workspace
from pipelines.config.method import method_labels
from pipelines.evaluation.results import EPISODE_SCORES, RunResult, read_counts
from pipelines.papers.tables.cells import CellQuality, CellRecord, TableCell, group_cells
from pipelines.sweeps.sweep import run_sweep


def run_cells(cells: Sequence[TableCell]) -> dict[str, str]:
    """Run the cells that are not finished. Returns run -> error of the failed runs; the next call tries them again.

    Raises `FssError` for a mistake in a recipe, before any run of its group starts.
    """
    left = [c for c in cells if c.read_record() is None]
    distinct = {c.digest: c for c in left}
    total = len({c.digest for c in cells})
    say(f"{total - len(distinct)} of {total} cells are finished")
    if not left:
        return {}
    failed: dict[str, str] = {}
    with cluster():
        for group in group_cells(list(distinct.values())):
            failed |= _run_group(group)
    return failed


def _run_group(group: Sequence[TableCell]) -> dict[str, str]:
    methods = list({c.method.key: c.method for c in group}.values())
    recipe = group[0].recipe.model_copy(update={"methods": methods})
    say(f"running {recipe.name}, {recipe.eval.shots}-shot, for the rows "
        f"{', '.join(dict.fromkeys(c.row.name for c in group))}")
    results = run_sweep(recipe)
    labels = dict(zip([m.key for m in methods], method_labels(methods), strict=True))
    store = Workspace(recipe.out).store
    latency = store.read_json("latency.json") if store.exists("latency.json") else {}
    for cell in group:
        own = [r for r in results if r.spec.method == cell.method]
        if not any(r.error for r in own):
            _write_record(cell, own, latency.get(labels[cell.method.key], {}))
    return {r.run: r.error for r in results if r.error}


def _write_record(cell: TableCell, results: Sequence[RunResult], latency: dict[str, Any]) -> None:
    """Write the cell's counts, then its record, which marks the cell as finished."""
    workspace = Workspace(cell.recipe.out)
    for result in results:
        counts = read_counts(workspace.run(result.run), result)
        cell.store.write_table(f"{result.run}.parquet", _table(counts))
    masks = {r.run: _pseudo_masks(cell, r) for r in results} if cell.row.mask else {}
    record = CellRecord(results=list(results), latency=latency, masks=masks)
    cell.store.write_json("record.json", record.model_dump(mode="json"))


def _pseudo_masks(cell: TableCell, result: RunResult) -> dict[str, CellQuality]:
    """Quality of FCP's conventional mask and of its last attention mask, on the episodes that the run was scored on.

    The masks' counts are written beside the cell's record.
    """
    from pipelines.papers.analysis.prompted import analyse_batch, open_study
    from pipelines.papers.analysis.pseudo_masks import CONVENTIONAL, threshold_masks

    study = open_study(cell.recipe, result.bundle, ("fcp",), "pseudo masks")
    fold = result.spec.fold
    episodes = study.open_unseen_fold(0 if fold is None else fold).episodes(cell.recipe.eval)
    batches = analyse_batch(study.adapted, study.shards, episodes.episodes, cell.recipe.eval, "pseudo masks")
    masks = threshold_masks(batches, study.adapted)
    found = {}
    for kind, name in (("conventional", CONVENTIONAL), ("attention", list(masks.by_name)[-1])):
        quality, sample = masks.quality(name, episodes.class_ids), masks.sample(name)
        counts = Counts(class_ids=sample.class_ids, inter=sample.inter[0], union=sample.union[0])
        cell.store.write_table(f"{result.run}-{kind}.parquet", _table(counts))
        found[kind] = CellQuality(precision=quality.precision, recall=quality.recall)
    return found


def _table(counts: Counts) -> pa.Table:
    """Counts as a table of `EPISODE_SCORES`; the method's own score is unknown and stored as 0."""
    rows = [{"episode_id": e, "class_id": int(c), "inter_bg": int(i[0]), "inter_fg": int(i[1]), "union_bg": int(u[0]),
             "union_fg": int(u[1]), "iou": i[1] / max(u[1], 1), "score": 0.0}
            for e, (c, i, u) in enumerate(zip(counts.class_ids, counts.inter, counts.union, strict=True))]
    return pa.Table.from_pylist(rows, schema=EPISODE_SCORES)
