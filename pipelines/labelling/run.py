"""`fss label` from end to end: claim the folder, choose an engine, label the remaining chunks, write the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from fss_models.bundle import BundleInfo
from fss_models.errors import FssError
from fss_models.instances import check_instances
from fss_models.registry import make_config, method_class
from fss_models.shipped.files import bundle_url
from pipelines.base.progress import say
from pipelines.base.storage import Store, join
from pipelines.base.version import package_version
from pipelines.base.webhook import read_secret, told_if_it_fails
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import about_bundle, load_bundle, read_bundle_info
from pipelines.bundles.shipped import champion_url, say_if_shipped
from pipelines.config.label import LabelConfig
from pipelines.config.mask_request import check_overlaps
from pipelines.config.recipe import Recipe
from pipelines.config.wanted import CALIBRATED
from pipelines.features.build import format_bytes
from pipelines.inference.kept_features import half
from pipelines.inference.label_sets import read_label_set
from pipelines.inference.supports import SupportSet, check_marks, check_reads, support_lines, words_line
from pipelines.labelling.actors import run_with_actors
from pipelines.labelling.engines import Engine, local_engine, service_engine
from pipelines.labelling.existing import keep_about, open_existing
from pipelines.labelling.images import ImageList, check_out, keep_unread, kept_images, left_out, list_images
from pipelines.labelling.inputs import list_columns
from pipelines.labelling.job import LabellingJob
from pipelines.labelling.manifest import MANIFEST, JobManifest, claim_folder, describe_classes, describe_images
from pipelines.labelling.notify import JobEvents
from pipelines.labelling.outputs import SUMMARY, write_outputs
from pipelines.labelling.settle import continued, differs, of_service, settle
from pipelines.serving.client import find_service, reach_service
from pipelines.serving.spec import ModelSpec, model_spec


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """The options of `fss label`.

    Attributes:
        bundle: empty: the workspace's champion, or the shipped bundle if there is none
        service: empty: the workspace's running service, if it fits
        engine: serve: the deployment of the service or of the job itself; actors: a pool of actors
        limit: only the first photos; 0: all
    """

    recipe: Recipe
    images: str
    supports: str
    out: str
    bundle: str = ""
    service: str = ""
    engine: Literal["serve", "actors"] = "serve"
    limit: int = 0

    @property
    def bundle_url(self) -> str:
        """The URL of the bundle. Raises `FssError` for a shipped bundle that does not exist."""
        return bundle_url(self.bundle) if self.bundle else champion_url(Workspace(self.recipe.out))


@dataclass(frozen=True, kw_only=True)
class BegunJob:
    """What a request stands for, before its photos are listed; `request` has the settings of a job that goes on.

    `service` and `health` are of the service to use, "" and None without one; `about`: the bundle's `about_bundle`.
    """

    request: LabelRequest
    out: Store
    classes: list[SupportSet]
    service: str
    health: dict[str, Any] | None
    about: dict[str, Any]


def begin(request: LabelRequest) -> BegunJob:
    """Read the supports and choose the service, with lines for people. Raises `FssError` for a person's mistakes."""
    classes = read_label_set(request.supports)
    say("\n".join(support_lines(classes)))
    out = Store(request.out)
    if request.recipe.label.notify:
        read_secret()
    request = replace(request, recipe=request.recipe.model_copy(update={"label": continued(request.recipe.label, out)}))
    service, health = choose_service(request)
    about = health if health and not request.bundle else about_bundle(read_bundle_info(request.bundle_url))
    if not health:
        info = read_bundle_info(request.bundle_url)
        method, settings = method_class(info.method), make_config(info.method, info.config)
        for one in classes:
            check_reads(method, settings, one)
        say(words_line(info.method, classes, reads=method.reads_names(settings)))
    elif "reads_names" in health:
        say(words_line(health["method"], classes, reads=health["reads_names"]))
    check_out(request.images, request.out)
    return BegunJob(request=request, out=out, classes=classes, service=service, health=health, about=about)


