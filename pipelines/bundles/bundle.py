"""Bundles in any storage: writing, reading, importing and exporting them. What lies in one: `fss_models.bundle`.

A bundle is read from a local path, `s3://`, what ships (`shipped`, `shipped:NAME`), or the hub:
`hf://owner/repository[@revision]`, with a folder behind it if the bundle lies in one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors

from fss_models import registry
from fss_models.bundle import CALIBRATOR, INFO, TENSORS, BundleInfo, load_model, no_bundle, parse_calibrator, parse_info
from fss_models.calibration import Calibrator
from fss_models.errors import FssError
from fss_models.official import load_official, official_state, read_official, read_tensors
from fss_models.predictor import Predictor
from fss_models.presets import RANDOM
from fss_models.segmenter import Segmenter
from fss_models.settings import weight_fields
from fss_models.shipped.files import bundle_url, check_frozen, to_half
from fss_models.weight_files import file_sha256
from pipelines.base.storage import Store
from pipelines.bundles.hub import on_hub
from pipelines.bundles.weights import build_model, fetch, pretraining_photos
from pipelines.config.method import MethodConfig


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
    store.write_bytes(TENSORS, data)
    store.write_json(INFO, info.model_dump())
    return info


def _pretrained_on(model: Segmenter, weights: str, where: str) -> list[str]:
    """Photos that pretraining of the frozen weights opened: shipped weights, and `weights` if its JSON names them."""
    shipped = check_frozen(model.frozen_weights(), where)
    return sorted({*(photo for one in shipped for photo in one.provenance.photos), *pretraining_photos(weights)})


def import_bundle(url: str, *, file: str, method: str, preset: str, weights: str = "",
                  settings: Mapping[str, Any] | None = None) -> tuple[BundleInfo, int]:
    """Write a bundle below `url` from the official checkpoint `file`; returns it and the file's number of tensors.

    `settings` are those of the method that the file does not tell.
    Raises `FssError` with the first wrong key for a file that does not fit; nothing is written then.
    """
    source, tensors = fetch(file), read_tensors(fetch(file))
    found = read_official(method, preset, tensors, source)
    base = weights or (file if "weights" in found.also else "")
    config = {**(settings or {}), **found.config, **{name: file for name in found.also if name != "weights"}}
    model = load_official(method, preset, source, weights=fetch(base) or None, config=settings)
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
    """The content of bundle.json. Raises `FssError` if there is no bundle.json or it is not valid."""
    if not on_hub(url) and not Store(bundle_url(url)).exists(INFO):
        raise no_bundle(url)
    return parse_info(_read(url, INFO), url)


def read_bundle_files(url: str) -> tuple[BundleInfo, dict[str, bytes]]:
    """The content of bundle.json, and the bundle's other files. Raises `FssError` if one is not what it says."""
    info = read_bundle_info(url)
    files = {TENSORS: _read(url, TENSORS)}
    if info.calibrator:
        files[CALIBRATOR] = _read(url, CALIBRATOR)
    for name, sha in ((TENSORS, info.tensors_sha256), (CALIBRATOR, info.calibrator)):
        if name in files and hashlib.sha256(files[name]).hexdigest() != sha:
            raise FssError(f"{name} does not match bundle.json", where=url, hint="it is damaged: "
                           "take the bundle from where it was made")
    return info, files


def full_url(url: str) -> str:
    """The URL of a bundle as another process can use it: a local path becomes an absolute one."""
    return url if on_hub(url) else Store(url).url


def _read(url: str, name: str) -> bytes:
    """The bytes of a bundle's file, which stays in the cache where it comes from the hub."""
    if on_hub(url):
        return Path(fetch(f"{url.rstrip('/')}/{name}")).read_bytes()
    return Store(bundle_url(url)).read_bytes(name)


def about_bundle(info: BundleInfo) -> dict[str, Any]:
    """The fields of a bundle that manifests record and `/v1/health` of a service returns."""
    return {"bundle_id": info.bundle_id, "method": info.method, "preset": info.preset, "calibrator": info.calibrator}


def load_bundle(url: str, device: str = "cpu") -> tuple[Segmenter, BundleInfo]:
    """(model in evaluation mode, content of bundle.json).

    Raises `FssError` if tensors and bundle.json disagree, or the installed frozen weights are not the bundle's.
    """
    info = read_bundle_info(url)
    return load_model(info, build_base_model(info, url), _read(url, TENSORS), url).to(device), info


def load_predictor(url: str, device: str = "cpu") -> Predictor:
    """`fss_models.load` for a bundle in any storage; its weight files are fetched. Raises `FssError` as it does."""
    model, info = load_bundle(url, device)
    return Predictor(model, info, bundle_calibrator(url, info))


def save_calibrator(url: str, calibrator: Calibrator) -> BundleInfo:
    """Write a calibrator into a bundle, replacing an earlier one; returns the new content of bundle.json.

    Meanwhile, and if this is killed, the bundle has no calibrator.
    """
    store, info, data = Store(url), read_bundle_info(url), calibrator.save()
    if info.calibrator:
        store.write_json(INFO, info.model_copy(update={"calibrator": ""}).model_dump())
    info = info.model_copy(update={"calibrator": hashlib.sha256(data).hexdigest()})
    store.write_bytes(CALIBRATOR, data)
    store.write_json(INFO, info.model_dump())
    return info


def bundle_calibrator(url: str, info: BundleInfo) -> Calibrator | None:
    """The bundle's calibrator, None where it has none. Raises `FssError` if it does not match bundle.json."""
    if not info.calibrator:
        return None
    return parse_calibrator(info, _read(url, CALIBRATOR), url)


def copy_calibrator(source: str, target: str) -> None:
    """Copy the calibrator of the bundle `source`, if it has one, into the bundle `target` (URLs)."""
    if Store(source).exists(CALIBRATOR):
        Store(target).write_bytes(CALIBRATOR, Store(source).read_bytes(CALIBRATOR))


def replace_bundle(source: str, target: str, info: BundleInfo) -> None:
    """Replace the bundle at `target` by that at `source`, with the description `info`.

    While it is replaced there is no bundle.json at `target`, and with it the bundle is whole.
    """
    place = Store(target)
    place.delete(INFO)
    place.write_bytes(TENSORS, Store(source).read_bytes(TENSORS))
    copy_calibrator(source, target)
    place.write_json(INFO, info.model_dump())


def build_base_model(info: BundleInfo, where: str) -> Segmenter:
    """Build the method of a bundle on its frozen weights, which are fetched, without the trained tensors.

    Raises `FssError` naming `where` if the installed weights differ.
    """
    method = MethodConfig(name=info.method, preset=info.preset, config=info.config, sha256=info.sha256,
                          weights=info.base_weights(where))
    return build_model(method, seed=info.seed)
