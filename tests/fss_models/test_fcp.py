"""FCP beyond its golden cases: what is trained, ablations, K shots, thin masks, losses, checkpoints, analysis."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fss_models import registry
from fss_models.clip import Clip
from fss_models.errors import FssError
from fss_models.methods.fcp import losses as terms
from fss_models.methods.fcp import official
from fss_models.methods.fcp.config import FcpConfig
from fss_models.methods.fcp.encoder import FcpEncoder, attention_mask
from fss_models.official import load_official
from fss_models.prior_guided.maps import object_first, prior
from fss_models.prior_guided.pairs import clip_pairs
from fss_models.prototype_prompts.official import empty_backbone, rename
from fss_models.prototype_prompts.pseudo_masks import pseudo_mask_quality
from tests.fss_models.prompting import CASES, drawn_clip, small_vit, tiny_model
from tests.fss_models.shared_folder import GOLDEN, needs_golden


def full_encoder(backbone: str, **settings: Any) -> FcpEncoder:
    return FcpEncoder(FcpConfig(**settings), channels=sum(empty_backbone(backbone).channels[:2]), width=256)


def official_state(backbone: str, encoder: FcpEncoder) -> dict[str, Tensor]:
    own = {rename(f"encoder.{k}", official.RULES, forward=False): v for k, v in encoder.state_dict().items()}
    return {f"module.{k}": v for k, v in (empty_backbone(backbone).state_dict() | own).items()}


@pytest.mark.parametrize(("backbone", "count"), [("resnet50", 2_856_448), ("vgg16", 2_659_840)])
def test_the_published_number_of_trained_parameters(backbone: str, count: int) -> None:
    assert sum(p.numel() for p in full_encoder(backbone).parameters()) == count


@needs_golden
@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "vgg16"])
def test_the_official_layout_is_written_and_read(backbone: str) -> None:
    layout = json.loads((GOLDEN / "fcp" / "official_state_dict_layout.json").read_text())[backbone]["keys"]
    state = official_state(backbone, full_encoder(backbone))
    assert {k.removeprefix("module."): list(v.shape) for k, v in state.items()} == layout
    assert official.read(state, "vit_h").config["backbone"] == backbone


def test_an_official_checkpoint_goes_in_and_out_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sam = small_vit(monkeypatch, tmp_path)
    encoder = full_encoder("vgg16", steps=2, support_tokens=7, query_tokens=9)
    backbone = {k: torch.rand(v.shape) if v.is_floating_point() else torch.zeros(v.shape, dtype=v.dtype)
                for k, v in empty_backbone("vgg16").state_dict().items()}
    state = official_state("vgg16", encoder) | {f"module.{k}": v for k, v in backbone.items()}
    file = str(tmp_path / "best_model.pt")
    torch.save(state, file)
    model = load_official("fcp", "vit_b", file, weights=sam)
    assert (model.config.steps, model.config.support_tokens, model.config.query_tokens) == (2, 7, 9)
    built = registry.build("fcp", "vit_b", {"backbone": "vgg16", "backbone_weights": file, "steps": 2,
                                            "support_tokens": 7, "query_tokens": 9}, weights=sam)
    assert not built.untrained
    built.load_trainable_state(model.trainable_state())
    written = official.write(built)
    assert written.keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in written.items())
    assert list(built.frozen_weights()) == ["vgg16"]


def test_a_wrong_checkpoint_names_its_first_wrong_tensor() -> None:
    state = official_state("resnet50", full_encoder("resnet50"))
    key, tokens = "transformer_decoder.merge.0.weight", "transformer_decoder.spt_protos.weight"
    for word, wrong in ((f"lacks '{key}'", {k: v for k, v in state.items() if k != f"module.{key}"}),
                        ("unknown 'other'", state | {"module.other": torch.zeros(1)}),
                        (f"'{key}' has shape", state | {f"module.{key}": torch.zeros(1)}),
                        ("lacks 'layer3.0.bn1.bias'", {k: v for k, v in state.items() if "layer3.0.bn1.bias" not in k}),
                        ("blocks in layer3", {k: v for k, v in state.items() if "layer3.5" not in k}),
                        (f"lacks '{tokens}'", {k: v for k, v in state.items() if tokens not in k})):
        with pytest.raises(FssError, match=word):
            official.read(wrong, "vit_b")
    for settings in ({"matching": False}, {"features": "res"}):
        with pytest.raises(FssError, match="official layout"):
            official.write(tiny_model("fcp", **settings))  # type: ignore[arg-type]
    with pytest.raises(FssError, match="official layout"):
        official.write(registry.build("fcp", "debug"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES["fcp"])
def test_every_variant_trains_all_its_parameters(name: str) -> None:
    """A parameter that takes no part would stop distributed training."""
    backbone, shots, settings = CASES["fcp"][name]
    model = tiny_model("fcp", backbone, **settings).train()
    torch.stack(list(model.losses(drawn_clip(shots)).values())).sum().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(n.startswith("encoder.") for n in trained)
    assert [n for n, p in trained.items() if p.grad is None or not bool(p.grad.isfinite().all())] == []


def test_without_a_checkpoint_sam2s_decoder_is_trained_too() -> None:
    model = registry.build("fcp", "debug").train()
    clip = drawn_clip(1)
    side = torch.nn.functional.interpolate(clip.prompts.masks, size=(64, 64))
    clip = replace(clip, prompts=replace(clip.prompts, masks=side), target_masks=side.clone(),
                   ignore=torch.zeros_like(side, dtype=torch.bool),
                   references=model.prepare([m.permute(1, 2, 0).byte().numpy() for m in clip.references.pixels]),
                   targets=model.prepare([m.permute(1, 2, 0).byte().numpy() for m in clip.targets.pixels]))
    named = model.losses(clip)
    assert set(named) == {"mask", "dice", "iou", "guide", "ortho"}
    torch.stack(list(named.values())).sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for p in model.sam.core.sam.image_encoder.trunk.parameters())
    assert model.untrained
    assert not registry.build("fcp", "debug", {"train": "encoder"}).trains_decoder  # type: ignore[attr-defined]


def test_losses_are_finite_in_bfloat16() -> None:
    model = tiny_model("fcp", guide_mode="paper").train()
    with torch.autocast("cpu", torch.bfloat16):
        total = torch.stack([v.float() for v in model.losses(drawn_clip(2)).values()]).sum()
    total.backward()
    assert bool(total.isfinite())


@pytest.mark.parametrize("method", ["fcp", "vrp_sam"])
@pytest.mark.parametrize("settings", [{}, {"backbone": "resnet50"}, {"train": "encoder"}])
def test_kept_features_give_the_same_losses(method: str, settings: dict[str, Any]) -> None:
    """Also where SAM 2's neck is trained: its gradients are those of a pass from the pixels."""
    model = registry.build(method, "debug", settings).eval()
    clip = drawn_clip(1)
    resized = torch.nn.functional.interpolate(clip.prompts.masks, size=(64, 64))
    clip = replace(clip, prompts=replace(clip.prompts, masks=resized), target_masks=resized.clone(),
                   ignore=torch.zeros_like(resized, dtype=torch.bool),
                   **{n: replace(i, pixels=torch.nn.functional.interpolate(i.pixels, size=(64, 64)))
                      for n, i in (("references", clip.references), ("targets", clip.targets))})
    kept = model.encode_frozen(clip.images)
    blank = [replace(i, pixels=i.pixels[..., :0, :0]) for i in (clip.references, clip.targets)]
    grads = []
    for one in (clip, replace(clip, frozen=kept, references=blank[0], targets=blank[1])):
        model.zero_grad()
        torch.stack(list(model.losses(one).values())).sum().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(v, grads[1][n]) for n, v in grads[0].items())
    inside = {id(p) for part in model.frozen_part() for p in part.parameters()}
    assert not any(p.requires_grad for p in model.parameters() if id(p) in inside)


