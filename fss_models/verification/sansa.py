"""SANSA's golden cases: clips at any geometry, forward, loss, gradients and the optimiser's step.

Errors are relative to the largest value, for losses and stepped parameters absolute.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fss_models.methods.sansa.model import Sansa
from fss_models.verification.figures import relative_error, step_error
from fss_models.verification.frame import GoldenCheck, WorstErrors
from fss_models.verification.sansa_clip import GoldenClip, load_model, reference_kernels, run_clip
from fss_models.verification.sansa_units import run_units
from fss_models.verification.tolerances import EXACT, GOLDEN

__all__ = ["run_case", "run_units"]

_LR, _RELEASED_CLIP = 1e-4, 0.1
_LOUD = 1e-3  # share of the largest gradient from which a parameter's step is compared


def run_case(folder: Path, name: str, case: dict[str, Any]) -> Iterator[GoldenCheck]:
    """Compare one case; a kind we do not know is reported as not covered, which is not a pass."""
    want = load_file(folder / f"{name}.safetensors")
    clip = GoldenClip.read(want, case["prompts"])
    side = clip.samples.shape[-1]
    worst = WorstErrors(name, GOLDEN["sansa"])
    model = load_model(folder, case, side)
    with torch.no_grad(), reference_kernels(model):
        _compare(run_clip(model, clip), want, worst)
        _variants(model, clip, want, worst)
    if case["kind"] in ("train", "train_released"):
        skip = clip.samples.shape[1] - case["loss_frames"]
        with reference_kernels(model):
            _training(model, partial(model.losses, clip.clip(model), skip=skip), want, _grad_norms(folder, name), worst)
    elif case["kind"] != "infer":
        yield GoldenCheck(case=name, quantity="all", error=float("nan"), bound=EXACT,
                          note=f"unknown kind {case['kind']}")
    yield from worst.checks()


def _compare(ours: dict[str, Tensor], want: dict[str, Tensor], worst: WorstErrors) -> None:
    for key, value in ours.items():
        if key in want:
            worst.record(_group_of(key), relative_error(value, want[key]))


def _group_of(key: str) -> str:
    if key.startswith(("backbone", "adapter")):
        return key.split(".")[0]
    return "logits" if key.endswith(("low_res", "pred_masks")) else "memory"


def _variants(model: Sansa, clip: GoldenClip, want: dict[str, Tensor], worst: WorstErrors) -> None:
    """Compare the same clip with references in another order, and with adapters that add nothing."""
    if "permuted.order" in want:
        again = run_clip(model, clip.reordered(want["permuted.order"].tolist()))
        worst.record("logits", relative_error(again["pred_masks"], want["permuted.pred_masks"]))
    if "noadapter.pred_masks" in want:
        adapters = [b.adapter for b in model.core.sam.image_encoder.trunk.blocks if hasattr(b, "adapter")]
        scales = [a.scale for a in adapters]
        for adapter in adapters:
            adapter.scale = 0.0
        plain = run_clip(model, clip)
        for adapter, scale in zip(adapters, scales, strict=True):
            adapter.scale = scale
        worst.record("logits", relative_error(plain["pred_masks"], want["noadapter.pred_masks"]))


def _training(
    model: Sansa, losses: Callable[[], dict[str, Tensor]], want: dict[str, Tensor], norms: dict[str, float],
    worst: WorstErrors,
) -> None:
    """Compare one training step: losses, gradients, their norms, and the parameters after it for each clipping."""
    model.train()
    found = losses()
    torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
    found |= {"total": torch.stack(list(found.values())).sum()}
    for key, value in _losses(found):
        if key in want:
            worst.record("loss", float((value.detach() - want[key]).abs()))
    if "paper.bce" in want:
        worst.record("loss", abs(_cross_entropy(model, losses) - float(want["paper.bce"])))
    grads = {n.removeprefix("core."): p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    if not norms.keys() <= grads.keys() or not grads:
        worst.record("gradients", float("inf"))
    for name, norm in norms.items():
        error = abs(float(grads[name].norm()) - norm) / max(norm, 1e-12) if name in grads else float("inf")
        worst.record("gradients", error)
    for name, grad in grads.items():
        if (key := f"grad.{name}") in want:
            error = float((grad - want[key]).norm() / want[key].norm().clamp(min=1e-12))
            worst.record("gradients", error)
    total = float(torch.stack([g.norm() for g in grads.values()]).norm())
    for key in ("grad_norm.total", "stats.grad_norm"):
        if key in want:
            worst.record("grad norm", abs(total - float(want[key])) / float(want[key]))
    for prefix in sorted({k[: k.index("sam.")] for k in want if k.startswith("after_step.")}):
        worst.record("step", _step_error(model, grads, want, prefix))


def _losses(found: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for ours, theirs in (("mask", "loss_mask"), ("dice", "loss_dice"), ("total", "loss")):
        yield f"loss.{ours}", found[ours]
        yield f"stats.{theirs}", found[ours]


def _cross_entropy(model: Sansa, losses: Callable[[], dict[str, Tensor]]) -> float:
    """Compute the paper's mask loss on the same logits."""
    released = model.config
    model.config = type(released)(**{**vars(released), "mask_loss": "bce"})
    with torch.no_grad():
        value = float(losses()["mask"])
    model.config = released
    return value


def _step_error(model: Sansa, grads: dict[str, Tensor], want: dict[str, Tensor], prefix: str) -> float:
    """Largest difference after one AdamW step with the clipping that `prefix` names, where gradients are not noise."""
    limit = float(prefix.split("clip")[1].rstrip(".")) if "clip" in prefix else _RELEASED_CLIP
    named = {n.removeprefix("core."): p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in named.items()}
    for name, parameter in named.items():
        parameter.grad = grads[name].clone()
    torch.nn.utils.clip_grad_norm_(named.values(), limit)
    torch.optim.AdamW(named.values(), lr=_LR, weight_decay=0.0).step()
    error = 0.0
    for name, parameter in named.items():
        gradient = want.get(f"grad.{name}", grads[name])
        error = max(error, step_error(parameter, want[prefix + name], gradient, _LOUD))
        parameter.data.copy_(before[name])
    return error


def _grad_norms(folder: Path, name: str) -> dict[str, float]:
    """Gradient norm of each parameter from the folder's `*grad_norms.json`; case names may lack `case_` there."""
    for file in sorted(folder.glob("*grad_norms.json")):
        held = json.loads(file.read_text())
        for key in (name, name.removeprefix("case_")):
            if key in held:
                return {k: float(v) for k, v in held[key].items()}
    return {}
