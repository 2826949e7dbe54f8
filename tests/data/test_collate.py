"""From decoded clips to tensors, with a real method."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from fss_models import registry
from fss_models.clip import PromptKind
from fss_models.registry import build
from fss_models.segmenter import Segmenter
from pipelines.data import rle
from pipelines.data.collate import make_clip, square_side
from pipelines.data.pixels import SampleReader
from pipelines.data.schema import BLOCKS, EpisodeSample, Sample
from pipelines.data.shardset import Shards
from pipelines.data.stream import EpisodeStream
from tests.data.conftest import jpeg


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
    augment = registry.method_class("fssam").augmentation(model.side, scale=(0.9, 1.1))
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


# ---- ready-made squares -------------------------------------------------------------------------------------------

PHOTOS = {  # (height, width), crop, object (x0, y0, x1, y1), crowd
    "plain": ((60, 90), None, (8, 5, 50, 40), False),
    "twice": ((60, 128), None, (9, 5, 64, 41), True),  # twice the side: nearest is a tie, its mirror image another mask
    "tiny": ((400, 700), None, (301, 200, 302, 201), False),  # nothing of it is left in the square
    "cropped": ((90, 120), [11, 7, 100, 70], (20, 15, 70, 60), False),
    "crowded": ((70, 100), None, (30, 20, 60, 60), True),
}


def _table() -> pa.Table:
    rows = []
    for i, (size, crop, (x0, y0, x1, y1), crowd) in enumerate(PHOTOS.values()):
        masks = np.zeros((2, *size), dtype=bool)
        masks[0, y0:y1, x0:x1], masks[1, : size[0] // 3, : size[1] // 3] = True, True
        found = [{"rle": rle.encode(m), "bbox": [0, 0, 1, 1], "area": 1.0, "iscrowd": bool(c)}
                 for c, m in enumerate(masks[: 1 + crowd])]
        rows.append({"annotation_id": i, "class_id": 0, "image_id": i, "image": jpeg(*size, i), "instances": found,
                     "void_rle": None, "crop": crop, "height": size[0], "width": size[1], "image_class_ids": [0],
                     "image_class_areas": [1]})
    return pa.Table.from_pylist(rows, schema=BLOCKS)


def _episodes(side: int) -> list[EpisodeSample]:
    read, tables = SampleReader(10**8, side), {0: _table()}
    samples = read(tables, [(0, row) for row in range(len(PHOTOS))])
    samples.append(samples[0])
    return [EpisodeSample(class_id=0, class_name="one", references=samples[:3], targets=samples[3:5]),
            EpisodeSample(class_id=0, class_name="one", references=samples[3:], targets=samples[:2])]


def _tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    if not is_dataclass(value):
        return {}
    return {k: t for f in fields(value) for k, t in _tensors(getattr(value, f.name), f"{name}.{f.name}").items()}


@pytest.mark.parametrize("kind", ["mask", "point", "box", "scribble", "multi"])
@pytest.mark.parametrize("via", [0, 80])
def test_squares_give_the_same_clip_bit_for_bit(kind: str, via: int) -> None:
    """Crops, crowds, flips, objects that the square loses, and widths whose mirror image is another square."""
    model = registry.build("sansa", "debug")
    assert model.side == 64
    model.preprocessor = replace(model.preprocessor, via=via)
    side = square_side(model, decoded=True)
    assert side == (via or 64)
    flips = set()
    for seed in range(8):
        pair = [make_clip(model, _episodes(s), np.random.default_rng(seed), flip=True, prompts=kind)  # type: ignore[arg-type]
                for s in (0, side)]
        whole, small = (_tensors(clip) for clip in pair)
        assert whole.keys() == small.keys()
        for name, value in whole.items():
            assert torch.equal(value, small[name]), name
        flips.add(whole[".targets.pixels"].numpy().tobytes())
    assert len(flips) > 4
    assert whole[".references.sizes"].tolist()[1:] == [[60, 128], [400, 700], [63, 89], [70, 100], [60, 90]]


def test_which_models_take_squares() -> None:
    """FSSAM's preprocessing pads, and `fast` resizes in float: neither can begin with the published square."""
    for name, expected in (("sansa", 64), ("fssam", 0)):
        assert square_side(registry.build(name, "debug"), decoded=True) == expected
    model = registry.build("sansa", "debug")
    model.preprocessor = replace(model.preprocessor, mode="fast")
    assert square_side(model, decoded=True) == 0
    assert square_side(model, decoded=False) == 64  # masks are resized alike in both modes
