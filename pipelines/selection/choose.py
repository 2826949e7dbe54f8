"""The leaderboard and the winner, from the results of finished runs. Nothing is trained or evaluated here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from fss_models.errors import FssError
from fss_models.metrics import MethodCounts, Metric, interval, paired_difference, resampled_scores
from fss_models.registry import method_class
from pipelines.base.storage import Store
from pipelines.base.text_table import text_table
from pipelines.base.workspace import Workspace
from pipelines.config.choose import ChooseConfig
from pipelines.config.method import MethodConfig, method_labels
from pipelines.config.recipe import Recipe
from pipelines.config.section import Section
from pipelines.evaluation.results import RunResult, read_counts
from pipelines.evaluation.spread import draw_scores, seed_scores
from pipelines.evaluation.steps import describe_selection
from pipelines.sweeps.plan import ALL_CLASSES

FOUNDATION = "foundation model, classes not held out"
NO_FOLDS = "the runs are of all classes, a leaderboard needs held-out folds"


class LeaderboardRow(Section):
    """One method of the leaderboard. All scores are fractions; `seconds` is the latency of a query when idle."""

    label: str
    method: MethodConfig
    folds: dict[str, float]  # fold -> mIoU, mean over seeds
    fb_folds: dict[str, float]  # fold -> FB-IoU, mean over seeds
    miou: float
    fb_iou: float
    interval: list[float]  # of the recipe's metric, at the recipe's confidence
    seconds: float
    trainable_params: int
    train_s: float  # seconds of training, all runs together
    untrained: bool
    failed: dict[str, str]  # run -> error
    complete: bool  # whether every fold and seed was scored
    runs: list[str]
    foundation: bool = False  # whether the method's training data may show the tested classes
    steps: int = 0  # median of the runs' numbers of steps; 0 without training
    images_per_s: float = 0.0  # in batches on the idle machine; 0: not measured
    peak_bytes: int = 0  # highest memory while predicting; 0: not measured
    cost_per_million: float = 0.0  # cost of a million images at the recipe's price of an hour; 0: no price
    miou_interval: list[float] = Field(default_factory=list)  # 95 % interval of the mIoU
    behind: list[float] = Field(default_factory=list)  # difference to the best row, then its paired interval
    seeds: list[float] = Field(default_factory=list)  # metric of each seed, mean over folds
    draws: list[float] = Field(default_factory=list)  # metric of each draw of episodes, mean over folds and seeds


class Leaderboard(Section):
    """The content of leaderboard.json."""

    dataset: str
    data_hash: str
    metric: str
    confidence: float
    episodes: int  # episodes of a fold, all draws together
    shots: int
    lists: dict[str, str]  # fold -> content hash of its episode list
    selection: str
    rows: list[LeaderboardRow]
    winner: str  # label of the winner, "" if no method can win
    reason: str
    price_per_hour: float = 0.0  # the price that the costs are computed with
    currency: str = ""
    machine: str = ""  # where speed and memory were measured


def make_leaderboard(recipe: Recipe, results: Sequence[RunResult], suffix: str = "") -> Leaderboard:
    """Gather results, choose the winner by the recipe's rule and write leaderboard.json.

    `suffix` is that of a matrix cell's file names.

    Raises `FssError` if no run was finished, if no fold was held out, or if runs of one fold were scored on different
    lists.
    """
    good = [r for r in results if not r.error]
    if not good:
        raise FssError("no run was finished", where=Workspace(recipe.out).runs,
                       hint=results[0].error if results else "run `fss sweep run` first")
    if not holds_out(recipe):
        raise FssError(NO_FOLDS, where=Workspace(recipe.out).runs, hint="set sweep.folds")
    store = Store(Workspace(recipe.out).url)
    latency = _latency(store, f"latency{suffix}.json", good)
    samples: dict[str, MethodCounts] = {}
    rows = []
    for label, method in zip(method_labels(recipe.methods), recipe.methods, strict=True):
        mine = [r for r in results if r.spec.method == method]
        sample = None if any(r.error for r in mine) else method_counts(Workspace(recipe.out), mine)
        if sample:
            samples[label] = sample
        rows.append(_row(recipe, label, method, mine, sample, latency.get(label, {})))
    metric = recipe.choose.metric
    rows.sort(key=lambda r: (not r.complete, r.untrained, -getattr(r, metric)))
    rows = _compared(rows, samples, recipe.choose)
    winner, reason = choose_winner(rows, samples, recipe.choose)
    board = Leaderboard(
        dataset=recipe.data.name, data_hash=good[0].spec.data_hash, metric=metric, confidence=recipe.choose.confidence,
        episodes=good[0].episodes, shots=good[0].details.get("shots", recipe.eval.shots), lists=_lists(good), rows=rows,
        selection=describe_selection([r.details.get("selection", {}) for r in good if r.spec.trains]),
        winner=winner, reason=reason, price_per_hour=recipe.choose.price_per_hour, currency=recipe.choose.currency,
        machine=_machine(latency))
    store.write_json(f"leaderboard{suffix}.json", board.model_dump())
    return board


def read_leaderboard(recipe: Recipe) -> Leaderboard:
    """The leaderboard of the recipe's workspace. Raises `FssError` if there is none."""
    url = Workspace(recipe.out).leaderboard
    if not Store(url).exists():
        raise FssError("there is no leaderboard yet", where=url,
                       hint="run `fss sweep run` first" if holds_out(recipe) else f"{NO_FOLDS}: set sweep.folds")
    return Leaderboard.model_validate(Store(Workspace(recipe.out).url).read_json("leaderboard.json"))


