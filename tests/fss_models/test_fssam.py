"""FSSAM's own properties: shots, ablations, what is trained, official checkpoints, the published sampler and resize."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fss_models import registry
from fss_models.clip import Clip, Features, Memory, Prompt, PromptKind
from fss_models.errors import FssError
from fss_models.methods.fssam import official, ops
from fss_models.methods.fssam.attention import PairMemory, attend
from fss_models.methods.fssam.config import FssamConfig
from fss_models.methods.fssam.model import Fssam
from fss_models.methods.fssam.prior import prior_masks, prior_prototypes
from fss_models.official import load_official, official_state
from fss_models.opencv_augmentation import SemsegAugmentation
from fss_models.opencv_resize import OpenCvPreprocessor, linear, nearest
from fss_models.optimisation import poly_rate
from fss_models.prompts import collate, mask_prompt
from fss_models.worker_episodes import IndexedEpisode, draw_episode, published_episodes

HEIGHT, WIDTH = 50, 70


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[10:30, 5 + seed:35 + seed] = (220, 60, 30)
    return image


def box_mask(shift: int = 0) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:30, 5 + shift:35 + shift] = True
    return mask


def debug(**config: Any) -> Fssam:
    model = registry.build("fssam", "debug", config).eval()
    assert isinstance(model, Fssam)
    return model


def episode(model: Fssam, shots: list[int], query: int = 9) -> tuple[Memory, Features]:
    """The supports `shots` (picture numbers) remembered, the query the only image."""
    support = model.encode(model.prepare([picture(i) for i in shots]))
    prompts = collate([[mask_prompt(box_mask(i)) for i in shots]], support.sizes, model.side)
    return model.memorise(support, prompts), model.encode(model.prepare([picture(query)]))


@torch.no_grad()
def logits_of(model: Fssam, shots: list[int]) -> Tensor:
    memory, features = episode(model, shots)
    return model.segment(memory, features, torch.tensor([[0, 0]])).logits[0]


# operations


def test_an_empty_mask_gives_empty_priors_and_the_no_object_pointer() -> None:
    features, masks = torch.randn(2, 6, 9, 9), torch.zeros(2, 18, 18)
    prototypes = prior_prototypes(features, masks)
    assert torch.equal(prototypes[:, 0], torch.zeros(2, 6))
    shots = prior_masks(torch.randn(2, 6, 9, 9), prototypes[:, None], 18)
    assert all(torch.equal(m, torch.zeros(2, 18, 18)) for m in (shots.foreground[:, 0], shots.difference[:, 0]))
    model = debug()
    maps = model.encode(model.prepare([picture(0), picture(1)])).maps
    assert torch.equal(model.core.pointers(maps, torch.zeros(2, 64, 64)), model.core.sam.no_obj_ptr.expand(2, -1))


def test_priors_are_soft_and_average_over_shots() -> None:
    support, query = torch.randn(3, 5, 8, 8), torch.randn(1, 5, 8, 8)
    masks = (torch.rand(3, 16, 16) > 0.5).float()
    prototypes = prior_prototypes(support, masks)
    together = prior_masks(query, prototypes[None], 16)
    alone = [prior_masks(query, prototypes[None, i:i + 1], 16) for i in range(3)]
    fg, ae = together.mean()
    torch.testing.assert_close(fg, torch.stack([a.mean()[0] for a in alone]).mean(dim=0))
    torch.testing.assert_close(ae, torch.stack([a.mean()[1] for a in alone]).mean(dim=0))
    assert 0 <= float(fg.min()) < float(fg.max()) <= 1
    assert ((fg > 0) & (fg < 1)).float().mean() > 0.9


def test_dice_by_hand() -> None:
    logits = torch.tensor([[[30.0, -30.0]], [[-30.0, -30.0]]])
    targets = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]])
    valid = torch.ones_like(targets)
    assert ops.squared_dice(logits, targets, valid).item() == pytest.approx(((1 - 2 / 3) + 1) / 2)
    valid[0, 0, 1] = 0
    assert ops.squared_dice(logits[:1], targets[:1], valid[:1]).item() == pytest.approx(0)


# shots


def test_one_shot_is_the_same_in_both_readings_and_several_are_not() -> None:
    for shots, same in (([1], True), ([1, 4, 7], False)):
        repaired, released = (logits_of(debug(k_shot=k), shots) for k in ("repaired", "released"))
        assert torch.equal(repaired, released) == same


def test_the_order_of_shots_matters_only_as_released() -> None:
    for k_shot, same in (("repaired", True), ("released", False)):
        one, other = (logits_of(debug(k_shot=k_shot), shots) for shots in ([1, 4, 7], [7, 1, 4]))
        assert torch.allclose(one, other, atol=1e-5) == same


@torch.no_grad()
def test_sixteen_queries_of_one_memory_equal_sixteen_episodes() -> None:
    model = debug()
    memory, _ = episode(model, [1, 4])
    queries = model.encode(model.prepare([picture(i) for i in range(16)]))
    pairs = torch.stack([torch.zeros(16, dtype=torch.int64), torch.arange(16)], dim=1)
    together = model.segment(memory, queries, pairs).logits
    for i in range(16):
        one, features = episode(model, [1, 4], query=i)
        alone = model.segment(one, features, torch.tensor([[0, 0]])).logits[0]
        torch.testing.assert_close(alone, together[i], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_box_is_a_filled_mask_and_points_are_refused() -> None:
    model = debug()
    features = model.encode(model.prepare([picture(0), picture(1)]))
    box = Prompt(kind=PromptKind.BOX, box=torch.tensor([5.0, 10.0, 35.0, 30.0]))
    found = [model.memorise(features, collate([[p]], features.sizes[:1], model.side)).tensors
             for p in (box, mask_prompt(box_mask()))]
    for key in found[0]:
        torch.testing.assert_close(found[0][key], found[1][key], rtol=0.1, atol=0.1)  # edges round differently
    point = Prompt(kind=PromptKind.POINTS, points=torch.tensor([[20.0, 20.0]]))
    with pytest.raises(FssError, match="masks and boxes only"):
        model.memorise(features, collate([[point]], features.sizes[:1], model.side))


# ablations


def test_every_ablation_changes_the_answer() -> None:
    settings = [{}, {"num_refine": 0}, {"num_refine": 1}, {"scma": False}, {"num_refine": 0, "scma": False},
                {"ppg": False, "num_refine": 0, "scma": False}, {"prior_logits": 1.0}]
    found = [logits_of(debug(**s), [1, 4]) for s in settings]
    for one, other in pairwise(found):
        assert not torch.allclose(one, other, atol=1e-7)
    assert all(bool(x.isfinite().all()) for x in found)


@torch.no_grad()
def test_prior_logits_are_added_to_the_masks_logits_at_their_weight() -> None:
    plain, half, whole = (logits_of(debug(prior_logits=w), [1, 4]) for w in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half - plain, (whole - plain) / 2)
    assert 1 < (whole - plain).abs().max() <= 20  # cosines differ by 2 at most


def test_contradicting_settings_are_one_clear_line() -> None:
    for config, word in (({"ppg": False}, "query memory"), ({"num_refine": -1}, "num_refine"), ({"side": 72}, "32"),
                         ({"prior_weights": "x.pth"}, "no DINOv2"), ({"prior_logits": -1.0}, "prior_logits is -1"),
                         ({"ppg": False, "num_refine": 0, "scma": False, "prior_logits": 1.0}, "ppg false")):
        with pytest.raises(FssError, match=word):
            debug(**config)


@torch.no_grad()
def test_without_calibration_it_is_sam2s_own_memory_attention() -> None:
    model = debug(scma=False)
    attention = model.core.sam.memory_attention
    start, held = torch.randn(2, 16, 32), torch.randn(1, 3, 16, 8)
    memory = PairMemory(supports=held, rows=torch.tensor([0, 0]), query=torch.randn(2, 16, 8),
                        pointers=torch.randn(2, 8, 8), position=torch.randn(16, 8), prototypes=None)
    assert memory.query is not None
    tokens = torch.cat([held.expand(2, -1, -1, -1).flatten(1, 2), memory.query, memory.pointers], dim=1)
    places = torch.cat([memory.position.repeat(4, 1), torch.zeros(8, 8)])[None].expand(2, -1, -1)
    right = attention(curr=start.transpose(0, 1), curr_pos=torch.zeros(16, 2, 32), memory=tokens.transpose(0, 1),
                      memory_pos=places.transpose(0, 1), num_obj_ptr_tokens=8)
    torch.testing.assert_close(attend(attention, start, memory), right.transpose(0, 1))
    zero = torch.zeros(2, 1, 3, 32)  # prototypes unlike every key: the full bias where attention is low
    assert not torch.allclose(attend(attention, start, replace(memory, prototypes=zero)), right.transpose(0, 1))


def test_other_sides_and_bfloat16() -> None:
    plain = logits_of(debug(), [1])
    assert logits_of(debug(side=96), [1]).shape == (96, 96)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = logits_of(debug(), [1])
    assert rounded.dtype == torch.float32
    assert float((rounded - plain).abs().max()) < 0.1 * float(plain.abs().max())


# training


def clip_for(model: Fssam, void: bool = False) -> Clip:
    masks = torch.zeros(2, 1, model.side, model.side)
    masks[:, :, 10:30, 10:40] = 1
    prompts = collate([[mask_prompt(box_mask(i))] for i in (0, 1)], torch.tensor([[HEIGHT, WIDTH]] * 2), model.side)
    ignore = torch.zeros_like(masks, dtype=torch.bool)
    ignore[:, :, :20] = void
    return Clip(references=model.prepare([picture(0), picture(1)]), prompts=prompts, target_masks=masks, ignore=ignore,
                targets=model.prepare([picture(5), picture(6)]))


@pytest.mark.parametrize("mode", ["published", "reached", "all_but_trunk"])
def test_what_gets_a_gradient(mode: str) -> None:
    model = debug(train=mode).train()
    torch.stack(list(model.losses(clip_for(model)).values())).sum().backward()
    named = {n.removeprefix("core.sam."): p for n, p in model.named_parameters()}
    without = {n for n, p in named.items() if p.requires_grad and p.grad is None}
    assert all(p.grad is None for p in named.values() if not p.requires_grad)
    neck = named["image_encoder.neck.convs.0.conv.weight"].grad
    if mode == "all_but_trunk":
        assert neck is not None
        assert not any(n.startswith("sam_mask_decoder.conv_s") for n in without)
    else:
        assert neck is None
        assert len(without) == (16 if mode == "published" else 0)


@pytest.mark.parametrize("mode", ["published", "all_but_trunk"])
def test_kept_frozen_features_give_the_same_loss_and_gradients(mode: str) -> None:
    model = debug(train=mode)
    clip = clip_for(model)
    kept = model.encode_frozen(clip.images)
    assert not any(v.requires_grad for v in kept.maps.values())
    found = []
    for one in (clip, replace(clip, frozen=kept)):
        model.zero_grad()
        loss = torch.stack(list(model.losses(one).values())).sum()
        loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), {n: g.clone() for n, g in grads.items()}))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    inside = {id(p) for part in model.frozen_part() for p in part.parameters()}
    assert not inside & {id(p) for p in model.parameters() if p.grad is not None}


@pytest.mark.parametrize("scma", [True, False])
def test_training_goes_on_after_an_evaluation(scma: bool) -> None:
    """The package caches rotary tables at first use; made under inference mode they would stop the backward pass."""
    model = debug(scma=scma)
    for layer in model.core.sam.memory_attention.layers:
        for attn in (layer.self_attn, layer.cross_attn_image):
            attn.freqs_cis = attn.compute_cis(end_x=64, end_y=64)  # of another side, as SAM 2's files have them
    with torch.inference_mode():
        logits_of(model, [1])
    torch.stack(list(model.train().losses(clip_for(model)).values())).sum().backward()
    assert model.core.sam.memory_attention.layers[0].self_attn.q_proj.weight.grad is not None


def test_void_is_background_as_published_or_ignored() -> None:
    losses = {}
    for void in ("background", "ignored"):
        model = debug(train="published", void=void)
        losses[void] = [model.losses(clip_for(model, v))["dice"].item() for v in (False, True)]
    assert losses["background"][0] == losses["ignored"][0]
    assert len({losses["background"][1], losses["ignored"][1], losses["ignored"][0]}) == 3


def test_auto_trains_everything_outside_the_trunk_where_nothing_was_trained() -> None:
    assert debug().train_mode == "all_but_trunk"
    assert debug().untrained
    names = debug().trainable_names()
    assert "core.sam.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix" in names
    assert not any("trunk" in n for n in names)


# official checkpoints


@pytest.fixture(scope="module")
def small() -> Fssam:
    return Fssam(preset="small", config=FssamConfig(train="published"))


def test_parameters_at_small(small: Fssam) -> None:
    """The official code's counts."""
    def count(module: Any) -> int:
        return sum(p.numel() for p in module.parameters())

    sam = small.core.sam
    assert (count(sam), count(sam.image_encoder)) == (46_043_842, 34_316_992)
    assert (count(sam.sam_mask_decoder), count(sam.memory_encoder)) == (4_215_109, 1_384_608)
    assert count(sam.memory_attention) == 5_922_304
    assert count(small.prior) + small.prior.mask_token.numel() == 86_580_480
    for mode, number in (("published", 11_522_021), ("reached", 11_232_896)):
        small.config = replace(small.config, train=mode)
        small.set_trainable()
        assert sum(p.numel() for p in small.parameters() if p.requires_grad) == number
    assert (small.side, sam.image_size, sam.sam_prompt_encoder.mask_input_size) == (512, 512, (128, 128))


