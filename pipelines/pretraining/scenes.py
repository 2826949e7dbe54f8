"""What a pretraining learns from: train photos of shards with a mask for each object, and scenes made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from fss_models.errors import FssError
from fss_models.presets import preprocessor
from fss_models.pretraining.bank import Scene
from fss_models.pretraining.views import LabelledPhoto, Views, make_views, shrink
from fss_models.sam2_core.core import Sam2Core
from pipelines.config.data import DataConfig
from pipelines.data import rle
from pipelines.data.shardset import Shards, cropped
from pipelines.pretraining.config import PretrainConfig

LABEL_MAPS = frozenset({"voc", "pairs", "pascal5i"})  # formats with one region a class, which is split into its parts
MIN_SHARE = 0.002  # least share of the photo that an object covers; smaller ones vanish at the model's size
WORKING_SIDE = 384  # pixels of the square that views are cut from
SCENES = 0  # stream of random numbers


@dataclass(frozen=True)
class PhotoLocation:
    """Where a photo is: the number of its dataset, its image id there, and its sha256."""

    dataset: int
    image_id: int
    sha256: str


class Photos:
    """Train photos with at least one object that is large enough, in a fixed order."""

    def __init__(self, shards: Sequence[Shards], *, hide: Sequence[str] = ()) -> None:
        """Raises `FssError` where no photo is left, and for a class in `hide` that no dataset has."""
        self._shards = list(shards)
        known = {c.name for s in self._shards for c in s.manifest.classes}
        if unknown := sorted(set(hide) - known):
            raise FssError(f"hide: no dataset has a class {unknown[0]!r}",
                           hint=f"known classes: {', '.join(sorted(known))}")
        self._label_maps = [DataConfig.model_validate(s.manifest.source).source.format in LABEL_MAPS for s in shards]
        self._hidden = [{c.class_id for c in s.manifest.classes if c.name in hide} for s in self._shards]
        self.places = [PhotoLocation(d, row["image_id"], row["sha256"]) for d, s in enumerate(self._shards)
                       for row in s.images("train") if set(row["class_ids"]) - self._hidden[d]]
        if not self.places:
            raise FssError("no train photo of the datasets has an object", hint="check data and hide in the recipe")

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> LabelledPhoto:
        """A photo as a square of `WORKING_SIDE` pixels with a mask of each object that is large enough."""
        place = self.places[index]
        shards = self._shards[place.dataset]
        photo, pixels = shards.photo(place.image_id), shards.pixels(place.image_id)
        size, crop = (photo["height"], photo["width"]), photo.get("crop")
        least = MIN_SHARE * pixels.shape[0] * pixels.shape[1]
        counts = [i["rle"] for a in photo["annotations"] if a["class_id"] not in self._hidden[place.dataset]
                  for i in a["instances"] if not i["iscrowd"]]
        masks = [cropped(crop, rle.decode(c, *size))[0] for c in counts if rle.area(c, *size) >= least]
        masks = [m for m in masks if m.sum() >= least]
        if self._label_maps[place.dataset]:
            masks = [part for m in masks for part in _parts(m)]
        objects = np.stack(masks) if masks else np.zeros((0, *pixels.shape[:2]), bool)
        return shrink(LabelledPhoto(pixels=pixels, masks=objects), WORKING_SIDE)


def _parts(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a region [H, W] that cover at least `MIN_SHARE` of the photo."""
    labels, found = ndimage.label(mask)
    parts = [labels == i for i in range(1, found + 1)]
    return [p for p in parts if p.mean() >= MIN_SHARE]


class Encoder:
    """Normalises views as a preset does and computes the frozen trunk's maps."""

    def __init__(self, core: Sam2Core, preset: str, device: str) -> None:
        resize = preprocessor(preset)
        self.side, self._trunk, self._device = core.side, core.sam.image_encoder.trunk, device
        self._mean, self._std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (resize.mean, resize.std))

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """The trunk's four maps of views [N, 3, R, R] uint8."""
        maps: list[Tensor] = self._trunk((pixels.to(self._device).float() / 255 - self._mean) / self._std)
        return maps


class Scenes:
    """Scene n: views of the nth photo of a shuffled order, with objects pasted from another photo drawn at random."""

    def __init__(self, read: Callable[[int], LabelledPhoto], photos: list[int], config: PretrainConfig,
                 encode: Encoder) -> None:
        self._read, self._photos, self._config, self._encode = read, photos, config, encode

    def views(self, n: int) -> Views:
        """Views of scene n. A photo whose objects are all too small is replaced by one drawn at random.

        Raises `FssError` where the objects of all photos are.
        """
        rng = np.random.default_rng([self._config.seed, SCENES, n])
        epoch, turn = divmod(n, len(self._photos))
        order = np.random.default_rng([self._config.seed, SCENES, 2**40 + epoch]).permutation(self._photos)
        photo = self._read(int(order[turn]))
        for _ in self._photos:
            if len(photo.masks):
                break
            photo = self._read(int(rng.choice(self._photos)))
        else:
            photo = self._first()
        other = self._read(int(rng.choice(self._photos)))
        return make_views(photo, self._config.views.build(), rng, self._encode.side, other)

    def _first(self) -> LabelledPhoto:
        """The first photo with an object."""
        for index in self._photos:
            if len((photo := self._read(index)).masks):
                return photo
        raise FssError(f"none of {len(self._photos)} photos has an object that covers {100 * MIN_SHARE:g} % of it",
                       hint="pretrain on photos with larger objects")

    def __call__(self, n: int) -> Scene:
        """Scene n with its views encoded."""
        return Scene.make(self.views(n), self._encode)
