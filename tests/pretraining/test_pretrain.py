"""The pretraining run: it learns, resumes exactly after a kill, opens train photos only, and refuses what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fss_models.errors import FssError
from fss_models.pretraining.objective import ClipBatch, PretrainClips, PretrainModel, PretrainPrompt, pretrain_losses
from fss_models.pretraining.views import LabelledPhoto
from fss_models.sam2_core.build import build_sam2
from fss_models.sam2_core.core import Sam2Core
from fss_models.shipped.files import Provenance, find_weights
from infra.local.s3 import S3Server
from jobs.recipes import load_pretraining
from pipelines.base.storage import Store
from pipelines.base.tracking import tracking_uri
from pipelines.base.workspace import Workspace
from pipelines.config.data import DataConfig
from pipelines.data.shardset import Shards
from pipelines.pretraining.config import PretrainConfig
from pipelines.pretraining.run import run_pretraining
from pipelines.pretraining.scenes import Photos, Scenes
from pipelines.pretraining.task import PretrainRun, open_pretraining
from pipelines.sweeps.owner import own_workspace
from pipelines.training.loop import optimise
from pipelines.training.task import WorkerRank
from tests.fixtures.command import Fss
from tests.fixtures.training import KilledError
from tests.sweeps.faults import plant, struck

FSS = str(Path(sys.executable).parent / "fss")


def settings(data: DataConfig, out: Path) -> PretrainConfig:
    return PretrainConfig(data=[data], preset="debug", out=str(out), steps=6, clips=4, ring=6, fresh=1, warmup=1,
                          log_every=1, measure_every=6, checkpoint_every=2, precision="float32")


@pytest.fixture
def config(shapes_config: DataConfig, tmp_path: Path) -> PretrainConfig:
    return settings(shapes_config, tmp_path / "run")


@dataclass(frozen=True)
class Outcome:
    """A pretraining that ended, and the rows that it showed meanwhile."""

    config: PretrainConfig
    about: Provenance
    shown: list[dict[str, Any]]


@pytest.fixture(scope="module")
def trained(ray_cluster: object, shapes_config: DataConfig, shapes_shards: str,
            tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A pretraining through Ray, in a relative folder: Ray's workers have another working folder."""
    folder = tmp_path_factory.mktemp("trained")
    config, shown = settings(shapes_config, folder), []
    target = Path(Workspace(config.out).shards(shapes_config.name))
    target.parent.mkdir(parents=True)
    target.symlink_to(shapes_shards)
    with chdir(folder.parent):
        about = run_pretraining(config.model_copy(update={"out": folder.name}), shown.append)
    return Outcome(config, about, shown)


def train_here(config: PretrainConfig, shards: str, *, die_at: int = 0) -> Provenance:
    """A pretraining in this process, without Ray; `die_at` stops it right after that step."""
    torch.set_num_threads(1)
    folder = Path(config.out, "checkpoints")
    run = PretrainRun(spec=config, out=config.out, start=config.start, shards=(shards,), commit="", runs="")
    task = open_pretraining(run, WorkerRank())
    kept = sorted(folder.glob("*"), key=lambda p: int(p.name))

    def save(step: int, write: Callable[[Path], None]) -> None:
        (folder / str(step)).mkdir(parents=True)
        write(folder / str(step))

    def log_row(step: int, row: dict[str, float]) -> None:
        if step == die_at:
            raise KilledError

    history = optimise(task, worker=WorkerRank(), resume=kept[-1] if kept else None, save=save, log_row=log_row)
    about: Provenance = task.finish(history)
    return about


def _core() -> Sam2Core:
    torch.manual_seed(0)
    return Sam2Core(build_sam2("debug", weights="random", object_scores=True))


def _clips(core: Sam2Core, mark: PretrainPrompt) -> PretrainClips:
    """Two clips of three views with a bright square that moves."""
    pixels, masks = torch.zeros(6, 3, 64, 64), torch.zeros(2, 3, 64, 64)
    for clip in range(2):
        for view in range(3):
            at = slice(8 + 8 * view, 32 + 8 * view)
            pixels[clip * 3 + view, :, at, at] = 2.0
            masks[clip, view, at, at] = 1
    with torch.no_grad():
        stages = core.sam.image_encoder.trunk(pixels)
    points, labels = torch.full((2, 1, 2), 20.0), torch.ones(2, 1, dtype=torch.int32)
    return PretrainClips(stages=stages, masks=masks, mark=mark, points=None if mark == PretrainPrompt.MASK else points,
                         labels=None if mark == PretrainPrompt.MASK else labels)


