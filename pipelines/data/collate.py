"""From decoded clips to a method's tensors."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fss_models.augmentation import VOID, Augmentation
from fss_models.clip import Clip, Features, Images, Prompt, PromptBatch
from fss_models.preprocess import Preprocessor
from fss_models.prompt_sampling import SampledKind, sample_prompt
from fss_models.segmenter import Segmenter
from pipelines.data.pixels import square_mask
from pipelines.data.schema import EpisodeSample, PhotoKey, Sample
from pipelines.data.stream import UndecodedSample

ReadFeatures = Callable[[Sequence[PhotoKey]], Features]  # photos -> their features from `encode_frozen`, in order


def square_side(model: Segmenter, *, decoded: bool) -> int:
    """The side in pixels at which squares give exactly the clips that whole photos give. 0: squares would change them.

    decoded: whether the stream decodes photos. Samples for an augmentation must be whole photos.
    """
    own = model.preprocessor
    plain = type(own) is Preprocessor and (own.mode == "published" or not decoded)
    return own.data_side if plain else 0


def make_clip(model: Segmenter, samples: list[EpisodeSample], rng: np.random.Generator, *, flip: bool = False,
              vary_shots: bool = False, prompts: SampledKind = "mask", augment: Augmentation | None = None,
              read_features: ReadFeatures | None = None) -> Clip:
    """B samples (all with the same K and J) as a `Clip` on the CPU.

    With `flip` every image is mirrored with probability 1/2, unless `augment` is given, which replaces it. With
    `vary_shots` only the first 1 to K references are used, the number being random. `prompts` is the kind of prompt
    that is drawn from the masks of the references. With `read_features` the samples are `UndecodedSample`, and the
    clip has features instead of pixels. Squares (`square_side`) give the same clip as the photos they were made of.
    """
    def changed(sample: Sample) -> Sample:
        return _augmented(sample, augment, rng) if augment else _flipped(sample, rng if flip else None)

    references = [[changed(s) for s in one.references] for one in samples]
    targets = [[changed(s) for s in one.targets] for one in samples]
    if vary_shots:
        used = int(rng.integers(1, len(references[0]) + 1))
        references = [one[:used] for one in references]
    images, others = (_images(model, [s for one in group for s in one], read_features)
                      for group in (references, targets))
    target_masks, ignore = _masks(model, targets)
    reference_masks, reference_ignore = _masks(model, references)
    return Clip(
        references=images,
        prompts=_prompts(model, references, prompts, rng),
        targets=others,
        target_masks=target_masks,
        ignore=ignore,
        reference_masks=reference_masks,
        reference_ignore=reference_ignore,
        frozen=(read_features([_photo(s) for group in (references, targets) for one in group for s in one])
                if read_features else None),
        class_names=tuple(one.class_name for one in samples),
    )


def _images(model: Segmenter, samples: list[Sample], read_features: ReadFeatures | None) -> Images:
    """Prepared pixels and photo sizes. With `read_features` the pixels are empty, [N, 3, 0, 0]."""
    pixels = (torch.empty(len(samples), 3, 0, 0) if read_features
              else model.prepare([s.image for s in samples]).pixels)
    return Images(pixels=pixels, sizes=torch.tensor([s.photo_size for s in samples], dtype=torch.int64))


def _prompts(model: Segmenter, references: list[list[Sample]], kind: SampledKind,
             rng: np.random.Generator) -> PromptBatch:
    """The prompts of the references. A mask of a square has the square's size; all else is in pixels of the photo."""
    sets = [[prompt_from_mask(model, s, kind, rng, training=True) for s in one] for one in references]
    pairs = ((s, p) for one, drawn in zip(references, sets, strict=True) for s, p in zip(one, drawn, strict=True))
    sizes = [s.photo_size if p.mask is None else tuple(p.mask.shape) for s, p in pairs]
    return model.collate(sets, torch.tensor(sizes, dtype=torch.int64))


def _photo(sample: Sample) -> PhotoKey:
    assert isinstance(sample, UndecodedSample)
    return sample.photo


def prompt_from_mask(model: Segmenter, sample: Sample, kind: SampledKind, rng: np.random.Generator, *,
                     training: bool) -> Prompt:
    """A prompt of `kind` drawn from the mask of the sample.

    Coordinates are in pixels of the photo; a mask prompt of a square sample has the square's size. Points and strokes
    are drawn on the square mask at the model's data side, because the published counts and brush sizes refer to it. A
    mask that vanishes at that size is used at its own size.
    """
    square = sample.mask if sample.size else None
    if kind != "mask" and square is None:
        square = model.preprocessor.target(sample.mask).numpy().astype(bool)
    if square is None:
        return sample_prompt(sample.mask, kind, rng, training=training)
    if not square.any():
        return sample_prompt(sample.whole[0] if sample.whole else sample.mask, kind, rng, training=training)
    prompt = sample_prompt(square, kind, rng, training=training)
    if prompt.mask is not None:
        return sample_prompt(sample.mask, "mask", rng, training=training)
    height, width = sample.photo_size
    scale = torch.tensor([width, height]) / len(square)
    box = None if prompt.box is None else prompt.box * scale.repeat(2)
    return replace(prompt, box=box, points=None if prompt.points is None else prompt.points * scale)


def _masks(model: Segmenter, groups: list[list[Sample]]) -> tuple[Tensor, Tensor]:
    """(masks float, ignore bool) of B groups of n samples, each [B, n, D, D] with D the model's data side."""
    def squares(of: Callable[[Sample], np.ndarray]) -> Tensor:
        return torch.stack([torch.stack([_target(model, s, of(s)) for s in one]) for one in groups])

    return squares(lambda s: s.mask), squares(lambda s: s.ignore).bool()


def _target(model: Segmenter, sample: Sample, mask: np.ndarray) -> Tensor:
    return torch.from_numpy(mask.astype(np.float32)) if sample.size else model.preprocessor.target(mask)


def _augmented(sample: Sample, augment: Augmentation, rng: np.random.Generator) -> Sample:
    label = np.where(sample.ignore, VOID, sample.mask).astype(np.uint8)
    draws = random.Random(int(rng.integers(2**63)))
    image, label = augment(sample.image.astype(np.float32), label, draws)
    if not (label == 1).any():  # the augmentation cut the object away: use the photo unchanged
        return sample
    return replace(sample, image=np.ascontiguousarray(image), mask=label == 1, ignore=label == VOID)


def _flipped(sample: Sample, flip: np.random.Generator | None) -> Sample:
    if flip is None or flip.random() < 0.5:
        return sample
    image, mask, ignore = (_mirrored(a) for a in (sample.image, sample.mask, sample.ignore))
    turned = replace(sample, image=image, mask=mask, ignore=ignore)
    if sample.whole:
        whole = _mirrored(sample.whole[0]), _mirrored(sample.whole[1])
        mask, ignore = (square_mask(m, len(sample.mask)) for m in whole)
        turned = replace(turned, mask=mask, ignore=ignore, whole=whole)
    if isinstance(turned, UndecodedSample):
        return replace(turned, photo=turned.photo._replace(mirrored=True))
    return turned


def _mirrored(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array[:, ::-1])
