"""Outputs of our verified implementations at `debug` size, so that equality stays guarded where no golden case is.

A method's file `data/<method>_debug.safetensors` was written when the method equalled its golden cases:
`python -m tests.fss_models.debug_outputs sansa`. Weights and pictures are drawn from fixed seeds and not stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fss_models import registry
from fss_models.clip import Clip, Prompt, PromptKind
from fss_models.prompts import mask_prompt
from fss_models.segmenter import Segmenter
from tests.fss_models.stored_outputs import errors

HEIGHT, WIDTH = 50, 70


def fill(module: torch.nn.Module, seed: int = 5) -> None:
    """Every floating value from one generator, in the order of names: gains near 1, maps that keep variance."""
    rng = np.random.RandomState(seed)
    with torch.no_grad():
        for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
            if tensor.is_floating_point():
                z = torch.from_numpy(rng.standard_normal(tuple(tensor.shape)).astype(np.float32))
                gain = name.endswith(("weight", "gamma", "running_var"))
                tensor.copy_(z * 1.4 / tensor[0].numel() ** 0.5 if tensor.dim() > 1 else 0.1 * z + gain)


def picture(seed: int) -> np.ndarray:
    """A bright box on noise."""
    rng = np.random.RandomState(seed)
    image = rng.randint(0, 120, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    image[10:30, 5 + seed : 35 + seed] = (220, 60, 30)
    return image


def box_mask(shift: int = 0) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:30, 5 + shift : 35 + shift] = True
    return mask


def prompts(*, masks_only: bool = False) -> list[list[Prompt]]:
    """A set of three references, one of each kind where the method reads them, and a set of one."""
    box = Prompt(kind=PromptKind.BOX, box=torch.tensor([6.0, 10.0, 36.0, 30.0]))
    points = Prompt(kind=PromptKind.POINTS, points=torch.tensor([[20.0, 20.0], [9.0, 25.0]]))
    mixed = [mask_prompt(box_mask(k)) for k in range(3)] if masks_only else [mask_prompt(box_mask(0)), box, points]
    return [mixed, [mask_prompt(box_mask(3))]]


def clip(model: Segmenter, *, targets: int = 3) -> Clip:
    """Two clips of one masked reference each."""
    masks = torch.stack([model.preprocessor.target(box_mask(9 + i)) for i in range(2 * targets)]).unflatten(0, (2, -1))
    references = model.prepare([picture(0), picture(3)])
    return Clip(
        references=references, prompts=model.collate([[mask_prompt(box_mask(0))], [mask_prompt(box_mask(3))]],
                                                     references.sizes),
        targets=model.prepare([picture(9 + i) for i in range(2 * targets)]), target_masks=masks,
        ignore=torch.zeros_like(masks, dtype=torch.bool))


def outputs(name: str) -> dict[str, Tensor]:
    """Masks, scores, losses and the norm of every gradient."""
    model = registry.build(name, "debug").eval()
    fill(model)
    masks_only = model.prompt_kinds == {PromptKind.MASK}
    with torch.no_grad():
        features = model.encode(model.prepare([picture(i) for i in range(6)]))
        memory = model.memorise(features, model.collate(prompts(masks_only=masks_only), features.sizes))
        prediction = model.segment(memory, features, torch.tensor([[0, 4], [1, 4], [1, 5]]))
    found = {"logits": prediction.logits, "scores": prediction.scores}
    if model.trains:
        losses = model.losses(clip(model))
        torch.stack(list(losses.values())).sum().backward()
        found |= {f"loss.{k}": v.detach() for k, v in losses.items()}
        named = [(n, p.grad) for n, p in sorted(model.named_parameters()) if p.grad is not None]
        found["grad_norms"] = torch.stack([g.norm() for _, g in named])
    return found


def stored(name: str) -> Path:
    return Path(__file__).parent / "data" / f"{name}_debug.safetensors"


def deviation(name: str) -> dict[str, float]:
    """Largest relative error of today's outputs against the stored ones, by kind."""
    want, have = load_file(stored(name)), outputs(name)
    assert want.keys() == have.keys()
    return errors(have, want)


if __name__ == "__main__":
    for method in sys.argv[1:]:
        save_file({k: v.contiguous() for k, v in outputs(method).items()}, stored(method))
