"""The figures on which a plan is based, each with its source. A test compares the measured ones with their files.

All measurements in `benchmarks/results` were made on a CPU with two cores. No figure was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["measured", "published", "assumed"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number with its unit and source; that of a measured number is a file of `benchmarks/results` and a `key` in it.
    """

    what: str
    value: float
    unit: str
    kind: Kind
    source: str
    key: str = ""


def _measured(what: str, value: float, unit: str, file: str, key: str, note: str, day: str = "2026-11-21") -> Figure:
    return Figure(what=what, value=value, unit=unit, kind="measured", key=key,
                  source=f"benchmarks/results/{day}-{file}.json: {note}")


BUILD_RATE = _measured(
    "photos that a core builds into shards", 128.32145171743358, "photos/s", "shard_build-cpu-2-cores",
    "result.photos_per_cpu_s.build", "640x480 photos, 3 annotations each, two cores")
BUILD_SIZE = (480, 640)  # (height, width) of the photos of that measurement
BUILD_DRIVER = _measured(
    "peak memory of the build's driver at 200 000 annotations", 387.0, "MB", "scale_build-200000-cpu-2-cores",
    "result.memory.writing_blocks.driver.peak_mb", "64 px photos; scaled with the annotations, an upper bound")
BUILD_DRIVER_ANNOTATIONS = 200_000
BUILD_WORKER = _measured(
    "peak memory of a worker of the build", 150.1, "MB", "scale_build-200000-cpu-2-cores",
    "result.memory.writing_blocks.largest_worker.peak_mb", "64 px photos; larger photos need more")
PROCESS = _measured(
    "peak memory of a process with `nano` and a batch of 16", 757_100_544 / 1e6, "MB",
    "batched_queries-preset-nano-threads-1-cpu-2-cores", "result.process_peak_bytes", "sansa, 640 px photos, fp32")

_QUERIES = "one core beside a busy one, fp32, batch 16, one support image, 256 px, without decoding"
CPU_RATES = {method: _measured(
    f"images that a core segments with {method}/nano", value, "images/s",
    f"batched_queries-method-{method.replace('_', '-')}-preset-nano-threads-1-cpu-2-cores",
    "result.together_images_per_s", _QUERIES, "2026-11-30") for method, value in {
    "sansa": 50.56919117121717,
    "fcp": 25.89162482718379,
    "vrp_sam": 60.00121247421631,
    "fssam": 34.167324847491905,
    "prior": 99.35148257637829,
    "sam2_frozen": 55.56060173037569,
    "gf_sam": 15.134373009135794,
    "insid3": 67.60479188258184,
    "pfenet": 63.67353610441125,
    "ssp": 99.28129033707295,
    "cyctr": 41.965708952469264,
    "bam": 56.71894059277935,
    "hdmnet": 38.6073856555181,
}.items()}  # by method
CPU_TINY = _measured(
    "images that two cores segment with sansa/tiny", 0.19511626307123642, "images/s",
    "batched_queries-batch-8-images-8-repeats-1-cpu-2-cores", "result.together_images_per_s", "fp32, batch 8")
CPU_TINY_CORES = 2
TRAIN_FCP = _measured(
    "clips that a core trains with fcp/nano", 9.602708002064974, "clips/s", "feature_cache-cpu-2-cores",
    "result.clips_per_s.photos", "one core, fp32, 1-shot, batch 4, 480 px photos")
STREAM = {  # episodes that a core loads in a second, by the side of the model's square in pixels
    512: _measured("episodes that a core loads at 512 px", 402.4486279764881, "episodes/s",
                   "training_stream-shots-1-side-512-cpu-2-cores", "result.episodes_per_cpu_s.stream",
                   "549 COCO photos, warm", "2026-11-22"),
    1024: _measured("episodes that a core loads at 1024 px", 197.54102357571898, "episodes/s",
                    "training_stream-shots-1-side-1024-cpu-2-cores", "result.episodes_per_cpu_s.stream",
                    "549 COCO photos, warm", "2026-11-22"),
}



