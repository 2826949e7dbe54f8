"""VRP-SAM beyond its golden cases: marks of four kinds, simulated marks, K shots, checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fss_models import registry
from fss_models.clip import Prompt, PromptBatch, PromptKind
from fss_models.errors import FssError
from fss_models.methods.vrp_sam import official
from fss_models.methods.vrp_sam.encoder import VrpEncoder
from fss_models.methods.vrp_sam.simulate import RandomStreams, box_marks, draw_marks, simulate_marks
from fss_models.official import load_official
from fss_models.preprocess import FloorMasks
from fss_models.prior_guided.marks import grid_masks, mark_masks
from fss_models.prior_guided.pairs import clip_pairs
from fss_models.prototype_prompts.official import empty_backbone, rename
from tests.fss_models.prompting import drawn_clip, small_vit, tiny_model
from tests.fss_models.shared_folder import GOLDEN, needs_golden

SIDE = 64


def full_encoder(backbone: str) -> VrpEncoder:
    return VrpEncoder(tokens=50, channels=sum(empty_backbone(backbone).channels[:2]), width=256, dropout=0.5)


def official_state(backbone: str, encoder: VrpEncoder) -> dict[str, Tensor]:
    own = {rename(f"encoder.{k}", official.RULES, forward=False): v for k, v in encoder.state_dict().items()}
    return {f"module.{k}": v for k, v in (empty_backbone(backbone).state_dict() | own).items()}


@pytest.mark.parametrize(("backbone", "count"), [("resnet50", 1_592_064), ("vgg16", 1_395_456)])
def test_the_published_number_of_trained_parameters(backbone: str, count: int) -> None:
    assert sum(p.numel() for p in full_encoder(backbone).parameters()) == count


@needs_golden
@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "vgg16"])
def test_the_official_layout_is_written_and_read(backbone: str) -> None:
    layout = json.loads((GOLDEN / "vrp_sam" / "official_state_dict_layout.json").read_text())[backbone]["keys"]
    state = official_state(backbone, full_encoder(backbone))
    assert {k.removeprefix("module."): list(v.shape) for k, v in state.items()} == layout
    assert official.read(state, "vit_h").config == {"backbone": backbone, "tokens": 50}


def test_an_official_checkpoint_goes_in_and_out_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sam = small_vit(monkeypatch, tmp_path)
    backbone = {k: torch.rand(v.shape) if v.is_floating_point() else torch.zeros(v.shape, dtype=v.dtype)
                for k, v in empty_backbone("vgg16").state_dict().items()}
    state = official_state("vgg16", full_encoder("vgg16")) | {f"module.{k}": v for k, v in backbone.items()}
    file = str(tmp_path / "best_model.pt")
    torch.save(state, file)
    model = load_official("vrp_sam", "vit_b", file, weights=sam)
    assert model.backbone is not None
    model.backbone.load_file(file)
    written = official.write(model)  # type: ignore[arg-type]
    assert written.keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in written.items())


def test_a_wrong_checkpoint_names_its_first_wrong_tensor() -> None:
    state = official_state("resnet50", full_encoder("resnet50"))
    tokens = "transformer_decoder.supp_q_feat.weight"
    for word, wrong in (("lacks 'merge_1.0.weight'", {k: v for k, v in state.items() if "merge" not in k}),
                        ("unknown 'other'", state | {"module.other": torch.zeros(1)}),
                        (f"lacks '{tokens}'", {k: v for k, v in state.items() if tokens not in k})):
        with pytest.raises(FssError, match=word):
            official.read(wrong, "vit_b")
    with pytest.raises(FssError, match="official layout"):
        official.write(registry.build("vrp_sam", "debug"))  # type: ignore[arg-type]


def marked(*prompts: Prompt) -> PromptBatch:
    model = registry.build("vrp_sam", "debug")
    return model.collate([list(prompts)], torch.tensor([[SIDE, SIDE]] * len(prompts)))


def test_every_kind_of_mark_becomes_its_pixels() -> None:
    """As `case_f`: a box covers its corners' pixels, x1 and y1 being exclusive."""
    box = Prompt(kind=PromptKind.BOX, box=torch.tensor([3.0, 5.0, 7.0, 6.0]))
    points = Prompt(kind=PromptKind.POINTS, points=torch.tensor([[2.0, 9.0], [63.9, 0.2]]))
    stroke = Prompt(kind=PromptKind.SCRIBBLE, points=torch.tensor([[30.0, 40.0]]))
    masks = mark_masks(marked(box, points, stroke))[0]
    assert masks[0].nonzero().tolist() == [[5, x] for x in range(3, 7)]
    assert masks[1].nonzero().tolist() == [[0, 63], [9, 2]]
    assert masks[2].nonzero().tolist() == [[40, 30]]
    tiny = mark_masks(marked(Prompt(kind=PromptKind.BOX, box=torch.tensor([3.2, 5.0, 3.2, 5.0]))))
    assert tiny[0, 0].nonzero().tolist() == [[5, 3]]


def test_scribbles_have_a_brush_at_full_size() -> None:
    batch = PromptBatch(
        image=torch.zeros(1, 1).long(), kind=torch.full((1, 1), int(PromptKind.SCRIBBLE)),
        masks=torch.zeros(1, 1, 512, 512), points=torch.tensor([[[[100.0, 200.0]]]]),
        labels=torch.ones(1, 1, 1, dtype=torch.int32))
    assert int(mark_masks(batch).sum()) == 49


def test_points_beside_the_object_are_refused() -> None:
    points = Prompt(kind=PromptKind.POINTS, points=torch.tensor([[2.0, 9.0], [5.0, 5.0]]), labels=torch.tensor([1, 0]))
    with pytest.raises(FssError, match="on the object only"):
        mark_masks(marked(points))


