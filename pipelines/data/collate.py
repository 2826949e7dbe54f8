"""From decoded clips to a method's tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fss_models.clip import Clip
from fss_models.preprocess import resize_mask
from fss_models.prompts import collate, mask_prompt
from fss_models.segmenter import Segmenter
from pipelines.data.schema import EpisodeSample, Sample


def make_clip(model: Segmenter, samples: list[EpisodeSample], flip: np.random.Generator | None = None) -> Clip:
    """B clips (same K and J each) as a `Clip` on the CPU; with `flip` every image is mirrored with probability 1/2."""
    references = [[_flipped(s, flip) for s in one.references] for one in samples]
    targets = [[_flipped(s, flip) for s in one.targets] for one in samples]
    images = model.prepare([s.image for one in references for s in one])
    return Clip(
        references=images,
        prompts=collate([[mask_prompt(s.mask) for s in one] for one in references], images.sizes, model.side),
        targets=model.prepare([s.image for one in targets for s in one]),
        target_masks=_stack([[s.mask for s in one] for one in targets], model.side),
        ignore=_stack([[s.ignore for s in one] for one in targets], model.side).bool(),
        class_names=tuple(one.class_name for one in samples),
    )


def _stack(masks: list[list[np.ndarray]], side: int) -> torch.Tensor:
    return torch.stack([torch.stack([resize_mask(m, side) for m in one]) for one in masks])


def _flipped(sample: Sample, flip: np.random.Generator | None) -> Sample:
    if flip is None or flip.random() < 0.5:
        return sample
    image, mask, ignore = (np.ascontiguousarray(a[:, ::-1]) for a in (sample.image, sample.mask, sample.ignore))
    return replace(sample, image=image, mask=mask, ignore=ignore)
