"""The common part of the golden cases of methods with an ImageNet trunk (PFENet, SSP, CyCTR)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fss_models.backbones.imagenet import COUNTER, ImagenetBackbone, plain_names
from fss_models.backbones.resnet import DeepStemResNet, Dilation
from fss_models.backbones.vgg import Vgg16
from fss_models.clip import Clip
from fss_models.optimisation import poly_rate
from fss_models.preprocess import Preprocessor
from fss_models.prior_guided.official import Naming, plain_name
from fss_models.prior_guided.segmenter import TrunkSegmenter
from fss_models.prior_guided.trunks import Trunk
from fss_models.state_dict import load_state
from fss_models.verification.figures import relative_error
from fss_models.verification.prompting import (
    BOUNDS,
    CLIP_KEYS,
    NEAR,
    Comparison,
    GoldenCase,
    compare_evaluation,
    total,
)
from fss_models.verification.recorder import Recorder, masked_clip
from fss_models.verification.tolerances import EXACT

LOUD = 1e-2  # share of the largest gradient from which a parameter's step with AdamW is compared
Optimisers = Mapping[str, tuple[torch.optim.Optimizer, Callable[[int], float]]]
Seen = Callable[[Recorder, Clip, dict[str, Tensor]], dict[str, Tensor]]


class CallRecorder:
    """Keeps the arguments and results of a model's method, call by call, in `given` and `got`."""

    def __init__(self, model: nn.Module, method: str) -> None:
        self.given: list[tuple[Any, ...]] = []
        self.got: list[Any] = []
        original = getattr(model, method)

        def recorded(*given: Any) -> Any:
            self.given.append(given)
            self.got.append(original(*given))
            return self.got[-1]

        setattr(model, method, recorded)


def case_trunk(case: GoldenCase, *, dilation: Dilation = "all_blocks", signed: bool = False) -> Trunk:
    """The case's trunk with its values."""
    about = case.config
    thinner, layers = about["width_div"], tuple(about.get("resnet_layers", ()))
    backbone: ImagenetBackbone = (DeepStemResNet(layers, thinner=thinner, dilation=dilation, signed=signed) if layers
                                  else Vgg16(thinner=thinner))
    given = {backbone.rename(k) or k: v for k, v in plain_names(case.model).items()}
    load_state(backbone, {k: v for k, v in given.items() if k.startswith("layer")}, where=case.name,
               optional={k for k in backbone.state_dict() if k.endswith(COUNTER)})
    return Trunk(backbone=backbone, preprocessor=Preprocessor(side=about["side"]),
                 width=about.get("reduce_dim", 0), frozen={"golden": ""})


def load_decoder(case: GoldenCase, model: TrunkSegmenter, name: Naming = plain_name) -> None:
    """Put the case's other tensors into the model's decoder, strictly."""
    ours = {key: name(f"decoder.{key}") for key in model.decoder.state_dict()}
    load_state(model.decoder, {key: case.model[official] for key, official in ours.items() if official},
               where=case.name)


def case_clip(case: GoldenCase, step: str = "") -> Clip:
    """B clips of K references and one target from the inputs below `step`; void pixels of both sides are known."""
    query, truth, support, masks = (case.inputs[step + k] for k in CLIP_KEYS)
    void, of_support = (case.inputs[step + k] > 0 for k in ("query_ignore_idx", "support_ignore_idx"))
    clip = masked_clip(support=support, masks=masks, query=query, truth=truth, ignore=void)
    return replace(clip, reference_masks=masks.float(), reference_ignore=of_support)


def shot_outputs(name: str, values: Tensor) -> dict[str, Tensor]:
    """Values [B, K, ...] under the name of each shot."""
    return {f"{name}{k}": v for k, v in enumerate(values.unbind(1))}


def poly(about: Mapping[str, Any]) -> Callable[[int], float]:
    """The decaying rate of a case's faster parameters."""
    return lambda step: poly_rate(step, about["max_iter"], about["base_lr"] * about["lr_scale"])


