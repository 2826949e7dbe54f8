"""How a model computes: its precision, compiled or not, and copies to and from its device that nobody waits for.

On a GPU, photos are copied from pinned memory on a stream of their own, while the model works on earlier ones, and all
results of a call come back in one copy; only `Download.wait` waits. With a reduced precision, convolutions use the
channels-last layout, and what stays in float32 is multiplied in TF32.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fss_models.clip import Features, Images, Memory, Prediction
from fss_models.errors import FssError
from fss_models.precision import Precision
from fss_models.segmenter import Segmenter

_REDUCED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def chosen_precision(wanted: Precision, device: torch.device | str) -> str:
    """The precision to compute in: `wanted`, or for `auto` bfloat16 where the device computes in it, else float32.

    Raises `FssError` for float16 on a CPU, which has no fast arithmetic for it.
    """
    cuda = torch.device(device).type == "cuda"
    if wanted == "float16" and not cuda:
        raise FssError("precision float16 needs a GPU", hint="use bfloat16, or auto")
    if wanted != "auto":
        return wanted
    able = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else _cpu_has_bfloat16()
    return "bfloat16" if able else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which a model on `device` computes in a precision that is not `auto`."""
    dtype = _REDUCED.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()


def _cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 (AVX512-BF16 or AMX)."""
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in known)


@dataclass(frozen=True)
class Upload:
    """Photos on their way to the device."""

    images: Images
    done: Any = None  # CUDA event

    def ready(self) -> Images:
        """The photos, for work that is started after this call on the current stream."""
        if self.done is not None:
            stream = torch.cuda.current_stream(self.images.pixels.device)
            stream.wait_event(self.done)
            for tensor in (self.images.pixels, self.images.sizes):
                tensor.record_stream(stream)
        return self.images


@dataclass(frozen=True)
class Download:
    """Float tensors [P, ...] on their way to the host, joined in one copy."""

    joined: Tensor
    shapes: tuple[tuple[int, ...], ...]
    done: Any = None

    @property
    def size(self) -> int:
        """Bytes of memory on the host."""
        return self.joined.numel() * self.joined.element_size()

    def wait(self) -> list[Tensor]:
        """The tensors on the host, in float32; waits for the copy."""
        if self.done is not None:
            self.done.synchronize()
        parts = self.joined.split([int(torch.Size(s[1:]).numel()) for s in self.shapes], dim=1)
        return [part.unflatten(1, shape[1:]) if len(shape) > 1 else part[:, 0]
                for part, shape in zip(parts, self.shapes, strict=True)]


class Execution:
    """Runs a model's `encode` and `segment`. One thread at a time."""

    def __init__(self, model: Segmenter, precision: Precision = "float32", *, compiled: bool = False) -> None:
        self.model, self.device, self.compiled = model, model.device, compiled
        self.precision = chosen_precision(precision, self.device)
        self._cuda = self.device.type == "cuda"
        self._copies = torch.cuda.Stream(self.device) if self._cuda else None
        self._channels_last = self._cuda and self.precision in _REDUCED
        if self._channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        self._encode = torch.compile(model.encode, dynamic=False) if compiled else None
        self._segment = torch.compile(model.segment, dynamic=False) if compiled else None

    @property
    def device_name(self) -> str:
        """The kind of the device: of a GPU its name, of a CPU the instructions that PyTorch uses."""
        if self._cuda:
            return torch.cuda.get_device_name(self.device)
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the model computes in its precision."""
        return autocast(self.device, self.precision)

    def upload(self, images: Images) -> Upload:
        """Start to copy photos to the device."""
        if self._copies is None:
            return Upload(images.to(self.device))
        with torch.cuda.stream(self._copies):
            pinned = Images(pixels=self._layout(images.pixels).pin_memory(), sizes=images.sizes.pin_memory())
            moved = Images(pixels=pinned.pixels.to(self.device, non_blocking=True),
                           sizes=pinned.sizes.to(self.device, non_blocking=True))
            return Upload(moved, self._copies.record_event())

    def indices(self, pairs: Tensor) -> Tensor:
        """Integers [P, 2] on the device."""
        return pairs.pin_memory().to(self.device, non_blocking=True) if self._cuda else pairs.to(self.device)

    def encode(self, upload: Upload) -> Features:
        """`Segmenter.encode` of uploaded photos."""
        with self.autocast():
            return (self._encode or self.model.encode)(upload.ready())

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """`Segmenter.segment`; `pairs` are on the device."""
        with self.autocast():
            return (self._segment or self.model.segment)(memory, features, pairs)

    def download(self, tensors: Sequence[Tensor]) -> Download:
        """Start to copy float tensors [P, ...] with equal P to the host."""
        shapes = tuple(tuple(t.shape) for t in tensors)
        joined = torch.cat([t.float().flatten(1) if t.dim() > 1 else t.float()[:, None] for t in tensors], dim=1)
        if not self._cuda:
            return Download(joined, shapes)
        host = torch.empty(joined.shape, dtype=joined.dtype, pin_memory=True)
        host.copy_(joined, non_blocking=True)
        return Download(host, shapes, torch.cuda.current_stream(self.device).record_event())

    def _layout(self, pixels: Tensor) -> Tensor:
        return pixels.contiguous(memory_format=torch.channels_last) if self._channels_last else pixels
