"""PFENet, SSP and CyCTR beyond their golden cases: layouts, checkpoints, K shots, draws, what is trained."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fss_models import registry
from fss_models.backbones.resnet import DeepStemResNet
from fss_models.clip import Clip
from fss_models.errors import FssError
from fss_models.methods.cyctr import official as cyctr_official
from fss_models.methods.cyctr.config import CyctrConfig
from fss_models.methods.cyctr.sampling import SupportTokens, draw, object_cells
from fss_models.methods.pfenet import official as pfenet_official
from fss_models.methods.pfenet.config import PfenetConfig
from fss_models.methods.pfenet.decoder import PfenetDecoder
from fss_models.methods.ssp import official as ssp_official
from fss_models.methods.ssp.augmentation import CropAndFlip
from fss_models.methods.ssp.self_support import confident
from fss_models.official import load_official
from fss_models.prior_guided.maps import min_max
from fss_models.prior_guided.pairs import clip_pairs
from fss_models.prior_guided.trunks import EfficientNetLevels
from fss_models.segmenter import Segmenter
from tests.fss_models.shared_folder import GOLDEN, needs_golden

OFFICIAL: dict[str, Any] = {"pfenet": pfenet_official, "ssp": ssp_official, "cyctr": cyctr_official}
LAYOUTS = [(method, backbone) for method in OFFICIAL for backbone in ("resnet50", "resnet101", "vgg16")
           if backbone != "vgg16" or method == "pfenet"]


def layout(method: str, backbone: str) -> dict[str, list[int]]:
    stored = json.loads((GOLDEN / method / "official_state_dict_layout.json").read_text())
    found = stored[backbone]
    return dict(found["keys"] if "keys" in found else stored[found["as"]]["keys"] | found["more"])


def built(method: str, preset: str = "debug", **settings: Any) -> Any:
    return registry.build(method, preset, settings)


def episode(model: Segmenter, shots: int = 1, *, clips: int = 2) -> Clip:
    """Noise with a bright box, which is the object; the first rows of references and targets are void."""
    from tests.fss_models.test_contract import clip_for

    clip = clip_for(model, shots, targets=1)
    void = torch.zeros_like(clip.ignore)
    void[..., :4, :] = True
    masks = clip.prompts.masks
    of_support = torch.zeros_like(masks, dtype=torch.bool)
    of_support[..., :4, :] = True
    return replace(clip, ignore=void, reference_masks=masks, reference_ignore=of_support)


@pytest.mark.parametrize(("method", "preset", "count"), [
    ("pfenet", "resnet50", 10_817_034), ("ssp", "resnet50", 8_290_304), ("cyctr", "resnet50", 7_456_692)])
def test_the_published_number_of_trained_parameters(method: str, preset: str, count: int) -> None:
    with torch.device("meta"):
        model = registry.method_class(method)(  # type: ignore[call-arg]
            preset=preset, config=registry.make_config(method, {}))
    model.set_trainable()
    names = model.trainable_names()
    assert sum(p.numel() for n, p in model.named_parameters() if n in names) == count


@needs_golden
@pytest.mark.parametrize(("method", "backbone"), LAYOUTS)
def test_the_official_layout_is_read(method: str, backbone: str) -> None:
    state = {f"module.{k}": torch.empty(v, device="meta") for k, v in layout(method, backbone).items()}
    found = OFFICIAL[method].read(state, backbone).state
    assert all(k.startswith(("backbone.", "decoder.")) for k in found)
    key = min(state)
    for word, wrong in (("lacks", {k: v for k, v in state.items() if k != key}),
                        ("unknown 'other'", state | {"module.other": torch.zeros(1)}),
                        ("has shape", state | {key: torch.zeros(1)})):
        with pytest.raises(FssError, match=word):
            OFFICIAL[method].read(wrong, backbone)


@pytest.mark.parametrize("method", OFFICIAL)
def test_an_official_checkpoint_goes_in_and_out_unchanged(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preset of tiny blocks and widths takes the place of ResNet-50; the trunk comes from the same file."""
    from fss_models.prior_guided import trunks

    monkeypatch.setattr(trunks, "build_resnet", lambda name, **given: DeepStemResNet((1, 1, 1, 1), thinner=16, **given))
    monkeypatch.setattr(trunks, "PUBLISHED_WIDTH", 16)
    source = built(method, "resnet50", side=65)
    with torch.no_grad():
        for value in source.state_dict().values():
            value.copy_(torch.rand(value.shape) + 0.5 if value.is_floating_point() else torch.tensor(3))
    state = OFFICIAL[method].write(source)
    file = str(tmp_path / "best.pth")
    torch.save({"epoch": 1, "state_dict": state}, file)
    model = load_official(method, "resnet50", file)
    assert not model.untrained
    assert load_official(method, "resnet50", file, config={"side": 97}).side == 97
    again = OFFICIAL[method].write(model)
    assert again.keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in again.items() if not k.endswith("num_batches_tracked"))
    with pytest.raises(FssError, match="no official checkpoint of preset 'nano'"):
        load_official(method, "nano", file)


