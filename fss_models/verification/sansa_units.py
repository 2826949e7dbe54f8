"""SANSA's golden units: single functions, key manifests and parameter counts, wherever a folder has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fss_models import losses
from fss_models.adapters.adaptformer import AdaptFormer
from fss_models.methods.sansa.config import SansaConfig
from fss_models.methods.sansa.model import Sansa
from fss_models.preprocess import Preprocessor
from fss_models.prompt_sampling import sample_box
from fss_models.sam2_core.build import build_sam2
from fss_models.verification.figures import relative_error, score_figures
from fss_models.verification.frame import GoldenCheck
from fss_models.verification.tolerances import EXACT, SCORE, UNIT, Bound

_PRESET_OF = {"tiny": "tiny", "base": "base_plus", "large": "large"}
Errors = Iterator[tuple[str, float]]


def run_units(folder: Path) -> Iterator[GoldenCheck]:
    """Compare every unit file of the folder; tolerance 1e-6 relative, exact for masks, boxes, counts and names."""
    built: dict[str, Any] = {}
    for name, (compare, bound) in _UNITS.items():
        if (folder / f"unit_{name}.safetensors").is_file():
            given = load_file(folder / f"unit_{name}.safetensors")
            for quantity, error in compare(given):
                yield GoldenCheck(case=f"unit_{name}", quantity=quantity, error=error, bound=bound)
    for file in sorted(folder.glob("adapter_keys_*.json")):
        size, factor = file.stem.removeprefix("adapter_keys_").split("_")
        wrong = _wrong_keys(json.loads(file.read_text()), _adapted(built, size, float(factor), (2, 3)))
        yield GoldenCheck(case=file.stem, quantity="keys", error=wrong, bound=EXACT)
    if (folder / "param_counts.json").is_file():
        for name, counts in json.loads((folder / "param_counts.json").read_text()).items():
            size, factor, stages = name.split("/")
            chosen = tuple(int(c) for c in stages.removeprefix("stages"))
            model = _adapted(built, size, float(factor.removeprefix("factor")), chosen)
            yield GoldenCheck(case=name, quantity="params", error=_count_error(counts, model), bound=EXACT)


def _adapter(given: dict[str, Tensor]) -> Errors:
    hidden, width = given["w.down_proj.weight"].shape
    adapter = AdaptFormer(width, hidden)
    adapter.load_state_dict({k.removeprefix("w."): v for k, v in given.items() if k.startswith("w.")})
    yield "output", max(relative_error(adapter(given[x]), given[x.replace("x", "y")]) for x in ("x", "x_small"))


def _losses(given: dict[str, Tensor]) -> Errors:
    b, most = given["masks"].shape[:2]
    worst = 0.0
    for key in (k for k in given if k.endswith("loss_mask")):
        case = key.split(".")[0]
        logits = given["nan.logits" if case == "nan" else "logits"].unflatten(0, (b, most))
        frames = most - 1 if case == "nan" else int(case.removeprefix("frames"))
        logits, masks = logits[:, most - frames:], given["masks"][:, most - frames:].float()
        usable = ~logits.isnan().flatten(1).any(dim=1)
        found = (logits[usable], masks[usable], torch.ones_like(masks[usable], dtype=torch.bool))
        worst = max(worst, relative_error(losses.focal(*found), given[key]),
                    relative_error(losses.dice(*found), given[f"{case}.loss_dice"]))
    yield "loss", worst


def _boxes(given: dict[str, Tensor]) -> Errors:
    wrong = 0
    for mask, box in zip(given["masks"], given["boxes"], strict=True):
        ours = sample_box(mask.bool().numpy()).box if mask.any() else torch.zeros(4)  # we refuse empty masks
        wrong += not torch.equal(ours, box)  # type: ignore[arg-type]
    yield "boxes", wrong


def _resize_mask(given: dict[str, Tensor]) -> Errors:
    wrong = 0.0
    for key in (k for k in given if k.endswith(".in")):
        side = int(given[key.replace(".in", ".size")])
        masks = given[key].flatten(0, -3)
        resize = Preprocessor(side=side, via=masks.shape[-1]).mask
        ours = torch.stack([resize(m.bool().numpy()) for m in masks]).view(given[key.replace(".in", ".out")].shape)
        wrong += float((ours != given[key.replace(".in", ".out")]).sum())
    yield "pixels", wrong


def _metrics(given: dict[str, Tensor]) -> Errors:
    found = score_figures(pred=given["pred"].bool(), truth=given["gt"].bool(), ids=given["class_id"],
                          classes=given["class_ids_of_interest"].tolist())
    for name in ("area_inter", "area_union"):
        yield name, float((torch.from_numpy(found[name].T) != given[name][..., 0]).sum())
    yield "mIoU", abs(float(found["miou_percent"]) / float(given["miou"]) - 1)
    yield "FB-IoU", abs(float(found["fb_iou_percent"]) / float(given["fb_iou"]) - 1)


_UNITS: dict[str, tuple[Callable[[dict[str, Tensor]], Errors], Bound]] = {
    "adapter": (_adapter, UNIT), "losses": (_losses, UNIT), "boxes": (_boxes, EXACT),
    "resize_mask": (_resize_mask, EXACT), "metrics": (_metrics, SCORE)}


def _wrong_keys(manifest: dict[str, list[int]], model: Sansa) -> int:
    """Number of names or shapes that differ between an official adapter file and our model."""
    ours = {n.removeprefix("core."): list(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    return sum(ours.get(k) != manifest.get(k) for k in ours.keys() | manifest.keys())


def _count_error(counts: dict[str, int], model: Sansa) -> int:
    trained = [p for p in model.parameters() if p.requires_grad]
    ours = {"total_params": sum(p.numel() for p in model.parameters()), "n_tensors": len(trained),
            "adapter_params": sum(p.numel() for p in trained)}
    return sum(ours[k] != counts[k] for k in ours if k in counts)


def _adapted(built: dict[str, Any], size: str, factor: float, stages: tuple[int, ...]) -> Sansa:
    """Build a real-size model; `built` keeps one SAM 2 of each size, whose adapters are replaced."""
    preset = _PRESET_OF.get(size, size)
    if preset not in built:
        built[preset] = build_sam2(preset)
    sam = built[preset]
    for block in sam.image_encoder.trunk.blocks:
        if hasattr(block, "adapter"):
            del block.adapter
    model = Sansa(preset=preset, config=SansaConfig(factor=factor, stages=stages), sam=sam)
    model.set_trainable()
    return model
