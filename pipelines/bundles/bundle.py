"""A bundle: a folder with everything needed to predict. `bundle.json` is written last and marks it as complete.

    model.safetensors   the trained tensors (may be empty)
    calibrator.safetensors   turns raw scores into probabilities (optional: without it scores are uncalibrated)
    bundle.json         method, preset, config, preprocessing mode, frozen weights, provenance, metrics, train photos
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fss_models import registry
from fss_models.calibration import Calibrator, load_calibrator
from fss_models.errors import FssError
from fss_models.official import load_official, official_state, read_official, read_tensors
from fss_models.presets import RANDOM
from fss_models.segmenter import Segmenter
from fss_models.settings import weight_fields
from fss_models.shipped.files import bundle_url, check_frozen, to_half
from pipelines.base.storage import Store
from pipelines.bundles.weights import build_model, fetch, file_sha256, pretraining_photos

CALIBRATOR = "calibrator.safetensors"


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


def save_bundle(url: str, model: Segmenter, *, recipe_config: dict[str, Any] | None = None, half: bool = False,
                **about: Any) -> BundleInfo:
    """Write a bundle below `url`; with `half`, tensors are stored in half precision and converted when loading.

    `recipe_config` is the configuration as the recipe states it: its weight files are stored by the URLs given there,
    not by local paths. `about` are further fields of `BundleInfo`. Raises `FssError` for values outside the range of
    half precision.
    """
    state = model.trainable_state()
    data = save_tensors(to_half(state) if half else state) if state else b""
    files = {f: (recipe_config or {}).get(f, "") for f in weight_fields(type(model.config))}
    info = BundleInfo(
        method=model.method, preset=model.preset,
        config=json.loads(json.dumps(registry.config_dict(model) | files)),
        seed=model.seed, preprocessing=model.preprocessor.mode, frozen=model.frozen_weights(),
        untrained=(model.untrained and not state) or model.keeps_random_parts,
        tensors_sha256=hashlib.sha256(data).hexdigest(),
        **{"pretrained_on": _pretrained_on(model, about.get("weights", ""), url), **about},
    )
    store = Store(url)
    store.write_bytes("model.safetensors", data)
    store.write_json("bundle.json", info.model_dump())
    return info


def _pretrained_on(model: Segmenter, weights: str, where: str) -> list[str]:
    """Photos that pretraining of the frozen weights opened: shipped weights, and `weights` if its JSON names them."""
    shipped = check_frozen(model.frozen_weights(), where)
    return sorted({*(photo for one in shipped for photo in one.provenance.photos), *pretraining_photos(weights)})


def import_bundle(url: str, *, file: str, method: str, preset: str, weights: str = "") -> tuple[BundleInfo, int]:
    """Write a bundle below `url` from the official checkpoint `file`; returns it and the file's number of tensors.

    Raises `FssError` with the first wrong key for a file that does not fit; nothing is written then.
    """
    source, tensors = fetch(file), read_tensors(fetch(file))
    found = read_official(method, preset, tensors, source)
    base = weights or (file if "weights" in found.also else "")
    config = found.config | {name: file for name in found.also if name != "weights"}
    model = load_official(method, preset, source, weights=fetch(base) or None)
    about = {"official": file, "official_sha256": file_sha256(source)}
    sha = file_sha256(fetch(base)) if base not in ("", RANDOM) else ""
    return save_bundle(url, model, recipe_config=config, weights=base, sha256=sha, provenance=about), len(tensors)


def export_bundle(url: str, target: str) -> int:
    """Write a bundle's trained tensors under official names to the file `target`; returns their number.

    Raises `FssError` if the method has no official format, or if that format lacks some of the trained tensors.
    """
    state = official_state(load_bundle(url)[0])
    Store(target).write_bytes("", save_tensors(state))
    return len(state)


def read_bundle_info(url: str) -> BundleInfo:
    """The content of bundle.json; `url` may be `shipped` or `shipped:NAME`.

    Raises `FssError` if there is no bundle.json or it is not valid.
    """
    store = Store(bundle_url(url))
    if not store.exists("bundle.json"):
        raise FssError("there is no bundle here (bundle.json is missing)", where=url,
                       hint="check the URL; `fss promote` writes a workspace's champion")
    try:
        return BundleInfo.model_validate(store.read_json("bundle.json"))
    except ValueError as error:
        raise FssError("bundle.json is not valid", where=url,
                       hint="it may be of a newer version of fss: install that version") from error


def about_bundle(info: BundleInfo) -> dict[str, Any]:
    """The fields of a bundle that manifests record and `/v1/health` of a service returns."""
    return {"bundle_id": info.bundle_id, "method": info.method, "preset": info.preset, "calibrator": info.calibrator}


def load_bundle(url: str, device: str = "cpu") -> tuple[Segmenter, BundleInfo]:
    """(model in evaluation mode, content of bundle.json); `url` may be `shipped` or `shipped:NAME`.

    Raises `FssError` if tensors and bundle.json disagree, or the installed frozen weights are not the bundle's.
    """
    url = bundle_url(url)
    info = read_bundle_info(url)
    data = Store(url).read_bytes("model.safetensors")
    if hashlib.sha256(data).hexdigest() != info.tensors_sha256:
        raise FssError("model.safetensors does not match bundle.json", where=url,
                       hint="promote or train the bundle again")
    model = build_base_model(info, url)
    if data:
        model.load_trainable_state(load_tensors(data))
    for name, sha in model.frozen_weights().items():
        if info.frozen.get(name) != sha:
            raise FssError(f"the frozen weights {name!r} differ from those in bundle.json", where=url)
    return model.to(device).eval(), info


def save_calibrator(url: str, calibrator: Calibrator) -> BundleInfo:
    """Write a calibrator into a bundle, replacing an earlier one; returns the new content of bundle.json."""
    store, info, data = Store(url), read_bundle_info(url), calibrator.save()
    info = info.model_copy(update={"calibrator": hashlib.sha256(data).hexdigest()})
    store.write_bytes(CALIBRATOR, data)
    store.write_json("bundle.json", info.model_dump())
    return info


def bundle_calibrator(url: str, info: BundleInfo) -> Calibrator | None:
    """The bundle's calibrator, None where it has none. Raises `FssError` if it does not match bundle.json."""
    if not info.calibrator:
        return None
    store = Store(bundle_url(url))
    data = store.read_bytes(CALIBRATOR)
    if hashlib.sha256(data).hexdigest() != info.calibrator:
        raise FssError(f"{CALIBRATOR} does not match bundle.json", where=url, hint="run `fss calibrate` again")
    return load_calibrator(data, store.path(CALIBRATOR))