def test_an_official_checkpoint_goes_in_and_out(small: Fssam, tmp_path: Path) -> None:
    state = {k: v + 0.01 for k, v in official.write(small).items()}
    assert len(state) == 691
    file = tmp_path / "best_1shot.pth"
    torch.save({"epoch": 12.5, "state_dict": {f"module.{k}": v for k, v in state.items()}}, file)
    model = load_official("fssam", "small", str(file), weights=str(file))
    file.unlink()  # half a gigabyte
    assert isinstance(model, Fssam)
    assert model.train_mode == "published"
    assert not model.untrained
    assert list(model.frozen_weights()) == ["dinov2_base"]
    back = official_state(model)
    assert back.keys() == state.keys()
    assert [k for k in back if not torch.equal(back[k], state[k])] == []


def test_a_wrong_official_checkpoint_names_its_first_wrong_key(small: Fssam) -> None:
    state = {k: v.detach() for k, v in official.write(small).items()}
    cases = [({k: v for k, v in state.items() if k != "sam2.no_obj_ptr"}, "small", "lacks 'sam2.no_obj_ptr'"),
             (state | {"sam2.extra": torch.zeros(1)}, "small", r"unknown 'sam2\.extra'"),
             (state | {"sam2.no_obj_ptr": torch.zeros(2)}, "small", r"'sam2\.no_obj_ptr' has shape \(2,\)"),
             (state, "nano", "no official checkpoints"), ({"a": torch.zeros(1)}, "small", "dino.cls_token"),
             (state, "tiny", r"lacks 'sam2\.image_encoder\.trunk.*of SAM 2 tiny")]
    for given, preset, line in cases:
        with pytest.raises(FssError, match=line):
            official.read(given, preset)