def run_label_job(request: LabelRequest) -> dict[str, Any]:
    """Label all photos. Returns the summary. Raises `FssError` for a person's mistakes."""
    begun = begin(request)
    request, out, classes, health = begun.request, begun.out, begun.classes, begun.health
    images = job_images(request, out)
    for line in left_out(images):
        say(line)
    names = [one.class_name for one in classes]
    existing = open_existing(request.recipe.label, images, names)
    config, measured = settle(request.recipe.label, health, bundle=request.bundle_url if health is None else "",
                              classes=classes, images=images, data=request.recipe.data)
    recipe = request.recipe.model_copy(update={"label": config})
    manifest = describe_job(recipe, begun.about, images, classes, request.limit,
                            {**measured, **(existing.describe() if existing else {})})
    again = claim_folder(out, manifest)
    keep_unread(out, images)
    if existing:
        say(keep_about(out, existing, images, names))
    job = LabellingJob(out, images, manifest, max_seconds=request.recipe.data.max_seconds, existing=existing)
    events = JobEvents(out, manifest, config.notify)
    with told_if_it_fails(events.ended):
        return events.done(_label_rest(job, replace(begun, request=replace(request, recipe=recipe)), again=again))


def _label_rest(job: LabellingJob, begun: BegunJob, *, again: bool) -> dict[str, Any]:
    """Label what has no part and write the outputs. Returns the summary. again: the job was begun before."""
    out, manifest, config, left = job.out, job.manifest, begun.request.recipe.label, job.chunks_left()
    if again and not left and out.exists(SUMMARY):
        say("everything is labelled already")
        summary: dict[str, Any] = out.read_json(SUMMARY)
        if set(config.formats) <= set(summary.get("formats", {})):
            return {**summary, "labelled_now": 0}
    if not begun.health:
        tiles = "; a photo in tiles takes one for each" if config.tile else ""
        info = read_bundle_info(begun.request.bundle_url)
        say(encodings_line(info, len(job.images), begun.classes) + tiles)
    now = label_chunks(job, left, begun.classes, begun.service, begun.health, begun.request)
    return {**write_outputs(out, manifest, config.formats), "labelled_now": now}


def job_images(request: LabelRequest, out: Store) -> ImageList:
    """The photos to label; those of a job that goes on are the ones that were listed when it began."""
    columns = list_columns(request.recipe.label)
    begun = out.exists(MANIFEST)
    if begun and not out.exists(SUMMARY) and (kept := kept_images(out, request.images, request.limit, columns)):
        say(f"the job goes on with the {len(kept):,} photos that were listed when it began")
        return kept
    return list_images(request.images, request.limit, outs=[request.out], keep=None if begun else out, columns=columns)


def describe_job(recipe: Recipe, about: dict[str, Any], images: ImageList, classes: Sequence[SupportSet],
                 limit: int = 0, measured: dict[str, Any] | None = None) -> JobManifest:
    """The job's manifest. `about` is its bundle's `about_bundle`; the recipe's settings for labelling are not `auto`.

    Raises `FssError` for settings that do not fit.
    """
    config = recipe.label
    check_overlaps(config.overlaps, len(classes))
    for one in classes:
        check_marks(method_class(about["method"]), one)
    check_instances(method_class(about["method"]), config.instances)
    _check_calibrator(config, about["calibrator"])
    return JobManifest(
        **describe_images(images), **describe_classes(classes), **config.wanted(), **config.computing(),
        **recipe.data.limits.model_dump(),
        calibrator=about["calibrator"], bundle_id=about["bundle_id"], method=about["method"], preset=about["preset"],
        chunk=config.chunk, batch=int(config.batch), features=config.features,
        limit=limit, code_version=package_version(), **(measured or {}),
    )


def encodings_line(info: BundleInfo, photos: int, classes: Sequence[SupportSet]) -> str:
    """How often the job will run the image encoder, which is most of its time."""
    count = method_class(info.method).image_encodings(
        make_config(info.method, info.config), photos=photos, classes=len(classes),
        supports=sum(len(one.supports) for one in classes))
    return f"{photos:,} photos, classes: {len(classes)}: {count:,} image encodings with {info.method}"


def label_chunks(job: LabellingJob, left: list[int], classes: Sequence[SupportSet], service: str,
                 health: dict[str, Any] | None, request: LabelRequest) -> int:
    """Label the chunks `left` with the engine of the request. Returns their number of photos.

    `health` is that of the service; without a service the job starts its own deployment.
    """
    if not left:
        return 0
    if request.engine == "actors":
        return run_with_actors(job, left, own_model(job, classes, request))
    with job_engine(job, classes, service, health, request) as ready:
        return job.run(ready, left, request.recipe.label.in_flight)


