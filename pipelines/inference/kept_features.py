"""What a model's encoder gave for the photos of a job, kept in half precision for labelling them again.

One file holds the photos that are labelled in one call, a chunk or a piece of one; its name is a hash of their
content and of the batch, since a model's last digits depend on it. Another job finds it if it labels the same photos in
the same chunks and batches with the same bundle, version and precision, on the same device, whatever its supports,
classes and threshold are. Features are rounded to half precision in the first job too, so that both jobs give the same
masks. A damaged file is as good as none: its photos are encoded again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fss_models.clip import Features
from pipelines.base.storage import Store, join
from pipelines.inference.masks import PhotoFailure

HALF_MAX = torch.finfo(torch.float16).max
_SIZES, _ROWS, _FAILURES = "sizes", "rows", "failures"


@dataclass
class KeptPhotos:
    """Features of the readable photos of a call, on the CPU.

    rows      [M] their places among the call's photos
    sizes     [M, 2] int64 (height, width)
    maps      name -> [M, C, h, w] float16
    failures  place -> why the photo could not be read
    """

    rows: list[int]
    sizes: Tensor
    maps: dict[str, Tensor]
    failures: dict[int, PhotoFailure]
    room: dict[str, Tensor] = field(default_factory=dict, repr=False)  # of which `maps` are the first rows

    def add(self, rows: list[int], sizes: Tensor, maps: dict[str, Tensor], most: int) -> None:
        """Add photos; `most` is the largest number of photos that there will be."""
        first, last = len(self.rows), len(self.rows) + len(rows)
        if not self.maps:
            self.room = {k: torch.empty(most, *v.shape[1:], dtype=v.dtype) for k, v in maps.items()}
        for name, room in self.room.items():
            room[first:last] = maps[name]
        self.maps = {k: v[:last] for k, v in self.room.items()}
        self.rows, self.sizes = [*self.rows, *rows], torch.cat([self.sizes, sizes])

    def batch(self, first: int, width: int, device: str = "cpu") -> Features:
        """The features of `width` photos from the readable photo `first` on, padded with zeros, on `device`."""
        some = slice(first, first + width)
        features: Features = padded({k: v[some] for k, v in self.maps.items()}, self.sizes[some], width).to(device)
        return features


def half(maps: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The first `count` photos' maps in half precision; values beyond its range are cut."""
    return {k: v[:count].float().clamp(-HALF_MAX, HALF_MAX).half().contiguous() for k, v in maps.items()}


def padded(maps: dict[str, Tensor], sizes: Tensor, width: int) -> Features:
    """`Features` in float32 of maps in half precision, padded with zeros to `width` photos."""
    missing = width - len(sizes)
    grown = {k: torch.cat([v.float(), v.new_zeros(missing, *v.shape[1:], dtype=torch.float32)])
             for k, v in maps.items()}
    return Features(maps=grown, sizes=torch.cat([sizes, sizes.new_ones(missing, 2)]))


class FeatureKeeper:
    """The files below `url` for one model; `model` says all that decides its features."""

    def __init__(self, url: str, model: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()[:16]
        self._store = Store(join(url, digest))

    def read(self, photos: Sequence[bytes], batch: int) -> KeptPhotos | None:
        """What is kept of these photos, encoded `batch` at a time; None if nothing is, or if the file is damaged."""
        name = _name(photos, batch)
        if not self._store.exists(name):
            return None
        try:
            return _parsed(self._store.read_bytes(name))
        except (SafetensorError, ValueError, KeyError, TypeError):
            return None

    def write(self, photos: Sequence[bytes], batch: int, kept: KeptPhotos) -> None:
        """Keep the features of these photos, which were encoded `batch` at a time."""
        failures = {row: {"reason": one.reason, "stage": one.stage} for row, one in kept.failures.items()}
        tensors = {**kept.maps, _SIZES: kept.sizes, _ROWS: torch.tensor(kept.rows, dtype=torch.int64)}
        self._store.write_bytes(_name(photos, batch), save(tensors, {_FAILURES: json.dumps(failures)}))


def _parsed(data: bytes) -> KeptPhotos:
    length = int.from_bytes(data[:8], "little")
    about = json.loads(data[8:8 + length])["__metadata__"]
    maps = load(data)
    failures = {int(row): PhotoFailure(**one) for row, one in json.loads(about[_FAILURES]).items()}
    return KeptPhotos(maps.pop(_ROWS).tolist(), maps.pop(_SIZES), maps, failures)


def _name(photos: Sequence[bytes], batch: int) -> str:
    parts = [hashlib.sha256(p).digest() for p in photos]
    digest = hashlib.sha256(b"".join([*parts, str(batch).encode()])).hexdigest()
    return f"{digest[:2]}/{digest[:32]}.safetensors"
