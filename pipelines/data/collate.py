"""From decoded clips to a method's tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fss_models.clip import Clip, Prompt
from fss_models.prompt_sampling import SampledKind, sample_prompt
from fss_models.segmenter import Segmenter
from pipelines.data.schema import EpisodeSample, Sample


def make_clip(model: Segmenter, samples: list[EpisodeSample], rng: np.random.Generator, *, flip: bool = False,
              vary_shots: bool = False, prompts: SampledKind = "mask") -> Clip:
    """B clips (same K and J each) as a `Clip` on the CPU.

    With `flip` every image is mirrored with probability 1/2; with `vary_shots` the first 1 to K references are used;
    `prompts` are drawn from the references' masks as in training.
    """
    coin = rng if flip else None
    references = [[_flipped(s, coin) for s in one.references] for one in samples]
    targets = [[_flipped(s, coin) for s in one.targets] for one in samples]
    if vary_shots:
        used = int(rng.integers(1, len(references[0]) + 1))
        references = [one[:used] for one in references]
    images = model.prepare([s.image for one in references for s in one])
    side = model.preprocessor.target
    return Clip(
        references=images,
        prompts=model.collate([[mark(model, s, prompts, rng, training=True) for s in one] for one in references],
                              images.sizes),
        targets=model.prepare([s.image for one in targets for s in one]),
        target_masks=_stack([[s.mask for s in one] for one in targets], side),
        ignore=_stack([[s.ignore for s in one] for one in targets], side).bool(),
        reference_masks=_stack([[s.mask for s in one] for one in references], side),
        reference_ignore=_stack([[s.ignore for s in one] for one in references], side).bool(),
        class_names=tuple(one.class_name for one in samples),
    )


def mark(model: Segmenter, sample: Sample, kind: SampledKind, rng: np.random.Generator, *, training: bool) -> Prompt:
    """A prompt of `kind` drawn from the sample's mask, in pixels of its image.

    Points and strokes are drawn on the square mask at the model's data side, where the published counts and brush
    sizes are meant; a mask too small to survive that is used as it is.
    """
    if kind == "mask":
        return sample_prompt(sample.mask, "mask", rng, training=training)
    square = model.preprocessor.target(sample.mask).numpy().astype(bool)
    if not square.any():
        return sample_prompt(sample.mask, kind, rng, training=training)
    prompt = sample_prompt(square, kind, rng, training=training)
    if prompt.mask is not None:
        return sample_prompt(sample.mask, "mask", rng, training=training)
    height, width = sample.mask.shape
    scale = torch.tensor([width, height]) / len(square)
    box = None if prompt.box is None else prompt.box * scale.repeat(2)
    return replace(prompt, box=box, points=None if prompt.points is None else prompt.points * scale)


def _stack(masks: list[list[np.ndarray]], resize: Callable[[np.ndarray], Tensor]) -> Tensor:
    return torch.stack([torch.stack([resize(m) for m in one]) for one in masks])


def _flipped(sample: Sample, flip: np.random.Generator | None) -> Sample:
    if flip is None or flip.random() < 0.5:
        return sample
    image, mask, ignore = (np.ascontiguousarray(a[:, ::-1]) for a in (sample.image, sample.mask, sample.ignore))
    return replace(sample, image=image, mask=mask, ignore=ignore)
