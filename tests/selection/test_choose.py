"""The winner's rule on results written by hand, and the gate of a refit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fss_models.errors import FssError
from fss_models.metrics import MethodCounts
from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.config.choose import ChooseConfig
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec, eval_digest
from pipelines.evaluation.results import EPISODE_SCORES, RunResult, read_counts, read_result, write_result
from pipelines.evaluation.spread import draw_scores, seed_scores
from pipelines.selection.choose import (
    LeaderboardRow,
    choose_winner,
    format_leaderboard,
    make_leaderboard,
    read_leaderboard,
)
from pipelines.selection.promote import champion_metrics, check_gate
from tests.fixtures.training import KilledError

EPISODES = 60


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    methods = [MethodConfig(name="prior"), MethodConfig(name="sansa"), MethodConfig(name="sam2_frozen")]
    return Recipe(out=str(tmp_path / "out"), methods=methods, eval=EvalConfig(episodes=EPISODES))


def result(recipe: Recipe, method: int, fold: int, quality: float, *, untrained: bool = False, error: str = "",
           list_hash: str = "list") -> RunResult:
    """A run whose IoUs are around `quality`; episodes are equally hard for every method."""
    spec = RunSpec(dataset="shapes", shards="x", data_hash="d", fold=fold, method=recipe.methods[method])
    if error:
        return RunResult(run=spec.name, spec=spec, eval_digest="e", error=error)
    hard = np.random.default_rng(fold).normal(0, 0.05, EPISODES)
    own = np.random.default_rng([fold, method]).normal(0, 0.02, EPISODES)
    iou = np.clip(quality + hard + own, 0, 1)
    rows = [{"episode_id": e, "class_id": fold * 10 + e % 3, "inter_bg": 900, "inter_fg": int(v * 1000),
             "union_bg": 1000, "union_fg": 1000, "iou": v, "score": v} for e, v in enumerate(iou)]
    made = RunResult(run=spec.name, spec=spec, eval_digest=eval_digest(recipe.eval), miou=float(iou.mean()),
                     fb_iou=0.5, interval=[quality - 0.1, quality + 0.1], untrained=untrained, list_hash=list_hash)
    write_result(Workspace(recipe.out).run(spec.name), made, pa.Table.from_pylist(rows, schema=EPISODE_SCORES))
    return made


def latency(recipe: Recipe, **seconds: float) -> None:
    Store(recipe.out).write_json("latency.json", {k: {"seconds": v} for k, v in seconds.items()})


def test_every_row_is_compared_with_the_best_on_the_same_episodes(recipe: Recipe) -> None:
    board = make_leaderboard(recipe, [result(recipe, m, f, q) for m, q in ((0, 0.4), (1, 0.45), (2, 0.9))
                                      for f in (0, 1)])
    best, second, _ = board.rows
    assert best.behind == []
    gain, low, high = second.behind
    assert low < gain < high < 0
    assert gain == pytest.approx(second.miou - best.miou)
    assert f"{gain * 100:+.1f} ({low * 100:+.1f} to {high * 100:+.1f})" in format_leaderboard(board)


def test_speed_memory_and_cost(recipe: Recipe) -> None:
    """A cost is shown where the recipe states a price, and is that price for the time a million images take."""
    Store(recipe.out).write_json("latency.json", {"prior": {
        "seconds": 0.25, "images_per_s": 5.0, "peak_bytes": 123_400_000, "device": "cpu", "threads": 2}})
    plain = make_leaderboard(recipe, [result(recipe, 0, 0, 0.4)])
    assert plain.rows[0].cost_per_million == 0
    assert "cost" not in format_leaderboard(plain)
    assert "123 MB" in format_leaderboard(plain)
    assert "cpu, 2 threads" in format_leaderboard(plain)
    priced = recipe.model_copy(update={"choose": recipe.choose.model_copy(update={
        "price_per_hour": 0.9, "currency": "EUR"})})
    board = make_leaderboard(priced, [result(recipe, 0, 0, 0.4)])
    assert board.rows[0].cost_per_million == pytest.approx(50.0)  # 200,000 s are 55.6 hours
    assert "cost of 1 M images at 0.9 EUR/h" in format_leaderboard(board)


def test_seeds_and_draws_are_told_apart(recipe: Recipe) -> None:
    sample = MethodCounts(folds=np.zeros(4, dtype=np.int64), class_ids=np.array([1, 2, 1, 2]),
                          inter=np.array([[[0, i] for i in (10, 20, 30, 40)], [[0, 50]] * 4]),
                          union=np.full((2, 4, 2), 100))
    assert seed_scores(sample) == pytest.approx([0.25, 0.5])
    assert draw_scores(sample, 2, 2) == pytest.approx([(0.15 + 0.5) / 2, (0.35 + 0.5) / 2])
    drawn = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"episodes": EPISODES // 2, "draws": 2})})
    row = make_leaderboard(drawn, [result(recipe, 0, 0, 0.4)]).rows[0]
    assert len(row.draws) == 2
    assert np.mean(row.draws) == pytest.approx(row.seeds[0], abs=1e-3)
    assert "over draws" in format_leaderboard(make_leaderboard(drawn, [result(recipe, 0, 0, 0.4)]))


def test_the_surely_better_wins_however_slow(recipe: Recipe) -> None:
    latency(recipe, prior=0.01, sansa=5.0)
    board = make_leaderboard(recipe, [result(recipe, m, f, q) for m, q in ((0, 0.4), (1, 0.45)) for f in (0, 1)])
    assert board.winner == "sansa"
    assert "interval of the difference" in board.reason
    assert [r.label for r in board.rows if r.complete] == ["sansa", "prior"]
    assert read_leaderboard(recipe) == board


def test_where_nothing_is_sure_the_faster_wins(recipe: Recipe) -> None:
    latency(recipe, prior=0.01, sansa=5.0)
    board = make_leaderboard(recipe, [result(recipe, m, f, q) for m, q in ((0, 0.4), (1, 0.401)) for f in (0, 1)])
    assert board.rows[0].label == "sansa"
    assert board.winner == "prior"
    assert "not surely" in board.reason


def test_the_sentence_quotes_the_pair_that_decided() -> None:
    """The second best may be surely worse and the third not: an interval that leaves out 0 would be no reason."""
    def made(*percent: int) -> MethodCounts:
        classes = len(percent)
        inter = np.array([[[0, p] for p in percent]])
        return MethodCounts(folds=np.zeros(classes, dtype=np.int64), class_ids=np.arange(classes), inter=inter,
                            union=np.full((1, classes, 2), 100))

    samples = {"sansa": made(50, 50, 50, 50, 50, 50), "fssam": made(45, 44, 45, 46, 45, 45),
               "prior": made(95, 5, 90, 5, 50, 5)}
    rows = [LeaderboardRow(label=label, method=MethodConfig(name=label), folds={"0": score}, fb_folds={}, miou=score,
                           fb_iou=score, interval=[0, 1], seconds=seconds, trainable_params=0, train_s=0,
                           untrained=False, failed={}, complete=True, runs=[]) for label, score,
            seconds in (("sansa", 0.5, 3.0), ("fssam", 0.45, 2.0), ("prior", 0.42, 1.0))]
    winner, reason = choose_winner(rows, samples, ChooseConfig())
    assert winner == "prior"
    assert "50.0 against 42.0 of prior" in reason
    low, high = (float(x) for x in re.findall(r"difference ([+-][\d.]+) to ([+-][\d.]+)", reason)[0])
    assert low < 0 < high


def test_untrained_and_failed_methods_cannot_win(recipe: Recipe) -> None:
    results = [result(recipe, 0, f, 0.3) for f in (0, 1)]
    results += [result(recipe, 1, 0, 0.9), result(recipe, 1, 1, 0, error="out of memory")]
    results += [result(recipe, 2, f, 0.8, untrained=True) for f in (0, 1)]
    board = make_leaderboard(recipe, results)
    assert board.winner == "prior"
    table = format_leaderboard(board)
    assert "untrained" in table
    assert "incomplete" in table
    assert next(r for r in board.rows if r.label == "sansa").failed == {results[3].run: "out of memory"}


def test_a_foundation_model_is_marked_and_wins_only_where_the_recipe_says_so(recipe: Recipe) -> None:
    recipe = recipe.model_copy(update={"methods": [*recipe.methods[:2], MethodConfig(name="sam3", preset="sam3")]})
    results = [result(recipe, m, f, q) for m, q in ((0, 0.3), (1, 0.5), (2, 0.8)) for f in (0, 1)]
    board = make_leaderboard(recipe, results)
    assert (board.rows[0].label, board.rows[0].foundation, board.winner) == ("sam3", True, "sansa")
    assert board.rows[0].behind[0] > 0, "it is compared with the best that can win"
    assert "foundation model, classes not held out" in format_leaderboard(board)
    free = recipe.model_copy(update={"choose": ChooseConfig(foundation_models=True)})
    assert make_leaderboard(free, results).winner == "sam3"
    alone = recipe.model_copy(update={"methods": recipe.methods[2:]})
    board = make_leaderboard(alone, results[4:])
    assert board.winner == ""
    assert "choose.foundation_models" in board.reason


def test_no_winner_among_the_untrained(recipe: Recipe) -> None:
    board = make_leaderboard(recipe, [result(recipe, 2, 0, 0.8, untrained=True)])
    assert board.winner == ""


def test_different_lists_are_not_compared(recipe: Recipe) -> None:
    results = [result(recipe, 0, 0, 0.4), result(recipe, 1, 0, 0.5, list_hash="another")]
    with pytest.raises(FssError, match="different episode lists"):
        make_leaderboard(recipe, results)


def test_nothing_finished_says_what_to_do(recipe: Recipe) -> None:
    with pytest.raises(FssError, match="no run was finished"):
        make_leaderboard(recipe, [])
    with pytest.raises(FssError, match="there is no leaderboard yet"):
        read_leaderboard(recipe)


def test_gate(recipe: Recipe) -> None:
    board = make_leaderboard(recipe, [result(recipe, 0, f, 0.6) for f in (0, 1)])
    row = board.rows[0]
    good = result(recipe, 0, 0, 0.6)
    check_gate(row, good)
    check_gate(row, good.model_copy(update={"interval": [0.9, 0.99]}))
    with pytest.raises(FssError, match="significantly less than the cross-validated"):
        check_gate(row, good.model_copy(update={"miou": 0.2, "interval": [0.1, 0.3]}))


def test_the_gate_compares_the_miou_whatever_chooses(recipe: Recipe) -> None:
    """FB-IoU is far above the mIoU, and an interval of another confidence is wider or narrower."""
    results = [result(recipe, 0, f, 0.6) for f in (0, 1)]
    usual = make_leaderboard(recipe, results).rows[0]
    assert usual.miou_interval == usual.interval
    choose = ChooseConfig(metric="fb_iou", confidence=0.6)
    row = make_leaderboard(recipe.model_copy(update={"choose": choose}), results).rows[0]
    assert row.interval[0] > results[0].interval[1]
    assert row.miou_interval == usual.interval
    check_gate(row, results[0])
    assert champion_metrics(read_leaderboard(recipe), row, results[0])["cross_validated"]["interval"] == usual.interval


def test_a_kill_between_counts_and_figures_mixes_no_evaluations(
        recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run finished under one evaluation, and killed while another's is written."""
    first, write = result(recipe, 0, 0, 0.4), Store.write_json
    folder, spec = Workspace(recipe.out).run(first.run), first.spec
    counts = read_counts(folder, first)

    def die(self: Store, relative: str, value: object) -> None:
        if self.url == folder:
            raise KilledError
        write(self, relative, value)

    other = recipe.model_copy(update={"eval": EvalConfig(episodes=EPISODES, shots=5)})
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_json", die)
        with pytest.raises(KilledError):
            result(other, 0, 0, 0.9)
    assert read_result(folder, spec, eval_digest(other.eval)) is None
    assert read_result(folder, spec, first.eval_digest) == first
    assert np.array_equal(read_counts(folder, first).inter, counts.inter)
    second = result(other, 0, 0, 0.9)
    assert read_result(folder, spec, second.eval_digest) == second
    assert read_counts(folder, second).inter.sum() > read_counts(folder, first).inter.sum() == counts.inter.sum()
