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
from pipelines.data.schema import EpisodeSample, Sample
from pipelines.data.stream import Undecoded
from pipelines.features.records import Photo

Kept = Callable[[Sequence[Photo]], Features]  # what `encode_frozen` gave for these photos, in order


def square_side(model: Segmenter, *, decoded: bool) -> int:
    """The side at which a stream may give squares without changing a value of the model's clips; 0: whole photos.

    decoded: whether the stream gives photos. Samples that an augmentation changes must be whole.
    """
    own = model.preprocessor
    plain = type(own) is Preprocessor and (own.mode == "published" or not decoded)
    return own.data_side if plain else 0


def make_clip(model: Segmenter, samples: list[EpisodeSample], rng: np.random.Generator, *, flip: bool = False,
              vary_shots: bool = False, prompts: SampledKind = "mask", augment: Augmentation | None = None,
              kept: Kept | None = None) -> Clip:
    """B clips (same K and J each) as a `Clip` on the CPU.

    With `flip` every image is mirrored with probability 1/2, unless `augment` changes it; with `vary_shots` the first
    1 to K references are used; `prompts` are drawn from the references' masks as in training. With `kept` the samples
    are `Undecoded`, and the clip has their features instead of pixels. Squares (`square_side`) give the same clip as
    the photos that they were made of.
    """
    def changed(sample: Sample) -> Sample:
        return _augmented(sample, augment, rng) if augment else _flipped(sample, rng if flip else None)

    references = [[changed(s) for s in one.references] for one in samples]
    targets = [[changed(s) for s in one.targets] for one in samples]
    if vary_shots:
        used = int(rng.integers(1, len(references[0]) + 1))
        references = [one[:used] for one in references]
    images, others = (_images(model, [s for one in group for s in one], kept) for group in (references, targets))
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
        frozen=kept([_photo(s) for group in (references, targets) for one in group for s in one]) if kept else None,
        class_names=tuple(one.class_name for one in samples),
    )


def _images(model: Segmenter, samples: list[Sample], kept: Kept | None) -> Images:
    """Prepared pixels; with `kept` their sizes alone."""
    pixels = torch.empty(len(samples), 3, 0, 0) if kept else model.prepare([s.image for s in samples]).pixels
    return Images(pixels=pixels, sizes=torch.tensor([s.photo_size for s in samples], dtype=torch.int64))


def _prompts(model: Segmenter, references: list[list[Sample]], kind: SampledKind, rng: np.random.Generator
             ) -> PromptBatch:
    """Masks of squares are at the square's size, everything else in pixels of the photo."""
    sets = [[mark(model, s, kind, rng, training=True) for s in one] for one in references]
    pairs = ((s, p) for one, drawn in zip(references, sets, strict=True) for s, p in zip(one, drawn, strict=True))
    sizes = [s.photo_size if p.mask is None else tuple(p.mask.shape) for s, p in pairs]
    return model.collate(sets, torch.tensor(sizes, dtype=torch.int64))


def _photo(sample: Sample) -> Photo:
    assert isinstance(sample, Undecoded)
    return sample.photo


def mark(model: Segmenter, sample: Sample, kind: SampledKind, rng: np.random.Generator, *, training: bool) -> Prompt:
    """A prompt of `kind` drawn from the sample's mask, in pixels of its photo; a mask of a square is the square's.

    Points and strokes are drawn on the square mask at the model's data side, where the published counts and brush
    sizes are meant; a mask too small to survive that is used as it is.
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
    """(masks, ignore) of samples [B, n], each [B, n, D, D]."""
    def squares(of: Callable[[Sample], np.ndarray]) -> Tensor:
        return torch.stack([torch.stack([_target(model, s, of(s)) for s in one]) for one in groups])

    return squares(lambda s: s.mask), squares(lambda s: s.ignore).bool()


def _target(model: Segmenter, sample: Sample, mask: np.ndarray) -> Tensor:
    return torch.from_numpy(mask.astype(np.float32)) if sample.size else model.preprocessor.target(mask)


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
    image, mask, ignore = (_mirrored(a) for a in (sample.image, sample.mask, sample.ignore))
    turned = replace(sample, image=image, mask=mask, ignore=ignore)
    if sample.whole:
        whole = _mirrored(sample.whole[0]), _mirrored(sample.whole[1])
        mask, ignore = (square_mask(m, len(sample.mask)) for m in whole)
        turned = replace(turned, mask=mask, ignore=ignore, whole=whole)
    if isinstance(turned, Undecoded):
        return replace(turned, photo=turned.photo._replace(mirrored=True))
    return turned


def _mirrored(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array[:, ::-1])