def job_engine(job: LabellingJob, classes: Sequence[SupportSet], service: str, health: dict[str, Any] | None,
               request: LabelRequest) -> AbstractContextManager[Engine]:
    """The service, or a deployment of the job's own."""
    if service and health:
        say(f"labelling through the service at {service}")
        return service_engine(service, classes, health["max_request_bytes"], job.manifest.bundle_id)
    return local_engine(own_model(job, classes, request))


def own_model(job: LabellingJob, classes: Sequence[SupportSet], request: LabelRequest) -> ModelSpec:
    """The model of a job without a service. The support sets are written into the job's folder, where it reads them."""
    root = join(job.out.url, "supports")
    for supports in classes:
        supports.save(root)
    url = request.bundle_url
    if not request.bundle:
        say_if_shipped(url, Workspace(request.recipe.out))
    spec = model_spec(request.recipe, bundle_url=url, bundle_id=job.manifest.bundle_id, supports_url=root,
                      device="cpu", batch=job.manifest.batch, computing=job.manifest.computing())
    if job.manifest.features == "keep":
        spec = replace(spec, features_url=Workspace(request.recipe.out).label_features)
        say(_about_features(spec, len(job.images)))
    return spec


def _about_features(spec: ModelSpec, photos: int) -> str:
    """How much the kept features of all photos take, from those of one black photo."""
    model, _ = load_bundle(spec.bundle_url)
    with torch.inference_mode():
        seen = model.encode(model.prepare([np.zeros((model.side, model.side, 3), dtype=np.uint8)]))
    size = sum(v.nbytes for v in half(seen.maps, 1).values())
    return f"features of {photos:,} photos take up to {format_bytes(photos * size)} at {spec.features_url}"


def check_bundle(manifest: JobManifest, about: dict[str, Any], *, hint: str) -> None:
    """Raises `FssError` if the job's labels were made with another bundle or calibrator than that of `about`."""
    for key in ("bundle_id", "calibrator"):
        if about[key] != getattr(manifest, key):
            raise FssError(f"the labels were made with {key} {getattr(manifest, key)!r}, not {about[key]!r}", hint=hint)


def _check_calibrator(config: LabelConfig, calibrator: str) -> None:
    """Raises `FssError` for settings that have no effect without a calibrator."""
    if calibrator:
        return
    if changed := [key for key in config.changed() if key in CALIBRATED]:
        raise FssError(f"label.{changed[0]} has no effect: the bundle has no calibrator",
                       hint="fit one with `fss calibrate`, or leave the setting out")
    say("labels are uncalibrated: the bundle has no calibrator (`fss calibrate` fits one)")


def choose_service(request: LabelRequest) -> tuple[str, dict[str, Any] | None]:
    """The URL and health of the service to use, or "" and None for a deployment of the job's own.

    Raises `FssError` if the service of --service does not fit; the workspace's own service is used if it fits.
    """
    config = request.recipe.label
    if request.engine == "actors":
        if request.service:
            raise FssError("--engine actors does not use a service", hint="leave --service or --engine out")
        return "", None
    if request.service:
        health = reach_service(request.service)
        about = about_bundle(read_bundle_info(request.bundle_url)) if request.bundle else health
        if health["bundle_id"] != about["bundle_id"]:
            raise FssError(f"the service has bundle {health['bundle_id']}, not {about['bundle_id']}",
                           where=request.service, hint="leave --service or --bundle out")
        if health["calibrator"] != about["calibrator"]:
            raise FssError("the service has another calibrator of the bundle", where=request.service,
                           hint="start the service again")
        if key := differs(health, config):
            raise FssError(f"the service's {key} is {of_service(health, key)}, but the job's is {getattr(config, key)}",
                           where=request.service, hint=f"use --set label.{key}={of_service(health, key)}")
        return request.service, health
    found = find_service(Workspace(request.recipe.out).service)
    if found is None:
        return "", None
    url, health = found
    info = read_bundle_info(request.bundle_url)
    same = (health["bundle_id"], health.get("calibrator", "")) == (info.bundle_id, info.calibrator)
    if not same or (key := differs(health, config)):
        what = f"{key} ({of_service(health, key)})" if same else "bundle"
        say(f"the service at {url} has another {what}; this job starts its own deployment")
        return "", None
    return url, health
