"""The ImageNet backbones of FCP and VRP-SAM: layout, dilation, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fss_models.backbones.dinov2 import Dinov2
from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.backbones.resnet import BLOCKS, DeepStemResNet
from fss_models.backbones.vgg import Vgg16
from fss_models.errors import FssError
from fss_models.prototype_prompts.levels import DinoLevels
from fss_models.prototype_prompts.official import empty_backbone
from tests.fss_models.shared_folder import GOLDEN, needs_golden

COUNTS = {"resnet50": 23_685_367, "resnet101": 42_729_770, "vgg16": 14_731_597}  # with buffers
STEM = {"layer0.0": "conv1", "layer0.1": "bn1", "layer0.3": "conv2", "layer0.4": "bn2", "layer0.6": "conv3",
        "layer0.7": "bn3"}


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_number_of_values(name: str) -> None:
    state = empty_backbone(name).state_dict()
    assert sum(v.numel() for v in state.values()) == COUNTS[name]


@needs_golden
@pytest.mark.parametrize("method", ["fcp", "vrp_sam"])
@pytest.mark.parametrize("name", COUNTS)
def test_names_and_shapes_are_the_official_ones(name: str, method: str) -> None:
    layout = json.loads((GOLDEN / method / "official_state_dict_layout.json").read_text())[name]["keys"]
    ours = {k: list(v.shape) for k, v in empty_backbone(name).state_dict().items()}
    assert ours == {k: v for k, v in layout.items() if k.startswith("layer")}


def test_dilation_is_torchvisions_not_pfenets() -> None:
    """The first block of layer3 and layer4 keeps the dilation before it: 1, 2, 2, ... and 2, 4, 4, ..."""
    net = DeepStemResNet(BLOCKS["resnet50"], thinner=16)
    found = {n: [block.conv2.dilation[0] for block in getattr(net, n)] for n in ("layer2", "layer3", "layer4")}
    assert found == {"layer2": [1] * 4, "layer3": [1] + [2] * 5, "layer4": [2, 4, 4]}
    mid, high = net.levels(torch.randn(1, 3, 64, 64))
    assert [tuple(x.shape[1:]) for x in (mid, high, net.top(high))] == [(32, 8, 8), (64, 8, 8), (128, 8, 8)]


def test_all_blocks_dilates_the_first_blocks_too() -> None:
    """PFENet, BAM and HDMNet: 2 throughout layer3 and 4 throughout layer4, so other features from the same weights."""
    other = DeepStemResNet((1, 1, 2, 2), thinner=16)
    net = DeepStemResNet((1, 1, 2, 2), thinner=16, dilation="all_blocks")
    net.load_state_dict(other.state_dict())
    found = {n: [block.conv2.dilation[0] for block in getattr(net, n)] for n in ("layer2", "layer3", "layer4")}
    assert found == {"layer2": [1], "layer3": [2, 2], "layer4": [4, 4]}
    pixels = torch.randn(1, 3, 65, 65)
    (mid, high), (same, differs) = net.levels(pixels), other.levels(pixels)
    assert high.shape == differs.shape == (1, 64, 9, 9)
    assert torch.equal(mid, same)
    assert not torch.allclose(high, differs)


def test_the_signed_trunk_has_negative_features_and_no_layer4(tmp_path: Path) -> None:
    whole, signed = DeepStemResNet((1, 1, 1, 1), thinner=16), DeepStemResNet((1, 1, 1, 1), thinner=16, signed=True)
    torch.save(published_names(whole), tmp_path / "net.pth")
    signed.load_file(str(tmp_path / "net.pth"))
    pixels = torch.randn(1, 3, 64, 64)
    high, plain = signed.levels(pixels)[1], whole.levels(pixels)[1]
    assert bool((high < 0).any())
    assert torch.equal(high.relu(), plain)
    assert not [k for k in signed.state_dict() if k.startswith("layer4")]


def test_vgg_rounds_odd_sides_up() -> None:
    net = Vgg16(thinner=16)
    mid, high = net.levels(torch.randn(1, 3, 60, 60))
    assert [tuple(x.shape[1:]) for x in (mid, high, net.top(high))] == [(16, 8, 8), (32, 4, 4), (32, 4, 4)]
    pools = [m for m in net.modules() if isinstance(m, nn.MaxPool2d)]
    assert [p.ceil_mode for p in pools] == [True] * 4


def test_statistics_stay_imagenets_in_training() -> None:
    for net in (DeepStemResNet((1, 1, 1, 1), thinner=16), Vgg16(thinner=16)):
        before = {k: v.clone() for k, v in net.state_dict().items()}
        nn.Sequential(net).train()
        net.top(net.levels(torch.randn(2, 3, 32, 32))[1])
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert not any(p.requires_grad for p in net.parameters())


def published_names(net: ImagenetBackbone) -> dict[str, torch.Tensor]:
    """The tensors as PSPNet's and torchvision's ImageNet files name them, with a classifier, without counters."""
    found = {}
    starts = (0, 7, 14, 24, 34)
    for key, value in net.state_dict().items():
        group, _, rest = key.partition(".")
        index, _, leaf = rest.partition(".")
        if key.endswith("num_batches_tracked"):
            continue
        if isinstance(net, Vgg16):
            found[f"features.{starts[int(group[5:])] + int(index)}.{leaf}"] = value
        else:
            found[f"{STEM[f'{group}.{index}']}.{leaf}" if group == "layer0" else key] = value
    return found | {"fc.weight" if not isinstance(net, Vgg16) else "classifier.0.weight": torch.zeros(3)}


@pytest.mark.parametrize("make", [lambda: DeepStemResNet((1, 1, 2, 1), thinner=16), lambda: Vgg16(thinner=16)])
def test_published_imagenet_files_load(make: type[ImagenetBackbone], tmp_path: Path) -> None:
    source, target = make(), make()
    torch.save({"state_dict": {f"module.{k}": v for k, v in published_names(source).items()}}, tmp_path / "net.pth")
    assert not torch.equal(source.layer0[0].weight, target.layer0[0].weight)
    target.load_file(str(tmp_path / "net.pth"))
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())


def test_a_methods_checkpoint_serves_as_backbone_file(tmp_path: Path) -> None:
    source, target = (DeepStemResNet((1, 1, 1, 1), thinner=16) for _ in range(2))
    whole = {f"module.{k}": v for k, v in source.state_dict().items()} | {"module.merge_1.0.weight": torch.zeros(2)}
    torch.save(whole, tmp_path / "best_model.pt")
    target.load_file(str(tmp_path / "best_model.pt"))
    assert torch.equal(source.layer4[0].conv3.weight, target.layer4[0].conv3.weight)


def test_a_wrong_file_names_its_first_wrong_tensor(tmp_path: Path) -> None:
    net = DeepStemResNet((1, 1, 1, 1), thinner=16)
    state = published_names(net)
    files = {"lacks 'layer0.1.bias'": {k: v for k, v in state.items() if k != "bn1.bias"},
             "unknown 'layer5.weight'": state | {"layer5.weight": torch.zeros(1)},
             r"'layer0.0.weight' has shape \(1,\)": state | {"conv1.weight": torch.zeros(1)},
             "lacks": {"conv1.weight": state["conv1.weight"]}}
    for i, (word, wrong) in enumerate(files.items()):
        torch.save(wrong, tmp_path / f"{i}.pth")
        with pytest.raises(FssError, match=word):
            net.load_file(str(tmp_path / f"{i}.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    for name, word in (("text.pth", "not a file of tensors"), ("absent.pth", "no such")):
        with pytest.raises(FssError, match=word):
            net.load_file(str(tmp_path / name))


@torch.no_grad()
def test_dinov2s_groups_end_after_12_and_21_of_24_blocks() -> None:
    dino = Dinov2(width=16, blocks=24, heads=2, native=70).eval()
    levels = DinoLevels(dino)
    seen: list[torch.Tensor] = []
    for i in (11, 20):
        dino.vit.blocks[i].register_forward_hook(lambda _m, _i, out: seen.append(out[:, 1:]))
    mid, high = levels.levels(torch.randn(1, 3, 64, 64))  # brought to 70
    assert [tuple(x.shape) for x in (mid, high, levels.top(high))] == [(1, 16, 5, 5)] * 3
    assert torch.equal(mid.flatten(2).transpose(1, 2), seen[0])
    assert torch.equal(high.flatten(2).transpose(1, 2), seen[1])
    assert not levels.train().dino.training
