"""`ensure_features`: the kept features that a recipe's runs read. Ray actors compute the missing ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fss_models.errors import FssError
from pipelines.base.limits import usable_cores
from pipelines.base.progress import Bar, say
from pipelines.base.ray_stage import run_actors, run_task
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.bundles.weights import build_model
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.data.folds import FoldData
from pipelines.data.schema import PhotoKey
from pipelines.data.shardset import Shards
from pipelines.features.about import FeatureFolderInfo, describe_frozen_part
from pipelines.features.encode import MissingRecords, PartEncoder, cropped_photo_error
from pipelines.features.folder import FeatureFolder
from pipelines.features.records import Precision

CROPPING = ("pascal_part", "paco_part")  # benchmarks whose samples are crops of a photo


@dataclass
class EncodingTask:
    """The features of one frozen part that the runs with this part need."""

    about: FeatureFolderInfo
    method: MethodConfig  # any method with this frozen part
    seed: int
    methods: set[str] = field(default_factory=set)
    photos: dict[tuple[str, int, int], MissingRecords] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """Number of records that the runs need."""
        return sum(len(w.mirrored) for w in self.photos.values())

    @property
    def bytes(self) -> int:
        """Size of these records in bytes."""
        return self.records * self.about.layout.record_bytes

    def facts(self, folder: FeatureFolder, *, written: int, seconds: float) -> dict[str, Any]:
        """The facts of a build as JSON. written: number of new records; seconds: duration."""
        return {"features": folder.store.url, "id": self.about.id, "precision": self.about.precision,
                "methods": sorted(self.methods), "encoder": self.about.encoder, "photos": len(self.photos),
                "records": self.records, "record_bytes": self.about.layout.record_bytes, "bytes": self.bytes,
                "written": written, "seconds": round(seconds, 2)}


def features_url(recipe: Recipe) -> str:
    """URL of the folders of a recipe's features."""
    return Store(recipe.features.url or join(Workspace(recipe.out).store.url, "features")).url


def ensure_features(recipe: Recipe, specs: Sequence[RunSpec], ray: Any) -> list[dict[str, Any]]:
    """Build the features that these runs lack. Returns the facts of every folder that they read.

    Raises `FssError`, before anything is written, for a method without a frozen part, for benchmarks of crops, and for
    features of more than `features.max_bytes`.
    """
    if recipe.train.features == "off":
        raise FssError("train.features is off, so the recipe keeps no features", where=recipe.name,
                       hint="give --set train.features=float32 (or bfloat16)")
    tasks = _encoding_tasks(recipe, [s for s in specs if s.trains], recipe.train.features, ray)
    folders = [FeatureFolder(features_url(recipe), n.about) for n in tasks]
    lines = [describe_task(n, f.store.url) for n, f in zip(tasks, folders, strict=True)]
    if sum(n.bytes for n in tasks) > recipe.features.max_bytes:
        raise FssError(f"{'; '.join(lines)}: over features.max_bytes={recipe.features.max_bytes}", where=recipe.name,
                       hint="raise features.max_bytes, or set train.features=bfloat16, train.flip=false or "
                       "train.features=off")
    return [_ensure(recipe, n, f, line, ray) for n, f, line in zip(tasks, folders, lines, strict=True)]


def describe_task(task: EncodingTask, url: str) -> str:
    """A line about the size of a task: features of 401 photos x 2 (mirrored) x 1.3 MB = 1.0 GB -> URL (float32)."""
    ways = " x 2 (mirrored)" if task.records > len(task.photos) else ""
    return (f"features of {len(task.photos)} photos{ways} x {format_bytes(task.about.layout.record_bytes)} = "
            f"{format_bytes(task.bytes)} -> {url} ({task.about.precision})")


