"""The record of one image: its maps one after the other, in the order of their names.

Methods resize every image to the same square, so all records of one frozen part have the same size, and a part is an
array of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fss_models.clip import Features

Precision = Literal["float32", "bfloat16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Layout:
    """The layout of a record. `maps`: name -> shape [C, h, w] of one image. Numbers are little-endian `precision`."""

    maps: dict[str, tuple[int, ...]]
    precision: Precision

    @staticmethod
    def of(features: Features, precision: Precision) -> Layout:
        """The layout for features that `encode_frozen` computed."""
        return Layout({k: tuple(features.maps[k].shape[1:]) for k in sorted(features.maps)}, precision)

    @property
    def record_bytes(self) -> int:
        """Size of a record in bytes."""
        return sum(math.prod(s) for s in self.maps.values()) * _DTYPES[self.precision].itemsize

    def pack(self, features: Features) -> list[bytes]:
        """One record per image, as bytes."""
        flat = [features.maps[k].detach().to("cpu", _DTYPES[self.precision]).flatten(1) for k in self.maps]
        table = torch.cat(flat, dim=1).contiguous().view(torch.uint8).numpy()
        return [row.tobytes() for row in table]

    def unpack(self, records: Sequence[bytes | memoryview]) -> dict[str, Tensor]:
        """Map name -> [N, C, h, w] float32, from N records."""
        raw = torch.empty(len(records), self.record_bytes, dtype=torch.uint8)
        rows = raw.numpy()
        for row, record in zip(rows, records, strict=True):
            row[:] = np.frombuffer(record, np.uint8)
        table, found, start = raw.view(_DTYPES[self.precision]), {}, 0
        for name, shape in self.maps.items():
            end = start + math.prod(shape)
            found[name] = table[:, start:end].float().reshape(-1, *shape)
            start = end
        return found
