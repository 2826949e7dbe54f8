"""FSSAM's golden cases: tensors of the official code at tiny sizes, stage by stage and end to end.

Everything is read from the case's own files, so other batches, sizes, shots and seeds work. `units.npz` and
`episodes.npz` in the same folder are compared together with the first case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor

from fss_models.backbones.dinov2 import Dinov2
from fss_models.clip import Clip
from fss_models.methods.fssam.config import FssamConfig
from fss_models.methods.fssam.model import Fssam
from fss_models.preprocess import IMAGENET
from fss_models.presets import Preset
from fss_models.sam2_core.build import sam2_config
from fss_models.verification.figures import excess
from fss_models.verification.frame import GoldenCheck, WorstErrors
from fss_models.verification.fssam_stages import observe
from fss_models.verification.fssam_units import check_episodes, check_units
from fss_models.verification.recorder import masked_clip
from fss_models.verification.tolerances import EXACT, FSSAM_GRADIENT_RELATIVE, FSSAM_RELATIVE, GOLDEN

Arrays = dict[str, Tensor]
BOUNDS = GOLDEN["fssam"]


def run_case(folder: Path, name: str, case: dict[str, Any]) -> Iterator[GoldenCheck]:
    """Compare a case and its variants; the folder's first case also runs the units and episodes."""
    state = read_npz(folder / case["state"])
    want = read_npz(folder / case["file"])
    files = {case["file"]: {}} | case.get("variants", {})
    for file, settings in files.items():
        label = file.removesuffix(".npz").removeprefix("case_")
        recorded = read_npz(folder / file)
        yield from check_case(label, load_model(case | settings, state), want, recorded)
        if "gradnorm_total_optimised" in recorded:
            yield from check_gradients(label, load_model(case | settings, state), want, recorded)
    if name == next(iter(json.loads((folder / "cases.json").read_text()))):
        for file, check in (("units.npz", check_units), ("episodes.npz", check_episodes)):
            if (folder / file).is_file():
                yield from check(read_npz(folder / file))


def read_npz(path: Path) -> Arrays:
    """Read the tensors of an `.npz` without unpickling anything. Arrays of text become rows of character codes."""
    with np.load(path, allow_pickle=False) as file:
        return {k: torch.from_numpy(np.ascontiguousarray(file[k])).reshape(file[k].shape)
                if file[k].dtype.kind != "U" else _text(file[k]) for k in file.files}


