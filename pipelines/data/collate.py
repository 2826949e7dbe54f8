"""From decoded clips to a method's tensors."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fss_models.clip import Clip, Features, Images, Prompt
from fss_models.methods.fssam.training import VOID, Augmentation
from fss_models.prompt_sampling import SampledKind, sample_prompt
from fss_models.segmenter import Segmenter
from pipelines.data.schema import EpisodeSample, Sample
from pipelines.data.stream import Undecoded
from pipelines.features.records import Photo

Kept = Callable[[Sequence[Photo]], Features]  # what `encode_frozen` gave for these photos, in order


def make_clip(model: Segmenter, samples: list[EpisodeSample], rng: np.random.Generator, *, flip: bool = False,
              vary_shots: bool = False, prompts: SampledKind = "mask", augment: Augmentation | None = None,
              kept: Kept | None = None) -> Clip:
    """B clips (same K and J each) as a `Clip` on the CPU.

    With `flip` every image is mirrored with probability 1/2, unless `augment` changes it; with `vary_shots` the first
    1 to K references are used; `prompts` are drawn from the references' masks as in training. With `kept` the samples
    are `Undecoded`, and the clip has their features instead of pixels.
    """
    def changed(sample: Sample) -> Sample:
        return _augmented(sample, augment, rng) if augment else _flipped(sample, rng if flip else None)

    references = [[changed(s) for s in one.references] for one in samples]
    targets = [[changed(s) for s in one.targets] for one in samples]
    if vary_shots:
        used = int(rng.integers(1, len(references[0]) + 1))
        references = [one[:used] for one in references]
    images, others = (_images(model, [s for one in group for s in one], kept) for group in (references, targets))
    side = model.preprocessor.target
    return Clip(
        references=images,
        prompts=model.collate([[mark(model, s, prompts, rng, training=True) for s in one] for one in references],
                              images.sizes),
        targets=others,
        target_masks=_stack([[s.mask for s in one] for one in targets], side),
        ignore=_stack([[s.ignore for s in one] for one in targets], side).bool(),
        reference_masks=_stack([[s.mask for s in one] for one in references], side),
        reference_ignore=_stack([[s.ignore for s in one] for one in references], side).bool(),
        frozen=kept([_photo(s) for group in (references, targets) for one in group for s in one]) if kept else None,
        class_names=tuple(one.class_name for one in samples),
    )


def _images(model: Segmenter, samples: list[Sample], kept: Kept | None) -> Images:
    """Prepared pixels; with `kept` their sizes alone."""
    if kept is None:
        return model.prepare([s.image for s in samples])
    sizes = torch.tensor([s.image.shape[:2] for s in samples], dtype=torch.int64)
    return Images(pixels=torch.empty(len(samples), 3, 0, 0), sizes=sizes)


def _photo(sample: Sample) -> Photo:
    assert isinstance(sample, Undecoded)
    return sample.photo


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


def _augmented(sample: Sample, augment: Augmentation, rng: np.random.Generator) -> Sample:
    label = np.where(sample.ignore, VOID, sample.mask).astype(np.uint8)
    draws = random.Random(int(rng.integers(2**63)))
    image, label = augment(sample.image.astype(np.float32), label, draws)
    if not (label == 1).any():  # a support without its object says nothing
        return sample
    return replace(sample, image=np.ascontiguousarray(image), mask=label == 1, ignore=label == VOID)


def _flipped(sample: Sample, flip: np.random.Generator | None) -> Sample:
    if flip is None or flip.random() < 0.5:
        return sample
    image, mask, ignore = (np.ascontiguousarray(a[:, ::-1]) for a in (sample.image, sample.mask, sample.ignore))
    turned = replace(sample, image=image, mask=mask, ignore=ignore)
    if isinstance(turned, Undecoded):
        return replace(turned, photo=turned.photo._replace(mirrored=True))
    return turned
