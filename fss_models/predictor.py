"""Masks in a few lines, in one process, without Ray or a network: a bundle, a few marked photos, others to segment.

    model = load("shipped")
    cup = model.memorise([{"image": "a.jpg", "box": [120, 80, 310, 290]}])
    found = model.predict(cup, "b.jpg")

A support is written as in a supports file: the photo and one of `mask`, `box`, `points`, `scribble` (with `labels`), in
pixels of the upright photo; with `negative: True` it shows what the class is not (without a mark: all of the photo).
Besides JSON's forms, `mask` may be an array, a Pillow image or the path of a picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco

from fss_models.bundle import BundleInfo, open_bundle
from fss_models.calibration import Calibrator
from fss_models.clip import Images, Instances, Memory, Prediction
from fss_models.errors import FssError
from fss_models.instances import SPECK, ObjectMask, SplitRules, add_prompted, check_instances, split_mask
from fss_models.marks import check_mark, mark_prompt, mask_from_picture, rle_json
from fss_models.photo_files import decode_image, rgb_image
from fss_models.presence import UNCALIBRATED, LabelJudge, Presence, SupportStatistics
from fss_models.segmenter import Segmenter
from fss_models.settings import TILE_OVERLAP, InstanceSource, TileSide, tile_mistake
from fss_models.tile_supports import cut_supports, resolve_side
from fss_models.tiles import TileGrid, TileJoin, is_tiled

Photo = np.ndarray | Image.Image | str | Path
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class PhotoMask:
    """The mask of a class in one photo.

    Attributes:
        mask: [H, W] bool, in pixels of the upright photo; all False where `status` is "empty"
        score: the method's own estimate of the mask's quality, in [0, 1]
        presence: probability that the class is in the photo; None without a calibrator
        quality: probability that it is, and that the mask has an IoU of at least 0.5; None without a calibrator
        status: accepted, review, empty, uncalibrated; "" for a bundle without a calibrator
        instances: one mask for each object, by falling score; None where `MaskSettings.instances` is "none"
    """

    mask: np.ndarray
    score: float
    presence: float | None
    quality: float | None
    status: str
    instances: tuple[ObjectMask, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How masks are made and trusted, as in a recipe's section `label`.

    Attributes:
        threshold: pixels above this probability belong to the object
        prevalence: estimated share of the photos that show the class
        empty_below: a class less probable than this gets an empty mask
        review_below: a mask less probably good gets the status review
        instances: where one mask for each object comes from: none, model (the method's own), pieces (connected pieces
            of the mask), prompts (points inside the mask prompt SAM 2's decoder)
        speck: share of the photo's pixels below which a connected piece is no instance
        tile_overlap: share of a tile's side that two neighbours share, for supports with tiles
    """

    threshold: float = 0.5
    prevalence: float = 0.5
    empty_below: float = 0.5
    review_below: float = 0.5
    instances: InstanceSource = "none"
    speck: float = SPECK
    tile_overlap: float = TILE_OVERLAP

    def __post_init__(self) -> None:
        for name, low, high in (("threshold", 0.0, 1.0), ("prevalence", 0.0, 1.0)):
            if not low < getattr(self, name) < high:
                raise FssError(f"{name} is {getattr(self, name)}, not between 0 and 1")

    @property
    def level(self) -> float:
        """The logit of the probability `threshold`."""
        return torch.logit(torch.tensor(self.threshold, dtype=torch.float64)).item()


@dataclass(frozen=True)
class MemorisedSupports:
    """What a model computed from marked photos of a class, once for any number of photos.

    tile  side in pixels of the tiles in which larger photos are predicted; 0: as a whole
    """

    memory: Memory
    statistics: SupportStatistics | None
    tile: int = 0


