"""Tiny FCP and VRP-SAM models with drawn values, and what our verified implementation made of them.

Values come from numpy's legacy stream, which never changes; the outputs are kept in data/<method>.safetensors, so that
equality stays guarded where the golden cases are not at hand. `python -m tests.fss_models.prompting` writes them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fss_models.backbones.resnet import DeepStemResNet
from fss_models.backbones.vgg import Vgg16
from fss_models.clip import Clip, Images, PromptBatch, PromptKind
from fss_models.methods.fcp import losses as fcp_losses
from fss_models.methods.fcp import model as fcp
from fss_models.methods.fcp.config import FcpConfig
from fss_models.methods.vrp_sam import model as vrp_sam
from fss_models.methods.vrp_sam.config import VrpSamConfig
from fss_models.preprocess import Preprocessor
from fss_models.prior_guided.pairs import clip_pairs
from fss_models.prototype_prompts.build import PromptingParts
from fss_models.prototype_prompts.parts import TokenAttention
from fss_models.prototype_prompts.sams import PromptedSam1
from fss_models.prototype_prompts.segmenter import PromptingSegmenter
from fss_models.sam1.build import SIZES, Sam1Size, build_sam1, official_name

GRID, WIDTH = 6, 16
DATA = Path(__file__).parent / "data"
SMALL = {"support_tokens": 4, "query_tokens": 5}
#: method -> case -> (backbone, shots, settings)
CASES: dict[str, dict[str, tuple[str, int, dict[str, Any]]]] = {
    "fcp": {
        "one_shot": ("resnet", 1, {}), "vgg": ("vgg", 1, {}), "two_shots": ("resnet", 2, {}),
        "two_shots_first": ("resnet", 2, {"kshot_support_sam": "first"}),
        "one_step": ("resnet", 1, {"steps": 1}), "five_steps": ("resnet", 1, {"steps": 5}),
        "res": ("resnet", 1, {"features": "res"}), "sam": ("resnet", 1, {"features": "sam"}),
        "no_matching": ("resnet", 1, {"matching": False}),
        "res_only": ("resnet", 1, {"features": "res", "matching": False, "pseudo_mask": "conventional"}),
        "conventional": ("resnet", 1, {"pseudo_mask": "conventional"}),
        "attention_last": ("resnet", 1, {"pseudo_mask": "attention_last"}),
        "paper_losses": ("resnet", 1, {"guide_mode": "paper", "ortho_mode": "paper", "dice_mode": "paper"}),
    },
    "vrp_sam": {
        "one_shot": ("resnet", 1, {}), "vgg": ("vgg", 1, {}), "two_shots": ("resnet", 2, {}),
        "box": ("resnet", 1, {"prompt": "box"}), "point": ("resnet", 1, {"prompt": "point"}),
    },
}


def tiny_parts(backbone: str) -> PromptingParts:
    size = Sam1Size(depth=2, width=12, heads=2, global_blocks=(1,), window=3, side=16 * GRID, prompt_width=WIDTH,
                    mask_channels=4, decoder_heads=2, decoder_mlp=16, iou_hidden=8)
    own = Vgg16(thinner=16) if backbone == "vgg" else DeepStemResNet((1, 1, 2, 2), thinner=16)
    return PromptingParts(sam=PromptedSam1(build_sam1(size)), backbone=own, preprocessor=Preprocessor(side=8 * GRID),
                          checkpoint=True, frozen={})


def tiny_model(method: str, backbone: str = "resnet", **settings: Any) -> PromptingSegmenter:
    """In evaluation mode, every tensor drawn."""
    parts = tiny_parts(backbone)
    model = (fcp.Fcp(preset="tiny", config=FcpConfig(**(SMALL | settings)), parts=parts) if method == "fcp" else
             vrp_sam.VrpSam(preset="tiny", config=VrpSamConfig(**({"tokens": 4} | settings)), parts=parts))
    fill(model, seed=5)
    model.set_trainable()
    return model.eval()


def small_vit(patch: pytest.MonkeyPatch, folder: Path) -> str:
    """Make preset `vit_b` a small SAM with prompts of real width, and return a file of it under Meta's names."""
    size = Sam1Size(depth=1, width=8, heads=2, global_blocks=(0,), side=1024, decoder_mlp=8, iou_hidden=8)
    patch.setitem(SIZES, "vit_b", size)
    torch.save({official_name(k): v for k, v in build_sam1(size).state_dict().items()}, folder / "sam.pth")
    return str(folder / "sam.pth")


@torch.no_grad()
def fill(model: nn.Module, *, seed: int) -> None:
    """Draw every tensor of the model, in sorted order of names."""
    stream = np.random.RandomState(seed)
    for name, value in sorted(model.state_dict().items()):
        if not value.is_floating_point():
            continue
        z = torch.from_numpy(stream.standard_normal(tuple(value.shape)).astype(np.float32))
        if name.endswith("running_var"):
            z = 1 + 0.3 * z.tanh()
        elif name.endswith(("bias", "running_mean")):
            z = 0.1 * z
        elif value.dim() == 1:
            z = 1 + 0.1 * z
        elif "tokens" not in name:
            z = z * (1.6 / value[0].numel() ** 0.5)
        value.copy_(z)


