"""The common part of GF-SAM's and Matcher's golden cases: files, the tiny frozen parts, prompts, comparison."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fss_models.backbones.dinov2 import Dinov2
from fss_models.clip import Images, Prompt, PromptBatch, PromptKind
from fss_models.point_prompts.build import PointParts
from fss_models.point_prompts.cells import DinoCells
from fss_models.preprocess import IMAGENET, FloorMasks
from fss_models.prototype_prompts.sams import PromptedSam1
from fss_models.sam1.build import Sam1Size, build_sam1, load_official
from fss_models.segmenter import Segmenter
from fss_models.verification.figures import relative_error
from fss_models.verification.frame import CaseFiles, CoveredErrors
from fss_models.verification.tolerances import Bound

NEAR = 1e-4  # share of the largest logit below which a pixel may fall on either side


class PointCase(CaseFiles):
    """A case of photos with masks, in single precision."""

    @property
    def shots(self) -> int:
        """K."""
        return int(self.config["shots"])

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The weights whose names begin with `prefix`, without it."""
        return {k: v.float() for k, v in super().part(prefix).items()}

    def parts(self, *, side: int, antialias: bool = False) -> PointParts:
        """The case's SAM and DINOv2 with their values, for photos of `side` pixels."""
        about, given = self.config, self.part("sam.")
        sam = build_sam1(Sam1Size(
            depth=about["sam_depth"], width=about["sam_embed"], heads=about["sam_heads"], window=about["sam_window"],
            global_blocks=tuple(about["sam_global"]), side=about["sam_side"], prompt_width=about["sam_width"],
            decoder_heads=about["sam_decoder_heads"], decoder_mlp=about["sam_mlp"], iou_hidden=about["sam_iou_hidden"]))
        if given:
            load_official(sam, given, where=self.name)
        dino = Dinov2(width=about["dino_width"], blocks=about["dino_depth"], heads=about["dino_heads"],
                      native=about["dino_native"])
        dino.load_hub_state(self.part("dino."))
        return PointParts(sam=PromptedSam1(sam), preprocessor=FloorMasks(side=side), frozen={}, checkpoint=True,
                          cells=DinoCells(dino.eval(), side=about["dino_side"], antialias=antialias), pretrained=True)

    def images(self, model: Segmenter) -> Images:
        """The K references, then the target."""
        names = [*(f"ref_image_{k}" for k in range(self.shots)), "target_image"]
        return model.prepare([self.inputs[n].numpy() for n in names])

    def prompts(self, model: Segmenter, images: Images) -> PromptBatch:
        """The references' masks."""
        marks = [Prompt(kind=PromptKind.MASK, mask=self.inputs[f"ref_mask_{k}"] > 0) for k in range(self.shots)]
        return model.collate([marks], images.sizes)


class PointComparison(CoveredErrors):
    """Worst error of each group of outputs and kind of comparison."""

    def __init__(self, case: PointCase, bounds: Mapping[str, Bound]) -> None:
        super().__init__(case.name, case.outputs)
        self.limits = bounds

    def real(self, **found: Tensor) -> None:
        """Compare tensors by max |difference| / max |reference|; `a__b` is the output `a/b`."""
        for key, value in found.items():
            self._note(key.replace("__", "/"), relative_error(value, self.want[key.replace("__", "/")]), "real")

    def discrete(self, **found: Tensor) -> None:
        """Compare tensors for equality."""
        for key, value in found.items():
            name = key.replace("__", "/")
            want = self.want[name]
            same = value.shape == want.shape
            wrong = float((value.long() != want.long()).sum()) if same else float("inf")
            self._note(name, wrong, "discrete")

    def pixel(self, **found: Tensor) -> None:
        """Compare what a single pixel near a threshold may change: a count, a share or masks, which may lose 1e-3."""
        for key, value in found.items():
            name, want = key.replace("__", "/"), self.want[key.replace("__", "/")]
            if value.dtype == torch.bool and value.shape == want.shape:
                error = float((value != want.bool()).float().mean())
            else:
                error = relative_error(value, want)
            self._note(name, error, "pixel")

    def mask(self, name: str, logits: Tensor) -> None:
        """Compare masks with logits of their shape; pixels with a logit near 0 do not count."""
        want = self.want[name].bool()
        sure = logits.abs() > NEAR * logits.abs().amax()
        wrong = ((logits > 0) != want) & sure if want.shape == logits.shape else torch.ones(1)
        self._note(name, float(wrong.sum()), "discrete")

    def _note(self, name: str, error: float, kind: str) -> None:
        self.seen.add(name)
        self.record(name.split("/")[0], error, self.limits[kind])

def unit_pixels(pixels: Tensor) -> Tensor:
    """Normalised pixels [N, 3, H, W] in [0, 1]."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    return pixels * std + mean


def unpack_bits(packed: Tensor) -> Tensor:
    """Masks [..., H, W] bool of bits packed along the last axis."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1)).bool()