def test_every_part_above_the_trunk_learns() -> None:
    core = _core()
    model = PretrainModel(core).train()
    groups = [_clips(core, mark) for mark in (PretrainPrompt.MASK, PretrainPrompt.POINTS)]
    torch.stack(list(model.losses(ClipBatch(groups)).values())).sum().backward()
    still = {n for n, p in core.sam.named_parameters() if p.requires_grad and p.grad is None}
    # positions of missing memories and the pointer of an absent object are SAM 2's own spares
    assert all("no_mem_pos_enc" in n or "no_obj_ptr" in n or "point_embeddings" in n or "not_a_point" in n
               or "no_mask_embed" in n for n in still), still
    assert all(p.grad is None for n, p in core.sam.named_parameters() if n.startswith("image_encoder.trunk."))


def test_what_is_tracked_depends_on_the_memory() -> None:
    """A loss that never read the memory would train a saliency detector."""
    core = _core().eval()
    clips = _clips(core, PretrainPrompt.MASK)
    moved = PretrainClips(stages=clips.stages, masks=clips.masks.clone(), mark=PretrainPrompt.MASK)
    moved.masks[:, 0] = torch.flip(moved.masks[:, 0], (-1,))
    with torch.no_grad():
        one, other = (pretrain_losses(core, c)["tracked"] for c in (clips, moved))
    assert abs(float(one - other)) > 1e-5


def test_a_killed_run_ends_with_the_same_weights(config: PretrainConfig, trained: Outcome, shapes_shards: str) -> None:
    """Bit-equal to one through Ray that was left alone; killed between two checkpoints."""
    with pytest.raises(KilledError):
        train_here(config, shapes_shards, die_at=5)
    assert [p.name for p in sorted(Path(config.out, "checkpoints").glob("*"))] == ["2", "4"]
    torch.manual_seed(99)
    assert train_here(config, shapes_shards).sha256 == trained.about.sha256


def test_the_weight_file_says_what_it_was_made_from(trained: Outcome, shapes_shards: str) -> None:
    about, folder = trained.about, Path(trained.config.out)
    state = load_file(folder / about.file)
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}
    assert not any(k.startswith("image_encoder.trunk.") for k in state)
    shards = Shards(shapes_shards)
    of = {split: {row["sha256"][:16] for row in shards.images(split)} for split in ("train", "test")}
    assert set(about.photos) <= of["train"]
    assert not set(about.photos) & of["test"]
    assert {"iou_box", "iou_tracked", "iou_copied"} <= about.quality.keys()
    found = find_weights("debug", folder)
    assert found
    assert found.provenance == about
    assert found.verified()


def test_a_run_is_tracked_and_shown(trained: Outcome) -> None:
    """Fails if a row is lost, comes twice, or the held-out figures are not measured when they should be."""
    assert all(row["loss"] > 0 for row in trained.shown)
    assert trained.shown[-1]["step"] == 6
    assert trained.shown[-1]["iou_tracked"] == trained.about.quality["iou_tracked"]
    rows = Store(Workspace(trained.config.out).run("nano_pretrain")).read_json("history.json")
    assert [r["step"] for r in rows if "iou_box" in r] == [6]
    _check_tracked(tracking_uri(trained.config.out), trained.config, trained.about, rows)


def _check_tracked(uri: str, config: PretrainConfig, about: Provenance, rows: list[dict[str, float]]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(config.name).experiment_id])
    (run,) = (r for r in found if r.data.tags["fss.run"] == config.key)
    assert run.data.tags["fss.weights"] == about.sha256
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(r["step"], r["loss"]) for r in rows]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "iou_box")] == [config.steps]