def copy_calibrator(source: str, target: str) -> None:
    """Copy the calibrator of the bundle `source`, if it has one, into the bundle `target` (URLs)."""
    if Store(source).exists(CALIBRATOR):
        Store(target).write_bytes(CALIBRATOR, Store(source).read_bytes(CALIBRATOR))


def replace_bundle(source: str, target: str, info: BundleInfo) -> None:
    """Replace the bundle at `target` by that at `source`, with the description `info`.

    While it is replaced there is no bundle.json at `target`, and with it the bundle is whole.
    """
    place = Store(target)
    place.delete("bundle.json")
    place.write_bytes("model.safetensors", Store(source).read_bytes("model.safetensors"))
    copy_calibrator(source, target)
    place.write_json("bundle.json", info.model_dump())


def build_base_model(info: BundleInfo, where: str) -> Segmenter:
    """Build the method of a bundle on its frozen weights, without the trained tensors.

    A bundle on weights that ship with the package needs the same weights installed; a bundle made without them does
    not use installed ones. Raises `FssError` naming `where` if the installed weights differ.
    """
    on_shipped = check_frozen(info.frozen, where)
    weights = info.weights or ("" if on_shipped else RANDOM)
    return build_model(info.method, info.preset, info.config, weights=weights, sha256=info.sha256, seed=info.seed)
