"""Speed of prediction with a bundle on the idle machine: seconds a query, images a second, peak memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fss_models.clip import Memory
from fss_models.execution import autocast, chosen_precision
from fss_models.precision import Precision
from fss_models.segmenter import Segmenter
from pipelines.bundles.bundle import load_bundle
from pipelines.data.schema import EpisodeSample
from pipelines.evaluation.evaluate import at_size, measure_query_seconds, memorise_references


def measure_speed(bundles: dict[str, str], samples: Sequence[EpisodeSample], *, device: str, batch: int,
                  repeats: int, precision: Precision = "float32") -> dict[str, dict[str, Any]]:
    """Label -> figures of a bundle. The bundles are measured one after another on the same episodes.

    seconds         median over queries, one at a time, from decoded image to mask; supports are memorised beforehand
    images_per_s    with `batch` queries at a time against one support set; images are decoded beforehand
    peak_bytes      growth of memory while loading and predicting, at its highest: resident memory, on a GPU the
                    memory that torch allocated there; 0 where the system does not report it
    precision       that the models computed in
    """
    load_bundle(next(iter(bundles.values())), device)  # libraries are imported outside the measurements
    found = {}
    for label, url in bundles.items():
        peak = MemoryPeak(device)
        model, info = load_bundle(url, device)
        chosen = chosen_precision(precision, model.device)
        with autocast(model.device, chosen):
            times = measure_query_seconds(model, samples, repeats=repeats)
            rate = measure_batch_rate(model, samples, batch=batch, repeats=repeats)
        found[label] = {"bundle_id": info.bundle_id, "seconds": statistics.median(times), "queries": len(times),
                        "images_per_s": rate, "batch": min(batch, len(samples)), "peak_bytes": peak.bytes(),
                        "device": str(model.device), "precision": chosen}
        del model
    return found


@torch.inference_mode()
def measure_batch_rate(model: Segmenter, samples: Sequence[EpisodeSample], *, batch: int, repeats: int) -> float:
    """Images a second when the samples' queries, `batch` at a time, are segmented by the first sample's supports."""
    memory, chosen = memorise_references(model, samples[0]), samples[:batch]
    times = [_one_batch(model, memory, chosen) for _ in range(repeats + 1)]
    return len(chosen) / statistics.median(times[1:])


def _one_batch(model: Segmenter, memory: Memory, samples: Sequence[EpisodeSample]) -> float:
    start = time.perf_counter()
    features = model.encode(model.prepare([s.targets[0].image for s in samples]).to(model.device))
    pairs = torch.tensor([[0, i] for i in range(len(samples))], dtype=torch.int64, device=model.device)
    logits = model.segment(memory, features, pairs).logits
    for one, sample in zip(logits, samples, strict=True):  # the copy to the host waits for the device
        (at_size(one, sample.targets[0].mask.shape, corners=model.corners_aligned) > 0).cpu()
    return time.perf_counter() - start


class MemoryPeak:
    """Growth of memory since this object was created, at its highest."""

    def __init__(self, device: str) -> None:
        gc.collect()
        self.cuda = device.startswith("cuda")
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        with suppress(OSError, AttributeError):  # with glibc, return the memory of the former model to the system
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.reset = False
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak of resident memory
            self.reset = True
        self.before = _status("VmRSS") if self.reset else 0

    def bytes(self) -> int:
        """Highest growth of memory so far, in bytes; 0 where the system does not report it."""
        if self.cuda:
            return torch.cuda.max_memory_allocated() - self.before
        return max(0, _status("VmHWM") - self.before) if self.reset else 0


def _status(key: str) -> int:
    """A field of /proc/self/status in bytes; 0 where it is missing."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0
