"""The training loop: exact resumption, refusals, the schedule, and honest failure."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fss_models.errors import FssError
from pipelines.config.method import MethodConfig, method_labels
from pipelines.config.run import MixtureShare, RunSpec
from pipelines.config.train import TrainConfig
from pipelines.data.folds import FoldData, resolve_steps
from pipelines.data.shardset import Shards
from pipelines.training.context import RunContext
from pipelines.training.loop import episode_identity, lr_at
from pipelines.training.state import History, load_state, save_state
from pipelines.training.worker import clear_checkpoints
from tests.fixtures.training import KilledError, Outcome

Run = Callable[..., Outcome]
TIMED = ("seconds", "episodes_per_s", "data_wait")


def test_killed_and_resumed_equals_undisturbed(spec: RunSpec, run_loop: Run) -> None:
    """Bit-equal weights and losses: a lost random state, optimiser or stream position would show here."""
    want, whole = run_loop(spec, "undisturbed")
    with pytest.raises(KilledError):
        run_loop(spec, "killed", die_at=8)
    torch.manual_seed(99)
    got, resumed = run_loop(spec, "killed", resume=True)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[k], got[k]) for k in want)
    rows = [[{k: v for k, v in r.items() if k not in TIMED} for r in h.rows] for h in (whole, resumed)]
    assert rows[0] == rows[1]
    assert [r["step"] for r in rows[0]] == [2, 3, 4, 6, 8, 9, 10]


def test_training_changes_the_weights_and_another_seed_changes_them_otherwise(spec: RunSpec, run_loop: Run) -> None:
    short = spec.model_copy(update={"train": spec.train.model_copy(update={"steps": 3})})
    one, _ = run_loop(short, "one")
    two, _ = run_loop(short.model_copy(update={"seed": 1}), "two")
    assert any(not torch.equal(one[k], two[k]) for k in one)


def test_checkpoint_brings_every_generator_back(spec: RunSpec, tmp_path: Path) -> None:
    """Dropout and prompt sampling draw from the global generators; debug has none, so the loop's test cannot tell."""
    from fss_models import registry

    def draws() -> list[float]:
        return [float(torch.rand(())), float(np.random.random()), random.random(), float(np.random.standard_normal())]

    model = registry.build("sansa", "debug")
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    draws()
    own = {"run": spec.name}
    save_state(tmp_path, own, model, optimiser, step=1, position={"epoch": 0}, history=History(), rank=0, world=1)
    want = draws()
    assert draws() != want
    back = load_state(tmp_path, own, model, optimiser, rank=0, world=1)
    assert draws() == want
    assert (back.step, back.position) == (1, {"epoch": 0})


@pytest.mark.parametrize("given", [
    {"accumulate": 2},
    pytest.param({"compile": True}, marks=pytest.mark.slow),  # minutes of compilation on a CPU
], ids=["accumulated", "compiled"])
def test_other_ways_to_the_same_step(spec: RunSpec, run_loop: Run, given: dict[str, object]) -> None:
    """Parts added up, and compiled code, train as the plain step does; each is a run of its own name."""
    method = MethodConfig(name="sansa", preset="debug", config={"memory_dropout": False})
    train = spec.train.model_copy(update={"steps": 3, "lr": 1e-4, "flip": False})
    plain = spec.model_copy(update={"train": train, "method": method})
    other = plain.model_copy(update={"train": train.model_copy(update=given)})
    want, whole = run_loop(plain, "plain")
    got, rows = run_loop(other, "other")
    assert other.name != plain.name
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-3, atol=2e-5)
    assert [r["loss"] for r in rows.rows] == pytest.approx([r["loss"] for r in whole.rows], abs=1e-4)
    assert all(0 <= r["data_wait"] <= 1 for r in rows.rows)


def test_clips_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.batch=6 cannot be shared by 4 workers"):
        TrainConfig(batch=6, workers=4)
    with pytest.raises(ValueError, match="cannot be shared by 2 workers in 2 parts each"):
        TrainConfig(batch=6, workers=2, accumulate=2)
    with pytest.raises(ValueError, match="cannot be shared by 3 workers"):
        TrainConfig(batch=8, workers=4, min_workers=2)
    with pytest.raises(ValueError, match=r"min_workers=3 is more than train\.workers=2"):
        TrainConfig(batch=6, workers=2, min_workers=3)


@pytest.mark.parametrize(("change", "message"), [
    ({"method": MethodConfig(name="prior", preset="debug")}, "checkpoint is of method 'sansa', not 'prior'"),
    ({"method": MethodConfig(name="sansa", preset="nano")}, "checkpoint is of preset 'debug', not 'nano'"),
    ({"seed": 5}, "checkpoint is of run"),
])
def test_checkpoint_of_another_run_is_refused(spec: RunSpec, run_loop: Run, tmp_path: Path, change: dict[str, object],
                                              message: str) -> None:
    run_loop(spec.model_copy(update={"train": spec.train.model_copy(update={"steps": 1})}), "mine")
    own = episode_identity(spec.model_copy(update=change))
    with pytest.raises(FssError, match=message):
        load_state(tmp_path / "mine" / "checkpoint-0001", own, None, None, rank=0, world=1)  # type: ignore[arg-type]


def test_folder_that_is_no_checkpoint_is_refused(spec: RunSpec, tmp_path: Path) -> None:
    with pytest.raises(FssError, match="is not a checkpoint"):
        load_state(tmp_path, {"run": spec.name}, None, None, rank=0, world=1)  # type: ignore[arg-type]