def holds_out(recipe: Recipe) -> bool:
    """Whether the recipe's sweep holds out classes: methods are compared on these alone."""
    return set(recipe.sweep.folds) != {ALL_CLASSES}


def _lists(results: Sequence[RunResult]) -> dict[str, str]:
    lists: dict[str, str] = {}
    for r in results:
        fold = str(r.spec.fold)
        if lists.setdefault(fold, r.list_hash) != r.list_hash:
            raise FssError(f"runs of fold {fold} were scored on different episode lists", where=r.run,
                           hint="run `fss sweep run` again")
    return lists


def method_counts(workspace: Workspace, results: Sequence[RunResult]) -> MethodCounts | None:
    """The episode counts of one method's finished runs for the bootstrap; None without runs."""
    folds = sorted({r.spec.fold for r in results if r.spec.fold is not None})
    return MethodCounts.of([(f, [read_counts(workspace.run(r.run), r) for r in results if r.spec.fold == f])
                            for f in folds]) if results else None


def _compared(rows: Sequence[LeaderboardRow], samples: dict[str, MethodCounts],
              config: ChooseConfig) -> list[LeaderboardRow]:
    """The rows, each complete one with its difference to the best row: the first that can win, else the first."""
    best = next((r for r in rows if _able(r, config)), rows[0])
    found = []
    for row in rows:
        if row.complete and best.complete and row is not best:
            pair = paired_difference(samples[row.label], samples[best.label], resamples=config.resamples,
                                     seed=config.seed, metric=config.metric, confidence=config.confidence)
            gain = getattr(row, config.metric) - getattr(best, config.metric)
            row = row.model_copy(update={"behind": [gain, *pair]})
        found.append(row)
    return found


def _latency(store: Store, name: str, results: Sequence[RunResult]) -> dict[str, Any]:
    """Label -> latency figures, without those of other evaluations. Old files do not name their evaluation."""
    known = store.read_json(name) if store.exists(name) else {}
    digests = {None, *(r.eval_digest for r in results)}
    return {label: found for label, found in known.items() if found.get("eval_digest") in digests}


def _machine(latency: dict[str, Any]) -> str:
    """Device and threads that speed was measured with, "" if it was not measured."""
    found = {f"{x['device']}, {x['threads']} threads" for x in latency.values() if "device" in x and "threads" in x}
    return " and ".join(sorted(found))