def test_a_finished_run_is_not_trained_again(trained: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started for it, nor for one whose settings are not those of its last checkpoint."""
    monkeypatch.setattr("pipelines.pretraining.run.cluster", _never)
    assert run_pretraining(trained.config, _never) == trained.about
    other = trained.config.model_copy(update={"lr": 0.5, "clips": 8})
    with pytest.raises(FssError, match=r"the checkpoint is of other settings \(clips, lr\)"):
        run_pretraining(other, _never)
    weights = Path(trained.config.out, trained.about.file)
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1])
    with pytest.raises(AssertionError):  # a torn file is written again
        run_pretraining(trained.config, _never)
    weights.write_bytes(kept)


def _never(*given: Any) -> Any:
    raise AssertionError(given)


def test_hidden_classes_lend_no_objects(shapes_shards: str) -> None:
    shards = Shards(shapes_shards)
    name = shards.manifest.classes[0].name
    whole, less = Photos([shards]), Photos([shards], hide=[name])

    def objects(photos: Photos) -> int:
        return sum(len(photos.read(i).masks) for i in range(len(photos)))

    assert objects(less) < objects(whole)
    with pytest.raises(FssError, match="has a class 'unicorn'"):
        Photos([shards], hide=["unicorn"])


def test_mistakes_are_named(config: PretrainConfig, ray_cluster: object, shapes_shards: str, tmp_path: Path) -> None:
    save_file({"unknown": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(FssError, match=r"^\S*wrong\.safetensors"):
        train_here(config.model_copy(update={"start": str(tmp_path / "wrong.safetensors")}), shapes_shards)
    with pytest.raises(FssError, match="device=cuda, but the cluster has no GPU"):
        run_pretraining(config.model_copy(update={"device": "cuda"}), _never)
    with pytest.raises(FssError, match=r"not finite at step \d .* \(lower lr or clip_norm, or use precision=float32\)"):
        train_here(config.model_copy(update={"lr": 1e30, "warmup": 0}), shapes_shards)
    (Path(config.out) / "checkpoint").mkdir(parents=True)
    (Path(config.out) / "checkpoint" / "about.json").write_text("{}")
    with pytest.raises(FssError, match="is a checkpoint of an earlier version of fss"):
        run_pretraining(config, _never)


def test_photos_whose_objects_are_all_too_small_end_it(config: PretrainConfig) -> None:
    """They were looked through for ever."""
    empty = LabelledPhoto(pixels=np.zeros((8, 8, 3), np.uint8), masks=np.zeros((0, 8, 8), bool))
    full = LabelledPhoto(pixels=empty.pixels, masks=np.ones((1, 8, 8), bool))
    encode: Any = SimpleNamespace(side=8)
    with pytest.raises(FssError, match="none of 3 photos has an object"):
        Scenes(lambda index: empty, [0, 1, 2], config, encode).views(0)
    assert Scenes(lambda index: full if index == 2 else empty, [0, 1, 2], config, encode).views(0)


def test_one_pretraining_at_a_time(config: PretrainConfig, fss: Fss) -> None:
    with own_workspace(config.out):
        done = fss("pretrain", "--out", config.out)
    assert done.returncode == 2
    assert "a sweep, search or pretraining is under way here" in done.stderr


@pytest.mark.slow
def test_killed_in_a_bucket_and_run_again(config: PretrainConfig, shapes_shards: str, s3_server: S3Server,
                                          tmp_path: Path) -> None:
    """SIGKILL of the worker in the middle, then the same command: weights, rows and MLflow as if left alone."""
    config = config.model_copy(update={"steps": 40, "checkpoint_every": 4, "measure_every": 40, "retries": 0})
    whole = train_here(config, shapes_shards)
    out = f"{s3_server.url}/pretrained"
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(config.model_copy(update={"out": out}).model_dump(mode="json")))
    command = [FSS, "pretrain", "--recipe", str(file), "--json"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"FSS_CACHE": str(tmp_path / "cache")}
    fault = plant(tmp_path / "fault", "pipelines.training.loop._step", call=38)

    killed = subprocess.run(command, env=env | fault, capture_output=True, text=True, timeout=300)
    assert struck(tmp_path / "fault")
    assert killed.returncode == 2
    assert "Traceback" not in killed.stderr
    run = Store(Workspace(out).run("nano_pretrain"))
    last = run.read_json("checkpoint_manager_snapshot.json")["latest_checkpoint_result"]["checkpoint_dir_name"]
    before = run.read_json(f"{last}/history.json")
    assert not Store(out).exists("debug.json")

    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-2000:]
    assert json.loads(again.stdout)["sha256"] == whole.sha256
    assert hashlib.sha256(Store(out).read_bytes("debug.safetensors")).hexdigest() == whole.sha256
    rows = run.read_json("history.json")
    assert rows[:len(before)] == before, "times differ: it began anew instead of going on"
    losses = [r["loss"] for r in Store(config.out).read_json("checkpoints/40/history.json")]
    assert [r["loss"] for r in rows] == losses
    (database,) = (tmp_path / "cache" / "mlflow").glob("*/mlflow.db")
    _check_tracked(f"sqlite:///{database}", config, whole, rows)
    assert not Path(out).exists()


def test_recipes_of_pretraining_load() -> None:
    assert load_pretraining("nano_pretrain").preset == "nano"
    with pytest.raises(FssError, match="did you mean 'absent'"):
        load_pretraining("nano_pretrain", ["absnt=3"])