class Predictor:
    """A model that is ready to predict, with its calibrator. Not for several threads at once."""

    def __init__(self, model: Segmenter, info: BundleInfo | None = None, calibrator: Calibrator | None = None) -> None:
        self.model, self.info, self.calibrator = model.eval(), info, calibrator
        self._judge = LabelJudge(model, calibrator) if calibrator else None

    @torch.inference_mode()
    def memorise(self, supports: Sequence[Mapping[str, Any]], name: str = "", *,
                 prompt: str = "", tile: TileSide = 0) -> MemorisedSupports:
        """Compute what predicting needs of marked photos of one class.

        `name` is the class's; methods that read names are told it, or `prompt`, which says better what is meant. Other
        methods warn that a name changes nothing, and refuse a `prompt`. With `tile` photos that are larger than so many
        pixels are predicted in tiles, and of larger supports a tile around the mark is used; auto: where the marked
        objects are too small without.

        Raises `FssError` naming the support (from 0) for a wrong mark, a photo that cannot be read, and a kind of mark
        or a negative example that the method cannot use; and for a `prompt` that the method does not read.
        """
        self.model.check_phrase(prompt, self.model.config)
        if name and not self.model.reads_names(self.model.config):
            warnings.warn(f"method {self.model.method!r} reads no names: the marks alone say what to look for",
                          stacklevel=2)
        name = prompt or name
        if all(row.get("negative") for row in supports):
            raise FssError("all supports are negative" if supports else "there are no supports",
                           hint="give at least one photo with a mark on the object")
        self._check_negatives(supports)
        photos, prompts = [], []
        for number, row in enumerate(supports):
            where = f"supports[{number}]"
            if "image" not in row:
                raise FssError("image is missing", where=where)
            photos.append(read_photo(row["image"], where))
            mark = {k: _mask(v, where) if k == "mask" else _plain(v) for k, v in row.items() if k != "image"}
            height, width = photos[-1].shape[:2]
            prompts.append(mark_prompt(check_mark(mark, height, width, where)))
        side = resolve_side(tile, photos, prompts, self.model.side)
        if wrong := tile_mistake(side, TILE_OVERLAP, "none"):
            raise FssError(wrong)
        if side:
            photos, prompts = cut_supports(photos, prompts, side)
        images = self.model.prepare(photos)
        marks = self.model.collate([prompts], images.sizes, names=[name]).to(self.model.device)
        features = self.model.encode(images.to(self.model.device))
        memory = self.model.memorise(features, marks)
        judge = self._judge
        known = judge.describe_supports(features, prompts, memory, name) if judge else None
        return MemorisedSupports(memory, known, side)

    def _check_negatives(self, supports: Sequence[Mapping[str, Any]]) -> None:
        """Raises `FssError` for negative supports that the method cannot use, before a photo is read."""
        for number, row in enumerate(supports):
            if row.get("negative"):
                whole = not row.keys() & {"box", "points", "scribble"}
                self.model.check_negative(self.model.config, whole=whole, where=f"supports[{number}]")

    def predict(self, supports: MemorisedSupports, photo: Photo, settings: MaskSettings | None = None) -> PhotoMask:
        """The mask in one photo. Raises `FssError` for a photo that cannot be read."""
        pixels = read_photo(photo)
        batch = BATCH if is_tiled(pixels.shape[:2], supports.tile) else 1
        return next(self.predict_many(supports, [pixels], settings, batch=batch))

    def predict_many(self, supports: MemorisedSupports, photos: Iterable[Photo], settings: MaskSettings | None = None,
                     *, batch: int = BATCH) -> Iterator[PhotoMask]:
        """The masks in any number of photos, in order; `batch` photos are in memory at a time.

        A photo in tiles is predicted alone, `batch` tiles at a time. A batch is padded to its full size, so that a mask
        does not depend on the other photos of its batch. Raises `FssError` for a photo that cannot be read, and for
        instances that the method cannot give, or that do not go with tiles.
        """
        rest, settings = iter(photos), settings or MaskSettings()
        check_instances(type(self.model), settings.instances)
        if supports.tile and (wrong := tile_mistake(supports.tile, settings.tile_overlap, settings.instances)):
            raise FssError(wrong)
        while some := [read_photo(p) for p in islice(rest, batch)]:
            small = [p for p in some if not is_tiled(p.shape[:2], supports.tile)]
            whole = iter(self._predict(supports, small, settings, batch) if small else [])
            for photo in some:
                tiled = is_tiled(photo.shape[:2], supports.tile)
                yield self._predict_tiles(supports, photo, settings, batch) if tiled else next(whole)

    @torch.inference_mode()
    def _predict(self, supports: MemorisedSupports, photos: list[np.ndarray], settings: MaskSettings,
                 width: int) -> list[PhotoMask]:
        found, judged = self._segment(supports, photos, settings, width)
        masks = []
        for row, (photo, presence) in enumerate(zip(photos, judged, strict=True)):
            logits = F.interpolate(found.logits[row][None, None].float(), size=photo.shape[:2], mode="bilinear",
                                   align_corners=self.model.corners_aligned)[0, 0]
            objects = found.instances.of_pair(row) if found.instances is not None else None
            masks.append(self._mask((logits > settings.level).cpu().numpy(), float(found.scores[row]), presence,
                                    settings, objects))
        return masks

    @torch.inference_mode()
    def _predict_tiles(self, supports: MemorisedSupports, photo: np.ndarray, settings: MaskSettings,
                       width: int) -> PhotoMask:
        grid = TileGrid.of(photo.shape[:2], supports.tile, settings.tile_overlap)
        joined = TileJoin(grid, 1, settings.level, settings, corners=self.model.corners_aligned)
        for first in range(0, len(grid), width):
            tiles = [window.cut(photo) for window in grid.windows[first:first + width]]
            found, judged = self._segment(supports, tiles, settings, width)
            for logits, score, presence in zip(found.logits.cpu(), found.scores.tolist(), judged, strict=False):
                joined.add(logits[None], [score], [presence])
        one = joined.masks()[0]
        return self._mask(coco.decode(one.rle).astype(bool), one.score, one.presence, settings)

    def _mask(self, mask: np.ndarray, score: float, presence: Presence, settings: MaskSettings,
              objects: Instances | None = None) -> PhotoMask:
        """The answer for a photo; `objects` are the instances that the model gave."""
        mask = mask & (presence.status != "empty")
        status = "empty" if presence.status and not mask.any() else presence.status
        rules = SplitRules(source=settings.instances, level=settings.level, speck=settings.speck,
                           corners=self.model.corners_aligned)
        instances = None if settings.instances == "none" else tuple(split_mask(mask, score, rules, objects))
        return PhotoMask(mask=mask, score=score, presence=presence.presence, quality=presence.quality,
                         status=status, instances=instances)

    def _segment(self, supports: MemorisedSupports, photos: list[np.ndarray], settings: MaskSettings,
                 width: int) -> tuple[Prediction, list[Presence]]:
        """What the model gives for photos, padded to `width`, and the estimates for the photos without padding."""
        images, missing = self.model.prepare(photos), width - len(photos)
        images = Images(pixels=F.pad(images.pixels, (0, 0, 0, 0, 0, 0, 0, missing)),
                        sizes=F.pad(images.sizes, (0, 0, 0, missing), value=self.model.side)).to(self.model.device)
        features = self.model.encode(images)
        pairs = torch.stack([torch.zeros(width, dtype=torch.int64), torch.arange(width)], dim=1).to(self.model.device)
        found = self.model.segment(supports.memory, features, pairs)
        if settings.instances == "prompts":
            found = add_prompted(self.model, found, supports.memory, features, pairs,
                                 [settings.level] * len(photos) + [None] * missing)
        judged = [UNCALIBRATED] * len(photos)
        if self._judge and supports.statistics:
            judged = self._judge.judge_masks(found, features, pairs, [supports.statistics], [settings] * len(photos))
        return found, judged


