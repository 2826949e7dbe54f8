"""A folder of image/mask pairs: images/NAME.jpg with masks/CLASS/NAME.png, or masks/NAME.png for a single class.

A mask may also be called NAME_mask.png. Photos that differ only in their suffix and share a mask are failures
(`finder.ambiguous`), and so is a photo with two masks of one class. What a mask file means is said in
`fss_models.mask_files`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import PurePosixPath

from fss_models.errors import BadImage, FssError
from fss_models.mask_files import mask_size, read_mask_picture
from fss_models.photo_files import image_size, is_photo, turned_size
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.sources.base import (
    BarePhoto,
    FetchedImage,
    ImageMasks,
    InstanceMask,
    MissingPhoto,
    Source,
    SourceFailure,
    SourceImage,
    digest_of,
)
from pipelines.data.sources.finder import ambiguous
from pipelines.data.sources.text import class_name

SINGLE = "object"  # the class of masks that are in no class folder
MASK = "_mask"  # may stand after the photo's name


class PairsSource(Source):
    """Photos with one mask file per class. Class ids follow the sorted folder names."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        masks = [f for f in self.files if f.startswith("masks/") and is_photo(f)]
        images = [f for f in self.files if f.startswith("images/") and is_photo(f)]
        if not masks or not images:
            raise FssError("there are no image files in images/ or none in masks/", where=self.store.url,
                           hint="put the photos into images/ and the masks into masks/CLASS/")
        self.classes = sorted({_class_of(m) for m in masks})
        self._index(images, masks)
        self.fingerprint = digest_of([(i.path, self.files[i.path], [(c, m, self.files[m]) for c, m in i.annotations])
                                      for i in self.items])

    def _index(self, images: list[str], masks: list[str]) -> None:
        photos: dict[str, list[str]] = defaultdict(list)
        for image in sorted(images):
            photos[_stem(image, skip=1)].append(image)
        by_stem: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for mask in masks:
            stem = _stem(mask, skip=1 if mask.count("/") == 1 else 2)
            if stem not in photos and stem.removesuffix(MASK) in photos:
                stem = stem.removesuffix(MASK)
            by_stem[stem].append((self.classes.index(_class_of(mask)), mask))
        for stem, image in sorted(((s, i) for s, found in photos.items() for i in found), key=lambda pair: pair[1]):
            name, found = image.removeprefix("images/"), by_stem.get(stem, [])
            if reason := _refusal(found, photos[stem]):
                self.fail(name, reason, SourceFailure if found else BarePhoto)
            else:
                self.add(image, found, [(c, m, self.files[m]) for c, m in found], name=name)
        for stem in sorted(by_stem.keys() - photos.keys()):
            self.fail(stem, f"{by_stem[stem][0][1]} has no photo of that name", MissingPhoto)

    def payload(self, item: SourceImage) -> list[tuple[int, str, bytes]]:
        """(class, path, content) of the photo's mask files."""
        return [(class_id, path, self.store.read_bytes(path)) for class_id, path in item.annotations]

    def annotated_size(self, item: SourceImage, fetched: FetchedImage) -> tuple[int, int] | None:
        """(height, width) as stored, or after EXIF rotation if only that size fits a mask; None if neither does.

        Raises `BadImage` for an unreadable photo.
        """
        stored, turned = image_size(fetched.data), turned_size(fetched.data)
        if stored == turned:
            return stored
        sizes = [mask_size(data) for _, _, data in fetched.payload]
        return next((size for size in (stored, turned) if size in sizes), None)

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask per mask file. Unreadable, empty or ill-sized ones are listed as problems."""
        masks, voids = ImageMasks(), []
        for class_id, path, data in fetched.payload:
            try:
                picture = read_mask_picture(data)
            except BadImage as error:
                masks.problems.append(f"{path}: {error.reason}")
                continue
            mask = picture.mask
            if mask.shape != (height, width):
                masks.problems.append(f"{path}: mask is {mask.shape[1]}x{mask.shape[0]}, its image {width}x{height}")
            elif not mask.any():
                masks.problems.append(f"{path}: empty mask")
            else:
                masks.instances.append(InstanceMask(class_id, rle.encode(mask)))
                voids += [] if picture.void is None else [rle.encode(picture.void)]
        return replace(masks, void=rle.encode(rle.union(voids, height, width))) if voids else masks


def _refusal(masks: list[tuple[int, str]], photos: list[str]) -> str:
    """Why a photo is not used, "" if it is. `photos`: all of that name, whatever their suffix."""
    if not masks:
        return "no mask has this photo's name"
    if len(photos) > 1:
        return ambiguous(photos, f"the mask {masks[0][1]}")
    for number, (class_id, mask) in enumerate(masks):
        twin = next((m for c, m in masks[:number] if c == class_id), None)
        if twin:
            return f"{twin} and {mask} are both masks of it and of one class"
    return ""


def _class_of(mask: str) -> str:
    parts = PurePosixPath(mask).parts
    return class_name(parts[1]) if len(parts) > 2 else SINGLE


def _stem(path: str, *, skip: int) -> str:
    """The path below `images/` or `masks/CLASS/` without its suffix."""
    return str(PurePosixPath(*PurePosixPath(path).parts[skip:]).with_suffix(""))
