"""Reads the content of a report from the workspace. A part that is missing is `None` or empty; the page says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fss_models.bundle import BundleInfo
from fss_models.errors import FssError
from fss_models.metrics import paired_difference
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import read_bundle_info
from pipelines.config.recipe import Recipe
from pipelines.config.run import eval_digest
from pipelines.data.folds import list_hash
from pipelines.data.shardset import Shards
from pipelines.evaluation.results import RunResult, read_result
from pipelines.labelling.manifest import JobManifest
from pipelines.selection.choose import Leaderboard, LeaderboardRow, method_counts, read_leaderboard
from pipelines.selection.trials import SearchResult, read_search

BASELINE = "prior"


@dataclass(frozen=True, kw_only=True)
class FinishedJob:
    """A finished labelling job: its folder, manifest and summary."""

    url: str
    manifest: JobManifest
    summary: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReportMaterial:
    """Everything that the page shows."""

    workspace: Workspace
    recipe: Recipe
    board: Leaderboard
    results: dict[str, RunResult]  # run -> result
    failed: dict[str, str]  # run -> error
    histories: dict[str, list[dict[str, float]]]
    shards: Shards | None
    champion: BundleInfo | None
    labels: list[FinishedJob]
    stages: list[dict[str, Any]]  # name, seconds
    search: SearchResult | None  # of the recipe's `fss search`

    @property
    def winner(self) -> LeaderboardRow | None:
        """The leaderboard's row of the winner; None if there is no winner."""
        return next((r for r in self.board.rows if r.label == self.board.winner), None)

    @property
    def baseline(self) -> LeaderboardRow | None:
        """The row of the training-free method; None if it was not scored on every fold."""
        return next((r for r in self.board.rows if r.label == BASELINE and r.complete), None)

    def has_all_runs(self, row: LeaderboardRow) -> bool:
        """Whether every run of a method was scored and its result is still in the workspace."""
        return row.complete and all(n in self.results for n in row.runs)

    def runs_of(self, row: LeaderboardRow) -> list[RunResult]:
        """The finished runs of a method, sorted by fold and seed."""
        found = [self.results[n] for n in row.runs if n in self.results]
        return sorted(found, key=lambda r: (r.spec.fold or 0, r.spec.seed))


def collect(recipe: Recipe, labels: str = "") -> ReportMaterial:
    """Read the workspace of a recipe. `labels`: the folder of one more labelling job to show.

    Raises `FssError` if the workspace has no leaderboard, or the folder `labels` contains no finished job.
    """
    workspace = Workspace(recipe.out)
    board = read_leaderboard(recipe)
    store = workspace.store
    runs = [n for row in board.rows for n in row.runs]
    return ReportMaterial(
        workspace=workspace, recipe=recipe, board=board, results=_results(recipe, board, runs),
        failed={n: e for row in board.rows for n, e in row.failed.items()},
        histories={n: h for n in runs if (h := _json(store, f"runs/{n}/history.json"))},
        shards=_shards(workspace.shards(board.dataset)), champion=_champion(workspace), labels=_labels(store, labels),
        stages=_json(store, "stages.json") or [], search=read_search(recipe),
    )


def _results(recipe: Recipe, board: Leaderboard, runs: list[str]) -> dict[str, RunResult]:
    """Run -> its result by the recipe's evaluation, for results on the episode lists of the leaderboard."""
    workspace, found = Workspace(recipe.out), {}
    for name in runs:
        if newest := _json(workspace.store, f"runs/{name}/result.json"):
            spec = RunResult.model_validate(newest).spec
            digest = eval_digest(recipe.eval, list_hash(recipe.eval, spec.fold))
            result = read_result(workspace.run(name), spec, digest)
            if result and result.list_hash == board.lists.get(str(spec.fold)):
                found[name] = result
    return found


def _json(store: Store, name: str) -> Any:
    return store.read_json(name) if store.exists(name) else None


def _shards(url: str) -> Shards | None:
    return Shards(url) if Store(url).exists("manifest.json") else None


def _champion(workspace: Workspace) -> BundleInfo | None:
    return read_bundle_info(workspace.champion) if Store(workspace.champion).exists("bundle.json") else None


def _labels(store: Store, extra: str) -> list[FinishedJob]:
    names = store.list("labels", suffix="/summary.json")
    urls = [store.path(n.removesuffix("/summary.json")) for n in names]
    if extra:
        if not Store(extra).exists("summary.json"):
            raise FssError("the folder contains no finished labelling job", where=extra, hint="run `fss label` first")
        urls.append(extra)
    return [_read_job(url) for url in dict.fromkeys(urls)]


def _read_job(url: str) -> FinishedJob:
    place = Store(url)
    return FinishedJob(url=url, manifest=JobManifest.model_validate(place.read_json("manifest.json")),
                       summary=place.read_json("summary.json"))


def versus_baseline(material: ReportMaterial) -> dict[str, tuple[float, float, float]]:
    """Method's label -> its difference to the baseline's mean score and the paired interval: (difference, low, high).

    The values are fractions; methods with missing runs are left out.
    """
    base = material.baseline
    if base is None or not material.has_all_runs(base):
        return {}
    choose = material.recipe.choose
    samples = {r.label: counts for r in material.board.rows
               if material.has_all_runs(r) and (counts := method_counts(material.workspace, material.runs_of(r)))}
    found = {}
    for row in material.board.rows:
        if row.label in samples and row is not base:
            low, high = paired_difference(samples[row.label], samples[base.label], resamples=choose.resamples,
                                          seed=choose.seed, metric=choose.metric, confidence=material.board.confidence)
            found[row.label] = (_score(material, row) - _score(material, base), low, high)
    return found


def _score(material: ReportMaterial, row: LeaderboardRow) -> float:
    return float(getattr(row, material.board.metric))


def label_folder(workspace: Workspace, name: str) -> str:
    """The folder of a class's labelling job in a workspace, where the report looks for it."""
    return join(workspace.store.url, "labels", name)
