"""Running a golden clip through our SANSA: prompted references, then targets, each remembered before the next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fss_models.adapters.adaptformer import adapt_trunk
from fss_models.clip import Clip, Features, Images, Memory, Prompt, PromptBatch, PromptKind
from fss_models.methods.sansa.config import SansaConfig
from fss_models.methods.sansa.model import Sansa
from fss_models.preprocess import resize_square
from fss_models.sam2_core.core import take
from fss_models.sam2_core.matcher import append
from fss_models.verification.recorder import Recorder

_KINDS = {"mask": PromptKind.MASK, "point": PromptKind.POINTS, "box": PromptKind.BOX, "scribble": PromptKind.SCRIBBLE}


def load_model(folder: Path, case: dict[str, Any], side: int, **config: Any) -> Sansa:
    """Build the model of a case's geometry in evaluation mode; `side` is the data set's, `config` other settings."""
    about = json.loads((folder / case["config"]).read_text())
    weights = {k.removeprefix("sam."): v for k, v in load_file(folder / case["weights"]).items()}
    sam = instantiate(about["sam2_config"], _recursive_=True)
    adapt_trunk(sam.image_encoder.trunk, stages=about["adapter_stages"], factor=about["adapter_factor"],
                scale=about["adapter_scale"])
    sam.load_state_dict(weights, strict=True)
    model = Sansa(preset="golden", config=SansaConfig(stages=(), data_side=side, **config), sam=sam)
    model.set_trainable()
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class GoldenClip:
    """Inputs of a case: samples [B, T, 3, D, D] already normalised, masks [B, T, D, D], prompts of every reference."""

    samples: Tensor
    masks: Tensor
    prompts: list[list[Prompt]]

    @staticmethod
    def read(given: dict[str, Tensor], kinds: list[str]) -> GoldenClip:
        """Read the inputs from a case's file; every clip has one prompt for each of `kinds`."""
        if "inputs.query_img" in given:  # the released loop's layout: K supports and a query apart
            samples = torch.cat([given["inputs.support_imgs"][:, :len(kinds)], given["inputs.query_img"][:, None]], 1)
            masks = torch.cat([given["inputs.support_masks"][:, :len(kinds)], given["inputs.query_mask"][:, None]], 1)
        else:
            samples, masks = given["inputs.samples"], given["inputs.masks"]
        prompts = [[_prompt(given, kind, masks[i, k], f"{i}.{k}") for k, kind in enumerate(kinds)]
                   for i in range(len(samples))]
        return GoldenClip(samples=samples, masks=masks.float(), prompts=prompts)

    def reordered(self, order: list[int]) -> GoldenClip:
        """Put the references of every clip in another order."""
        frames = [*order, *range(len(order), self.samples.shape[1])]
        return GoldenClip(samples=self.samples[:, frames], masks=self.masks[:, frames],
                          prompts=[[one[i] for i in order] for one in self.prompts])

    def images(self, model: Sansa, frames: slice = slice(None)) -> Images:
        """Images of some frames of every clip, clip by clip, resized to the model's side."""
        flat = self.samples[:, frames].flatten(0, 1)
        return Images(pixels=resize_square(flat, model.side), sizes=torch.tensor(flat.shape[-2:]).expand(len(flat), 2))

    def batch(self, model: Sansa, image: Tensor) -> PromptBatch:
        """The batch of prompts; `image` [B, K] is the index of each reference's image."""
        return model.collate(self.prompts, torch.tensor(self.samples.shape[-2:]).expand(int(image.max()) + 1, 2), image)

    def clip(self, model: Sansa) -> Clip:
        """Convert to a training clip: references, targets and the masks of both."""
        b, k = len(self.prompts), len(self.prompts[0])
        return Clip(
            references=self.images(model, slice(0, k)), targets=self.images(model, slice(k, None)),
            prompts=self.batch(model, torch.arange(b * k).view(b, k)), target_masks=self.masks[:, k:],
            ignore=torch.zeros_like(self.masks[:, k:], dtype=torch.bool), reference_masks=self.masks[:, :k],
            reference_ignore=torch.zeros_like(self.masks[:, :k], dtype=torch.bool))


