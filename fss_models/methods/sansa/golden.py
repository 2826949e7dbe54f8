"""SANSA's golden cases: clips of prompted references and unprompted targets at any geometry."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch import Tensor

from fss_models.adapters.adaptformer import adapt_trunk
from fss_models.clip import Features, Images, Memory, PromptBatch, PromptKind
from fss_models.golden import Check, relative_error
from fss_models.methods.sansa.config import SansaConfig
from fss_models.methods.sansa.model import Sansa
from fss_models.sam2_core.core import take
from fss_models.sam2_core.matcher import append

_KINDS = {"mask": PromptKind.MASK, "point": PromptKind.POINTS, "box": PromptKind.BOX, "scribble": PromptKind.SCRIBBLE}
_TOLERANCES = {"backbone": 1e-5, "memory": 1e-3, "logits": 1e-3}  # max |difference| / max |reference|


def run_case(folder: Path, name: str, case: dict[str, Any]) -> Iterator[Check]:
    """Compare one case. Kinds other than `infer` are reported as not covered, which is not a pass."""
    if case["kind"] != "infer":
        yield Check(case=name, quantity="all", error=float("nan"), tolerance=0, note=f"{case['kind']}: not covered yet")
        return
    model = load_model(folder / case["config"], folder / case["weights"])
    want = load_file(folder / f"{name}.safetensors")
    with torch.no_grad():
        ours = run_clip(model, want, case)
    groups: dict[str, float] = defaultdict(float)
    for key, value in ours.items():
        if key in want:
            group = _group_of(key)
            groups[group] = max(groups[group], relative_error(value, want[key]))
    for group, error in groups.items():
        yield Check(case=name, quantity=group, error=error, tolerance=_TOLERANCES[group])


def load_model(config: Path, weights: Path) -> Sansa:
    """The model of a golden geometry, in evaluation mode."""
    about = json.loads(config.read_text())
    sam = instantiate(about["sam2_config"], _recursive_=True)
    stages, factor = tuple(about["adapter_stages"]), about["adapter_factor"]
    model = Sansa(preset="golden", config=SansaConfig(stages=(), factor=factor), sam=sam)
    adapt_trunk(sam.image_encoder.trunk, stages=stages, factor=factor, scale=about["adapter_scale"])
    sam.load_state_dict({k.removeprefix("sam."): v for k, v in load_file(weights).items()}, strict=True)
    return model.eval()


def run_clip(model: Sansa, want: dict[str, Tensor], case: dict[str, Any]) -> dict[str, Tensor]:
    """Encode, remember the references, then predict and remember target after target, all clips at once."""
    samples = want["inputs.samples"]
    b, t, _, height, width = samples.shape
    shots, side = case["shots"], model.side
    square = _resize(samples.flatten(0, 1), side)
    images = Images(pixels=square, sizes=torch.tensor([[height, width]]).expand(b * t, 2))
    features = model.encode(images)
    found = {"backbone.input": square, "backbone.s0": features.maps["f0"], "backbone.s1": features.maps["f1"],
             "backbone.neck.2": features.maps["f2"]}
    entries, logits = model.remember(features, _prompts(want, case["prompts"], b, t, side))
    memory = Memory(tensors={"features": entries.features.unflatten(0, (b, shots)),
                             "pointers": entries.pointers.unflatten(0, (b, shots))}, counts=torch.full((b,), shots))
    frames = [*logits.unflatten(0, (b, shots)).unbind(1)]
    for step in range(shots, t):
        memory, prediction = _next(model, memory, features, torch.arange(step, b * t, t))
        frames.append(prediction)
    low = torch.stack(frames, dim=1).flatten(0, 1)
    found |= _by_frame(memory, low, b, t)
    found["pred_masks"] = F.interpolate(low[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    return found


def _next(model: Sansa, memory: Memory, features: Features, rows: Tensor) -> tuple[Memory, Tensor]:
    maps = take(features.maps, rows)
    logits, _, token = model.decode_targets(memory, maps).best()
    return append(memory, model.core.remember_prediction(maps, logits, token)), logits


def _by_frame(memory: Memory, low: Tensor, b: int, t: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for flat in range(b * t):
        clip, frame = divmod(flat, t)
        found[f"frame.{flat}.mem.features"] = memory.tensors["features"][clip, frame][None]
        found[f"frame.{flat}.obj_ptr"] = memory.tensors["pointers"][clip, frame][None]
        found[f"frame.{flat}.low_res"] = low[flat][None, None]
    return found


def _prompts(want: dict[str, Tensor], kinds: list[str], b: int, t: int, side: int) -> PromptBatch:
    """The references' prompts, scaled from the clip's pixels to the square as the published code does."""
    shots, masks = len(kinds), want["inputs.masks"].float()
    square = _resize(masks[:, :shots], side) > 0
    scale = torch.tensor([side / masks.shape[-1], side / masks.shape[-2]])
    given = {(i, k): want[f"inputs.point_coords.{i}.{k}"][0] for i in range(b) for k in range(shots)
             if f"inputs.point_coords.{i}.{k}" in want}
    most = max([1, *(len(p) for p in given.values())])
    points, labels = torch.zeros(b, shots, most, 2), torch.full((b, shots, most), -1, dtype=torch.int32)
    for (i, k), value in given.items():
        points[i, k, : len(value)] = value * scale
        labels[i, k, : len(value)] = want[f"inputs.point_labels.{i}.{k}"][0]
    return PromptBatch(
        image=torch.arange(b * t).view(b, t)[:, :shots], points=points, labels=labels, masks=square.float(),
        kind=torch.tensor([int(_KINDS[k]) for k in kinds]).expand(b, shots))


def _resize(maps: Tensor, side: int) -> Tensor:
    return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def _group_of(key: str) -> str:
    if key.startswith("backbone"):
        return "backbone"
    return "logits" if key.endswith(("low_res", "pred_masks")) else "memory"
