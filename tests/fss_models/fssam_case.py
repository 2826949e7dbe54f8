"""A small FSSAM episode whose weights and inputs come from a formula, and stored outputs of the verified code.

`python -m tests.fss_models.fssam_case` writes the outputs anew; run it only after the official golden cases
pass. numpy promises that `RandomState` never changes its stream.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from torch import Tensor

from fss_models.backbones.dinov2 import Dinov2
from fss_models.methods.fssam.model import Fssam
from fss_models.sam2_core.build import sam2_config
from fss_models.verification.fssam import clip_of, load_model, preset_of
from fss_models.verification.fssam_stages import observe

FILE = Path(__file__).parent / "data" / "fssam_debug.safetensors"
CASE: dict[str, Any] = {
    "d_model": 32, "mem_dim": 8, "hiera_dim": 8, "stages": [1, 1, 2, 1], "global_att": [3], "img": 64, "layers": 2,
    "ff": 32, "dino_dim": 16, "dino_heads": 2, "num_refine": 3, "ver_refine": "v1", "train": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "repaired": {}, "released": {"k_shot": "released"}, "v2": {"ver_refine": "v2"}, "raw": {"num_refine": 0},
}
BLOCKS, SHOTS, BATCH = 2, 2, 2
KEPT = ("imr/iter3_mem", "mem/sup_gt_obj_ptr", "mem/qry_ae_feat", "scma/memory", "scma/layer1/layer_output",
        "scma/output", "dec/pred_ious", "dec/best_index", "dec/object_score_logits", "out/logits", "out/loss")


def model(variant: str = "repaired", *, train: bool = False) -> Fssam:
    """The model with its weights from the formula."""
    case = CASE | VARIANTS[variant] | {"train": train}
    return load_model(case, state())


def inputs() -> dict[str, Tensor]:
    """Two episodes of two shots: noise with a bright ellipse, marked with a void rim."""
    rng, side = np.random.RandomState(7), CASE["img"]
    y, x = np.mgrid[:side, :side]
    images, masks = [], []
    for _ in range(BATCH * (SHOTS + 1)):
        cx, cy, a, b = rng.uniform(0.35, 0.65, 2).tolist() + rng.uniform(0.15, 0.3, 2).tolist()
        distance = ((x / side - cx) / a) ** 2 + ((y / side - cy) / b) ** 2
        image = rng.randint(0, 90, (3, side, side)) + 120 * (distance < 1) * np.array([1.0, 0.6, 0.3])[:, None, None]
        images.append(image.astype(np.uint8))
        masks.append(np.where(distance < 1, 1, np.where(distance < 1.2, 255, 0)).astype(np.uint8))
    support, n = (BATCH, SHOTS), BATCH * SHOTS
    image, mask = torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))
    return {"in/support_images": image[:n].unflatten(0, support), "in/support_masks": mask[:n].unflatten(0, support),
            "in/query_image": image[n:], "in/query_mask": mask[n:]}


def stored(variant: str) -> dict[str, Tensor]:
    """What the verified code gave."""
    start = f"{variant}:"
    return {k.removeprefix(start): v for k, v in load_file(FILE).items() if k.startswith(start)}


def state() -> dict[str, Tensor]:
    """Values of about the size that keeps activations alive, for each tensor by its place in the alphabet."""
    state = {}
    for i, (name, shape) in enumerate(sorted(_shapes().items())):
        values = np.random.RandomState(8500 + i).standard_normal(shape).astype(np.float32)
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        if name.endswith(("gamma", "norm.weight")) or (".norm" in name and name.endswith("weight")):
            values = 1 + 0.1 * values if "norm" in name else 0.5 + 0.05 * values
        elif len(shape) == 1:
            values = 0.1 * values
        elif "embed" not in name and "token" not in name and "gaussian" not in name:
            values = values * 1.2 / fan**0.5
        if name.endswith("mask_downsampler.encoder.12.weight"):
            values = 16 * values  # masks must matter to memories, or the refinement has nothing to do
        state[name] = torch.from_numpy(np.ascontiguousarray(values))
    return state


def _shapes() -> dict[str, tuple[int, ...]]:
    sam = instantiate(sam2_config(preset_of(CASE), True), _recursive_=True)
    dino = Dinov2(width=CASE["dino_dim"], blocks=BLOCKS, heads=CASE["dino_heads"], mlp_ratio=2)
    named = {f"sam2.{k}": v for k, v in sam.state_dict().items()}
    named |= {f"dino.{k}": v for k, v in dino.hub_state().items()}
    return {k: tuple(v.shape) for k, v in named.items()}


def gradients(trained: Fssam) -> dict[str, Tensor]:
    """Norms of all gradients of the training loss, in the order of the names."""
    loss = trained.losses(clip_of(inputs()))["dice"]
    loss.backward()
    named = sorted((n, p.grad) for n, p in trained.named_parameters() if p.grad is not None)
    return {"gradients/loss": loss.detach(), "gradients/norms": torch.stack([g.norm() for _, g in named])}


def write() -> None:
    """Store the outputs."""
    found: dict[str, Tensor] = {}
    for variant in VARIANTS:
        with torch.no_grad():
            ours = observe(model(variant), clip_of(inputs()), {})
        kept = KEPT if variant == "repaired" else ("scma/memory", "scma/output", "out/loss")
        found |= {f"{variant}:{k}": ours[k].contiguous() for k in kept if k in ours}
    found |= {f"train:{k}": v for k, v in gradients(model(train=True)).items()}
    FILE.parent.mkdir(exist_ok=True)
    save_file(found, FILE)


if __name__ == "__main__":
    write()