@contextmanager
def reference_kernels(model: Sansa) -> Iterator[None]:
    """Use the reference's attention kernels: plain arithmetic in memory attention and decoder, any in the trunk."""
    trunk, inside = model.core.sam.image_encoder.trunk, ExitStack()
    usual = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

    def enter(*_: object) -> None:
        inside.enter_context(sdpa_kernel(usual))

    hooks = [trunk.register_forward_pre_hook(enter), trunk.register_forward_hook(lambda *_: inside.close())]
    try:
        with inside, sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def run_clip(model: Sansa, clip: GoldenClip) -> dict[str, Tensor]:
    """Compute every quantity of a forward pass under the golden files' names."""
    b, t, _, height, width = clip.samples.shape
    shots = len(clip.prompts[0])
    images = clip.images(model)
    with Recorder(trunk=model.core.sam.image_encoder.trunk) as record:
        features = model.encode(images)
    found = _trunk_outputs(record, model)
    found |= {"backbone.input": images.pixels, "backbone.s0": features.maps["f0"], "backbone.s1": features.maps["f1"],
              "backbone.neck.2": features.maps["f2"]}
    prompts = clip.batch(model, torch.arange(b * t).view(b, t)[:, :shots])
    entries, logits = model.remember(features, prompts)
    memory = model.as_memory(entries, prompts)
    frames = [*logits.unflatten(0, (b, shots)).unbind(1)]
    for step in range(shots, t):
        rows = torch.arange(step, b * t, t)
        memory, prediction, ious = _next(model, memory, features, rows, predicted=step - shots)
        frames.append(prediction)
        found |= {f"frame.{row}.dec.ious": iou[None] for row, iou in zip(rows.tolist(), ious, strict=True)}
    low = torch.stack(frames, dim=1).flatten(0, 1)
    found |= _by_frame(memory, low, b, t)
    found["pred_masks"] = F.interpolate(low[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    return found


def _next(
    model: Sansa, memory: Memory, features: Features, rows: Tensor, *, predicted: int
) -> tuple[Memory, Tensor, Tensor]:
    maps = take(features.maps, rows)
    decoded = model.decode_targets(memory, maps, predicted=predicted)
    logits, _, token = decoded.best()
    return append(memory, model.core.remember_prediction(maps, logits, token)), logits, decoded.ious


def _trunk_outputs(record: Recorder, model: Sansa) -> dict[str, Tensor]:
    """The trunk's stages, and every adapter's input and output of the first frame."""
    found = {f"backbone.trunk.{i}": stage for i, stage in enumerate(record.got["trunk"][0])}
    for i, block in enumerate(model.core.sam.image_encoder.trunk.blocks):
        if hasattr(block, "adapter"):
            name = f"trunk.blocks.{i}.adapter"
            found |= {f"adapter.{i}.in": record.given[name][0][0][:1], f"adapter.{i}.out": record.got[name][0][:1]}
    return found


def _by_frame(memory: Memory, low: Tensor, b: int, t: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for flat in range(b * t):
        clip, frame = divmod(flat, t)
        found[f"frame.{flat}.mem.features"] = memory.tensors["features"][clip, frame][None]
        found[f"frame.{flat}.obj_ptr"] = memory.tensors["pointers"][clip, frame][None]
        found[f"frame.{flat}.low_res"] = low[flat][None, None]
    return found


def _prompt(given: dict[str, Tensor], kind: str, mask: Tensor, where: str) -> Prompt:
    if kind == "mask":
        return Prompt(kind=PromptKind.MASK, mask=mask.bool())
    points, labels = given[f"inputs.point_coords.{where}"][0], given[f"inputs.point_labels.{where}"][0]
    if kind == "box" and len(points) == 2:
        return Prompt(kind=PromptKind.BOX, box=points.flatten())
    return Prompt(kind=_KINDS["point" if kind == "box" else kind], points=points, labels=labels)