@torch.no_grad()
def test_sets_of_mixed_marks_and_sizes_are_predicted() -> None:
    model = registry.build("vrp_sam", "debug").eval()
    images = model.prepare([np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8) for i in range(4)])
    features = model.encode(images)
    box = Prompt(kind=PromptKind.BOX, box=torch.tensor([5.0, 5.0, 30.0, 30.0]))
    point = Prompt(kind=PromptKind.POINTS, points=torch.tensor([[20.0, 20.0]]))
    sets = model.collate([[box, point], [point]], images.sizes, image=torch.tensor([[0, 1], [2, 0]]))
    memory = model.memorise(features, sets)
    out = model.segment(memory, features, torch.tensor([[0, 3], [1, 3]]))
    alone = model.segment(memory.take(torch.tensor([1])), features, torch.tensor([[0, 3]]))
    assert bool(out.logits.isfinite().all())
    torch.testing.assert_close(out.logits[1], alone.logits[0], rtol=1e-4, atol=1e-5)


def ellipse() -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return (((y - 30) / 20) ** 2 + ((x - 36) / 15) ** 2 <= 1).float()[None]


@pytest.mark.parametrize("kind", ["box", "point", "scribble"])
def test_simulated_marks_are_repeated_by_a_seed_and_vary_in_training(kind: str) -> None:
    mask = ellipse()
    marks = simulate_marks(mask.expand(2, -1, -1), kind, seed=321)
    assert torch.equal(marks[0], marks[1])  # each mask by itself: batches do not change an evaluation
    assert torch.equal(marks[:1], simulate_marks(mask, kind, seed=321))
    if kind == "box":
        assert marks[0].nonzero().amin(0).tolist() == [10, 21]
        assert int(marks[0].sum()) == 41 * 31
        return
    assert bool((marks[0] <= mask[0]).all())
    assert kind == "scribble" or int(marks[0].sum()) == 20
    torch.manual_seed(0)
    drawn = torch.stack([simulate_marks(mask, kind, seed=None)[0] for _ in range(8)])
    assert len(drawn.flatten(1).sum(1).unique()) > 3
    torch.manual_seed(0)
    assert torch.equal(drawn[0], simulate_marks(mask, kind, seed=None)[0])


def test_marks_of_an_empty_mask_are_empty() -> None:
    empty = torch.zeros(2, 8, 8)
    assert not bool(box_marks(empty).any())
    for kind in ("point", "scribble"):
        assert not bool(draw_marks(empty, kind, RandomStreams.seeded(1)).any())
    assert simulate_marks(empty[:0], "point", seed=1).shape == (0, 8, 8)


@torch.no_grad()
def test_a_model_of_another_prompt_kind_turns_masks_into_it() -> None:
    clip = drawn_clip(1)
    plain, boxed = tiny_model("vrp_sam"), tiny_model("vrp_sam", prompt="box")
    features = plain.encode(clip.images)
    boxes = replace(clip.prompts, masks=box_marks(clip.prompts.masks[:, 0])[:, None])
    own = boxed.memorise(features, clip.prompts).tensors["tokens"]
    assert torch.equal(own, plain.memorise(features, boxes).tensors["tokens"])
    assert not torch.equal(own, plain.memorise(features, clip.prompts).tensors["tokens"])


def test_masks_that_the_grid_misses_are_filled_where_asked() -> None:
    masks = torch.zeros(2, 1, 16, 16)
    masks[0, 0, 3, 5] = masks[1, 0, 0, 8] = 1
    assert grid_masks(masks, (4, 4), fill=False).flatten(1).sum(1).tolist() == [0, 1]
    assert grid_masks(masks, (4, 4), fill=True)[0, 0].nonzero().tolist() == [[0, 1]]
    assert torch.equal(grid_masks(masks, (4, 4), fill=True)[1], grid_masks(masks, (4, 4), fill=False)[1])


def test_masks_are_resized_by_the_floor_of_the_index() -> None:
    """torch's nearest, as the released loaders; PIL's nearest takes the middle."""
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = True
    assert isinstance(registry.build("vrp_sam", "debug").preprocessor, FloorMasks)
    half = FloorMasks(side=2)
    assert half.mask(mask).tolist() == [[1, 0], [0, 0]]
    assert half.target(np.roll(mask, 1, axis=1)).tolist() == [[0, 0], [0, 0]]


@torch.no_grad()
def test_shots_are_prompts_side_by_side() -> None:
    """Two equal shots give each prompt twice: the decoder sees 2 N tokens, not their mean."""
    model: Any = tiny_model("vrp_sam")
    clip = drawn_clip(1)
    twice = replace(clip.prompts, **{k: torch.cat([v, v], dim=1) for k, v in vars(clip.prompts).items()
                                     if isinstance(v, torch.Tensor)})
    features, pairs = model.encode(clip.images), clip_pairs(clip)
    one, two = (model.analyse(features, p, pairs) for p in (clip.prompts, twice))
    assert torch.allclose(two.query.tokens[::2], one.query.tokens, atol=1e-5)
    assert not torch.allclose(two.prediction.logits, one.prediction.logits, atol=1e-3)
    assert two.shot.tolist() == [0, 1, 0, 1]


def test_losses_are_finite_in_bfloat16() -> None:
    model = tiny_model("vrp_sam").train()
    with torch.autocast("cpu", torch.bfloat16):
        total = torch.stack([v.float() for v in model.losses(drawn_clip(2)).values()]).sum()
    total.backward()
    assert bool(total.isfinite())