# the published sampler, resize and augmentation


def test_episodes_depend_on_the_workers_and_never_show_the_query() -> None:
    present = [[1, 2], [1], [2], [1, 2], [2], [1]]
    pools = {1: [0, 1, 3, 5], 2: [0, 2, 3, 4]}
    drawn = {w: published_episodes(present, pools, 3, episodes=40, workers=w) for w in (1, 2)}
    assert drawn[1] == published_episodes(present, pools, 3, episodes=40, workers=1)
    assert drawn[1] != drawn[2]
    for one in drawn[1]:
        assert one.query not in one.supports
        assert len(set(one.supports)) == 3
        assert one.class_id in present[one.query]
        assert set(one.supports) <= set(pools[one.class_id])
    assert [d.query for d in drawn[1]][:8] == [0, 1, 2, 3, 4, 5, 0, 1]


def test_the_last_drawn_support_comes_first_and_small_pools_are_refused() -> None:
    class Script(random.Random):
        def __init__(self, values: list[int]) -> None:
            super().__init__()
            self.values = values

        def randint(self, a: int, b: int) -> int:
            return self.values.pop(0)

    # class 1; per shot: a draw thrown away, then the query refused, or an image used before refused
    rng = Script([1, 4, 1, 2, 3, 2, 3])
    wanted = IndexedEpisode(query=10, class_id=7, supports=(12, 11))
    assert draw_episode(rng, 10, [7], {7: [10, 11, 12, 13]}, 2) == wanted
    with pytest.raises(FssError, match="too few"):
        published_episodes([[1]], {1: [0, 1]}, 2)
    with pytest.raises(FssError, match="no class"):
        published_episodes([[]], {}, 1)


