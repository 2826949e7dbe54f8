"""Estimates time, cores, memory and storage of each stage, from measured figures and from the recipe's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fss_models import registry
from fss_models.errors import FssError
from fss_models.tiles import TileGrid, is_tiled
from pipelines.config.hyperband import brackets_of, search_cost
from pipelines.config.recipe import Recipe
from pipelines.sizing import figures as f
from pipelines.sizing.figures import Figure

LARGEST_MACHINE_GB = 1000.0


@dataclass(frozen=True, kw_only=True)
class SizingRequest:
    """The workload and the hardware to plan for. With `gpus` 0 everything runs on `cores` CPU cores."""

    images: int
    method: str
    preset: str
    gpus: int
    cores: int
    recipe: Recipe
    photo_kb: float = 160.0
    classes_per_photo: float = 2.9
    classes: int = 1  # that are labelled
    photo_size: tuple[int, int] = f.BUILD_SIZE  # (height, width) in pixels

    @property
    def config(self) -> Any:
        """The method's settings in the recipe, by default its defaults."""
        own = next((m.config for m in self.recipe.methods if m.name == self.method and m.preset == self.preset), {})
        return registry.make_config(self.method, own)

    def encodings(self, **settings: Any) -> int:
        """Image encodings of labelling, with as many supports a class as the evaluation's shots."""
        return registry.method_class(self.method).image_encodings(
            replace(self.config, **settings), photos=self.images * self.tiles, classes=self.classes,
            supports=self.classes * self.recipe.eval.shots)

    @property
    def megapixels(self) -> float:
        """Pixels of a photo, in millions."""
        return self.photo_size[0] * self.photo_size[1] / 1e6

    @property
    def tiles(self) -> int:
        """Tiles of a photo in labelling; 1 without tiles, and for `auto`, which depends on the supports."""
        label = self.recipe.label
        tiled = isinstance(label.tile, int) and is_tiled(self.photo_size, label.tile)
        return len(TileGrid.of(self.photo_size, int(label.tile), label.tile_overlap)) if tiled else 1

    @property
    def annotations(self) -> float:
        """Number of annotations, which are (image, class) pairs."""
        return self.images * self.classes_per_photo


@dataclass(frozen=True, kw_only=True)
class SizingStage:
    """The needs of one stage on the hardware of the request."""

    name: str
    hours: float
    cores: int  # CPU cores in use
    gpus: int  # GPUs in use
    memory_gb: float  # memory of all processes together
    memory: str  # the memory of one process, in words
    s3_gb: float
    work: str  # the amount of work, in words