def test_loss_that_is_not_finite_names_its_step(spec: RunSpec, run_loop: Run, tmp_path: Path) -> None:
    train = spec.train.model_copy(update={"lr": 1e30, "steps": 6, "checkpoint_every": 6, "warmup": 0})
    with pytest.raises(FssError, match=r"not finite at step \d"):
        run_loop(spec.model_copy(update={"train": train}), "broken")
    assert not list((tmp_path / "broken").glob("*")), "a checkpoint of broken weights was kept"


def test_method_without_training_is_refused(spec: RunSpec, run_loop: Run) -> None:
    with pytest.raises(FssError, match="nothing to train"):
        run_loop(spec.model_copy(update={"method": MethodConfig(name="prior", preset="debug")}), "prior")


def test_bf16_trains(spec: RunSpec, run_loop: Run) -> None:
    train = spec.train.model_copy(update={"precision": "bfloat16", "steps": 2})
    _, history = run_loop(spec.model_copy(update={"train": train}), "bf16")
    assert 0 < history.rows[-1]["loss"] < 100


def test_schedule() -> None:
    train = TrainConfig(steps=110, warmup=10, lr=1.0)
    assert [lr_at(s, train) for s in (0, 4, 9, 10, 60)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5])
    assert lr_at(109, train) < 0.001
    assert lr_at(60, train.model_copy(update={"schedule": "poly"})) == pytest.approx(0.5**0.9)
    assert lr_at(109, train.model_copy(update={"schedule": "constant"})) == 1.0


def test_name_depends_on_what_decides_the_result_alone(spec: RunSpec) -> None:
    watched = spec.model_copy(update={"train": spec.train.model_copy(update={"log_every": 7, "checkpoint_every": 1})})
    assert watched.name == spec.name
    assert spec.name.startswith("shapes-sansa-debug-f0-k1-s0-")
    faster = spec.model_copy(update={"train": spec.train.model_copy(update={"lr": 0.5})})
    rebuilt = spec.model_copy(update={"data_hash": "other"})
    refit = spec.model_copy(update={"fold": None})
    assert len({s.name for s in (spec, faster, rebuilt, refit)}) == 4


def test_labels_tell_methods_apart() -> None:
    a, b = MethodConfig(name="sansa", preset="debug"), MethodConfig(name="sansa")
    c = MethodConfig(name="sansa", config={"factor": 0.8})
    assert method_labels([a, MethodConfig(name="prior")]) == ["sansa", "prior"]
    labels = method_labels([a, b, c])
    assert labels[0] == "sansa-debug"
    assert labels[1].startswith("sansa-nano-")
    assert len(set(labels)) == 3
    one, two = (MethodConfig(name="fcp", config=dict(sorted({"train": "x", "match_dropout": 0}.items(), reverse=r)))
                for r in (False, True))
    assert one.key == two.key  # what a resumed sweep reads back is sorted


def test_photos_of_training_hold_no_test_photo_and_no_novel_class(shapes_shards: str) -> None:
    data = FoldData.open(shapes_shards, 0)
    shards = Shards(shapes_shards)
    by_sha = {r["sha256"][:16]: r for r in shards.rows.values()}
    kept, dropped = data.train_photos("keep"), data.train_photos("drop")
    assert dropped
    assert set(dropped) < set(kept)
    assert all(by_sha[p]["split"] == "train" for p in kept)
    assert not any(set(by_sha[p]["class_ids"]) & set(data.novel_ids) for p in dropped)


def test_shards_that_changed_since_the_plan_are_refused(shapes_shards: str, spec: RunSpec) -> None:
    with pytest.raises(FssError, match="the shards were changed after this run was planned"):
        FoldData.of(spec.model_copy(update={"data_hash": "other"}))
    mixture = [MixtureShare(shards=shapes_shards, data_hash="other", weight=0.5)]
    with pytest.raises(FssError, match="the shards were changed after this run was planned"):
        FoldData.of(spec).parts(spec.model_copy(update={"mixture": mixture}))


def test_a_stop_beyond_the_epochs_is_refused(shapes_shards: str) -> None:
    """The learning rate has no value there."""
    with pytest.raises(FssError, match=r"train.stop=500, but 2 epochs of \d+ photos are \d+ steps"):
        resolve_steps(TrainConfig(epochs=2, batch=8, stop=500), Shards(shapes_shards), 0)


def test_a_run_is_scored_where_one_of_its_workers_fits(spec: RunSpec) -> None:
    run = RunContext(spec=spec.model_copy(update={"train": spec.train.model_copy(update={"workers": 4})}), runs="runs",
                     cpus=4.0, gpus=2.0)
    assert run.worker_resources == {"cpus": 1.0, "gpus": 0.5}
    untrained = run.spec.model_copy(update={"method": MethodConfig(name="prior", preset="debug")})
    assert run.model_copy(update={"spec": untrained}).worker_resources == {"cpus": 4.0, "gpus": 2.0}


def test_stream_opens_only_the_photos_it_is_said_to(shapes_shards: str, spec: RunSpec) -> None:
    data = FoldData.open(shapes_shards, 0)
    said = set(data.train_photos("drop"))
    rows = data.shards.rows
    with data.stream(spec, position=None, rank=0, world=1) as stream:
        for _, samples in zip(range(40), stream, strict=False):
            opened = {s.image_id for one in samples for s in (*one.references, *one.targets)}
            assert {rows[i]["sha256"][:16] for i in opened} <= said


def test_what_killed_workers_left_is_cleared(tmp_path: Path) -> None:
    """Would catch a disk that fills up with every kill, and a checkpoint taken from under a running worker."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    left, own, other = (tmp_path / name for name in (f"fss-checkpoint-{gone.pid}-a", f"fss-checkpoint-{os.getpid()}-b",
                                                     "fss-checkpoint-x"))
    for folder in (left, own, other):
        folder.mkdir()
        (folder / "state").write_text("")
    clear_checkpoints(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([own, other])