def run_training(
    to: Comparison, case: GoldenCase, model: TrunkSegmenter, optimisers: Optimisers, seen: Seen,
    logits: Callable[[Recorder], Tensor], name: Naming = plain_name, before: Callable[[str], None] = lambda _: None,
) -> None:
    """Compare the case's steps. `optimisers`: kind -> (optimiser, its rate at a step counted from 1).

    `seen` gives a step's outputs by official name, `logits` those of background and object [B, 2, R, R]; `before` is
    called with the step's prefix before it.
    """
    steps = sorted({k.split("/")[0] for k in case.outputs if k.startswith("step")})
    parameters = {official: p for n, p in model.named_parameters() if p.requires_grad and (official := name(n))}
    for number, step in enumerate(steps, start=1):
        clip = case_clip(case, f"{step}/")
        before(f"{step}/")
        for optimiser, rate in optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = rate(number)
        with Recorder(model=model) as record:
            named = model.losses(clip)
        to.add({"lr": torch.tensor(optimisers["sgd"][1](number))} | seen(record, clip, named), prefix=f"{step}/")
        compare_decision(to, case, logits(record), f"{step}/")
        for optimiser, _ in optimisers.values():
            optimiser.zero_grad()
        total(named).backward()
        compare_gradients(to, parameters, f"{step}/")
        gradients = {k: p.grad.clone() for k, p in parameters.items() if p.grad is not None}
        for optimiser, _ in optimisers.values():
            optimiser.step()
        _compare_after(to, model, gradients, optimisers, name, f"{step}/")
    to.seen |= {k for k in case.outputs if k.split("/")[1] == "sampling"}


def compare_gradients(to: Comparison, parameters: Mapping[str, Tensor], prefix: str) -> None:
    """Compare the norms of the gradients that a backward pass left and, where they are stored, the gradients."""
    for key, parameter in parameters.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        to.add({f"grad_norm/{key}": gradient.norm(), f"grad/{key}": gradient}, prefix=prefix, bound=BOUNDS["gradient"])


def _compare_after(
    to: Comparison, model: TrunkSegmenter, gradients: Mapping[str, Tensor], optimisers: Optimisers, name: Naming,
    prefix: str,
) -> None:
    """Compare parameters and statistics after a step. Steps of AdamW are compared where its gradients are loud."""
    adam = {id(p) for g in (optimisers["adamw"][0].param_groups if "adamw" in optimisers else ()) for p in g["params"]}
    for key, parameter in ((name(n), p) for n, p in model.named_parameters()):
        after = f"{prefix}param_after/{key}"
        if after not in to.want:
            continue
        ours, want = parameter.detach(), to.want[after]
        if key and id(parameter) in adam:
            loud = gradients[key].abs() > LOUD * gradients[key].abs().max()
            ours, want = ours[loud], want[loud]
        to.compared(after, relative_error(ours, want), BOUNDS["forward"])
    buffers = {official: b for n, b in model.named_buffers() if (official := name(n))}
    to.add({f"buffer_after/{key}": value for key, value in buffers.items()}, prefix=prefix)


def compare_decision(to: Comparison, case: GoldenCase, logits: Tensor, step: str = "") -> None:
    """Compare logits [B, 2, R, R] and their arg-max: `eval/pred_mask` with its areas, or a step's `pred_mask`."""
    to.add({"logits": logits}, prefix=step)
    if step:
        compare_mask(to, f"{step}pred_mask", logits)
    else:
        compare_evaluation(to, case, (logits[:, 1] - logits[:, 0]).detach())


def compare_mask(to: Comparison, key: str, logits: Tensor) -> None:
    """Compare the arg-max of logits [B, C, S, S] with a stored mask, but for pixels whose two best are close."""
    if key in to.want:
        best = logits.detach().topk(2, dim=1).values
        clear = best[:, 0] - best[:, 1] >= NEAR
        to.compared(key, float((logits.argmax(dim=1)[clear] != to.want[key].long()[clear]).sum()), EXACT)