@dataclass(frozen=True)
class SizingPlan:
    """The stages, the figures on which they are based, and notes on their limits."""

    stages: tuple[SizingStage, ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = field(default=())


def make_plan(request: SizingRequest) -> SizingPlan:
    """Plan the stages: the shard build, a sweep of the method over the recipe's folds and seeds, and labelling.

    Before the sweep come the base learners, where the method builds on them, and the search, where the recipe has a
    `search.space`. The same number of photos is built into shards and labelled. Precisions are those of the recipe's
    sections. Raises `FssError` for an unknown method or preset, and for one whose speed is not known.
    """
    registry.method_class(request.method)
    registry.check_preset(request.method, request.preset)
    rate, used = segment_rate(request)
    method = registry.method_class(request.method)
    before = [_base_learners(request, rate)] if method.on_base_learner else []
    before += [_search(request, rate)] if request.recipe.search.space and method.trains else []
    parts = [_shards(request), *before, _sweep(request, rate), _label(request, rate)]
    seen = {figure: None for _, figures in parts for figure in figures} | dict.fromkeys(used)
    stages = tuple(stage for stage, _ in parts)
    return SizingPlan(stages, tuple(seen), tuple(_notes(request, stages)))


def segment_rate(request: SizingRequest) -> tuple[float, tuple[Figure, ...]]:
    """Images that one GPU, or one core without GPUs, segments in a second, and the figures that this is based on.

    Raises `FssError` if no speed is known.
    """
    if request.gpus and request.preset in f.ENCODER_RATES:
        parts = f.ENCODER_RATES[request.preset], f.DECODER_RATES[request.preset]
        return f.GPU_SHARE.value / sum(1 / p.value for p in parts), (*parts, f.GPU_SHARE)
    if request.gpus:
        known = {**f.GPU_RATES, "nano": f.GPU_NANO}.get(request.preset.removesuffix("_2.1"))
        if known is None:
            raise FssError(f"no speed of preset {request.preset!r} on a GPU is known",
                           hint=f"known: nano, {', '.join(f.GPU_RATES)}; measure others with `python -m benchmarks.run "
                           "batched_queries`")
        return known.value * f.GPU_SHARE.value, (known, f.GPU_SHARE)
    if request.preset == "nano" and request.method in f.CPU_RATES:
        return f.CPU_RATES[request.method].value, (f.CPU_RATES[request.method],)
    if request.preset == "tiny" and request.method == "sansa":
        return f.CPU_TINY.value / f.CPU_TINY_CORES, (f.CPU_TINY,)
    raise FssError(f"no speed of {request.method}/{request.preset} on a CPU was measured",
                   hint=f"measured: preset nano with {', '.join(f.CPU_RATES)}; or give --gpus")


def speed_factor(request: SizingRequest, precision: str, *, compiled: bool = False
                 ) -> tuple[float, tuple[Figure, ...]]:
    """Times that a model of this precision is as fast as `segment_rate` says, and the figures that this is based on.

    The rates of GPUs are those of bfloat16, without compilation; of CPUs those of float32, which is also what `auto` is
    taken to be there.
    """
    if not request.gpus:
        reduced = precision == "bfloat16"
        return (f.CPU_FLOAT32.value / f.CPU_BFLOAT16.value, (f.CPU_FLOAT32, f.CPU_BFLOAT16)) if reduced else (1.0, ())
    slow, more = precision == "float32", f.GPU_COMPILED if compiled else None
    factor = (1 / f.GPU_REDUCED.value if slow else 1.0) * (more.value if more else 1.0)
    return factor, (*((f.GPU_REDUCED,) if slow else ()), *((more,) if more else ()))


def host_seconds(request: SizingRequest, mode: str) -> tuple[float, tuple[Figure, ...]]:
    """Seconds of a core for a photo beside the model: decoding, resizing, run lengths; between sizes, interpolated.

    Smaller and larger photos than the measured ones are taken to cost in proportion to their pixels.
    """
    sizes = list(f.PHOTOS)
    upper = next((i for i, size in enumerate(sizes) if size >= request.megapixels), len(sizes) - 1)
    used = sizes[max(0, upper - 1):upper + 1]
    costs = [1 / f.PHOTOS[s][mode].value - f.PHOTOS[s]["model"].value / 1e3 for s in used]
    figures = tuple(f.PHOTOS[s][key] for s in used for key in (mode, "model"))
    if not used[0] <= request.megapixels <= used[-1]:
        end = 0 if request.megapixels < used[0] else -1
        return costs[end] * request.megapixels / used[end], figures
    share = (request.megapixels - used[0]) / (used[-1] - used[0] or 1)
    return costs[0] + share * (costs[-1] - costs[0]), figures


def _shards(request: SizingRequest) -> tuple[SizingStage, tuple[Figure, ...]]:
    """The shard build. Shards store a photo once in the image table, and once in a block for each of its classes."""
    stored = request.photo_kb * 1e3 * (request.images + request.annotations)
    driver = f.BUILD_DRIVER.value / 1e3 * max(1.0, request.annotations / f.BUILD_DRIVER_ANNOTATIONS)
    worker = f.BUILD_WORKER.value / 1e3
    larger, figures = host_seconds(request, "published")
    usual = host_seconds(replace(request, photo_size=f.BUILD_SIZE), "published")[0]
    seconds = 1 / f.BUILD_RATE.value + max(0.0, larger - usual)
    stage = SizingStage(
        name="build shards", hours=request.images * seconds / request.cores / 3600, cores=request.cores,
        gpus=0, memory_gb=driver + request.cores * worker,
        memory=f"driver {driver:.1f} GB, {worker:.2f} GB for each core",
        s3_gb=stored / 1e9, work=f"{request.images:,} photos, {request.annotations:,.0f} annotations")
    return stage, (f.BUILD_RATE, f.BUILD_DRIVER, f.BUILD_WORKER, *(figures if larger > usual else ()))


def count_steps(request: SizingRequest) -> int:
    """Optimiser steps of a run: `train.steps`, or the steps of `train.epochs` epochs over the train photos."""
    train = request.recipe.train
    return _steps(request, train.steps, train.epochs, train.batch)


def _steps(request: SizingRequest, steps: int, epochs: float, batch: int) -> int:
    photos = request.images * (1 - request.recipe.data.split.test_fraction)
    return math.ceil(epochs * photos / batch) if epochs else steps


def _base_learners(request: SizingRequest, rate: float) -> tuple[SizingStage, tuple[Figure, ...]]:
    """The base learners of the sweep: one for each fold and seed, twice if the runs hold classes out.

    A search needs one for each of its folds, which a sweep that holds out the same classes shares.
    """
    recipe, config = request.recipe, request.recipe.base_learner
    folds = len(recipe.sweep.folds) or recipe.data.folds
    hold_out = recipe.train.selection == "base-holdout"
    runs = folds * len(recipe.sweep.seeds) * (2 if hold_out else 1)
    runs += _search_folds(recipe) if recipe.search.space and not hold_out else 0
    photos = _steps(request, config.steps, config.epochs, config.batch) * config.batch
    factor, used = speed_factor(request, config.precision)
    rate *= factor
    units = request.gpus or request.cores
    at_once = min(runs, units)
    one = f.PROCESS.value / 1e3
    stage = SizingStage(
        name="base learners", hours=photos * f.BACKWARD.value / rate * math.ceil(runs / units) / 3600, cores=at_once,
        gpus=at_once if request.gpus else 0, memory_gb=one * at_once, memory=f"{one:.1f} GB for each run",
        s3_gb=runs * f.BASE_LEARNER.value * (4 + 8) / 1e9,  # its file, and a checkpoint with SGD's momentum
        work=f"{runs} runs of {photos:,} photos")
    return stage, (f.BACKWARD, f.PROCESS, f.BASE_LEARNER, *used)


def _search_folds(recipe: Recipe) -> int:
    return len(recipe.search.folds) or len(recipe.sweep.folds) or recipe.data.folds


def _search(request: SizingRequest, rate: float) -> tuple[SizingStage, tuple[Figure, ...]]:
    """The search of the method: Hyperband fixes beforehand how far how many trials are trained."""
    recipe, train = request.recipe, request.recipe.train
    cost = search_cost(recipe.search, [count_steps(request)] * _search_folds(recipe))
    per_clip, used = _clip_seconds(request, rate)
    seconds = cost.steps * train.batch * per_clip + cost.scorings * train.select.episodes * (1 + train.shots) / rate
    units = request.gpus or request.cores
    at_once = min(max(b.sizes[0] for b in brackets_of(recipe.search)) * _search_folds(recipe), units)
    one = (train.pool_bytes + train.pixel_bytes) / 1e9 + f.PROCESS.value / 1e3
    stage = SizingStage(
        name="search", hours=seconds / at_once / 3600, gpus=at_once if request.gpus else 0, cores=at_once,
        memory_gb=one * at_once, memory=f"{one:.1f} GB for each run",
        # two checkpoints and the tensors of a rung of each run of a bracket; they are deleted when its trials end
        s3_gb=at_once * f.TRAINED.value * (2 * 12 + 4) / 1e9,
        work=f"{recipe.search.trials} trials on {_search_folds(recipe)} folds, {cost.steps * train.batch:,} clips, "
             f"{cost.scorings} times {train.select.episodes} held-out episodes")
    return stage, (*used, f.PROCESS, f.TRAINED)


def _sweep(request: SizingRequest, rate: float) -> tuple[SizingStage, tuple[Figure, ...]]:
    recipe, train = request.recipe, request.recipe.train
    folds = len(recipe.sweep.folds) or recipe.data.folds
    trains = registry.method_class(request.method).trains
    runs = folds * (len(recipe.sweep.seeds) if trains else 1)
    clips = count_steps(request) * train.batch if trains else 0
    per_clip, used = _clip_seconds(request, rate)
    scoring, more = speed_factor(request, recipe.eval.precision)
    seconds = clips * per_clip + recipe.eval.episodes * (1 + recipe.eval.shots) / (rate * scoring)
    units = request.gpus or request.cores
    at_once = min(runs, units)
    stream = f.STREAM[512 if request.preset == "nano" else 1024]
    feeding = math.ceil(at_once / per_clip / stream.value) if request.gpus and clips else 0
    one = (train.pool_bytes + train.pixel_bytes) / 1e9 * bool(clips) + f.PROCESS.value / 1e3
    # a bundle stores 4 bytes a parameter, a checkpoint 12 with the two moments of AdamW
    checkpoints = runs * f.TRAINED.value * (4 + 12) / 1e9 if trains else 0.0
    stage = SizingStage(
        name="sweep", hours=seconds * math.ceil(runs / units) / 3600, gpus=at_once if request.gpus else 0,
        cores=max(at_once, feeding), memory_gb=one * at_once,
        memory=f"{one:.1f} GB for each run (train.pool_bytes, train.pixel_bytes, process)", s3_gb=checkpoints,
        work=f"{runs} runs of {clips:,} clips and {recipe.eval.episodes} test episodes")
    return stage, (*used, *more, f.PROCESS, f.TRAINED, *((stream,) if feeding else ()))


def _clip_seconds(request: SizingRequest, rate: float) -> tuple[float, tuple[Figure, ...]]:
    """Seconds to train one clip on one GPU or core, and the figures that this is based on."""
    train = request.recipe.train
    if not request.gpus and (request.method, request.preset, train.shots) == ("fcp", "nano", 1):
        return 1 / f.TRAIN_FCP.value, (f.TRAIN_FCP,)
    factor, used = speed_factor(request, train.precision, compiled=train.compile)
    return (train.shots + train.targets) * f.BACKWARD.value / (rate * factor), (f.BACKWARD, *used)


def _label(request: SizingRequest, rate: float) -> tuple[SizingStage, tuple[Figure, ...]]:
    """Labelling: every photo is decoded once, and it or each of its tiles is segmented for each class.

    Where only the image encoder's time is known, further classes are taken to cost nothing. Tiles need all pixels.
    """
    config = request.recipe.label
    decode, figures = host_seconds(request, "fast" if config.preprocessing == "fast" and request.tiles == 1 else
                                   "published")
    factor, used = speed_factor(request, config.precision, compiled=config.compile)
    encodings, pictures = request.encodings(), request.images * request.tiles
    if request.gpus:
        busy = pictures / rate / factor
        if request.preset in f.ENCODER_RATES:
            busy = encodings / f.ENCODER_RATES[request.preset].value
            busy += pictures * request.classes / f.DECODER_RATES[request.preset].value
            busy /= f.GPU_SHARE.value * factor
        hours = busy / request.gpus / 3600
        cores = math.ceil(request.images / busy * request.gpus * decode)
    else:
        hours, cores = (pictures / rate / factor + request.images * decode) / request.cores / 3600, request.cores
    replicas = request.gpus or max(1, request.recipe.serve.replicas)
    one = f.PROCESS.value / 1e3
    stage = SizingStage(
        name="label", hours=hours, cores=cores, gpus=request.gpus, memory_gb=one * replicas,
        memory=f"{one:.1f} GB for each replica",
        s3_gb=request.images * (request.photo_kb * 1e3 + f.LABEL_BYTES.value) / 1e9,
        work=f"{request.images:,} photos, {math.ceil(request.images / request.recipe.label.chunk):,} chunks, "
             f"{'one class' if request.classes == 1 else f'{request.classes} classes'}, "
             f"{f'{request.tiles} tiles a photo, ' if request.tiles > 1 else ''}{encodings:,} image encodings, "
             f"{config.precision}{', compiled' if config.compile else ''}, "
             f"photos of {request.megapixels:.1f} megapixels")
    return stage, (*used, *figures, f.PROCESS, f.LABEL_BYTES)


def _notes(request: SizingRequest, stages: tuple[SizingStage, ...]) -> list[str]:
    notes = [f"S3: assumes photos of {request.photo_kb:g} KB (--photo-kb) with {request.classes_per_photo:g} classes "
             "(--classes-per-photo); shards store a photo once, and once more for each of its classes"]
    if request.gpus and request.recipe.label.precision == "float32":
        notes.append("label.precision is float32, in which GPUs are slow: auto means bfloat16 there")
    if request.gpus:
        notes.append("no speed on a GPU was measured in this project: the hours are an order of magnitude")
    if request.preset != "nano":
        notes.append("the memory of a process was measured with preset nano only: larger presets need more")
    if request.recipe.eval.list:
        notes.append("the number of test episodes is that of the recipe's episode list, which the plan does not read: "
                     "it assumes eval.episodes")
    driver = f.BUILD_DRIVER.value / 1e3 * request.annotations / f.BUILD_DRIVER_ANNOTATIONS
    if driver > LARGEST_MACHINE_GB:
        notes.append(f"the driver of the shard build may need {driver:,.0f} GB, more than one machine has: build "
                     "several datasets and mix them (`mixture` in a recipe)")
    if request.recipe.label.tile == "auto":
        notes.append("label.tile auto depends on the supports: the plan counts whole photos (give the tiles' side, and "
                     "--photo-size)")
    for setting, kind in get_type_hints(type(request.config)).items():
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        counts = {value: request.encodings(**{setting: value}) for value in choices}
        if len(set(counts.values())) > 1:
            notes.append("labelling, image encodings by " + setting + ": " + ", ".join(
                f"{value} {count:,}" for value, count in counts.items()))
    if any(s.name == "search" for s in stages):
        notes.append("the search's hours assume that its processors are always busy: at the last rungs few trials are "
                     "left, and with more processors than runs it takes longer")
    if not request.gpus and stages[-1].hours > 24 * 30:
        notes.append("labelling would take more than a month on these cores")
    return notes