@torch.no_grad()
def test_memorising_once_equals_sixteen_episodes() -> None:
    model, clip = tiny_model("fcp"), drawn_clip(3, clips=1)
    queries = drawn_clip(1, clips=16, seed=4).targets
    images = replace(clip.images, pixels=torch.cat([clip.references.pixels, queries.pixels]),
                     sizes=torch.cat([clip.references.sizes, queries.sizes]))
    features = model.encode(images)
    memory = model.memorise(features, clip.prompts)
    together = model.segment(memory, features, torch.stack([torch.zeros(16).long(), torch.arange(3, 19)], dim=1))
    for q in range(16):
        own = model.encode(replace(images, pixels=images.pixels[[0, 1, 2, 3 + q]], sizes=images.sizes[:4]))
        alone = model.segment(model.memorise(own, clip.prompts), own, torch.tensor([[0, 3]]))
        assert (alone.logits[0] - together.logits[q]).abs().max() < 1e-5 * together.logits.abs().max()
        assert (alone.scores[0] - together.scores[q]).abs() < 1e-5


@torch.no_grad()
def test_analysis_says_what_segment_did() -> None:
    model, clip = tiny_model("fcp"), drawn_clip(2)
    features = model.encode(clip.images)
    pairs = clip_pairs(clip)[[1, 0, 1]]
    seen: Any = model.analyse(features, clip.prompts, pairs)
    out = model.segment(model.memorise(features, clip.prompts), features, pairs)
    assert torch.equal(seen.prediction.logits, out.logits)
    assert seen.pair.tolist() == [0, 0, 1, 1, 2, 2]
    assert seen.shot.tolist() == [0, 1] * 3
    assert torch.allclose(seen.shot_logits.unflatten(0, (3, 2)).mean(dim=1), out.logits, atol=1e-5)
    inside = torch.nn.functional.interpolate(clip.prompts.masks, size=(6, 6)).flatten(2)[[1, 0, 1]].flatten(0, 1)
    for maps in seen.support_attention:  # the rows of each pair's own set: nothing outside their masks
        assert torch.all(maps[(inside == 0)[:, None].expand_as(maps)] == 0)
        assert torch.allclose(maps.sum(dim=2), torch.ones(()))
    assert len(seen.attention_masks) == 2


