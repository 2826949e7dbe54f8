"""The description of a folder of features by the frozen part of a model.

Methods, folds and seeds with the same frozen part share a folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fss_models.clip import Features
from fss_models.errors import FssError
from fss_models.segmenter import Segmenter
from pipelines.config.section import Section
from pipelines.features.records import Layout, Precision

FORMAT = 1
PROBES = 64  # values of each map that are stored as the probe
DRIFT = 0.02  # allowed difference as a share of a map's largest value: devices differ by less, other code by more
_ADDRESS = re.compile(r"0x[0-9a-f]+")


class FeatureFolderInfo(Section):
    """The file about.json of a folder. `probe`: map name -> some values of `encode_frozen` for a fixed picture."""

    format: int = FORMAT
    id: str  # 16 hex digits of a hash of the frozen values, the preprocessing, the encoder and its maps
    precision: Precision
    encoder: str  # the class that defines `encode_frozen`
    preprocessor: dict[str, Any]
    maps: dict[str, tuple[int, ...]]  # map name -> shape [C, h, w] of one image
    probe: dict[str, list[float]]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return f"{self.id}-{self.precision}"

    @property
    def layout(self) -> Layout:
        """The layout of a record in the folder."""
        return Layout({k: tuple(self.maps[k]) for k in sorted(self.maps)}, self.precision)


def describe_frozen_part(model: Segmenter, precision: Precision) -> FeatureFolderInfo:
    """The description of the features that the frozen part of `model` computes.

    It encodes one image and hashes all frozen values. Raises `FssError` for a method whose `frozen_part` is empty.
    """
    if not model.frozen_part():
        raise FssError(f"method {model.method!r} at {model.preset!r} has no frozen features to keep: training changes "
                       "its encoder", hint="set train.features=off, or leave the method out of the recipe")
    seen = _encode_probe(model)
    layout = Layout.of(seen, precision)
    owner = next(c for c in type(model).__mro__ if "encode_frozen" in vars(c))
    encoder, prepared = f"{owner.__module__}.{owner.__qualname__}", _preprocessing(model)
    digest = hashlib.sha256(json.dumps([FORMAT, encoder, prepared, layout.maps], sort_keys=True).encode())
    for number, part in enumerate(model.frozen_part()):
        _hash_module(digest, number, part)
    return FeatureFolderInfo(id=digest.hexdigest()[:16], precision=precision, encoder=encoder, preprocessor=prepared,
                             maps=layout.maps, probe={k: _probe_values(seen.maps[k]) for k in layout.maps})


def check_probe(model: Segmenter, about: FeatureFolderInfo, *, where: str) -> None:
    """Raise `FssError` if the model no longer computes the features of the folder, because the code has changed."""
    seen = _encode_probe(model).maps
    for name, stored in about.probe.items():
        one, other = torch.tensor(stored), torch.tensor(_probe_values(seen[name]))
        if float((one - other).abs().max()) > DRIFT * max(float(one.abs().max()), 1e-6):
            raise FssError(f"map {name!r} is not what this program computes: other code wrote these features",
                           where=where, hint="delete the folder and run `fss features build`")


def _preprocessing(model: Segmenter) -> dict[str, Any]:
    own = model.preprocessor
    facts = {k: v for k, v in asdict(own).items() if k in ("side", "via", "mean", "std", "mode")}
    facts["class"] = f"{type(own).__module__}.{type(own).__qualname__}"
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return]


def _hash_module(digest: Any, number: int, part: nn.Module) -> None:
    """Add a module to the digest: its structure (strides and the like) and its tensors by name."""
    digest.update(_ADDRESS.sub("", str(part)).encode())
    for name, value in sorted({**dict(part.named_parameters()), **dict(part.named_buffers())}.items()):
        digest.update(f"{number} {name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _encode_probe(model: Segmenter) -> Features:
    """The features of a fixed picture, computed on the model's device and returned on the CPU in float32."""
    picture = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference mode: the model may be trained after this
            found: Features = model.encode_frozen(model.prepare([picture])).to("cpu", torch.float32)
    finally:
        model.train(training)
    return found


def _probe_values(values: Tensor) -> list[float]:
    flat = values.flatten()
    at = torch.linspace(0, len(flat) - 1, min(PROBES, len(flat))).long()
    return [round(v, 7) for v in flat[at].tolist()]