def _photo(size: str, model: float, published: float, fast: float) -> dict[str, Figure]:
    """What labelling costs a core for a photo of a size: with either preprocessing, and the model's part of it."""
    file, day, at = "photo_stages-cpu-2-cores", "2026-12-01", f"result.cpu_ms_a_photo.{size}"
    note = "the champion that ships (fssam/nano at 320 px), one core beside a busy one, fp32, batch 8"
    rates = {mode: _measured(f"photos of {size} that a core labels, preprocessing {mode}", value, "photos/s", file,
                             f"{at}.photos_a_cpu_second.{key}", note, day)
             for mode, key, value in (("published", "labelling", published), ("fast", "fast", fast))}
    return {**rates, "model": _measured(f"the model's part of a photo of {size}", model, "ms", file,
                                        f"{at}.labelling.model", note, day)}


PHOTOS = {  # by megapixels
    0.307: _photo("640x480", 49.18829787500001, 18.75963110667439, 18.775652602079564),
    2.074: _photo("1920x1080", 51.083528875000006, 16.157395197166593, 16.172994009929358),
    12.193: _photo("4032x3024", 51.51703937499996, 11.141143983471173, 14.108701254210118),
}
_BF16 = "result.cpu_ms_a_photo.bare"
CPU_FLOAT32 = _measured("the model's time for a photo in float32", 40.713415937499995, "ms",
                        "device_pipeline-count-16-repeats-1-threads-1-cpu-2-cores", _BF16, "fssam/nano at 256 px",
                        "2026-11-30")
CPU_BFLOAT16 = _measured("the model's time for a photo in bfloat16", 25.914562249999996, "ms",
                         "device_pipeline-count-16-precision-bfloat16-repeats-1-threads-1-cpu-2-cores", _BF16,
                         "fssam/nano at 256 px, on a CPU that multiplies in bfloat16", "2026-11-30")

_SAM2 = "SAM 2's README: video frames a second of the whole model on one A100, bf16, compiled"
GPU_RATES = {preset: Figure(what=f"images that a GPU segments with `{preset}`", value=value, unit="images/s",
                            kind="published", source=_SAM2)
             for preset, value in {"tiny": 91.2, "small": 84.8, "base_plus": 64.1, "large": 39.5}.items()}


# of a large image encoder and of what follows it, where a method runs them at different counts
ENCODER_RATES = {"sam3": Figure(
    what="pictures that a GPU encodes with `sam3`", value=1 / 0.0717, unit="images/s", kind="published",
    source="usls, issue 181: 71.7 ms with TensorRT, FP16, on one GH200, batch 1")}
DECODER_RATES = {"sam3": Figure(
    what="pairs of photo and class that a GPU decodes with `sam3`", value=1 / 0.0403, unit="pairs/s",
    kind="published", source="usls, issue 181: 40.3 ms with TensorRT, FP16, on one GH200, batch 1")}


def _assumed(what: str, value: float, unit: str, reason: str) -> Figure:
    return Figure(what=what, value=value, unit=unit, kind="assumed", source=reason)


_FAST = "segment-anything-fast, experiments/results.csv: SAM ViT-B on one A100, batch 8"
GPU_REDUCED = Figure(what="times that a GPU is faster in bfloat16 or float16 than in float32", value=39.8 / 12.1,
                     unit="", kind="published", source=f"{_FAST}: 39.8 against 12.1 images/s")
GPU_COMPILED = Figure(what="times that a GPU is faster with a compiled model", value=54.7 / 39.8, unit="",
                      kind="published", source=f"{_FAST}: 54.7 against 39.8 images/s")
GPU_NANO = _assumed("images that a GPU segments with `nano`", 91.2, "images/s",
                    "the published speed of `tiny`, which is larger")
GPU_SHARE = _assumed("share of a GPU's published speed that is reached", 0.5, "",
                     "the model is not compiled, and photos have to be decoded")
BACKWARD = _assumed("cost of a training step in forward passes", 3.0, "",
                    "rule of thumb: a backward pass costs two forward passes")
TRAINED = _assumed("trained parameters of a run", 10e6, "",
                   "SANSA's adapters on SAM 2 large; other methods have about as many")
BASE_LEARNER = _assumed("parameters of a base learner", 47e6, "",
                        "PSPNet on ResNet-50; that of nano's frozen trunk has a fiftieth")
LABEL_BYTES = _assumed("size of a label in its Parquet part", 2_000, "bytes",
                       "one RLE mask a photo; detailed masks are larger")