def _row(recipe: Recipe, label: str, method: MethodConfig, results: Sequence[RunResult], sample: MethodCounts | None,
         latency: dict[str, Any]) -> LeaderboardRow:
    config, good = recipe.choose, [r for r in results if not r.error]
    folds = sorted({r.spec.fold for r in good if r.spec.fold is not None})
    per_fold = {f: [r for r in good if r.spec.fold == f] for f in folds}
    miou = {str(f): float(np.mean([r.miou for r in rs])) for f, rs in per_fold.items()}
    fb = {str(f): float(np.mean([r.fb_iou for r in rs])) for f, rs in per_fold.items()}
    spread = [0.0, 1.0] if sample is None else list(interval(_draw(sample, config, config.metric), config.confidence))
    return LeaderboardRow(
        label=label, method=method, folds=miou, fb_folds=fb, miou=_mean(miou), fb_iou=_mean(fb), interval=spread,
        seconds=float(latency.get("seconds", 0.0)), trainable_params=max((r.trainable_params for r in good), default=0),
        train_s=sum(r.train_s for r in good), untrained=any(r.untrained for r in good),
        foundation=not method_class(method.name).classes_held_out,
        failed={r.run: r.error for r in results if r.error}, complete=sample is not None, runs=[r.run for r in results],
        steps=round(float(np.median([r.steps for r in good]))) if good else 0, **_spread(recipe, sample),
        **_speed(config, latency))


def _spread(recipe: Recipe, sample: MethodCounts | None) -> dict[str, Any]:
    if sample is None:
        return {}
    metric, draws = recipe.choose.metric, recipe.eval.draws
    low, high = interval(_draw(sample, recipe.choose, "miou"))
    found = {"seeds": seed_scores(sample, metric), "miou_interval": [low, high]}
    return found if draws == 1 else {**found, "draws": draw_scores(sample, recipe.eval.episodes, draws, metric)}


def _speed(config: ChooseConfig, latency: dict[str, Any]) -> dict[str, Any]:
    rate = float(latency.get("images_per_s", 0.0))
    cost = config.price_per_hour / 3600 / rate * 1_000_000 if rate else 0.0
    return {"images_per_s": rate, "peak_bytes": int(latency.get("peak_bytes", 0)), "cost_per_million": cost}


def _draw(sample: MethodCounts, config: ChooseConfig, metric: Metric) -> Any:
    return resampled_scores(sample, resamples=config.resamples, seed=config.seed, metric=metric)


def _mean(values: dict[str, float]) -> float:
    return float(np.mean(list(values.values()))) if values else 0.0


def _able(row: LeaderboardRow, config: ChooseConfig) -> bool:
    """Whether a row can win."""
    return row.complete and not row.untrained and (config.foundation_models or not row.foundation)


def choose_winner(rows: Sequence[LeaderboardRow], samples: dict[str, MethodCounts], config: ChooseConfig) -> tuple[str,
                                                                                                                   str]:
    """(label of the winner, reason in one sentence). Untrained methods and methods with failed runs cannot win, nor
    foundation models unless the recipe says so.
    """
    able = [r for r in rows if _able(r, config)]
    able.sort(key=lambda r: -getattr(r, config.metric))
    name = {"miou": "mIoU", "fb_iou": "FB-IoU"}[config.metric]
    if not able:
        foundation = f", or is a {FOUNDATION} (choose.foundation_models)" if any(r.foundation for r in rows) else ""
        return "", f"No method can win: each is untrained or has failed runs{foundation}."
    best, rest = able[0], able[1:]
    if not rest:
        figure = getattr(best, config.metric) * 100
        return best.label, f"{best.label} wins with a mean {name} of {figure:.1f}: no other method can win."
    ahead = {r.label: paired_difference(samples[best.label], samples[r.label], resamples=config.resamples,
                                        seed=config.seed, metric=config.metric, confidence=config.confidence)
             for r in rest}
    rivals = [r for r in rest if ahead[r.label][0] <= 0]

    def lead(other: LeaderboardRow) -> str:
        low, high = (f"{x * 100:+.1f}" for x in ahead[other.label])
        return (f"mean {name} {getattr(best, config.metric) * 100:.1f} against "
                f"{getattr(other, config.metric) * 100:.1f} of {other.label}, {config.confidence:.0%} interval of "
                f"the difference {low} to {high}")

    if not rivals:
        return best.label, f"{best.label} wins: {lead(rest[0])}."
    return _fastest(best, rivals, lead)


