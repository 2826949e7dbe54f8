"""The search: cost, choices and settings without Ray, and a real search of two trials on two folds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.base.tracking import tracking_uri
from pipelines.config.hyperband import brackets_of, rung_steps, search_cost
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.sweep import RangeConfig, SearchConfig
from pipelines.config.train import SelectConfig, TrainConfig
from pipelines.data.folds import FoldData
from pipelines.evaluation.steps import draw_held_out_episodes
from pipelines.evaluation.trial import drive_trial
from pipelines.selection.search import search
from pipelines.selection.search_space import check_search
from pipelines.selection.study import SearchStudy
from pipelines.selection.trial_runs import TrialRuns
from pipelines.selection.trials import SearchResult, Trial, TrialScore, format_search, read_search
from pipelines.training.context import RunContext
from pipelines.training.grid import grid_file, grid_store

SPACE = {"train.lr": RangeConfig(log=(0.0001, 0.01)), "methods.1.config.factor": RangeConfig(choice=[0.3, 0.8])}


@pytest.fixture
def recipe(debug_recipe: Recipe) -> Recipe:
    """SANSA at debug, and the prior, which trains nothing: two trials on two folds, compared after 2 and 4 steps."""
    train = TrainConfig(steps=4, batch=2, pool_bytes=64_000_000, select=SelectConfig(points=2, classes=1, episodes=6),
                        selection="base-holdout")
    return debug_recipe.model_copy(update={
        "train": train, "search": SearchConfig(space=SPACE, trials=2, rungs=2, eta=2)})


def test_the_cost_is_known_beforehand() -> None:
    """Brackets of Hyperband with the sizes of its paper's rule; a cut one; all of them without early stops."""
    config = SearchConfig(trials=20)
    assert [(b.first, b.sizes) for b in brackets_of(config)] == [(0, (9, 3, 1)), (1, (5, 1)), (2, (3,)), (0, (3, 1, 1))]
    assert rung_steps(config, 90) == (10, 30, 90)
    cost = search_cost(SearchConfig(trials=9), [90, 180])
    assert cost.runs == 18
    assert cost.steps == (9 * 10 + 3 * 20 + 1 * 60) * 3
    assert cost.scorings == (9 + 3 + 1) * 2
    late = search_cost(SearchConfig(trials=14), [90])
    assert late.steps == 210 + 5 * 30 + 60
    assert late.scorings == 13 + 5 * 2 + 1, "trials of a later bracket are scored at the rungs before as well"
    whole = SearchConfig(trials=14, stop_early=False)
    assert search_cost(whole, [90]).steps == 14 * 90
    with pytest.raises(FssError, match=r"4 training steps are too few for search\.rungs=3"):
        rung_steps(config, 4)


def scored(number: int, values: dict[str, object], *scores: float) -> Trial:
    return Trial(number=number, values=values, scores=[
        TrialScore(steps=10 * 3 ** i, miou=s, interval=(s, s), folds={0: s}) for i, s in enumerate(scores)])


def choose(config: SearchConfig) -> list[dict[str, object]]:
    """The settings of 48 trials in brackets of 6, of which learning rates near 0.001 score best; 3 of 6 end early."""
    study, found = SearchStudy(config, SPACE, 6), []
    for _ in range(8):
        new = study.ask(6)
        quality = [1 - abs(math.log10(v["train.lr"]) + 3) for v in new]
        scores = [[q] * (1 + (q >= sorted(quality)[3])) for q in quality]
        study.tell([scored(i, v, *s) for i, (v, s) in enumerate(zip(new, scores, strict=True))], (10, 30))
        found += new
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_equal_scores_give_equal_trials(sampler: str) -> None:
    config = SearchConfig.model_validate({"space": SPACE, "sampler": sampler})
    assert choose(config) == choose(config)
    assert choose(config) != choose(config.model_copy(update={"seed": 1}))
    assert {v["methods.1.config.factor"] for v in choose(config)} == {0.3, 0.8}


def test_earlier_scores_move_the_choice() -> None:
    """TPE comes nearer to what scored well; the random choice does not depend on scores."""
    def distance(sampler: str) -> float:
        found = choose(SearchConfig.model_validate({"space": SPACE, "sampler": sampler}))[24:]
        return sum(abs(math.log10(v["train.lr"]) + 3) for v in found) / len(found)

    assert distance("tpe") < 0.7 * distance("random")


