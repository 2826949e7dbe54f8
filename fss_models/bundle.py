"""A bundle: a folder with everything needed to predict. `bundle.json` is written last and marks it as complete.

    model.safetensors   the trained tensors (may be empty)
    calibrator.safetensors   turns raw scores into probabilities (optional: without it scores are uncalibrated)
    bundle.json         method, preset, config, preprocessing mode, frozen weights, provenance, metrics, train photos

This module reads the content of these files, wherever it lies; `open_bundle` reads a local folder.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors.torch import load as load_tensors

from fss_models import registry
from fss_models.calibration import Calibrator, load_calibrator
from fss_models.errors import FssError
from fss_models.presets import RANDOM
from fss_models.segmenter import Segmenter
from fss_models.settings import weight_fields
from fss_models.shipped.files import bundle_url, check_frozen
from fss_models.weight_files import file_sha256, weight_file

INFO, TENSORS, CALIBRATOR = "bundle.json", "model.safetensors", "calibrator.safetensors"


class BundleInfo(BaseModel):
    """The content of bundle.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int = 1
    method: str
    preset: str
    config: dict[str, Any] = {}
    seed: int = 0  # of random values, which no file has
    preprocessing: str
    weights: str = ""  # path or URL of the frozen SAM 2 checkpoint
    sha256: str = ""  # sha256 of the file in `weights`
    frozen: dict[str, str] = {}  # other frozen weights by name -> sha256
    untrained: bool = False  # whether parts that need training still have random values
    tensors_sha256: str
    dataset: str = ""
    data_hash: str = ""  # content hash of the shards
    classes: list[str] = []  # names of the classes that it was trained on
    trained_on: list[str] = []  # sha256 (first 16 digits) of every photo that training opened
    pretrained_on: list[str] = []  # likewise of class-agnostic pretraining, which does not look at classes
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    calibrator: str = ""  # sha256 of calibrator.safetensors, empty where there is none

    @property
    def seen(self) -> list[str]:
        """sha256 (first 16 digits) of every photo that any training opened. They must not be tested on."""
        return sorted({*self.trained_on, *self.pretrained_on})

    @property
    def bundle_id(self) -> str:
        """Identity of the model: a hash of method, configuration and tensors, not of where or when it was trained."""
        config = {k: v for k, v in self.config.items() if not k.endswith("_weights")}  # their hashes are in `frozen`
        parts = [self.method, self.preset, json.dumps(config, sort_keys=True), str(self.seed), self.preprocessing,
                 self.sha256, json.dumps(self.frozen, sort_keys=True), self.tensors_sha256]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def base_weights(self, where: str) -> str:
        """The frozen checkpoint to build on: its path or URL, "" for shipped weights, `random` for none.

        A bundle on weights that ship with the package needs the same weights installed; one made without them does not
        use installed ones. Raises `FssError` naming `where` if the installed weights differ.
        """
        return self.weights or ("" if check_frozen(self.frozen, where) else RANDOM)


def parse_info(content: bytes, where: str) -> BundleInfo:
    """The content of bundle.json. Raises `FssError` naming `where` if it is not valid."""
    try:
        return BundleInfo.model_validate_json(content)
    except ValueError as error:
        raise FssError("bundle.json is not valid", where=where,
                       hint="it may be of a newer version of fss: install that version") from error


def load_model(info: BundleInfo, base: Segmenter, tensors: bytes, where: str) -> Segmenter:
    """The bundle's model in evaluation mode: `base`, its method on its frozen weights, with the trained tensors.

    Raises `FssError` naming `where` if the tensors, or the frozen weights, are not those that bundle.json names.
    """
    if hashlib.sha256(tensors).hexdigest() != info.tensors_sha256:
        raise FssError("model.safetensors does not match bundle.json", where=where,
                       hint="it is damaged: take the bundle from where it was made")
    if tensors:
        base.load_trainable_state(load_tensors(tensors))
    for name, sha in base.frozen_weights().items():
        if info.frozen.get(name) != sha:
            raise FssError(f"the frozen weights {name!r} differ from those in bundle.json", where=where)
    return base.eval()


def parse_calibrator(info: BundleInfo, content: bytes, where: str) -> Calibrator:
    """The bundle's calibrator. Raises `FssError` naming `where` if it is not the one that bundle.json names."""
    if hashlib.sha256(content).hexdigest() != info.calibrator:
        raise FssError(f"{CALIBRATOR} does not match bundle.json", where=where, hint="run `fss calibrate` again")
    return load_calibrator(content, where)


def no_bundle(where: str) -> FssError:
    """The error about a place without a bundle."""
    return FssError("there is no bundle here (bundle.json is missing)", where=where,
                    hint="check the URL; `fss promote` writes a workspace's champion")


def open_bundle(place: str | Path) -> tuple[Segmenter, BundleInfo, Calibrator | None]:
    """Model (on the CPU), description and calibrator of a local bundle: a folder, `shipped` or `shipped:NAME`.

    Raises `FssError` if there is none, if its files disagree, if the installed shipped weights are not the bundle's,
    and for a bundle on a weight file that is not on this machine.
    """
    folder = Path(bundle_url(str(place)))
    if "://" in str(place):
        raise FssError("this is no folder of this machine", where=str(place),
                       hint="pipelines.load reads bundles in buckets and on the hub")
    if not (folder / INFO).is_file():
        raise no_bundle(str(place))
    info = parse_info((folder / INFO).read_bytes(), str(place))
    weights, fields = info.base_weights(str(place)), weight_fields(registry.method_config(info.method))
    for file in (f for f in (weights, *(str(info.config.get(name, "")) for name in fields)) if f not in ("", RANDOM)):
        if not Path(file).exists():
            raise FssError(f"the bundle is built on the weight file {file}, which is not here", where=str(place),
                           hint="put it there, or load the bundle with pipelines.load, which fetches it")
        if file == info.weights and info.sha256 and file_sha256(weight_file(file)) != info.sha256:
            raise FssError(f"the weight file {file} is not the one that the bundle was trained on", where=str(place))
    base = registry.build(info.method, info.preset, info.config, weights=weights or None, seed=info.seed)
    model = load_model(info, base, (folder / TENSORS).read_bytes(), str(place))
    calibrator = parse_calibrator(info, (folder / CALIBRATOR).read_bytes(), str(place)) if info.calibrator else None
    return model, info, calibrator