def _text(array: np.ndarray) -> Tensor:
    """Convert names to rows of character codes."""
    return torch.from_numpy(np.array([[ord(c) for c in str(s).ljust(array.dtype.itemsize // 4, "\0")] for s in array]))


def load_model(case: dict[str, Any], state: Arrays) -> Fssam:
    """Build the model of a case's geometry with its weights, in the case's mode."""
    sam = instantiate(sam2_config(preset_of(case), True), _recursive_=True)
    config = FssamConfig(num_refine=case["num_refine"], ver_refine=case["ver_refine"], train="published",
                         k_shot=case.get("k_shot", "repaired"))
    model = Fssam(preset="golden", config=config, sam=sam, prior=_dino(case, state))
    sam.load_state_dict({k.removeprefix("sam2."): v for k, v in state.items() if k.startswith("sam2.")}, strict=True)
    model.set_trainable()
    return model.train(case["train"])


def preset_of(case: dict[str, Any]) -> Preset:
    """SAM 2's geometry of a case."""
    return Preset(side=case["img"], width=case["d_model"], memory_width=case["mem_dim"], memory_layers=case["layers"],
                  feedforward=case["ff"], embed=case["hiera_dim"], stages=tuple(case["stages"]),
                  windows=(8, 4, 14, 7), global_blocks=tuple(case["global_att"]))


def _dino(case: dict[str, Any], state: Arrays) -> Dinov2:
    mine = {k.removeprefix("dino."): v for k, v in state.items() if k.startswith("dino.")}
    width = case["dino_dim"]
    depth = len({k.split(".")[1] for k in mine if k.startswith("blocks.")})
    native = 14 * int((mine["pos_embed"].shape[1] - 1) ** 0.5)
    model = Dinov2(width=width, blocks=depth, heads=case["dino_heads"], native=native,
                   mlp_ratio=len(mine["blocks.0.mlp.fc1.bias"]) / width)
    model.load_hub_state(mine)
    return model.eval()


def check_case(label: str, model: Fssam, inputs: Arrays, want: Arrays) -> Iterator[GoldenCheck]:
    """Compare every stage of one file; a check shows the largest excess over the relative tolerance in its group."""
    with torch.no_grad():
        ours = observe(model, clip_of(inputs), {**inputs, **want})
    worst = WorstErrors(label)
    for key in sorted(ours.keys() & want.keys()):
        start, bound = next((s, b) for s, b in BOUNDS.items() if _stage(key).startswith(s))
        worst.record(start.rstrip("/"), excess(ours[key], want[key], FSSAM_RELATIVE), bound)
    yield from worst.checks()


def _stage(key: str) -> str:
    """Name of a quantity without its layer: `scma/layer0/att_bias` becomes `scma/att_bias`."""
    first, _, rest = key.partition("/")
    return f"{first}/{rest.split('/', 1)[1]}" if rest.startswith("layer") and "/" in rest else key


def check_gradients(label: str, model: Fssam, inputs: Arrays, want: Arrays) -> Iterator[GoldenCheck]:
    """Compare gradient norms, whole gradients, and the list of optimised parameters that get no gradient."""
    mine = {"sam2." + n.removeprefix("core.sam."): p for n, p in model.named_parameters()}
    for key in want:
        if key.startswith("gradnorm_not_optimised/"):
            mine[key.partition("/")[2]].requires_grad_(True)
    loss = model.losses(clip_of(inputs))["dice"]
    loss.backward()  # type: ignore[no-untyped-call]
    yield GoldenCheck(case=label, quantity="training loss", bound=BOUNDS["out/loss"],
                error=excess(loss.detach(), want["out/loss"], FSSAM_RELATIVE))
    norms, whole = 0.0, 0.0
    for key, value in want.items():
        kind, _, name = key.partition("/")
        if kind in ("gradnorm", "gradnorm_not_optimised"):
            norms = max(norms, excess(_gradient(mine[name]).double().norm(), value, FSSAM_GRADIENT_RELATIVE))
        elif kind == "grad":
            found = _gradient(mine[name]).double()
            scale = value.abs().max().clamp(min=BOUNDS["gradient norms"].tolerance)
            whole = max(whole, float((found - value).abs().max() / scale))
    yield GoldenCheck(case=label, quantity="gradient norms", error=norms, bound=BOUNDS["gradient norms"])
    yield GoldenCheck(case=label, quantity="gradients", error=whole, bound=BOUNDS["gradients"])
    optimised = [k for k in want if k.startswith("gradnorm/")]
    total = torch.stack([_gradient(mine[k.partition("/")[2]]).double().norm() for k in optimised]).norm()
    yield GoldenCheck(case=label, quantity="total gradient norm", bound=BOUNDS["gradient norms"],
                error=excess(total, want["gradnorm_total_optimised"], FSSAM_GRADIENT_RELATIVE))
    none = {n for n, p in mine.items() if p.requires_grad and p.grad is None}
    named = {"".join(chr(c) for c in row if c) for row in want["grad_none_names"].tolist()}
    wrong = len(none ^ named) + len({k for k in optimised if mine[k.partition("/")[2]].grad is None})
    yield GoldenCheck(case=label, quantity="parameters without a gradient", error=float(wrong), bound=EXACT)


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def clip_of(want: Arrays) -> Clip:
    """The case's episodes as one batch of clips with a single target."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET)
    support, query = ((want[f"in/{name}"].float() / 255 - mean) / std for name in ("support_images", "query_image"))
    truth = want["in/query_mask"]
    return masked_clip(support=support, masks=want["in/support_masks"] == 1, query=query, truth=truth == 1,
                       ignore=truth == 255)