def drawn_clip(shots: int, *, seed: int = 9, clips: int = 2) -> Clip:
    """`clips` episodes: smooth noise with an ellipse of another colour, marked by its mask."""
    stream, side = np.random.RandomState(seed), 8 * GRID
    n = clips * (shots + 1)
    coarse = torch.from_numpy(stream.standard_normal((n, 3, 6, 6)).astype(np.float32))
    pixels = F.interpolate(coarse, size=(side, side), mode="bilinear")
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    middle = torch.from_numpy(stream.uniform(0.35, 0.65, (n, 2)) * side)[:, :, None, None]
    radius = torch.from_numpy(stream.uniform(0.15, 0.3, (n, 2)) * side)[:, :, None, None]
    masks = (((y - middle[:, 0]) / radius[:, 0]) ** 2 + ((x - middle[:, 1]) / radius[:, 1]) ** 2 <= 1).float()
    pixels = pixels + 1.5 * masks[:, None]
    sizes, k = torch.tensor([[side, side]] * n), clips * shots
    prompts = PromptBatch(
        image=torch.arange(k).view(clips, shots), kind=torch.full((clips, shots), int(PromptKind.MASK)),
        masks=masks[:k].unflatten(0, (clips, shots)), points=torch.zeros(clips, shots, 1, 2),
        labels=torch.full((clips, shots, 1), -1, dtype=torch.int32))
    references, targets = (Images(pixels=pixels[a], sizes=sizes[a]) for a in (slice(k), slice(k, None)))
    return Clip(references=references, targets=targets, prompts=prompts, target_masks=masks[k:, None],
                ignore=torch.zeros(clips, 1, side, side, dtype=torch.bool))


def outputs(method: str, name: str) -> dict[str, Tensor]:
    """Everything that one case is compared by."""
    backbone, shots, settings = CASES[method][name]
    model, clip = tiny_model(method, backbone, **settings), drawn_clip(shots)
    named = model.losses(clip)
    total = torch.stack(list(named.values())).sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = {f"loss/{k}": v for k, v in named.items()}
    grads = torch.autograd.grad(total, parameters)
    found["grad_norms"] = torch.stack([g.norm() for g in grads])
    with torch.no_grad():
        seen: Any = model.analyse(model.encode(clip.images), clip.prompts, clip_pairs(clip))
    found["low_logits"] = F.interpolate(seen.prediction.logits[:, None], scale_factor=0.5, mode="area")[:, 0]
    found["scores"] = seen.prediction.scores
    if method == "fcp":
        found |= {"prompts": seen.prompts, "conventional": seen.conventional}
        found |= {f"mask{t}": m for t, m in enumerate(seen.attention_masks, start=1)}
        found |= {f"support{t}": m for t, m in enumerate(seen.support_attention, start=1)}
    else:
        found |= {"prompts": seen.query.tokens, "conventional": seen.prior, "support": seen.support.cross}
    return {f"{name}/{k}": v.detach().contiguous() for k, v in found.items()}


def normalised_prior(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def prior(support: Tensor, query: Tensor) -> Tensor:
        found = original(support, query)
        low, high = found.amin(dim=(2, 3), keepdim=True), found.amax(dim=(2, 3), keepdim=True)
        return (found - low) / (high - low + 1e-7)

    return prior


def prior_min_max_normalised(patch: pytest.MonkeyPatch) -> None:
    for module in (fcp, vrp_sam):
        patch.setattr(module, "prior", normalised_prior(module.prior))


def layer_order_swapped(patch: pytest.MonkeyPatch) -> None:
    for cls in (fcp.Fcp, vrp_sam.VrpSam):
        original = cls._fused

        def swapped(self: Any, features: Any, image: Tensor, original: Any = original) -> Tensor:
            mid, high, _ = self.levels.channels
            first = high if isinstance(self, fcp.Fcp) else mid
            return original(self, features, image).roll(-first, dims=1)

        patch.setattr(cls, "_fused", swapped)


def guide_loss_averaged(patch: pytest.MonkeyPatch) -> None:
    def mean(masks: list[Tensor], truth: Tensor, valid: Tensor) -> Tensor:
        return torch.stack([fcp_losses.object_loss(m, truth, valid) for m in masks]).mean()

    patch.setattr(fcp_losses, "guide_loss", mean)


def value_with_position_code(patch: pytest.MonkeyPatch) -> None:
    original = TokenAttention.forward

    def forward(self: Any, tokens: Tensor, key: Tensor, value: Tensor, **given: Any) -> Any:
        moved = value if given.get("place") is None else value + given["place"]
        return original(self, tokens, key, moved, **given)

    patch.setattr(TokenAttention, "forward", forward)


def support_attention_unmasked(patch: pytest.MonkeyPatch) -> None:
    original = TokenAttention.forward

    def forward(self: Any, tokens: Tensor, key: Tensor, value: Tensor, **given: Any) -> Any:
        return original(self, tokens, key, value, place=given.get("place"))

    patch.setattr(TokenAttention, "forward", forward)


MISTAKES: dict[str, list[Callable[[pytest.MonkeyPatch], None]]] = {
    "fcp": [prior_min_max_normalised, layer_order_swapped, guide_loss_averaged, value_with_position_code,
            support_attention_unmasked],
    "vrp_sam": [prior_min_max_normalised, layer_order_swapped, value_with_position_code],
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for method, cases in CASES.items():
        save_file({k: v for name in cases for k, v in outputs(method, name).items()}, DATA / f"{method}.safetensors")
