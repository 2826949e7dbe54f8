"""The worker of a build: reads photos from the shards, encodes them in batches, writes them as one part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from fss_models.errors import FssError
from fss_models.photo_files import decode_sized
from fss_models.segmenter import Segmenter
from pipelines.base.storage import Store
from pipelines.bundles.weights import build_model
from pipelines.config.method import MethodConfig
from pipelines.data.parquet import GROUP_ROWS
from pipelines.data.parts import part_name
from pipelines.data.schema import PhotoKey
from pipelines.features.about import FeatureFolderInfo, check_probe
from pipelines.features.folder import FeatureFolder

COLUMNS = ["image", "file_name", "height", "width", "crop"]


class MissingRecords(NamedTuple):
    """The missing records of a photo, and the place of the photo in its shards.

    mirrored: one entry per missing record, whether it is of the mirrored photo.
    """

    sha256: str
    height: int
    width: int
    mirrored: tuple[bool, ...]
    shards: str
    part: int
    row: int


class PartEncoder:
    """Writes parts. It is in an actor, which keeps the model."""

    def __init__(self, *, base: str, about: FeatureFolderInfo, method: MethodConfig, seed: int, batch: int,
                 threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self._folder, self._method, self._seed = FeatureFolder(base, about), method, seed
        self._batch, self._device = batch, device
        self._model: Segmenter | None = None

    def __call__(self, missing: Sequence[MissingRecords]) -> int:
        """Encode the missing records and write them as one part. Returns their number."""
        photos, records = self._encode(missing)
        self._folder.write(photos, records)
        return len(photos)

    def _encode(self, missing: Sequence[MissingRecords]) -> tuple[list[PhotoKey], list[bytes]]:
        photos: list[PhotoKey] = []
        records: list[bytes] = []
        pictures: list[np.ndarray] = []
        for one, pixels in _pixels(missing):
            for mirrored in one.mirrored:
                photos.append(PhotoKey(one.sha256, one.height, one.width, mirrored))
                pictures.append(np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels)
            while len(pictures) >= self._batch:
                records += self._records(pictures[: self._batch])
                del pictures[: self._batch]
        return photos, records + self._records(pictures)

    def _records(self, pictures: Sequence[np.ndarray]) -> list[bytes]:
        if not pictures:
            return []
        model = self._get_model()
        with torch.inference_mode():
            found = model.encode_frozen(model.prepare(pictures).to(self._device))
        return self._folder.layout.pack(found)

    def _get_model(self) -> Segmenter:
        """The model, built once. Raises `FssError` if it does not compute the features of the folder."""
        if self._model is None:
            model = build_model(self._method, seed=self._seed)
            check_probe(model, self._folder.about, where=self._folder.store.url)
            self._model = model.to(self._device).eval()
        return self._model


def _pixels(missing: Sequence[MissingRecords]) -> Iterator[tuple[MissingRecords, np.ndarray]]:
    """The decoded photos [H, W, 3] uint8. Each row group of the image table is read once."""
    places: dict[tuple[str, int], dict[int, list[MissingRecords]]] = defaultdict(lambda: defaultdict(list))
    for one in missing:
        places[one.shards, one.part][one.row // GROUP_ROWS].append(one)
    for (shards, part), groups in places.items():
        with Store(shards).open_parquet(part_name(part)) as file:
            for group, members in groups.items():
                columns = [c for c in COLUMNS if c in file.schema_arrow.names]  # older shards have no crop
                rows = file.read_row_group(group, columns=columns).take([m.row % GROUP_ROWS for m in members])
                for one, row in zip(members, rows.to_pylist(), strict=True):
                    if row.get("crop"):
                        raise cropped_photo_error(shards)
                    yield one, decode_sized(row["image"], row["height"], row["width"], limits=None,
                                            where=row["file_name"])


def cropped_photo_error(shards: str) -> FssError:
    """The error for part benchmarks, whose samples are crops of a photo."""
    return FssError("the samples are crops of photos; features are kept for whole photos only", where=shards,
                    hint="set train.features=off")
