"""From decoded clips to tensors, with a real method."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from fss_models import registry
from fss_models.clip import PromptKind
from fss_models.methods.fssam.training import Augmentation
from fss_models.registry import build
from fss_models.segmenter import Segmenter
from pipelines.data.collate import make_clip
from pipelines.data.schema import EpisodeSample, Sample
from pipelines.data.shardset import Shards
from pipelines.data.stream import EpisodeStream


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return build("prior", "debug")


def _sample(height: int, width: int, shift: int = 0) -> Sample:
    image = np.tile(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], (height, 1, 3))
    mask, ignore = np.zeros((2, height, width), dtype=bool)
    mask[:, : width // 4 + shift], ignore[: height // 4] = True, True
    return Sample(image_id=0, image=image, mask=mask, ignore=ignore & ~mask)


def _clip(k: int = 2, j: int = 2) -> EpisodeSample:
    return EpisodeSample(class_id=1, class_name="one", references=[_sample(40, 60, i) for i in range(k)],
                         targets=[_sample(50, 30, i) for i in range(j)])


def test_shapes_and_order(model: Segmenter) -> None:
    clip = make_clip(model, [_clip(), _clip(), _clip()], np.random.default_rng(0))
    r = model.side
    assert clip.shape == (3, 2, 2)
    assert clip.references.pixels.shape == clip.targets.pixels.shape == (6, 3, r, r)
    assert clip.target_masks.shape == clip.ignore.shape == (3, 2, r, r)
    assert clip.ignore.dtype == torch.bool
    assert clip.prompts.image.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert clip.class_names == ("one", "one", "one")
    assert set(clip.target_masks.unique().tolist()) == {0.0, 1.0}


def test_flips_turn_image_and_masks_together(model: Segmenter) -> None:
    """Would catch a mirrored image with its old mask."""
    plain = make_clip(model, [_clip()], np.random.default_rng(0))
    seen = set()
    for seed in range(20):
        clip = make_clip(model, [_clip()], np.random.default_rng(seed), flip=True)
        for i in range(2):
            flipped = not torch.allclose(clip.targets.pixels[i], plain.targets.pixels[i])
            seen.add(flipped)
            where = (2,) if flipped else ()
            assert torch.allclose(clip.targets.pixels[i], plain.targets.pixels[i].flip(where), atol=0.05)
            expect = plain.target_masks[0, i].flip(1) if flipped else plain.target_masks[0, i]
            assert (clip.target_masks[0, i] != expect).float().mean() < 0.03
            void = plain.ignore[0, i].flip(1) if flipped else plain.ignore[0, i]
            assert (clip.ignore[0, i] != void).float().mean() < 0.03
    assert seen == {True, False}


def test_a_stream_feeds_a_method(model: Segmenter, shapes_shards: str) -> None:
    shards = Shards(shapes_shards)
    with EpisodeStream(shapes_shards, classes=shards.base_classes(0), shots=1, batch=2, seed=0) as stream:
        for batch in islice(stream, 2):
            clip = make_clip(model, batch, np.random.default_rng(0), flip=True)
            memory = model.memorise(model.encode(clip.references), clip.prompts)
            pairs = torch.tensor([[0, 0], [1, 1]])
            prediction = model.segment(memory, model.encode(clip.targets), pairs)
            assert prediction.logits.shape[0] == 2
            assert torch.isfinite(prediction.logits).all()


def test_the_published_augmentation_keeps_objects_and_repeats_by_its_seed() -> None:
    model = registry.build("fssam", "debug")
    augment = Augmentation(crop=model.side, scale=(0.9, 1.1))
    first, again, other = (make_clip(model, [_clip()], np.random.default_rng(seed), augment=augment)
                           for seed in (1, 1, 2))
    assert torch.equal(first.targets.pixels, again.targets.pixels)
    assert not torch.equal(first.targets.pixels, other.targets.pixels)
    assert bool((first.prompts.masks.flatten(2).sum(2) > 0).all())
    assert not bool((first.target_masks.bool() & first.ignore).any())


@pytest.mark.parametrize("kind", ["point", "box", "scribble", "multi"])
def test_prompts_are_drawn_from_the_masks(kind: str) -> None:
    model = registry.build("sansa", "debug")
    clip = make_clip(model, [_clip(), _clip()], np.random.default_rng(3), prompts=kind)  # type: ignore[arg-type]
    assert clip.reference_masks is not None
    for b, k in np.ndindex(*clip.prompts.kind.shape):
        inside = clip.prompts.points[b, k][clip.prompts.labels[b, k] == 1].long().clamp(0, model.side - 1)
        assert bool((clip.reference_masks[b, k][inside[:, 1], inside[:, 0]] == 1).all())
    assert bool((clip.prompts.kind != PromptKind.PAD).all())


def test_varied_shots_use_the_first_references() -> None:
    model = registry.build("sansa", "debug")
    shots = {make_clip(model, [_clip()], np.random.default_rng(i), vary_shots=True).shape[1] for i in range(20)}
    assert shots == set(range(1, len(_clip().references) + 1))
