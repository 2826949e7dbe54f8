"""Two workers are one with the doubled batch; a loop killed anywhere ends as one left alone. Real processes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fss_models import registry
from pipelines.base.storage import Store
from pipelines.config.method import MethodConfig
from pipelines.config.run import RunSpec
from pipelines.data.folds import FoldData
from pipelines.training.context import RunContext
from pipelines.training.loop import fit
from pipelines.training.task import WorkerRank
from tests.sweeps.faults import befall, plant, struck

STEPS = 3
WITHOUT_DROPOUT = {  # each worker draws its own
    "sansa": {"memory_dropout": False},
    "fcp": {"feature_dropout": 0.0, "attention_dropout": 0.0, "match_dropout": 0.0},
}


def train_part(rank: int, world: int, folder: str, spec_json: str, stop: int = 0, resume: bool = False) -> None:
    """One worker of `world`: a few steps, the gradients of each and the last checkpoint written to the folder."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    spec = RunSpec.model_validate_json(spec_json)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    model = registry.build(spec.method.name, spec.method.preset, spec.method.config, seed=spec.seed)
    data = FoldData.of(spec)
    found: dict[str, torch.Tensor] = {}

    def keep(step: int, trained: torch.nn.Module) -> None:
        for name, p in trained.named_parameters():
            if p.grad is not None:
                found[f"{step}/{name}"] = p.grad.clone()

    kept = Path(folder, "checkpoint")
    kept.mkdir(exist_ok=True)
    fit(spec, model, worker=WorkerRank(rank=rank, world=world), resume=kept if resume else None, on_step=keep,
        stop=stop, save=lambda step, write: write(kept),
        open_stream=lambda position: data.stream(spec, position=position, rank=rank, world=world),
        log_row=lambda step, row: None)
    torch.save(found, f"{folder}/world{world}-rank{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def still(spec: RunSpec, method: str) -> RunSpec:
    """The spec without flips and dropout, which each worker draws for itself, and clipping, which hides a factor.

    The rate is small, since AdamW makes whole steps of the rounding of gradients that are nearly 0.
    """
    train = spec.train.model_copy(update={"steps": STEPS, "batch": 8, "flip": False, "clip_norm": 0.0, "lr": 1e-5,
                                          "checkpoint_every": STEPS, "log_every": STEPS})
    return spec.model_copy(update={"train": train, "method": MethodConfig(name=method, preset="debug",
                                                                          config=WITHOUT_DROPOUT[method])})


@pytest.mark.parametrize("method", WITHOUT_DROPOUT)
def test_two_workers_are_one_with_the_doubled_batch(spec: RunSpec, tmp_path: Path, method: str) -> None:
    """Gradients of every step to 1e-5: fails if losses are summed over clips, or workers see each other's clips."""
    one = still(spec, method)
    train_part(0, 1, str(tmp_path), one.model_dump_json())
    two_workers(one, tmp_path)
    whole, left, right = (gradients(tmp_path, *place) for place in ((1, 0), (2, 0), (2, 1)))
    assert len(whole) > STEPS
    assert any(g.abs().max() > 1e-4 for g in whole.values()), "gradients too small to tell"
    for name, want in whole.items():
        assert torch.equal(left[name], right[name])
        assert torch.allclose(left[name], want, atol=1e-5, rtol=1e-4), name


def test_a_run_goes_on_with_fewer_workers(spec: RunSpec, tmp_path: Path) -> None:
    """Elastic: two workers' checkpoint, then one worker. Fails if a clip is left out or comes again."""
    one = still(spec, "sansa")
    train_part(0, 1, str(tmp_path), one.model_dump_json())
    whole = gradients(tmp_path, 1, 0)
    two_workers(one, tmp_path, stop=STEPS - 1)
    train_part(0, 1, str(tmp_path), one.model_dump_json(), resume=True)
    later = gradients(tmp_path, 1, 0)
    assert {name.split("/")[0] for name in later} == {str(STEPS)}
    for name, found in later.items():
        assert torch.allclose(found, whole[name], atol=1e-5, rtol=1e-4), name


def two_workers(spec: RunSpec, folder: Path, *, stop: int = 0) -> None:
    given = (2, str(folder), spec.model_dump_json(), stop)
    parts = [processes().Process(target=train_part, args=(rank, *given)) for rank in range(2)]
    for p in parts:
        p.start()
    for p in parts:
        p.join(800)
        assert p.exitcode == 0


def processes() -> Any:
    """Makes processes for which torch is imported once."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def gradients(folder: Path, world: int, rank: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / f"world{world}-rank{rank}.pt", weights_only=True)
    return found


def train_loop(spec_json: str, runs: str, fault: str = "") -> None:
    """A run of the loop in this process, with the fault of that folder."""
    if fault:
        befall(Path(fault))
    from tests.evaluation.test_steps import Runner  # behind the fault, which it is to meet

    torch.set_num_threads(1)
    Runner().train(RunContext(spec=RunSpec.model_validate_json(spec_json), runs=runs))


FAULTS = {
    "forward": ("pipelines.training.loop._step", 5),
    "half a checkpoint": ("pipelines.training.state.save_file", 2),
    "after the last checkpoint": ("pipelines.training.worker.write_bundle", 1),
}


@pytest.mark.parametrize("settings", [
    pytest.param({}, id="plain"),
    pytest.param({"precision": "bfloat16", "accumulate": 2, "compile": True}, id="all at once", marks=pytest.mark.slow),
])
def test_a_loop_killed_anywhere_ends_as_one_left_alone(spec: RunSpec, tmp_path: Path, settings: dict[str, Any]) -> None:
    """SIGKILL of the process itself; the torn checkpoint of a kill while saving is not the one resumed from."""
    one = spec.model_copy(update={"train": spec.train.model_copy(
        update={"steps": 7, "checkpoint_every": 3, **settings})})

    def train(runs: str, fault: Path | str = "") -> int | None:
        child = processes().Process(target=train_loop, args=(one.model_dump_json(), str(tmp_path / runs), str(fault)))
        child.start()
        child.join(800)
        return child.exitcode

    def ended(runs: str) -> tuple[str, list[float]]:
        run = Store(str(tmp_path / runs / one.name))
        losses = [row["loss"] for row in run.read_json("history.json")]
        return run.read_json("bundle/bundle.json")["tensors_sha256"], losses

    assert train("whole") == 0
    for where, (function, call) in FAULTS.items():
        fault = tmp_path / f"fault {where}"
        plant(fault, function, call=call)
        assert train(where, fault) == -signal.SIGKILL
        assert struck(fault)
        _drop_torn(tmp_path / where / one.name)
        assert train(where, fault) == 0
        assert ended(where) == ended("whole"), where


def _drop_torn(run: Path) -> None:
    """As Ray Train does: a checkpoint that was not acknowledged is none."""
    for folder in run.glob("checkpoint-*"):
        if not (folder / "about.json").exists():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
