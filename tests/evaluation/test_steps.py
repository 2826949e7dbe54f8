"""Choosing the number of steps: what selection may see, that it is reproducible, and that a kill changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load

from fss_models import registry
from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.run import RunSpec
from pipelines.config.train import SelectConfig, TrainConfig
from pipelines.data.folds import FoldData
from pipelines.data.shardset import Shards
from pipelines.evaluation.steps import (
    Selection,
    describe_selection,
    draw_held_out_episodes,
    grid_of,
    hold_out,
    holdout_run,
    read_selection,
    run_selection,
    score_grid,
)
from pipelines.training.context import RunContext
from pipelines.training.grid import grid_store, make_grid_writer
from pipelines.training.loop import fit
from pipelines.training.task import WorkerRank
from pipelines.training.worker import write_bundle
from tests.fixtures.training import KilledError

EVAL = EvalConfig(episodes=6)


def selecting(spec: RunSpec, policy: str = "base-holdout", **select: int) -> RunSpec:
    chosen = SelectConfig(**({"points": 3} | select))
    train = TrainConfig.model_validate(spec.train.model_dump() | {"selection": policy, "select": chosen, "steps": 6})
    return spec.model_copy(update={"train": train})


class Runner:
    """Trains and scores in this process; dies once at a step of training, behind the last, or after some points."""

    def __init__(self, *, die_in_training: int = 0, die_in_scoring: int = 0, die_after: bool = False) -> None:
        self.die_in_training, self.die_in_scoring, self.die_after = die_in_training, die_in_scoring, die_after
        self.steps: list[tuple[bool, int]] = []  # (without held-out classes, step)

    def train(self, run: RunContext) -> None:
        spec = run.spec
        root = Path(run.folder)
        done = sorted(root.glob("checkpoint-*"))
        model = registry.build(spec.method.name, spec.method.preset, seed=spec.seed)
        data = FoldData.of(spec)

        def save(step: int, write: Callable[[Path], None]) -> None:
            target = root / f"checkpoint-{step:04d}"
            target.mkdir(parents=True, exist_ok=True)
            write(target)

        def keep(step: int, model: object) -> None:
            self.steps.append((bool(spec.holdout), step))
            if run.grid:
                make_grid_writer(run)(step, model)  # type: ignore[arg-type]
            if step == self.die_in_training:
                self.die_in_training = 0
                raise KilledError

        history = fit(spec, model, worker=WorkerRank(), resume=done[-1] if done else None, save=save, stop=run.stop,
                      open_stream=lambda position: data.stream(spec, position=position, rank=0, world=1),
                      log_row=lambda step, row: None, on_step=keep)
        if self.die_after:
            self.die_after = False
            raise KilledError
        Store(run.folder).write_json("history.json", history.rows)
        if not run.grid:
            write_bundle(run, model, data, train_s=history.seconds)

    def score(self, run: RunContext, trained: RunContext, config: EvalConfig) -> None:
        if not self.die_in_scoring:
            return score_grid(run, trained, config)
        points, self.die_in_scoring = self.die_in_scoring, 0
        score_grid(run, trained.model_copy(update={"grid": trained.grid[:points]}), config)
        Store(run.folder).delete("selection.json")  # as far as the scores of the first points, no record yet
        raise KilledError

    def choose(self, run: RunContext) -> Selection:
        """Run the whole selection, starting it again after each kill."""
        for _ in range(4):
            try:
                chosen = run_selection(run, EVAL, train=self.train, score=self.score)
                if chosen.policy == "base-holdout":
                    self.train(run.model_copy(update={"stop": chosen.steps}))
                return chosen
            except KilledError:
                continue
        raise AssertionError("killed more often than planned")


def tensors(run: RunContext) -> dict[str, torch.Tensor]:
    return load(Store(run.bundle).read_bytes("model.safetensors"))


@pytest.mark.parametrize("novel_images", ["drop", "keep"])
def test_no_novel_class_enters_selection(shapes_shards: str, spec: RunSpec, novel_images: str) -> None:
    """A selection sees no novel class, neither as a class nor anywhere in a photo: over folds, seeds and shots."""
    shards = Shards(shapes_shards)
    seen = 0
    for fold in shards.folds:
        for seed, shots, classes in ((0, 1, 1), (1, 1, 3), (2, 3, 2), (3, 1, 5)):
            one = spec.model_copy(update={"fold": fold, "train": spec.train.model_copy(update={
                "shots": shots, "novel_images": novel_images})})
            one = selecting(one, classes=classes, seed=seed)
            data = FoldData.of(one)
            novel = set(shards.fold_classes(fold))
            held = hold_out(data, one.train)
            assert len(held) == classes
            assert not novel & held.keys()
            listed = draw_held_out_episodes(data, one.train)
            photos = {i for e in listed for i in (e.query, *e.supports)}
            assert set(listed.class_ids) <= held.keys()
            assert all(shards.rows[i]["split"] == "train" for i in photos)
            assert not any(novel & set(shards.rows[i]["class_ids"]) for i in photos)
            _training_sees_none(RunContext(spec=one, runs="unused"), photos, set(held))
            seen += len(photos)
    assert seen > 100


def _training_sees_none(run: RunContext, photos: set[int], held: set[int]) -> None:
    """The training that is scored opens neither the photos that choose nor any other that shows a held-out class."""
    run = holdout_run(run)
    data = FoldData.of(run.spec)
    rows = data.train_rows(run.spec.train.novel_images)
    assert rows
    assert set(run.spec.holdout) == held
    assert not {r["image_id"] for r in rows} & photos
    assert not any(held & set(r["class_ids"]) for r in rows)
    assert not held & {c.class_id for c in data.base}
    with data.stream(run.spec, position=None, rank=0, world=1) as stream:
        assert not held & set(stream.class_ids)


def test_held_out_classes_depend_on_fold_and_seed_alone(spec: RunSpec) -> None:
    """The number of steps of every method and seed is chosen on the same classes and episodes."""
    one = selecting(spec)
    other = one.model_copy(update={"seed": 7, "method": MethodConfig(name="fssam", preset="debug")})
    data = FoldData.of(one)
    again = draw_held_out_episodes(FoldData.of(other), other.train)
    assert draw_held_out_episodes(data, one.train).sha256 == again.sha256
    drawn = {tuple(hold_out(data, selecting(spec, seed=s).train)) for s in range(6)}
    assert len(drawn) > 1
    with pytest.raises(FssError, match="cannot hold out 90 of"):
        hold_out(data, selecting(spec, classes=90).train)


@pytest.mark.parametrize("policy", ["base-holdout", "published"])
def test_killed_selection_ends_as_one_left_alone(spec: RunSpec, tmp_path: Path, policy: str) -> None:
    """Killed in training, right after it, or between two scored points: equal record and bit-equal tensors."""
    one = selecting(spec, policy)
    whole, killed = (RunContext(spec=one, runs=str(tmp_path / n)) for n in ("whole", "killed"))
    want = Runner().choose(whole)
    runner = Runner(die_in_training=5, die_in_scoring=2, die_after=True)
    assert runner.choose(killed) == want
    assert read_selection(killed) == want
    first = [step for without, step in runner.steps if without == (policy == "base-holdout")]
    assert first[:7] == [1, 2, 3, 4, 5, 4, 5], "it went on from its checkpoint"
    a, b = tensors(whole), tensors(killed)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert sorted(want.grid) == [2, 4, 6]
    assert want.steps == max(sorted(want.grid), key=lambda s: want.grid[s])
    assert not list(Path(killed.folder).glob("**/grid/*"))
    counted = runner.steps.copy()
    assert runner.choose(killed) == want
    assert runner.steps == counted, "nothing is done twice, no step is added to a finished training"


def test_final_training_has_all_base_classes_and_the_chosen_steps(spec: RunSpec, tmp_path: Path) -> None:
    """The tensors of the result are those of a run with that fixed number of steps on the same schedule."""
    run = RunContext(spec=selecting(spec), runs=str(tmp_path / "chosen"))
    runner = Runner()
    chosen = runner.choose(run)
    assert [s for without, s in runner.steps if not without] == list(range(1, chosen.steps + 1))
    fixed = spec.model_copy(update={"train": spec.train.model_copy(update={"steps": 6, "stop": chosen.steps})})
    plain = RunContext(spec=fixed, runs=str(tmp_path / "plain"))
    Runner().train(plain)
    a, b = tensors(run), tensors(plain)
    assert all(torch.equal(a[k], b[k]) for k in a)
    info = Store(run.bundle).read_json("bundle.json")
    assert info["provenance"]["steps"] == chosen.steps
    assert len(info["classes"]) == len(FoldData.of(spec).base)


def test_published_takes_the_best_on_the_test_episodes(spec: RunSpec, tmp_path: Path) -> None:
    """The bundle scores on the fold's list what its grid point scored."""
    from fss_models.metrics import score
    from pipelines.bundles.bundle import load_bundle
    from pipelines.evaluation.evaluate import score_episodes
    from pipelines.evaluation.results import table_counts

    run = RunContext(spec=selecting(spec, "published"), runs=str(tmp_path))
    chosen = Runner().choose(run)
    data = FoldData.of(run.spec)
    episodes = data.episodes(EVAL)
    assert chosen.list_hash == episodes.sha256
    table, _ = score_episodes(load_bundle(run.bundle)[0], data.shards, episodes, EVAL)
    assert score(table_counts(table), episodes.class_ids).miou == max(chosen.grid.values())