@torch.no_grad()
def test_first_and_each_differ_only_from_the_second_shot_on() -> None:
    found = {}
    for way in ("first", "each"):
        model: Any = tiny_model("fcp", kshot_support_sam=way)
        clip = drawn_clip(2)
        found[way] = model.analyse(model.encode(clip.images), clip.prompts, clip_pairs(clip)).shot_logits
    assert torch.equal(found["first"][::2], found["each"][::2])
    assert not torch.allclose(found["first"][1::2], found["each"][1::2], atol=1e-3)


def thin(clip: Clip) -> Clip:
    """One pixel that nearest resizing to the grid misses."""
    masks = torch.zeros_like(clip.prompts.masks)
    masks[..., 13, 21] = 1
    return replace(clip, prompts=replace(clip.prompts, masks=masks))


@torch.no_grad()
def test_a_thin_object_marks_the_cells_it_touches_or_is_refused() -> None:
    clip = thin(drawn_clip(1))
    model: Any = tiny_model("fcp")
    seen = model.analyse(model.encode(clip.images), clip.prompts, clip_pairs(clip))
    assert bool(seen.prediction.logits.isfinite().all())
    assert seen.support_attention[0][0, 0].nonzero().flatten().tolist() == [1 * 6 + 2]
    strict = tiny_model("fcp", empty_mask="error")
    with pytest.raises(FssError, match="empty on the grid"):
        strict.memorise(strict.encode(clip.images), clip.prompts)
    none = replace(clip.prompts, masks=torch.zeros_like(clip.prompts.masks))
    assert bool(model.memorise(model.encode(clip.images), none).tensors["tokens"].isfinite().all())


