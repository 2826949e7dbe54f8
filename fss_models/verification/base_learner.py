"""The common part of BAM's and HDMNet's golden cases: reading a case, building its model, comparing training steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fss_models.augmentation import VOID
from fss_models.backbones.resnet import DeepStemResNet
from fss_models.base_learner.head import WIDTH, PspHead
from fss_models.base_learner.segmenter import BaseLearnerSegmenter
from fss_models.clip import Clip
from fss_models.metrics import episode_counts
from fss_models.opencv_resize import OpenCvPreprocessor
from fss_models.optimisation import poly_rate
from fss_models.prior_guided.trunks import Trunk
from fss_models.prototype_prompts.official import Rules, rename
from fss_models.verification.figures import relative_error
from fss_models.verification.prompting import LOUD, Comparison
from fss_models.verification.recorder import masked_clip
from fss_models.verification.tolerances import EXACT, GOLDEN, SCORE

BOUNDS = GOLDEN["bam"]  # HDMNet's are the same
NEAR = 1e-4  # two logits so close to each other may come out in either order
BASE_CLASSES = {"pascal": 15, "coco": 60}
M = TypeVar("M", bound=BaseLearnerSegmenter)


@dataclass(frozen=True, kw_only=True)
class BaseLearnerCase:
    """One case's files: settings, tensors by official name, inputs, outputs."""

    name: str
    config: dict[str, Any]
    model: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @staticmethod
    def load(folder: Path, name: str) -> BaseLearnerCase:
        """Read `folder/name`."""
        place = folder / name
        weights, inputs, outputs = (load_file(place / f"{n}.safetensors") for n in ("weights", "inputs", "outputs"))
        config = json.loads((place / "config.json").read_text())
        return BaseLearnerCase(name=name, config=config.get("config", config), inputs=inputs, outputs=outputs,
                               model={k.removeprefix("model."): v for k, v in weights.items()})

    def trunk(self) -> Trunk:
        """The case's trunk, without its values."""
        about = self.config
        backbone = DeepStemResNet(tuple(about["resnet_layers"]), thinner=about["width_div"], dilation="all_blocks")
        return Trunk(backbone=backbone, preprocessor=OpenCvPreprocessor(side=about["side"]), width=about["reduce_dim"],
                     frozen={})

    def head(self) -> PspHead:
        """The head of the case's base learner, without its values."""
        top = self.trunk().backbone.channels[2]
        return PspHead(top, BASE_CLASSES[self.config["data_set"]], width=WIDTH // self.config["width_div"])

    def load_model(self, model: M, rules: Rules) -> M:
        """Put the case's values into a model, strictly; in evaluation mode."""
        model.load_trainable_state({rename(k, rules, forward=True): v for k, v in self.model.items()})
        model.set_trainable()
        return model.eval()

    def clip(self, step: str = "") -> Clip:
        """B clips of K references and one target from the inputs below `step`."""
        query, truth, void, support, masks, unclear = (self.inputs[step + k] for k in (
            "query_img", "query_mask", "query_ignore_idx", "support_imgs", "support_masks", "support_ignore_idx"))
        return masked_clip(support=support, masks=masks * (unclear == 0), query=query, truth=truth, ignore=void > 0)

    def base_labels(self, step: str) -> Tensor:
        """Base class of every pixel of the targets, [B, S, S] int64, 255 where void."""
        return self.inputs[step + "query_base_label"].long()


def compare_mask(to: Comparison, key: str, logits: Tensor) -> None:
    """Compare the arg-max of logits [B, C, S, S] with a stored mask, but for pixels whose two best are close."""
    if key in to.want:
        best = logits.detach().topk(2, dim=1).values
        clear = best[:, 0] - best[:, 1] >= NEAR
        to.compared(key, float((logits.argmax(dim=1)[clear] != to.want[key].long()[clear]).sum()), EXACT)


def compare_areas(to: Comparison, clip: Clip, step: str = "") -> None:
    """Compare intersections and unions of the stored masks, [2, B]: background and object, without void pixels."""
    key = step + "eval/pred_mask"
    if key not in to.want:
        return
    rows = [episode_counts((p == 1).numpy(), (t > 0).numpy(), v.numpy())
            for p, t, v in zip(to.want[key], clip.target_masks[:, 0], clip.ignore[:, 0], strict=True)]
    for n, name in enumerate(("area_inter", "area_union")):
        found = torch.tensor([row[n] for row in rows], dtype=torch.float64).T
        to.add({f"eval/{name}": found}, prefix=step, bound=SCORE)


def train_steps(
    to: Comparison, case: BaseLearnerCase, named: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer,
    factors: list[float], forward: Callable[[str], tuple[Tensor, dict[str, Tensor], Tensor]],
) -> None:
    """Two steps at poly rates; `named` are the trained parameters by official name.

    factors   times the base rate, one for each of the case's own groups of parameters
    forward   step prefix -> loss to minimise, named outputs, logits whose arg-max is stored
    """
    about = case.config
    for step in (1, 2):
        prefix = f"step{step}/"
        rate = poly_rate(step, about["max_iter"], about["base_lr"])
        loss, found, logits = forward(prefix)
        to.add(found | {"lr": rate * torch.tensor(factors), "loss/total": loss}, prefix=prefix)
        compare_mask(to, f"{prefix}pred_mask", logits)
        optimiser.zero_grad()
        loss.backward()
        for name, value in named.items():
            if value.grad is not None:
                to.add({f"grad_norm/{name}": value.grad.norm(), f"grad/{name}": value.grad}, prefix=prefix,
                       bound=BOUNDS["gradient"])
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        optimiser.step()
        for name, value in named.items():
            compare_relative(to, f"{prefix}param_after/{name}", value)


def label(case: BaseLearnerCase, step: str) -> Tensor:
    """Labels of the targets [B, S, S] int64: 1 object, 255 void."""
    masks, void = case.inputs[step + "query_mask"], case.inputs[step + "query_ignore_idx"]
    return masks.long().masked_fill(void > 0, VOID)


def compare_relative(to: Comparison, key: str, ours: Tensor) -> None:
    """Compare a parameter or statistic after the steps, where the case has it.

    Where the case has the parameter's first gradient, values whose gradient was small are left out: AdamW enlarges
    their rounding noise to the size of the learning rate.
    """
    if key not in to.want:
        return
    want, ours = to.want[key].float(), ours.detach().float()
    gradient = to.want.get(f"step1/grad/{key.split('/', 2)[-1]}")
    loud = want == want if gradient is None else gradient.abs() > LOUD * gradient.abs().max()
    to.compared(key, relative_error(ours[loud], want[loud]), BOUNDS["parameter"])
