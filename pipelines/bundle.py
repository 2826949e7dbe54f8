"""A bundle: everything needed to predict, in one folder. `bundle.json` is written last, so half a bundle is none.

    model.safetensors   the trained tensors (may be empty)
    calibrator.safetensors   how sure its masks are (may be missing: then they are uncalibrated)
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
from pipelines.storage import Store
from pipelines.weights import build_model, fetch, file_sha256, pretraining_photos

CALIBRATOR = "calibrator.safetensors"


class BundleInfo(BaseModel):
    """The content of bundle.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int = 1
    method: str
    preset: str
    config: dict[str, Any] = {}
    seed: int = 0  # of values that come from no file
    preprocessing: str
    weights: str = ""  # the frozen SAM 2 checkpoint: where it came from
    sha256: str = ""  # of that checkpoint
    frozen: dict[str, str] = {}  # other frozen weights by name -> sha256
    untrained: bool = False  # parts that need training hold random values
    tensors_sha256: str
    dataset: str = ""
    data_hash: str = ""  # content hash of the shards
    classes: list[str] = []  # trained on
    trained_on: list[str] = []  # sha256 (first 16 digits) of every photo that training opened
    pretrained_on: list[str] = []  # the same of class-agnostic pretraining: its photos' classes were not looked at
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    calibrator: str = ""  # sha256 of calibrator.safetensors, empty where there is none

    @property
    def seen(self) -> list[str]:
        """sha256 (first 16 digits) of every photo that any training opened: none of them may be tested."""
        return sorted({*self.trained_on, *self.pretrained_on})

    @property
    def bundle_id(self) -> str:
        """Identity of the model: method, configuration and tensors (not where or when)."""
        config = {k: v for k, v in self.config.items() if not k.endswith("_weights")}  # their hashes are in `frozen`
        parts = [self.method, self.preset, json.dumps(config, sort_keys=True), str(self.seed), self.preprocessing,
                 self.sha256, json.dumps(self.frozen, sort_keys=True), self.tensors_sha256]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def save_bundle(url: str, model: Segmenter, *, given: dict[str, Any] | None = None, half: bool = False,
                **about: Any) -> BundleInfo:
    """Write a bundle below `url`; with `half` its tensors in half precision, which loading converts.

    `given` is the configuration the model was asked for, whose weight files are named as anybody can find them;
    `about` are further fields of `BundleInfo`. Raises `FssError` for values that half precision cannot hold.
    """
    state = model.trainable_state()
    data = save_tensors(to_half(state) if half else state) if state else b""
    files = {f: (given or {}).get(f, "") for f in weight_fields(type(model.config))}
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
    """The photos that the pretraining of its frozen weights opened, where they are shipped or `weights` tell."""
    shipped = check_frozen(model.frozen_weights(), where)
    return sorted({*(photo for one in shipped for photo in one.provenance.photos), *pretraining_photos(weights)})


def import_bundle(url: str, *, file: str, method: str, preset: str, weights: str = "") -> tuple[BundleInfo, int]:
    """A bundle below `url` from an official checkpoint `file`; returns it and how many tensors the file held.

    Raises `FssError` for a file that does not fit, naming the first wrong key; nothing is written then.
    """
    source, tensors = fetch(file), read_tensors(fetch(file))
    found = read_official(method, preset, tensors, source)
    base = weights or (file if "weights" in found.also else "")
    given = found.config | {name: file for name in found.also if name != "weights"}
    model = load_official(method, preset, source, weights=fetch(base) or None)
    about = {"official": file, "official_sha256": file_sha256(source)}
    sha = file_sha256(fetch(base)) if base not in ("", RANDOM) else ""
    return save_bundle(url, model, given=given, weights=base, sha256=sha, provenance=about), len(tensors)


def export_bundle(url: str, target: str) -> int:
    """Write a bundle's trained tensors under official names to the file `target`; returns how many there are.

    Raises `FssError` for a bundle whose method has no official format or trained more than it can hold.
    """
    state = official_state(load_bundle(url)[0])
    folder, _, name = target.rpartition("/")
    Store(folder or ".").write_bytes(name, save_tensors(state))
    return len(state)


def read_bundle_info(url: str) -> BundleInfo:
    """bundle.json; `url` may be `shipped` or `shipped:NAME`. Raises `FssError` if there is none, or not one of ours."""
    store = Store(bundle_url(url))
    if not store.exists("bundle.json"):
        raise FssError("is no bundle (bundle.json is missing)", where=url, mend="`fss promote` makes the champion's")
    try:
        return BundleInfo.model_validate(store.read_json("bundle.json"))
    except ValueError as error:
        raise FssError("bundle.json is not one of ours", where=url, mend="is it of a newer version?") from error


def load_bundle(url: str, device: str = "cpu") -> tuple[Segmenter, BundleInfo]:
    """The model, in evaluation mode, and what is known about it; `url` may be `shipped` or `shipped:NAME`.

    Raises `FssError` if tensors and json disagree, or its frozen weights are not those that are installed.
    """
    url = bundle_url(url)
    info = read_bundle_info(url)
    data = Store(url).read_bytes("model.safetensors")
    if hashlib.sha256(data).hexdigest() != info.tensors_sha256:
        raise FssError("model.safetensors does not match bundle.json", where=url, mend="promote or train it again")
    model = base_model(info, url)
    if data:
        model.load_trainable_state(load_tensors(data))
    for name, sha in model.frozen_weights().items():
        if info.frozen.get(name) != sha:
            raise FssError(f"frozen weights {name!r} differ from the bundle's", where=url)
    return model.to(device).eval(), info


def save_calibrator(url: str, calibrator: Calibrator) -> BundleInfo:
    """Put a calibrator into a bundle, in place of one that is there."""
    store, info, data = Store(url), read_bundle_info(url), calibrator.save()
    info = info.model_copy(update={"calibrator": hashlib.sha256(data).hexdigest()})
    store.write_bytes(CALIBRATOR, data)
    store.write_json("bundle.json", info.model_dump())
    return info


def bundle_calibrator(url: str, info: BundleInfo) -> Calibrator | None:
    """The bundle's calibrator, None where it has none. Raises `FssError` for one that is not bundle.json's."""
    if not info.calibrator:
        return None
    store = Store(bundle_url(url))
    data = store.read_bytes(CALIBRATOR)
    if hashlib.sha256(data).hexdigest() != info.calibrator:
        raise FssError(f"{CALIBRATOR} does not match bundle.json", where=url, mend="run `fss calibrate` again")
    return load_calibrator(data, store.path(CALIBRATOR))


def copy_calibrator(source: str, target: str) -> None:
    """Copy a bundle's calibrator, where it has one, to another place."""
    if Store(source).exists(CALIBRATOR):
        Store(target).write_bytes(CALIBRATOR, Store(source).read_bytes(CALIBRATOR))


def base_model(info: BundleInfo, where: str) -> Segmenter:
    """What a bundle's trained tensors go into: its method on the frozen weights that it was trained on.

    Where those are weights that ship with the package, they have to be the installed ones; a bundle that was made
    without them is built without them. Raises `FssError` naming `where` otherwise.
    """
    on_shipped = check_frozen(info.frozen, where)
    weights = info.weights or ("" if on_shipped else RANDOM)
    return build_model(info.method, info.preset, info.config, weights=weights, sha256=info.sha256, seed=info.seed)
