"""The pretraining run: it learns, resumes exactly after a kill, opens train photos only, and refuses what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fss_models.errors import FssError
from fss_models.pretraining.objective import PretrainClips, PretrainPrompt, pretrain_losses, train_all_but_trunk
from fss_models.sam2_core.build import build_sam2
from fss_models.sam2_core.core import Sam2Core
from jobs.recipes import load_pretraining
from pipelines.config.data import DataConfig
from pipelines.data.shardset import Shards
from pipelines.pretraining.config import PretrainConfig
from pipelines.pretraining.run import run_pretraining
from pipelines.pretraining.scenes import Photos


@pytest.fixture
def config(shapes_config: DataConfig, tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(data=[shapes_config], preset="debug", out=str(tmp_path / "run"), steps=6, clips=4, ring=6,
                          fresh=1, warmup=1, log_every=1, measure_every=6, checkpoint_every=2, precision="fp32")


def _quiet(row: dict[str, float]) -> None:
    assert row["loss"] > 0


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
    core = _core().train()
    train_all_but_trunk(core)
    for mark in (PretrainPrompt.MASK, PretrainPrompt.POINTS):
        torch.stack(list(pretrain_losses(core, _clips(core, mark)).values())).sum().backward()
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


def test_a_killed_run_ends_with_the_same_weights(config: PretrainConfig, tmp_path: Path) -> None:
    whole = run_pretraining(config, _quiet)

    class KilledError(Exception):
        pass

    def stop(row: dict[str, float]) -> None:
        if row["step"] == 5:
            raise KilledError

    second = config.model_copy(update={"out": str(tmp_path / "second")})
    with pytest.raises(KilledError):
        run_pretraining(second, stop)
    about = json.loads((tmp_path / "second" / "checkpoint" / "about.json").read_text())
    assert about["step"] == 4
    assert run_pretraining(second, _quiet).sha256 == whole.sha256


def test_the_weight_file_says_what_it_was_made_from(config: PretrainConfig) -> None:
    about = run_pretraining(config, _quiet)
    state = load_file(Path(config.out) / about.file)
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}
    assert not any(k.startswith("image_encoder.trunk.") for k in state)
    shards = Shards(str(Path(config.out) / "shards" / config.data[0].name))
    of = {split: {row["sha256"][:16] for row in shards.images(split)} for split in ("train", "test")}
    assert set(about.photos) <= of["train"]
    assert not set(about.photos) & of["test"]
    assert {"iou_box", "iou_tracked", "iou_copied"} <= about.quality.keys()


def test_hidden_classes_lend_no_objects(config: PretrainConfig) -> None:
    run_pretraining(config.model_copy(update={"steps": 1}), _quiet)
    shards = Shards(str(Path(config.out) / "shards" / config.data[0].name))
    name = shards.manifest.classes[0].name
    whole, less = Photos([shards]), Photos([shards], hide=[name])

    def objects(photos: Photos) -> int:
        return sum(len(photos.read(i).masks) for i in range(len(photos)))

    assert objects(less) < objects(whole)
    with pytest.raises(FssError, match="has a class 'unicorn'"):
        Photos([shards], hide=["unicorn"])


@pytest.mark.parametrize(("change", "word"), [({"lr": 0.5}, "lr"), ({"clips": 8}, "clips")])
def test_another_runs_checkpoint_is_refused(config: PretrainConfig, change: dict[str, Any], word: str) -> None:
    run_pretraining(config.model_copy(update={"steps": 2}), _quiet)
    with pytest.raises(FssError, match=word):
        run_pretraining(config.model_copy(update={"steps": 2, **change}), _quiet)


def test_a_start_that_does_not_fit_is_refused(config: PretrainConfig, tmp_path: Path) -> None:
    save_file({"unknown": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(FssError, match=r"wrong\.safetensors"):
        run_pretraining(config.model_copy(update={"start": str(tmp_path / "wrong.safetensors")}), _quiet)


def test_recipes_of_pretraining_load() -> None:
    assert load_pretraining("nano_pretrain").preset == "nano"
    with pytest.raises(FssError, match="did you mean 'absent'"):
        load_pretraining("nano_pretrain", ["absnt=3"])