def test_grid_ends_with_all_steps() -> None:
    for steps in (1, 2, 7, 90, 1001):
        for points in (1, 3, 5, 40):
            grid = grid_of(TrainConfig(steps=steps, selection="published", select=SelectConfig(points=points)))
            assert grid[-1] == steps
            assert list(grid) == sorted(set(grid))
            assert len(grid) == min(points, steps)
            assert grid[0] >= 1
    assert not grid_store(RunContext(spec=RunSpec(dataset="d", shards="s", data_hash="h", fold=0, method=MethodConfig(
        name="sansa")), runs="nowhere")).exists()


@pytest.mark.parametrize(("train", "line"), [
    ({"select": {"points": 3}}, "ignores train.select.points"),
    ({"selection": "published", "select": {"classes": 2}}, "ignores train.select.classes"),
    ({"selection": "published", "stop": 5}, "leave train.stop out"),
    ({"steps": 5, "stop": 6}, "more than train.steps"),
])
def test_settings_that_would_be_ignored_are_errors(train: dict[str, object], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        TrainConfig.model_validate(train)


def test_names_of_runs_without_selection_are_what_they_were() -> None:
    """Otherwise every finished run of every workspace would be trained again."""
    plain = RunSpec(dataset="d", shards="s", data_hash="h", fold=0, method=MethodConfig(name="sansa", preset="debug"),
                    train=TrainConfig(steps=7, shots=5))
    assert plain.name == "d-sansa-debug-f0-k5-s0-6a6f1ba9"
    others = [selecting(plain), selecting(plain, "published"), plain.model_copy(update={"holdout": (3,)}),
              plain.model_copy(update={"train": plain.train.model_copy(update={"stop": 3})})]
    assert len({s.name for s in (plain, *others)}) == 5


def test_tables_say_how_the_steps_were_chosen() -> None:
    base = {"policy": "base-holdout", "held_out": {"1": "a", "2": "b"}}
    assert describe_selection([base, base]).startswith("number of steps chosen on 2 held-out base classes a fold")
    assert "on the test episodes themselves" in describe_selection([{"policy": "published", "held_out": {}}])
    assert describe_selection([{}]) == describe_selection([]) == "fixed number of steps; no selection on novel classes"