def load(bundle: str | Path = "shipped", device: str = "") -> Predictor:
    """A predictor from a bundle on this machine: its folder, `shipped` (the champion that ships) or `shipped:NAME`.

    `device`: as torch names it; "": a GPU if there is one. Raises `FssError` if there is no such bundle, or if it is
    not whole.

    Examples:
        >>> import numpy as np
        >>> model = load("shipped")
        >>> photo = np.full((48, 64, 3), 90, np.uint8)
        >>> photo[12:36, 20:44] = 200, 60, 40
        >>> square = model.memorise([{"image": photo, "mask": photo[..., 0] > 90}])
        >>> other = np.roll(photo, 10, axis=1)
        >>> found = model.predict(square, other)
        >>> found.mask.shape, found.mask.dtype, 0 <= found.score <= 1
        ((48, 64), dtype('bool'), True)
        >>> [found.mask.any() for found in model.predict_many(square, [photo, other])]
        [np.True_, np.True_]
    """
    model, info, calibrator = open_bundle(bundle)
    return Predictor(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), info, calibrator)


def read_photo(photo: Photo, where: str = "") -> np.ndarray:
    """[H, W, 3] uint8, upright. Arrays are taken as they are; a Pillow image is read as a file: turned by its EXIF.

    Raises `FssError` for a file that is missing or no photo, for pixels without an agreed range, and for an array of
    another shape or type.
    """
    if isinstance(photo, np.ndarray):
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            found = f"{list(photo.shape)} of {photo.dtype}"
            raise FssError(f"a photo is an array [H, W, 3] of uint8, not {found}", where=where)
        return photo
    if isinstance(photo, Image.Image):
        return np.array(rgb_image(photo, exif=True, where=where))
    path = Path(photo)
    if not path.is_file():
        raise FssError("there is no such photo", where=str(photo))
    return decode_image(path.read_bytes(), exif=True, where=str(photo))


def _mask(mask: Any, where: str) -> Any:
    """A mask as COCO's run lengths, which `check_mark` takes."""
    if isinstance(mask, str | Path):
        if not Path(mask).is_file():
            raise FssError("there is no such mask", where=f"{where}.mask: {mask}")
        return mask_from_picture(Path(mask).read_bytes(), f"{where}.mask")
    if isinstance(mask, Image.Image):
        return mask_from_picture(mask, f"{where}.mask")
    if isinstance(mask, np.ndarray | torch.Tensor):
        array = np.asarray(mask)
        if array.ndim != 2:
            raise FssError(f"a mask is an array [H, W], not {list(array.shape)}", where=f"{where}.mask")
        return rle_json(array > 0)
    return mask


def _plain(value: Any) -> Any:
    """Lists of numbers in place of arrays and tuples."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