def format_bytes(count: float) -> str:
    """A number of bytes for a person, such as 1.3 MB (powers of 1000)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


# ---- what is needed -----------------------------------------------------------------------------------------------

def _encoding_tasks(recipe: Recipe, specs: Sequence[RunSpec], precision: Precision, ray: Any) -> list[EncodingTask]:
    """One entry per frozen part. Each (method, seed) is built once, in a Ray task, so this process has no model."""
    found: dict[str, EncodingTask] = {}
    known: dict[str, FeatureFolderInfo] = {}
    for spec in specs:
        key = f"{spec.method.key} {spec.seed}"
        if key not in known:
            known[key] = run_task(ray, _describe, spec.method, spec.seed, precision, cpus=0)
        about = known[key]
        task = found.setdefault(about.id, EncodingTask(about, spec.method, spec.seed))
        task.methods.add(f"{spec.method.name}-{spec.method.preset}")
        _add_photos(task, spec)
    return list(found.values())


def _describe(method: MethodConfig, seed: int, precision: Precision) -> FeatureFolderInfo:
    return describe_frozen_part(build_model(method, seed=seed), precision)


def _add_photos(task: EncodingTask, spec: RunSpec) -> None:
    """Add every photo that the run's stream may open. Photos with the same content count once."""
    ways = (False, True) if spec.train.flip else (False,)
    for data in FoldData.of(spec).parts(spec):
        _refuse_crops(data.shards)
        for row in data.train_rows(spec.train.novel_images):
            key = (row["sha256"], row["height"], row["width"])
            task.photos.setdefault(key, MissingRecords(*key, ways, data.shards.url, row["part"], row["row"]))


def _refuse_crops(shards: Shards) -> None:
    source = shards.manifest.source.get("source")
    if isinstance(source, dict) and source.get("format") in CROPPING:
        raise cropped_photo_error(shards.url)


# ---- the work -----------------------------------------------------------------------------------------------------

def _ensure(recipe: Recipe, task: EncodingTask, folder: FeatureFolder, line: str, ray: Any) -> dict[str, Any]:
    """Write the missing parts, then about.json. Returns the facts of the folder."""
    missing, start = _missing(task, folder), time.monotonic()
    left = sum(len(w.mirrored) for w in missing)
    if not left and folder.store.exists("about.json"):
        say(f"{line}: there already")
        return task.facts(folder, written=0, seconds=0.0)
    say(line + (f"; {task.records - left} of {task.records} exist already" if left < task.records else ""))
    for tries_left in reversed(range(recipe.sweep.retries + 1)):
        try:
            _write(recipe, task, missing, ray)
            break
        except ray.exceptions.RayError as error:  # an actor or its machine is lost; the parts it wrote stay
            if not tries_left:
                raise
            say(f"a worker was lost ({type(error).__name__}); encoding continues without it")
            missing = _missing(task, FeatureFolder(features_url(recipe), task.about))
    folder.finish()
    return task.facts(folder, written=left, seconds=time.monotonic() - start)


def _missing(task: EncodingTask, folder: FeatureFolder) -> list[MissingRecords]:
    """The missing records in the order of the shards, so that photos of one part are neighbours."""
    found = []
    for one in sorted(task.photos.values(), key=lambda w: (w.shards, w.part, w.row)):
        ways = tuple(m for m in one.mirrored if PhotoKey(one.sha256, one.height, one.width, m) not in folder.locations)
        if ways:
            found.append(one._replace(mirrored=ways))
    return found


def _write(recipe: Recipe, task: EncodingTask, missing: Sequence[MissingRecords], ray: Any) -> None:
    cfg, gpus = recipe.features, recipe.sweep.gpus_per_run
    longest = max((len(w.mirrored) for w in missing), default=1)
    size = max(1, cfg.part_bytes // (task.about.layout.record_bytes * longest))
    items = [missing[i : i + size] for i in range(0, len(missing), size)]
    if not items:
        return
    room = ray.cluster_resources().get("GPU", 0.0) / gpus if gpus else float(len(ray.nodes()))
    actors = max(1, min(cfg.actors or int(room), len(items)))
    make = partial(PartEncoder, base=features_url(recipe), about=task.about, method=task.method, seed=task.seed,
                   batch=cfg.batch, threads=_threads(actors, len(ray.nodes())), device="cuda" if gpus else "cpu")
    with Bar("encoding", sum(len(w.mirrored) for w in missing), unit="images") as bar:
        for records in run_actors(ray, make, items, actors=actors, cpus=cfg.cpus_per_actor, gpus=gpus, restart=False):
            bar.step(records)


def _threads(actors: int, nodes: int) -> int:
    """Torch threads of an actor, if all machines have as many CPUs as this one."""
    return max(1, usable_cores() * nodes // actors)
