"""The search: scored on held-out base classes of train photos, kept as it goes, and on a real cluster with Tune."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fss_models.errors import FssError
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.sweep import RangeConfig, SearchConfig
from pipelines.config.train import SelectConfig, TrainConfig
from pipelines.data.folds import FoldData
from pipelines.evaluation.steps import draw_held_out_episodes, grid_of
from pipelines.selection.search import SearchPoint, TrialInputs, _trial_inputs, format_search, run_trial, search

SPACE = {"train.lr": RangeConfig(log=(0.0001, 0.01)), "methods.0.config.factor": RangeConfig(choice=[0.3, 0.8])}


@pytest.fixture
def recipe(debug_recipe: Recipe) -> Recipe:
    """SANSA at debug, four trials of four steps, scored after two and four."""
    train = TrainConfig(steps=4, batch=2, pool_bytes=64_000_000, select=SelectConfig(points=2, classes=1, episodes=6),
                        selection="base-holdout")
    return debug_recipe.model_copy(update={
        "methods": [MethodConfig(name="sansa", preset="debug")], "train": train,
        "search": SearchConfig(space=SPACE, trials=4, fold=0)})


@pytest.fixture
def inputs(recipe: Recipe) -> TrialInputs:
    return _trial_inputs(recipe)[0]


def test_a_trial_sees_neither_novel_classes_nor_test_photos(inputs: TrialInputs) -> None:
    spec = inputs.change_settings({"train.lr": 0.002, "methods.0.config.factor": 0.8})
    assert (spec.train.lr, spec.method.config["factor"], spec.train.selection) == (0.002, 0.8, "none")
    novel = {c.class_id for c in FoldData.open(spec.shards, 0).tested}
    data = FoldData.of(spec)
    held = set(spec.holdout)
    assert len(held) == 1
    assert not held & novel
    assert not {c.class_id for c in data.base} & (held | novel)
    episodes = draw_held_out_episodes(FoldData.open(spec.shards, 0), inputs.spec.train)
    assert set(episodes.class_ids) == held
    for photo in {i for e in episodes for i in (e.query, *e.supports)}:
        assert data.shards.rows[photo]["split"] == "train"
        assert not novel & set(data.shards.rows[photo]["class_ids"])


def test_scores_are_kept_and_not_made_twice(inputs: TrialInputs, tmp_path: Path) -> None:
    grid, values = grid_of(inputs.spec.train), {"train.lr": 0.001, "methods.0.config.factor": 0.3}
    told: list[SearchPoint] = []

    class StoppedError(Exception):
        """Raised in place of ASHA's end of a trial."""

    def stop(point: SearchPoint) -> None:
        told.append(point)
        raise StoppedError

    with pytest.raises(StoppedError):
        run_trial(inputs, values, grid, stop)
    again: list[SearchPoint] = []
    trial = run_trial(inputs, values, grid, again.append)
    assert [p.steps for p in again] == [2, 4]
    assert again[0] == told[0], "a score that was known is told again, as it was"
    assert trial.points == again
    assert all(p.interval[0] <= p.miou <= p.interval[1] for p in again)
    path = Path(inputs.url) / inputs.trial_name(values)
    before = path.stat().st_mtime_ns
    assert run_trial(inputs, values, grid, lambda point: None).points == again
    assert path.stat().st_mtime_ns == before
    assert inputs.trial_name(values) != inputs.trial_name(values | {"train.lr": 0.01})


def test_the_search_runs_and_is_taken_up(recipe: Recipe, ray_cluster: object) -> None:
    """Would catch: a trial that Tune cannot run or stop, values that differ from one call to the next."""
    found = search(recipe)
    assert len(found.trials) == 4
    assert all(not t.error for t in found.trials)
    scores = [t.best.miou for t in found.trials if t.best]
    assert scores == sorted(scores, reverse=True)
    assert all(0.0001 <= t.values["train.lr"] <= 0.01 for t in found.trials)
    assert len({t.values["train.lr"] for t in found.trials}) == 4
    assert found.settings.startswith("--set ")
    assert "No novel class was seen" in format_search(found)
    kept = Path(recipe.out) / "search" / "test"
    before = {p: p.read_text() for p in kept.iterdir()}
    assert len(before) == 4
    again = search(recipe)
    whole = {t.model_dump_json() for t in found.trials if len(t.points) == 2}
    assert whole <= {t.model_dump_json() for t in again.trials}
    assert set(kept.iterdir()) == before.keys()
    assert json.loads((Path(recipe.out) / "search/test.json").read_text())["list_hash"] == found.list_hash


@pytest.mark.parametrize(("change", "line"), [
    ({"search": SearchConfig()}, "search.space is empty"),
    ({"search": SearchConfig(space={"train.steps": RangeConfig(choice=[1, 2])})}, "train.steps cannot be searched"),
    ({"search": SearchConfig(space={"eval.shots": RangeConfig(choice=[1, 2])})}, "eval.shots cannot be searched"),
    ({"search": SearchConfig(space={"train.lrr": RangeConfig(choice=[1, 2])})}, "train.lrr: Extra inputs"),
    ({"search": SearchConfig(space={"train.lr": RangeConfig(choice=[-1.0])})}, "train.lr: "),
    ({"search": SearchConfig(space={"methods.0.config.fctor": RangeConfig(choice=[1])})}, "unknown setting 'fctor'"),
    ({"methods": [MethodConfig(name="prior", preset="debug")]}, "one method that trains"),
    ({"train": TrainConfig(workers=2)}, "train.workers=1"),
])
def test_mistakes_are_one_line(recipe: Recipe, change: dict[str, object], line: str) -> None:
    with pytest.raises(FssError) as error:
        search(recipe.model_copy(update=change))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", [{}, {"choice": [1], "log": (1, 2)}, {"uniform": (2, 1)}, {"log": (0, 1)}])
def test_a_range_is_one_of_three(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"one of choice|not a valid range"):
        RangeConfig.model_validate(given)