def _fastest(best: LeaderboardRow, rivals: Sequence[LeaderboardRow],
             lead: Callable[[LeaderboardRow], str]) -> tuple[str, str]:
    """(label, reason) of the fastest among the best method and those that are not significantly worse."""
    if not all(r.seconds for r in (best, *rivals)):
        return best.label, (f"{best.label} is ahead but not surely ({lead(rivals[0])}); no latency was measured to "
                            "decide.")
    fastest = min((best, *rivals), key=lambda r: r.seconds)
    speeds = ", ".join(f"{r.label} {r.seconds * 1000:.0f} ms" for r in (best, *rivals))
    closest = rivals[0] if fastest is best else fastest
    return fastest.label, (f"{fastest.label} wins: {best.label} is ahead but not surely ({lead(closest)}), so the "
                           f"fastest is taken ({speeds} a query).")


def format_leaderboard(board: Leaderboard) -> str:
    """The leaderboard as text, scores in percent."""
    folds = sorted({f for r in board.rows for f in r.folds}, key=int)
    head = ["method", *(f"fold {f}" for f in folds), "mean", f"{board.confidence:.0%} interval", "FB-IoU",
            "less the best", ""]
    scores = text_table([_cells(r, folds) for r in board.rows], head=head, left=(0, len(head) - 1))
    costs = text_table([_cost_cells(r, board) for r in board.rows], head=_cost_head(board))
    about = (f"{board.dataset}, {board.shots}-shot, {board.episodes} episodes a fold, mIoU in percent; "
             f"{board.selection}.")
    measured = f"Speed and memory of prediction: on the idle machine ({board.machine})." if board.machine else ""
    return "\n".join([scores, "", costs, "", about, *([measured] if measured else []), board.reason])


def _cost_head(board: Leaderboard) -> list[str]:
    price = f"{board.price_per_hour:g} {board.currency}".strip()
    return ["method", "trained", "ms/query", "images/s", "peak memory",
            *([f"cost of 1 M images at {price}/h"] if board.price_per_hour else []),
            *(["over seeds"] if any(len(r.seeds) > 1 for r in board.rows) else []),
            *(["over draws"] if any(r.draws for r in board.rows) else [])]


def _cost_cells(row: LeaderboardRow, board: Leaderboard) -> list[str]:
    speed = f"{row.seconds * 1000:.0f}" if row.seconds else "-"
    rate = f"{row.images_per_s:.3g}" if row.images_per_s else "-"
    peak = f"{row.peak_bytes / 1e6:.0f} MB" if row.peak_bytes else "-"
    cells = [row.label, count_text(row.trainable_params), speed, rate, peak]
    if board.price_per_hour:
        cells.append(f"{row.cost_per_million:.2f}" if row.cost_per_million else "-")
    if any(len(r.seeds) > 1 for r in board.rows):
        cells.append(_range(row.seeds))
    return cells + ([_range(row.draws)] if any(r.draws for r in board.rows) else [])


def _range(scores: Sequence[float]) -> str:
    return f"{min(scores) * 100:.1f}-{max(scores) * 100:.1f}" if len(scores) > 1 else "-"


def _cells(row: LeaderboardRow, folds: Sequence[str]) -> list[str]:
    state = "untrained" if row.untrained else ("incomplete" if not row.complete else "")
    note = "; ".join(n for n in (state, FOUNDATION if row.foundation else "") if n)
    scores = [f"{row.folds[f] * 100:.1f}" if f in row.folds else "failed" for f in folds]
    spread = f"{row.interval[0] * 100:.1f}-{row.interval[1] * 100:.1f}" if row.complete else "-"
    return [row.label, *scores, f"{row.miou * 100:.1f}", spread, f"{row.fb_iou * 100:.1f}",
            difference_text(row.behind) if row.behind else "-", note]


def difference_text(values: Sequence[float]) -> str:
    """A difference and its paired interval (difference, low, high), fractions, as text in percentage points."""
    gain, low, high = (f"{round(x * 100, 1) + 0.0:+.1f}" for x in values)
    return f"{gain} ({low} to {high})"


def count_text(count: int) -> str:
    """A number of parameters in millions or thousands."""
    return "0" if not count else f"{count / 1e6:.2f} M" if count >= 10_000 else f"{count / 1e3:.1f} k"
