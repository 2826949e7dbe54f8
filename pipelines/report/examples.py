"""Episodes as pictures: the winner's best, middling and worst, predicted again by the bundles that were scored."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.bundles.bundle import load_bundle
from pipelines.data.episodes import load_episode
from pipelines.data.folds import FoldData
from pipelines.data.schema import EpisodeSample
from pipelines.evaluation.predict import predict
from pipelines.evaluation.results import RunResult, read_episodes
from pipelines.pages.pictures import PREDICTION, SUPPORT, TRUTH, photo_url
from pipelines.report.collect import ReportMaterial
from pipelines.selection.choose import LeaderboardRow

EACH = 3  # episodes of each kind
KINDS = ("good", "middling", "bad")


@dataclass(frozen=True, kw_only=True)
class EpisodePick:
    """An episode to show: its run, and its IoU in that run."""

    kind: str
    run: RunResult
    episode_id: int
    class_id: int
    iou: float


@dataclass(frozen=True, kw_only=True)
class ReportExample:
    """One episode of the page; each panel is (caption, data URL)."""

    kind: str
    class_name: str
    fold: int
    panels: list[tuple[str, str]]


def make_examples(material: ReportMaterial) -> tuple[list[ReportExample], str]:
    """The episodes to show, and an empty text; or no episodes, and a sentence that says why."""
    row = material.winner or next((r for r in material.board.rows if r.complete), None)
    if row is None:
        return [], "No method was scored on every fold, so there are no episodes to compare."
    if material.shards is None:
        return [], "The shards are not in this workspace any more, so the episodes cannot be shown."
    picks_by_fold = _by_fold(pick_episodes(material, row))
    if not picks_by_fold:
        return [], (f"This workspace has no run of {row.label} that was scored by this recipe's evaluation, so no "
                    "episode can be shown: give the recipe that the leaderboard was made with.")
    shown = [row] + [r for r in [material.baseline] if r is not None and r.label != row.label]
    if material.baseline is row:  # show another method beside it: the best of the others
        shown += [r for r in material.board.rows if r is not row and r.complete][:1]
    found: list[ReportExample] = []
    for fold, picks in picks_by_fold.items():
        data = FoldData.open(material.shards.url, fold)
        listed = data.episodes(material.recipe.eval)
        if listed.sha256 != material.board.lists.get(str(fold)):
            return [], ("This recipe draws another episode list than the one that was scored: give the recipe that the "
                        "leaderboard was made with.")
        by_id = {e.episode_id: e for e in listed}
        samples = [load_episode(material.shards, by_id[p.episode_id]) for p in picks]
        found += _draw(material, shown, fold, picks, samples)
    return sorted(found, key=lambda e: KINDS.index(e.kind)), ""


def pick_episodes(material: ReportMaterial, row: LeaderboardRow, each: int = EACH) -> list[EpisodePick]:
    """The `each` best, worst and middling episodes of a method over all folds, in its first seed's runs.

    No two episodes of a kind are of one class.
    """
    scored: list[tuple[float, RunResult, int, int]] = []
    for run in material.runs_of(row):
        if run.spec.seed != material.runs_of(row)[0].spec.seed:
            continue
        table = read_episodes(material.workspace.run(run.run), run)
        columns = (table[k].to_pylist() for k in ("iou", "episode_id", "class_id"))
        scored += [(iou, run, episode, cls) for iou, episode, cls in zip(*columns, strict=True)]
    scored.sort(key=lambda s: (-s[0], s[1].run, s[2]))
    middle = sorted(scored, key=lambda s: abs(s[0] - scored[len(scored) // 2][0]))
    used: set[tuple[str, int]] = set()
    picks = []
    for kind, ordered in (("good", scored), ("bad", scored[::-1]), ("middling", middle)):
        picks += _pick(kind, ordered, each, used)
    return picks


def _pick(kind: str, ordered: list[tuple[float, RunResult, int, int]], each: int,
          used: set[tuple[str, int]]) -> list[EpisodePick]:
    """The first `each` episodes that are of different classes and not in `used`, to which they are added."""
    picks: list[EpisodePick] = []
    for iou, run, episode, cls in ordered:
        if len(picks) == each:
            break
        if (run.run, episode) not in used and cls not in {p.class_id for p in picks}:
            used.add((run.run, episode))
            picks.append(EpisodePick(kind=kind, run=run, episode_id=episode, class_id=cls, iou=iou))
    return picks


def _by_fold(picks: list[EpisodePick]) -> dict[int, list[EpisodePick]]:
    folds: dict[int, list[EpisodePick]] = {}
    for pick in picks:
        folds.setdefault(pick.run.spec.fold or 0, []).append(pick)
    return dict(sorted(folds.items()))


def _draw(material: ReportMaterial, rows: list[LeaderboardRow], fold: int, picks: list[EpisodePick],
          samples: list[EpisodeSample]) -> list[ReportExample]:
    """The episodes of one fold, with the prediction of each method in `rows`."""
    panels = [[(f"support: {s.class_name}", photo_url(s.references[0].image, s.references[0].mask, SUPPORT)),
               ("query", photo_url(s.targets[0].image)),
               ("truth", photo_url(s.targets[0].image, s.targets[0].mask, TRUTH))] for s in samples]
    for row in rows:
        run = next((r for r in material.runs_of(row) if r.spec.fold == fold), None)
        if run is None:
            continue
        model, _ = load_bundle(run.bundle)
        for sample, shown in zip(samples, panels, strict=True):
            mask, iou = predict(model, sample)
            shown.append((f"{row.label}: IoU {iou * 100:.0f}", photo_url(sample.targets[0].image, mask, PREDICTION)))
    return [ReportExample(kind=p.kind, class_name=s.class_name, fold=fold, panels=shown)
            for p, s, shown in zip(picks, samples, panels, strict=True)]