@pytest.mark.parametrize("method", OFFICIAL)
def test_every_trained_parameter_has_a_gradient_and_frozen_ones_none(method: str) -> None:
    model = built(method).train()
    torch.stack(list(model.losses(episode(model)).values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name


@pytest.mark.parametrize("method", OFFICIAL)
def test_losses_are_finite_in_bfloat16(method: str) -> None:
    model = built(method).train()
    with torch.autocast("cpu", torch.bfloat16):
        total = torch.stack([v.float() for v in model.losses(episode(model, 2)).values()]).sum()
    total.backward()
    assert bool(total.isfinite())


@pytest.mark.parametrize(("method", "settings"), [("pfenet", {"backbone_bn": "frozen"}), ("ssp", {}), ("cyctr", {})])
def test_kept_features_give_the_same_losses(method: str, settings: dict[str, Any]) -> None:
    model = built(method, **settings).eval()
    clip = episode(model, 2)
    kept = replace(clip, frozen=model.encode_frozen(clip.images),
                   references=replace(clip.references, pixels=clip.references.pixels[:, :, :0, :0]),
                   targets=replace(clip.targets, pixels=clip.targets.pixels[:, :, :0, :0]))
    with torch.no_grad():
        one, other = model.losses(clip), model.losses(kept)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_training_moves_pfenets_statistics_and_they_travel_with_the_result() -> None:
    for way, moves in (("batch", True), ("frozen", False)):
        model = built("pfenet", backbone_bn=way).train()
        before = model.backbone.layer4[0].bn1.running_mean.clone()
        model.losses(episode(model))
        assert torch.equal(before, model.backbone.layer4[0].bn1.running_mean) is not moves
        assert ("backbone.layer4.0.bn1.running_mean" in model.trainable_state()) is moves
        assert (len(model.frozen_part()) == 0) is moves
        model.eval()
        after = {k: v.clone() for k, v in model.state_dict().items()}
        model.losses(episode(model))
        assert all(torch.equal(v, after[k]) for k, v in model.state_dict().items()), "evaluation changes nothing"
    with pytest.raises(FssError, match="no batch normalisation of its own"):
        built("pfenet", "nano", backbone_bn="batch")


def test_void_pixels_enter_no_loss_of_pfenet() -> None:
    model = built("pfenet").eval()
    clip = episode(model)
    other = replace(clip, target_masks=clip.target_masks.masked_fill(clip.ignore, 1))
    with torch.no_grad():
        assert torch.equal(model.losses(clip)["mask"], model.losses(other)["mask"])


def test_pfenets_pyramid_is_pascals_on_60_cells_and_cocos_elsewhere() -> None:
    decoder = PfenetDecoder(PfenetConfig(), channels=4, width=4)
    assert decoder.sides(60) == [60, 30, 15, 8]
    assert decoder.sides(81) == [81, 40, 20, 10]
    assert PfenetDecoder(PfenetConfig(scales=(9, 0.5)), channels=4, width=4).sides(11) == [9, 5]


def test_min_max_by_hand() -> None:
    found = min_max(torch.tensor([[[[1.0, 3.0], [2.0, 1.0]]], [[[5.0, 5.0], [5.0, 5.0]]]]))
    assert torch.allclose(found[0, 0], torch.tensor([[0, 1], [0.5, 0]]), atol=1e-6)
    assert bool((found[1] == 0).all())


def test_the_top_pixels_support_where_none_is_confident() -> None:
    chosen, count = confident(torch.tensor([[0.1, 0.65, 0.8, 0.2], [0.3, 0.1, 0.4, 0.2]]), 0.6, 2)
    assert count.tolist() == [2, 0]
    assert chosen.tolist() == [[False, True, True, False], [True, False, True, False]]
    assert confident(torch.rand(1, 3), 2.0, 12)[0].all()


def test_cells_of_an_object_that_the_grid_misses_or_fills() -> None:
    none, full, some = torch.zeros(12, 12), torch.ones(12, 12), torch.zeros(12, 12)
    some[:4, :4] = 1
    cells = object_cells(torch.stack([none, full, some])[:, None], (6, 6))
    assert cells[0].nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert int(cells[1].sum()) == 32
    assert not cells[1][0, 0]
    assert not cells[1][5, 5]
    assert cells[2].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def tokens_of(objects: int, others: int, real: int = 0) -> SupportTokens:
    count = objects + others
    return SupportTokens(keys=torch.arange(count).float().view(1, count, 1), object=torch.arange(count)[None] < objects,
                         padded=torch.zeros(1, count, dtype=torch.bool),
                         real=torch.arange(count)[None] < (real or count))


@pytest.mark.parametrize(("objects", "others", "drawn"), [
    (2, 20, (2, 6)), (20, 3, (5, 3)), (20, 20, (4, 4)), (2, 3, (2, 3))])
def test_the_draw_fills_one_kind_up_with_the_other(objects: int, others: int, drawn: tuple[int, int]) -> None:
    config = CyctrConfig(object_tokens=4, background_tokens=4, sampling_flags="correct")
    found = draw(tokens_of(objects, others), torch.tensor([1]), config, torch.randperm)
    kinds = found.object[0].long()
    assert (int(kinds.sum()), int((1 - kinds).sum())) == drawn
    assert len(set(found.keys.flatten().tolist())) == sum(drawn), "no cell is drawn twice"
    assert torch.equal(found.object[0], found.keys[0, :, 0] < objects)
    assert draw(tokens_of(3, 3), torch.tensor([1]), replace(config, sampling="all"), torch.randperm).keys.shape[1] == 6


def test_a_draw_never_takes_cells_of_absent_shots() -> None:
    config = CyctrConfig(object_tokens=4, background_tokens=4, sampling_flags="correct")
    two = SupportTokens(**{k: torch.cat([getattr(tokens_of(2, 20), k), getattr(tokens_of(2, 20, real=5), k)])
                           for k in ("keys", "object", "padded", "real")})
    found = draw(two, torch.tensor([1, 1]), config, torch.randperm)
    assert found.real.sum(dim=1).tolist() == [8, 5]
    assert float(found.keys[1][found.real[1]].max()) == 4


def test_cyctr_draws_alike_in_every_evaluation_and_anew_in_training() -> None:
    model = built("cyctr", object_tokens=6, background_tokens=6, feature_dropout=0.0, head_dropout=0.0,
                  transformer_dropout=0.0)
    clip = episode(model)

    def value() -> Tensor:
        with torch.no_grad():
            found: Tensor = model.losses(clip)["mask"]
        return found

    model.eval()
    assert torch.equal(value(), value())
    memory = model.memorise(model.encode(clip.images), clip.prompts)
    assert memory.tensors["keys"].shape[1] == 12
    model.train()
    assert not torch.equal(value(), value())


def test_cyctrs_transformer_has_an_optimiser_of_its_own() -> None:
    model = built("cyctr")
    weights, biases = model.parameter_groups()
    names = {id(p): n for n, p in model.named_parameters()}
    assert all("bias" not in names[id(p)] for p in weights.parameters)
    assert all("bias" in names[id(p)] for p in biases.parameters)
    own = {names[id(p)] for g in (weights, biases) for p in g.parameters}
    assert own == {n for n in names.values() if n.startswith("decoder.transformer.")}
    assert (weights.optimizer, weights.lr, weights.weight_decay, biases.weight_decay) == ("adamw", 1e-4, 0.01, 0.0)
    plain = built("cyctr", transformer_lr=0.0).parameter_groups()
    assert [(g.optimizer, g.lr) for g in plain] == [("", 0.0), ("", 0.0)]


@pytest.mark.parametrize(("method", "settings", "factors"), [
    ("pfenet", {}, {0.5}), ("ssp", {}, {0.5}), ("bam", {}, {0.5}), ("cyctr", {"transformer_lr": 0.0}, {0.5}),
    ("cyctr", {}, {0.5}), ("hdmnet", {}, {0.5, 5.0})])
def test_a_factor_scales_the_rate_of_everything_that_is_trained(
    method: str, settings: dict[str, Any], factors: set[float]
) -> None:
    model = built(method, lr_factor=0.5, **settings)
    groups = model.parameter_groups()
    assert {g.factor for g in groups} == factors
    scaled = [id(p) for g in groups for p in g.parameters]
    assert sorted(scaled) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_five_shots_are_no_mean_of_one_shot_predictions_but_prototypes_are() -> None:
    model = built("pfenet").eval()
    clip = episode(model, 2)
    features = model.encode(clip.images)
    memory, pairs = model.memorise(features, clip.prompts), clip_pairs(clip)
    two = model.segment(memory, features, pairs).logits
    doubled = replace(memory, tensors={k: v[:, :1].expand_as(v).contiguous() for k, v in memory.tensors.items()})
    one = replace(memory, tensors={k: v[:, :1] for k, v in memory.tensors.items()},
                  counts=torch.ones_like(memory.counts))
    assert torch.allclose(model.segment(doubled, features, pairs).logits, model.segment(one, features, pairs).logits,
                          atol=1e-5)
    assert not torch.allclose(two, model.segment(one, features, pairs).logits, atol=1e-4)


@torch.no_grad()
def test_nanos_levels_are_efficientnets_stages() -> None:
    levels = EfficientNetLevels(pretrained=False)
    pixels = torch.rand(1, 3, 64, 64)
    mid, high = levels.levels(pixels)
    expected = levels.trunk(pixels)
    assert torch.equal(mid, expected[1])
    assert torch.equal(high, expected[2])
    assert torch.equal(levels.top(high), expected[3])
    assert not levels.train().training


def test_ssps_crop_is_a_piece_of_the_padded_photo() -> None:
    image = np.arange(6 * 4 * 3, dtype=np.float32).reshape(6, 4, 3) + 1
    label = np.ones((6, 4), np.uint8)
    seen = set()
    for seed in range(30):
        made, marked = CropAndFlip(crop=5)(image, label, random.Random(seed))
        assert made.shape == (5, 5, 3)
        flipped = marked[0, 0] == 255
        seen.add(flipped)
        made, marked = (a[:, ::-1] if flipped else a for a in (made, marked))
        assert (marked[:, 4] == 255).all()
        assert (made[:, 4] == 0).all()
        row = int(made[0, 0, 0] - 1) // 12
        assert np.array_equal(made[:, :4], image[row : row + 5])
    assert seen == {True, False}