def test_importance_finds_the_setting_that_matters() -> None:
    study = SearchStudy(SearchConfig(sampler="random"), SPACE, 20)
    trials = [scored(i, v, v["train.lr"]) for i, v in enumerate(study.ask(20))]
    found = study.importance(trials, 0)
    assert list(found) == ["train.lr", "methods.1.config.factor"]
    assert found["train.lr"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    assert study.importance(trials[:7], 0) == {}, "too few to say anything"
    assert study.importance([scored(i, t.values, 0.5) for i, t in enumerate(trials)], 0) == {}


def test_a_trial_sees_neither_novel_classes_nor_test_photos(recipe: Recipe) -> None:
    (method,), runs = check_search(recipe), TrialRuns(recipe)
    specs = runs.specs(method, {"train.lr": 0.002, "methods.1.config.factor": 0.8})
    assert [s.fold for s in specs] == [0, 1]
    for spec in specs:
        assert (spec.train.lr, spec.method.config["factor"], spec.train.selection) == (0.002, 0.8, "none")
        whole = FoldData.open(spec.shards, spec.fold)
        novel, held = {c.class_id for c in whole.tested}, set(spec.holdout)
        assert len(held) == 1
        assert not held & novel
        assert not {c.class_id for c in FoldData.of(spec).base} & (held | novel)
        episodes = draw_held_out_episodes(whole, spec.train.model_copy(update={"select": recipe.train.select}))
        assert set(episodes.class_ids) == held
        assert episodes.sha256 == runs.list_hashes[spec.fold or 0]
        for photo in {i for e in episodes for i in (e.query, *e.supports)}:
            assert whole.shards.rows[photo]["split"] == "train"
            assert not novel & set(whole.shards.rows[photo]["class_ids"])


def test_a_trial_killed_before_its_history_is_written_trains_to_its_end(recipe: Recipe,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of its grid are there already; without a history, or with that of the rung before, it has no score."""
    (method,), runs, trained = check_search(recipe), TrialRuns(recipe), []
    run = runs.context(runs.specs(method, {"train.lr": 0.002, "methods.1.config.factor": 0.8})[0], 1)
    for step in run.grid:
        grid_store(run).write_bytes(grid_file(step), b"tensors")
    history = Store(run.folder)

    def train(run: RunContext) -> None:
        trained.append(run.stop)
        history.write_json("history.json", [{"step": run.stop, "seconds": 1.0}])

    monkeypatch.setattr("pipelines.evaluation.trial.train_run", train)
    monkeypatch.setattr("pipelines.evaluation.trial.run_task", lambda *_, **__: "scored")
    assert drive_trial(run, runs.scoring) == "scored"
    history.write_json("history.json", [{"step": run.grid[0], "seconds": 1.0}])
    assert [drive_trial(run, runs.scoring) for _ in range(2)] == ["scored", "scored"]
    assert trained == [run.stop, run.stop]


@pytest.mark.parametrize("folds", [[0], pytest.param([0, 1], marks=pytest.mark.slow)])
def test_a_search_runs(recipe: Recipe, ray_cluster: object, folds: list[int]) -> None:
    """Would catch: a trial that begins anew at a rung, a run that MLflow does not show, a recipe that cannot be read;
    with two folds also scores that depend on what was known before."""
    recipe = recipe.model_copy(update={"search": recipe.search.model_copy(update={"folds": folds})})
    found = search(recipe)
    (method,) = found.methods
    best, stopped = method.trials
    assert (len(best.scores), len(stopped.scores)) == (2, 1), "one of two goes on"
    assert (best.ended, stopped.ended) == ("trained to its end", "stopped at 2 steps: 2 of 2, 1 went on")
    assert best.scores[0].miou >= stopped.scores[0].miou
    assert method.best == best
    assert method.spent[:2] == ((2 * 2 + 2) * len(folds), (2 * 2 + 2) * len(folds) * 2)
    for score in (s for t in method.trials for s in t.scores):
        assert list(score.folds) == folds
        assert score.miou == pytest.approx(sum(score.folds.values()) / len(folds))
    assert "No novel class was seen" in format_search(found)
    _check_files(recipe, found)
    _check_tracking(recipe, found)

    if len(folds) == 2:
        _check_taken_up(recipe, found)


def _check_taken_up(recipe: Recipe, found: SearchResult) -> None:
    best = found.methods[0].trials[0]
    place = Path(recipe.out) / "search"
    assert not list(place.glob("runs/*/*/checkpoint*")), "ended trials leave no checkpoints"
    before = {p: p.stat().st_mtime_ns for p in place.glob("scores/*/*")}
    lost = [p for p in before if p.parent.name == best.runs[0] and p.stem == "step-0000004"]
    for path in lost:  # as if the search had been killed in the last rung: trained anew, in one go, to the same score
        path.unlink()
    again = search(recipe)
    assert _same(again) == _same(found)
    assert {p for p, made in before.items() if p.stat().st_mtime_ns != made} == set(lost), "no other run is made again"
    assert read_search(recipe) == again


def _same(found: SearchResult) -> list[object]:
    """What does not depend on the time that runs took."""
    return [(m.label, m.importance, [t.model_dump(exclude={"seconds", "train_s"}) for t in m.trials])
            for m in found.methods]


def _check_files(recipe: Recipe, found: SearchResult) -> None:
    (method,) = found.methods
    assert method.best
    made = Recipe.model_validate(yaml.safe_load(Path(method.recipe).read_text()))
    assert [m.name for m in made.methods] == ["sansa"]
    assert made.train.lr == method.best.values["train.lr"]
    assert made.methods[0].config["factor"] == method.best.values["methods.1.config.factor"]
    assert made.search == SearchConfig()
    assert made.train.selection == "base-holdout"
    picture = Path(method.recipe).with_suffix(".svg").read_text()
    assert "train.lr" in picture
    assert "mIoU" in picture


def _check_tracking(recipe: Recipe, found: SearchResult) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri(recipe.out, recipe.tracking))
    runs = {r.data.tags["fss.run"]: r for r in client.search_runs(
        [client.get_experiment_by_name("shapes").experiment_id])}
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    (parent,) = [r for r in runs.values() if "mlflow.parentRunId" not in r.data.tags]
    trials = {int(r.data.tags["fss.trial"]): r for r in runs.values() if "fss.trial" in r.data.tags}
    assert {r.data.tags["mlflow.parentRunId"] for r in trials.values()} == {parent.info.run_id}
    for trial in found.methods[0].trials:
        run = trials[trial.number]
        assert float(run.data.params["train.lr"]) == trial.values["train.lr"]
        curve = client.get_metric_history(run.info.run_id, "select/miou")
        assert [(m.step, m.value) for m in curve] == [(s.steps, pytest.approx(s.miou)) for s in trial.scores]
        assert run.data.tags["fss.ended"] == trial.ended
        for name in trial.runs:
            assert runs[name].data.tags["mlflow.parentRunId"] == run.info.run_id
            assert runs[name].data.metrics["loss"] > 0


@pytest.mark.parametrize(("change", "line"), [
    ({"search": SearchConfig()}, "search.space is empty"),
    ({"search": SearchConfig(space={"train.steps": RangeConfig(choice=[1, 2])})}, "train.steps cannot be searched"),
    ({"search": SearchConfig(space={"eval.shots": RangeConfig(choice=[1, 2])})}, "eval.shots cannot be searched"),
    ({"search": SearchConfig(space={"train.lrr": RangeConfig(choice=[1, 2])})}, "train.lrr: Extra inputs"),
    ({"search": SearchConfig(space={"train.lr": RangeConfig(choice=[-1.0])})}, "train.lr: "),
    ({"search": SearchConfig(space={"methods.1.config.fctor": RangeConfig(choice=[1])})}, "unknown setting 'fctor'"),
    ({"search": SearchConfig(space={"methods.0.config.x": RangeConfig(choice=[1])})}, "methods.0.config.x is not a"),
    ({"methods": [MethodConfig(name="prior", preset="debug")]}, "needs a method that trains"),
    ({"methods": [MethodConfig(name="fcp", preset="debug"), MethodConfig(name="sansa", preset="debug")],
      "search": SearchConfig(space={"methods.1.config.factor": RangeConfig(choice=[0.3])})}, "no setting of methods.0"),
    ({"search": SearchConfig(space=SPACE, folds=[9])}, "there is no fold 9"),
    ({"search": SearchConfig(space=SPACE, rungs=5)}, "4 training steps are too few"),
])
def test_mistakes_are_one_line(recipe: Recipe, ray_cluster: object, change: dict[str, object], line: str) -> None:
    with pytest.raises(FssError) as error:
        search(recipe.model_copy(update=change))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["train.warmup", "methods.0.config.steps"])
def test_a_range_over_whole_numbers_is_refused_before_anything_runs(key: str) -> None:
    """Its ends are whole numbers, what the study draws between them is not."""
    space = {key: RangeConfig(uniform=(1, 1001))}
    recipe = Recipe(methods=[MethodConfig(name="fcp", preset="debug")], search=SearchConfig(space=space))
    with pytest.raises(FssError) as error:
        check_search(recipe)
    assert str(error.value).endswith(f"(give its values: {key}: {{choice: [...]}})")


@pytest.mark.parametrize("given", [{}, {"choice": [1], "log": (1, 2)}, {"uniform": (2, 1)}, {"log": (0, 1)}])
def test_a_range_is_one_of_three(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"one of choice|not a valid range"):
        RangeConfig.model_validate(given)
