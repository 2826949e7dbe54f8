"""Reads kept features for training clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from cachetools import LRUCache

from fss_models.clip import Features
from fss_models.errors import FssError
from fss_models.segmenter import Segmenter
from pipelines.data.schema import PhotoKey
from pipelines.features.about import check_probe, describe_frozen_part
from pipelines.features.folder import FeatureFolder, RecordLocation
from pipelines.features.records import Precision


class FeatureReader:
    """Reads the features of photos, with a cache of the records used last. Only one thread may use it at a time.

    pool_bytes: upper bound on the size of the cached records.
    """

    def __init__(self, folder: FeatureFolder, *, pool_bytes: int) -> None:
        self._folder, self._locations = folder, folder.locations
        self._pool: LRUCache[PhotoKey, bytes] = LRUCache(pool_bytes // folder.layout.record_bytes)

    @staticmethod
    def open(base: str, model: Segmenter, precision: Precision, *, pool_bytes: int) -> FeatureReader:
        """Open the features of the model's frozen part below `base`.

        Raises `FssError` if there are none, for a method without a frozen part, and for features that other code wrote.
        """
        folder = FeatureFolder.open(base, describe_frozen_part(model, precision).name)
        check_probe(model, folder.about, where=folder.store.url)
        return FeatureReader(folder, pool_bytes=pool_bytes)

    def __call__(self, photos: Sequence[PhotoKey]) -> Features:
        """The features that `encode_frozen` computed for these photos, in order, on the CPU in float32.

        Raises `FssError` for a photo without features and for a damaged part.
        """
        here = {p: self._pool[p] for p in photos if p in self._pool}
        missing = [p for p in dict.fromkeys(photos) if p not in here]
        if missing:
            here |= zip(missing, self._folder.read([self._location(p) for p in missing]), strict=True)
        if self._pool.maxsize:
            self._pool.update(here)
        sizes = torch.tensor([[p.height, p.width] for p in photos], dtype=torch.int64)
        return Features(maps=self._folder.layout.unpack([here[p] for p in photos]), sizes=sizes)

    def _location(self, photo: PhotoKey) -> RecordLocation:
        try:
            return self._locations[photo]
        except KeyError:
            kind = "the mirrored photo" if photo.mirrored else "photo"
            raise FssError(f"there are no features of {kind} {photo.sha256[:16]}", where=self._folder.store.url,
                           hint="run `fss features build`") from None