def test_resizing_is_opencvs() -> None:
    ramp = np.tile(np.arange(8, dtype=np.float32)[None, :, None], (8, 1, 1)) * 10
    assert linear(ramp, (4, 4))[0, :, 0].tolist() == [5, 25, 45, 65]
    assert linear(ramp, (8, 16))[0, :3, 0].tolist() == [0, 2.5, 7.5]
    assert nearest(np.arange(10)[None].repeat(10, 0), (10, 4))[0].tolist() == [0, 2, 5, 7]
    half = np.arange(10)[None].repeat(10, 0) == 2
    assert OpenCvPreprocessor(side=4).mask(half)[0].tolist() == [0, 1, 0, 0]


def test_augmentation_keeps_the_object_and_its_labels() -> None:
    image, label = np.full((60, 40, 3), 90, np.float32), np.zeros((60, 40), np.uint8)
    label[20:30, 10:30], label[:2] = 1, 255
    image[label == 1] = 200
    for seed in range(20):
        made, marked = SemsegAugmentation(crop=48, scale=(0.8, 1.25))(image, label, random.Random(seed))
        assert (made.shape, marked.shape) == ((48, 48, 3), (48, 48))
        assert set(np.unique(marked)) <= {0, 1, 255}
        assert made[marked == 1].mean() > 170
        assert np.median(made[marked == 0]) == pytest.approx(90, abs=0.01)


def test_the_learning_rate_falls_to_zero() -> None:
    rates = [poly_rate(i, 100) for i in range(1, 101)]
    assert rates[0] == pytest.approx(1e-3 * 0.99**0.9)
    assert rates[-1] == 0
    assert all(a > b for a, b in pairwise(rates))