def test_ignored_pixels_enter_the_loss_only_as_background() -> None:
    clip = drawn_clip(1)
    void = torch.zeros_like(clip.ignore)
    void[..., :20] = True
    hidden = replace(clip, ignore=void, target_masks=clip.target_masks.masked_fill(void, 0))
    shown = replace(clip, ignore=void, target_masks=clip.target_masks.masked_fill(void, 1))
    for setting, same in (("ignored", True), ("background", False)):
        model = tiny_model("fcp", void=setting)
        values = [model.losses(c)["mask"].item() for c in (hidden, shown)]
        assert (abs(values[0] - values[1]) < 1e-7) is same


def test_guide_weights_are_one_half_and_one() -> None:
    masks = [torch.full((1, 1, 2, 2), v) for v in (0.2, 0.9)]
    truth, valid = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool)

    def objective(v: float) -> float:
        p = 1 / (1 + math.exp(-v))  # masks are taken as logits
        return -math.log(p) + 1 - (2 * 4 * p + 1) / (4 * p + 4 + 1)

    assert terms.guide_loss(masks, truth, valid).item() == pytest.approx(objective(0.2) / 2 + objective(0.9), rel=1e-5)
    assert terms.guide_loss([], truth, valid).item() == 0
    plain = [-math.log(v) + 1 - 2 * v / (v * v + 1) for v in (0.2, 0.9)]
    assert terms.paper_guide_loss(masks, truth, valid).item() == pytest.approx(sum(plain) / 2, rel=1e-5)


def test_orthogonal_loss_counts_every_step_and_the_papers_only_the_early_ones() -> None:
    same, apart = torch.ones(1, 2, 4), torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0]]])
    assert terms.ortho_loss([apart, same], [apart, apart]).item() == pytest.approx(2 / 4)  # two of the 2 x 2 cosines
    assert terms.paper_ortho_loss([apart, same], [apart, apart]).item() == pytest.approx(0)
    assert terms.paper_ortho_loss([same, apart, apart], [apart, same, same]).item() == pytest.approx((2 + 2) / 2)


def test_attention_masks_are_normalised_token_by_token() -> None:
    maps = torch.tensor([[[0.1, 0.2, 0.3], [0.9, 0.5, 0.1]]])
    assert torch.allclose(attention_mask(maps), torch.tensor([[1.0, 0.5, 1.0]]))


def test_the_prior_ignores_the_order_of_cells_and_needs_one_zero() -> None:
    torch.manual_seed(0)
    top = torch.rand(2, 5, 3, 3) * (torch.rand(2, 1, 3, 3) > 0.6)
    query = torch.rand(2, 5, 4, 4)
    sorted_cells, filled = object_first(top)
    whole = prior(top.flatten(2).transpose(1, 2), query)
    assert torch.equal(whole, prior(sorted_cells[:, : int(filled.max()) + 1], query))
    assert filled.tolist() == (top != 0).any(dim=1).flatten(1).sum(1).tolist()
    assert float(whole.min()) >= 0


def test_pseudo_mask_quality_by_hand() -> None:
    masks = torch.tensor([[[0.6, 0.4]], [[0.9, 0.9]], [[0.1, 0.2]]])
    truth = torch.tensor([[[1, 1]], [[1, 0]], [[0, 1]]])
    found = pseudo_mask_quality(masks, truth, torch.tensor([3, 3, 4]), [3, 4, 5])
    assert (found.miou, found.precision, found.recall) == pytest.approx((2 / 4 / 3, 2 / 3 / 3, 2 / 3 / 3))
    with pytest.raises(FssError, match="masks are"):
        pseudo_mask_quality(masks, truth[:2], torch.tensor([3, 3, 4]), [3])


def test_impossible_combinations_are_one_clear_line() -> None:
    for preset, settings, word in (("vit_b", {"backbone": "trunk"}, "needs SAM 2"),
                                   ("nano", {"backbone": "vgg16"}, "pixel scale"),
                                   ("debug", {"steps": 0}, "steps is 0"), ("debug", {"backbone": "x"}, "known"),
                                   ("debug", {"features": "SAM"}, "features is 'SAM'"),
                                   ("debug", {"match_dropout": 1.0}, "match_dropout"),
                                   ("debug", {"backbone_weights": "x.pth"}, "of its own")):
        with pytest.raises(FssError, match=word):
            registry.build("fcp", preset, settings)
