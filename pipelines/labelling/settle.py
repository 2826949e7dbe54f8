"""Settings of a job that are `auto`: taken from its manifest or its service, or measured with its own photos."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from fss_models.errors import FssError
from fss_models.execution import chosen_precision
from fss_models.preprocess import Mode
from pipelines.base.cluster import cluster
from pipelines.base.limits import free_memory
from pipelines.base.progress import say
from pipelines.base.ray_stage import run_task
from pipelines.base.storage import Store
from pipelines.config.data import DataConfig
from pipelines.config.label import LabelConfig
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.decode_limit import stuck_photos
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Labels, PhotoFailure, mean_iou
from pipelines.inference.supports import SupportSet
from pipelines.labelling.images import ImageList, PhotoReader
from pipelines.labelling.manifest import MANIFEST
from pipelines.serving.spec import best_device, labeler_computing

KEYS = ("batch", "precision", "compile", "preprocessing", "features")
PHOTOS = 24  # of a job that are labelled in both modes of preprocessing
SAME = 0.995  # least mean IoU of the two modes' masks
CPU_BATCHES, GPU_BATCHES = (1, 2, 4, 8, 16), (8, 16, 32, 64, 128)
WORTH = 0.97  # a larger batch is taken if its time for a photo is below this share
ROUNDS = 3


def differs(health: dict[str, Any], config: LabelConfig) -> str:
    """The first of `KEYS` in which a service differs from what a job asks for; "" where it fits."""
    return next((k for k in KEYS if getattr(config, k) not in ("auto", of_service(health, k))), "")


def of_service(health: dict[str, Any], key: str) -> Any:
    """The setting `key` of a service or manifest; those that an older one does not know have their defaults."""
    return health.get(key, LabelConfig.model_fields[key].default)


def continued(config: LabelConfig, out: Store) -> LabelConfig:
    """The settings of a job that goes on in the folder: those that are `auto` are what its manifest says."""
    auto = _auto(config)
    if not auto or not out.exists(MANIFEST):
        return config
    known = out.read_json(MANIFEST)
    return config.model_copy(update={k: of_service(known, k) for k in auto})


def settle(config: LabelConfig, health: dict[str, Any] | None, *, bundle: str, classes: Sequence[SupportSet],
           images: ImageList, data: DataConfig) -> tuple[LabelConfig, dict[str, Any]]:
    """The settings without `auto`, and what was measured, for the manifest.

    A job of a service has the service's (`health`). Else a model of the URL `bundle` measures, on the device that will
    label.
    """
    auto = _auto(config)
    if not auto:
        return config, {}
    if health:
        return config.model_copy(update={k: of_service(health, k) for k in auto}), {}
    found, measured = _on_device(config, bundle, classes, images, data)
    return config.model_copy(update=found), measured


def _auto(config: LabelConfig) -> list[str]:
    return [k for k in KEYS if getattr(config, k) == "auto"]


def _on_device(config: LabelConfig, *args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """`measure_settings` in this process, or in a task of the cluster that RAY_ADDRESS names."""
    if not os.environ.get("RAY_ADDRESS"):
        found, measured, lines = measure_settings("cuda" if torch.cuda.is_available() else "cpu", config, *args)
        torch.cuda.empty_cache()  # the memory is for the model that labels, in another process
    else:
        with cluster() as ray:
            device = best_device(ray)
            found, measured, lines = run_task(ray, measure_settings, device, config, *args,
                                              gpus=float(device != "cpu"))
    for line in lines:
        say(line)
    return found, measured


def measure_settings(device: str, config: LabelConfig, bundle: str, classes: Sequence[SupportSet], images: ImageList,
                     data: DataConfig) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The values of the settings that are `auto`, figures for the manifest, and lines for people."""
    found: dict[str, Any] = {"precision": chosen_precision(config.precision, device)}
    measured: dict[str, Any] = {}
    lines = [f"precision: {found['precision']} on {device}"] if config.precision == "auto" else []
    if "auto" in (config.batch, config.preprocessing):
        plain = config.model_copy(update={**found, **({"preprocessing": "published"}
                                                      if config.preprocessing == "auto" else {})})
        options = {**labeler_computing(plain), "limits": data.limits, "memories": len(classes)}
        labeler = Labeler(bundle, device, **options)
        ids = tuple(labeler.add_support(one) for one in classes)
        if config.batch == "auto":
            found["batch"], line = fastest_batch(labeler, ids[0])
            lines.append(line)
        if config.preprocessing == "auto":
            request = MaskRequest(support_ids=ids, **config.wanted())
            agreement = mode_agreement(labeler, _some_photos(images, data), request, found.get("batch", config.batch))
            fast = agreement is not None and agreement >= SAME
            found["preprocessing"] = "fast" if fast else "published"
            measured["agreement"] = agreement if agreement is None else round(agreement, 5)
            lines.append(f"preprocessing: {found['preprocessing']}; " + (
                "no mask was found to compare" if agreement is None else
                f"masks with fast and published agree with a mean IoU of {agreement:.4f} (fast needs {SAME})"))
    return found, {k: v for k, v in measured.items() if v is not None}, lines


def _some_photos(images: ImageList, data: DataConfig) -> list[bytes]:
    """The job's first photos, without those that crash or block a decoder."""
    reader = PhotoReader(images, max_bytes=data.limits.max_bytes, threads=4)
    try:
        read = reader.read(range(min(PHOTOS, len(images))))
    finally:
        reader.close()
    found = {row: one for row, one in enumerate(read) if isinstance(one, bytes)}
    stuck = stuck_photos(found, data.limits, data.max_seconds)
    return [one for row, one in found.items() if row not in stuck]


def mode_agreement(labeler: Labeler, photos: list[bytes], request: MaskRequest, batch: int) -> float | None:
    """Mean IoU of the masks with `fast` and `published` preprocessing; None where both are empty everywhere."""
    results: list[list[Labels | PhotoFailure]] = []
    modes: tuple[Mode, ...] = ("published", "fast")
    before = labeler.preprocessing
    try:
        for mode in modes:
            labeler.preprocessing = mode
            results.append(labeler.label_classes(photos, request, batch))
    finally:
        labeler.preprocessing = before
    return mean_iou(*results)


def fastest_batch(labeler: Labeler, support_id: str) -> tuple[int, str]:
    """The batch size with the least time for a photo in encoder and decoder, and a line that says what was measured.

    Sizes that do not fit into the device's memory are left out, on a CPU also those that would need more than is free,
    since the system ends processes that do. Raises `FssError` if none fits.
    """
    cuda = labeler.execution.device.type == "cuda"
    times: dict[int, float] = {}
    before = psutil.Process().memory_info().rss
    for size in GPU_BATCHES if cuda else CPU_BATCHES:
        try:
            times[size] = labeler.seconds_a_photo(support_id, size, ROUNDS)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            break
        if not cuda and 2 * (_peak_memory() - before) > free_memory():
            break
    if not times:
        raise FssError("no batch fits into the device's memory", hint="use a smaller preset, or set label.batch")
    best = next(iter(times))
    for size, seconds in times.items():
        best = size if seconds < WORTH * times[best] else best
    shown = ", ".join(f"{1 / seconds:.1f} in batches of {size}" for size, seconds in times.items())
    return best, f"batch: {best}; the model alone does, in photos/s, {shown}"


def _peak_memory() -> int:
    """The most memory that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _is_out_of_memory(error: RuntimeError) -> bool:
    """On a CPU, PyTorch has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
