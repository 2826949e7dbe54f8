"""The common part of BAM's and HDMNet's golden cases: building its model, comparing training steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from fss_models.base_learner.ensemble import JoinedPrediction
from fss_models.base_learner.head import WIDTH, PspHead
from fss_models.base_learner.segmenter import BaseLearnerSegmenter, ShotMix
from fss_models.optimisation import poly_rate
from fss_models.prototype_prompts.official import Rules, rename
from fss_models.verification.figures import relative_error
from fss_models.verification.prior_guided import case_trunk, compare_gradients, compare_mask
from fss_models.verification.prompting import LOUD, Comparison, GoldenCase
from fss_models.verification.tolerances import GOLDEN

BOUNDS = GOLDEN["bam"]  # HDMNet's are the same
BASE_CLASSES = {"pascal": 15, "coco": 60}
M = TypeVar("M", bound=BaseLearnerSegmenter)


def case_head(case: GoldenCase) -> PspHead:
    """The head of the case's base learner, without its values."""
    return PspHead(case_trunk(case).backbone.channels[2], BASE_CLASSES[case.config["data_set"]],
                   width=WIDTH // case.config["width_div"])


def load_model(case: GoldenCase, model: M, rules: Rules) -> M:
    """Put the case's values into a model, strictly; in evaluation mode."""
    model.load_trainable_state({rename(k, rules, forward=True): v for k, v in case.model.items()})
    model.set_trainable()
    return model.eval()


def base_labels(case: GoldenCase, step: str) -> Tensor:
    """Base class of every pixel of the targets, [B, S, S] int64, 255 where void."""
    return case.inputs[step + "query_base_label"].long()


def ensemble_outputs(
    model: BaseLearnerSegmenter, base: Tensor, meta: Tensor, shots: ShotMix, joined: JoinedPrediction
) -> dict[str, Tensor]:
    """What both methods compute from the logits of the base learner [B, C, g, g] and of their own decoder, by name."""
    return {
        "gram/psi": shots.psi[..., None, None], "gram/shot_weight": shots.weights[..., None, None],
        "gram/psi_mixed": shots.mixed[:, None, None, None], "meta/logits_grid": meta, "base/logits_grid": base,
        "ensemble/base_map": joined.base_map, "ensemble/meta_bg": joined.meta_bg, "ensemble/meta_fg": joined.meta_fg,
        "ensemble/merged_bg": joined.merged_bg, "logits_meta": model.to_image(meta),
        "logits_base_digest": model.to_image(base).mean(dim=(2, 3))}


def train_steps(
    to: Comparison, case: GoldenCase, named: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer,
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
        compare_gradients(to, named, prefix)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        optimiser.step()
        for name, value in named.items():
            compare_relative(to, f"{prefix}param_after/{name}", value)


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
