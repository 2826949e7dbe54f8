"""The common part of FCP's and VRP-SAM's golden cases: reading a case, building its tiny model, comparing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.backbones.resnet import DeepStemResNet
from fss_models.backbones.vgg import Vgg16
from fss_models.clip import Clip, Features
from fss_models.preprocess import Preprocessor
from fss_models.prototype_prompts.build import PromptingParts
from fss_models.prototype_prompts.official import Rules, rename
from fss_models.prototype_prompts.sams import PromptedSam1
from fss_models.prototype_prompts.segmenter import PromptingSegmenter
from fss_models.sam1.build import Sam1Size, build_sam1
from fss_models.sam1.build import load_official as load_sam
from fss_models.verification.figures import relative_error, score_figures, step_error
from fss_models.verification.frame import CaseFiles, CoveredErrors, GoldenCheck
from fss_models.verification.recorder import Recorder, masked_clip
from fss_models.verification.tolerances import EXACT, GOLDEN, SCORE, Bound

WEIGHT_DECAY = 1e-6
LOUD = 1e-2  # share of the largest gradient from which a parameter's step is compared
NEAR = 1e-4  # a logit so close to 0 may fall on either side
BOUNDS = GOLDEN["fcp"]  # VRP-SAM's are the same
WEIGHT_SEED, INPUT_SEED = 7001, 7002  # of full-size cases, whose weights and inputs are drawn
CLIP_KEYS = ("query_img", "query_mask", "support_imgs", "support_masks")


class GoldenCase(CaseFiles):
    """A case with the method's tensors and SAM's, of FCP, VRP-SAM and the methods with an ImageNet trunk."""

    @cached_property
    def model(self) -> dict[str, Tensor]:
        """The method's tensors by official name."""
        return self.part("model.")

    @property
    def shots(self) -> int:
        """K of an inference case."""
        return int(self.inputs["support_imgs"].shape[1])

    def parts(self) -> PromptingParts:
        """Build the case's SAM and backbone with their values."""
        about, grid = self.config, self.config["grid"]
        sam = about["sam"]
        size = Sam1Size(
            depth=sam["depth"], width=sam["embed_dim"], heads=sam["num_heads"], window=sam["window_size"],
            global_blocks=tuple(sam["global_attn_indexes"]), side=16 * grid, prompt_width=about["hidden_dim"],
            mask_channels=sam["mask_in_chans"], decoder_heads=sam["dec_heads"], decoder_mlp=sam["mlp_dim"],
            iou_hidden=sam["iou_hidden"])
        model = build_sam1(size)
        load_sam(model, self.part("sam."), where=self.name)
        thinner = about["width_div"]
        backbone: ImagenetBackbone = (Vgg16(thinner=thinner) if about["backbone"].startswith("vgg") else
                                      DeepStemResNet(tuple(about["resnet_layers"]), thinner=thinner))
        backbone.load_state_dict({k: v for k, v in self.model.items() if k.startswith("layer")}, strict=True)
        return PromptingParts(sam=PromptedSam1(model), backbone=backbone, preprocessor=Preprocessor(side=8 * grid),
                     checkpoint=True, frozen={})

    def load_encoder(self, model: PromptingSegmenter, rules: Rules) -> None:
        """Put the case's trained tensors into the model's encoder, strictly."""
        given = {rename(k, rules, forward=True): v for k, v in self.model.items() if not k.startswith("layer")}
        model.encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in given.items()}, strict=True)

    def clip(self, step: str = "") -> Clip:
        """B clips of K references and one target from the inputs below `step`."""
        query, truth, support, masks = (self.inputs[step + k] for k in CLIP_KEYS)
        return masked_clip(support=support, masks=masks, query=query, truth=truth)


class Comparison(CoveredErrors):
    """Collects the worst relative error of each group of outputs."""

    def add(self, found: Mapping[str, Tensor], *, prefix: str = "", bound: Bound | None = None) -> None:
        """Compare the tensors that the case has and skip the others; without `bound` a name says its kind."""
        for key, value in found.items():
            if prefix + key in self.want:
                self.compared(prefix + key, relative_error(value, self.want[prefix + key]), bound or _bound_of(key))

    def compared(self, key: str, error: float, bound: Bound) -> None:
        """Record the error of output `key` under the group that its name begins with."""
        parts = key.split("/")
        self.seen.add(key)
        nested = parts[0].startswith("step") or parts[0] in ("official", "per_shot")
        self.record(parts[1] if nested else parts[0], error, bound)


CaseRun = Callable[[Comparison, GoldenCase], None]
RunCase = Callable[[Path, str, dict[str, Any]], Iterator[GoldenCheck]]


def case_runner(
    infer: CaseRun, train: CaseRun, apart: Mapping[str, RunCase] | None = None, **others: CaseRun
) -> RunCase:
    """The `run_case` of a method: `infer`, the function named like the case's kind, else `train`, on the case's files.

    `apart`: kinds of cases that have other files.
    """
    kinds = {"infer": infer, **others}

    def run_case(folder: Path, name: str, case: dict[str, Any]) -> Iterator[GoldenCheck]:
        if apart and case["kind"] in apart:
            yield from apart[case["kind"]](folder, name, case)
            return
        loaded = GoldenCase.load(folder, name)
        to = Comparison(name, loaded.outputs)
        kinds.get(case["kind"], train)(to, loaded)
        yield from to.checks()

    return run_case


def _bound_of(key: str) -> Bound:
    kind = key.split("/")[0]
    return BOUNDS[kind if kind in ("loss", "digest") else "forward"]


def train_case(
    to: Comparison, case: GoldenCase, model: PromptingSegmenter, rules: Rules,
    seen: Callable[[Recorder, Clip, dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    """AdamW steps under a cosine that advances every iteration; `seen` gives a step's outputs by official name."""
    about = case.config
    to.seen |= {key for key in case.outputs if key.startswith("dropout/")}
    optimiser = torch.optim.AdamW(model.encoder.parameters(), lr=about["lr"], weight_decay=WEIGHT_DECAY)
    for step in range(1, about["steps"] + 1):
        prefix, clip = f"step{step}/", case.clip(f"step{step}/")
        lr = about["lr"] * (1 + math.cos(math.pi * (step - 1) / about["t_max"])) / 2
        optimiser.param_groups[0]["lr"] = lr
        with Recorder(encoder=model.encoder, sam=model.sam) as record:
            named = model.losses(clip)
        found = seen(record, clip, named)
        to.add({"lr": torch.tensor(lr)} | found, prefix=prefix)
        loss = total(named)
        to.add({"grad/prompt_vrp": torch.autograd.grad(loss, found["prompt/vrp"], retain_graph=True)[0]},
               prefix=prefix, bound=BOUNDS["gradient"])
        compare_gradients(to, loss, model, rules, prefix)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        _compare_parameters(to, model, rules, prefix, lr)


def total(named: Mapping[str, Tensor]) -> Tensor:
    """Sum of the losses, which is minimised."""
    return torch.stack(list(named.values())).sum()


class RecordedDropout(nn.Module):
    """Dropout with recorded keep-masks, one for each call: x * mask / (1 - p). Without masks nothing is dropped."""

    def __init__(self, masks: list[tuple[Tensor, float]]) -> None:
        super().__init__()
        self._masks, self._drops = list(masks), bool(masks)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the next mask to x; x has its shape, or splits its first axis in two, or has cells where it has one."""
        if not self._drops:
            return x
        mask, p = self._masks.pop(0)
        return x * (mask if mask.numel() < x.numel() else mask.view_as(x)) / (1 - p)


def dropout_masks(outputs: Mapping[str, Tensor]) -> list[tuple[Tensor, float]]:
    """The masks `dropout/{i}_p{p}` and their p, in call order."""
    return [(outputs[k], float(k.rpartition("_p")[2])) for k in sorted(outputs) if k.startswith("dropout/")]


def sam_outputs(record: Recorder, model: PromptingSegmenter) -> dict[str, Tensor]:
    """Decoder inputs and outputs by their official names."""
    sam = model.sam
    assert isinstance(sam, PromptedSam1)
    low, iou = record.got["sam.model.mask_decoder"][-1][:2]
    encoder = sam.model.prompt_encoder
    dense = encoder.no_mask_embed.weight[..., None, None]
    return {"sam/low_res_logits": low, "sam/iou_pred": iou, "sam/logits": model.to_image(low[:, 0])[:, None],
            "sam/dense_pe": encoder.get_dense_pe(), "sam/dense_embeddings": dense}


def compare_gradients(
    to: Comparison, loss: Tensor, model: PromptingSegmenter, rules: Rules, prefix: str = ""
) -> None:
    """Compare gradient norms and, where they are stored, full gradients of `loss`."""
    parameters = dict(model.encoder.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
    for name, value in zip(parameters, found, strict=True):
        key = rename(f"encoder.{name}", rules, forward=False)
        norm, full = f"{prefix}grad_norm/{key}", f"{prefix}grad/{key}"
        if norm in to.want:
            to.compared(norm, relative_error(value.norm(), to.want[norm]), BOUNDS["gradient"])
        if full in to.want:
            to.compared(full, relative_error(known_rows(key, value), known_rows(key, to.want[full])),
                        BOUNDS["gradient"])


def known_rows(key: str, value: Tensor) -> Tensor:
    """The tensor without the key third of an `in_proj_bias`, whose true gradient is 0."""
    if not key.endswith("in_proj_bias"):
        return value
    third = len(value) // 3
    return torch.cat([value[:third], value[2 * third :]])


def _compare_parameters(to: Comparison, model: PromptingSegmenter, rules: Rules, prefix: str, lr: float) -> None:
    """Compare parameters after a step; the error's unit is the learning rate."""
    for name, value in model.encoder.named_parameters():
        key = rename(f"encoder.{name}", rules, forward=False)
        after, grad = f"{prefix}param_after/{key}", f"{prefix}grad/{key}"
        if {after, grad} <= to.want.keys():
            ours, want, gradient = (known_rows(key, x) for x in (value, to.want[after], to.want[grad]))
            to.compared(after, step_error(ours, want, gradient, LOUD) / lr, BOUNDS["parameter"])


def compare_evaluation(to: Comparison, case: GoldenCase, logits: Tensor, key: str = "eval/pred_mask") -> None:
    """Compare our hard masks with the stored ones, and the stored masks' counts and scores (without void pixels)."""
    if key not in to.want:
        return
    truth, ignore, ids = (case.inputs[k] for k in ("query_mask", "query_ignore_idx", "class_id"))
    stored = to.want[key]
    void = (stored == 255) & (ignore > 0)
    ours = torch.where(void, 255, (logits >= 0).to(torch.uint8)).to(torch.uint8)
    clear = logits.abs() >= NEAR
    to.compared(key, float((ours[clear] != stored[clear]).sum()), EXACT)
    if "eval/area_inter" not in to.want or not key.startswith("eval/"):
        return
    fold = case.config["fold"]
    compare_scores(to, "eval/", pred=stored == 1, truth=truth > 0, ignore=ignore > 0, ids=ids,
                   classes=range(5 * fold, 5 * fold + 5))


def compare_scores(
    to: Comparison, prefix: str, *, pred: Tensor, truth: Tensor, ignore: Tensor | None, ids: Tensor, classes: Any
) -> None:
    """Compare areas, sums of each class, mIoU and FB-IoU of E hard masks [E, H, W] with the stored figures."""
    figures = score_figures(pred=pred, truth=truth, ignore=ignore, ids=ids, classes=classes)
    for name, areas in (("class_intersection", "area_inter"), ("class_union", "area_union")):
        if prefix + name in to.want:
            sums = np.zeros(to.want[prefix + name].shape)
            np.add.at(sums.T, ids.numpy(), figures[areas].T)
            figures[name] = sums
    to.add({k: torch.as_tensor(v, dtype=torch.float64) for k, v in figures.items()}, prefix=prefix, bound=SCORE)


def metrics_case(
    folder: Path, name: str, _case: dict[str, Any],
    more: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = lambda _: {},
) -> Iterator[GoldenCheck]:
    """Compare scores of stored masks for each benchmark of the case; `more` computes the method's own figures."""
    stored = load_file(folder / name / "metrics.safetensors")
    for bench in sorted({key.split("/")[0] for key in stored}):
        prefix = f"{bench}/"
        to = Comparison(name, {k: v for k, v in stored.items() if k.startswith(prefix)})
        have = {k.removeprefix(prefix): v for k, v in to.want.items()}
        compare_scores(to, prefix, pred=have["pred"] == 1, truth=have["gt"] == 1, ids=have["class_id"],
                       ignore=have["ignore"] > 0 if "ignore" in have else None, classes=have["class_ids_of_interest"])
        to.add(more(have), prefix=prefix, bound=SCORE)
        to.seen |= {prefix + k for k in ("pred", "gt", "ignore", "class_id", "class_ids_of_interest")}
        yield from to.checks()


def load_drawn(encoder: nn.Module, rules: Rules, seed: int) -> None:
    """Give an encoder the weights of a full-size case by the README's rule: a normal draw a tensor, sorted by name."""
    shapes = {rename(f"encoder.{k}", rules, forward=False): v.shape for k, v in encoder.state_dict().items()}
    stream, drawn = np.random.RandomState(seed), {}
    for key in sorted(k for k in shapes if k.startswith("transformer_decoder.")):
        z = torch.from_numpy(stream.standard_normal(tuple(shapes[key])).astype(np.float32))
        if key.endswith("norm.weight"):
            z = 1 + 0.1 * z
        elif not key.endswith(("_protos.weight", "supp_q_feat.weight")):
            z = (0.1 if key.endswith("bias") else 0.06) * z
        drawn[rename(key, rules, forward=True).removeprefix("encoder.")] = z
    encoder.load_state_dict(drawn, strict=False)


def backbone_outputs(model: PromptingSegmenter, clip: Clip) -> tuple[Features, dict[str, Tensor]]:
    """A clip's features, and the backbone's maps by official name: support and query apart, layer4 masked too."""
    with torch.no_grad():
        features, support = model.encode(clip.images), len(clip.references)
        high = features.maps["high"]
        masks = F.interpolate(clip.prompts.masks.flatten(0, 1)[:, None], size=high.shape[-2:])
        found = {"backbone/support_layer4_masked": model.masked_top(high[:support], masks)}
    return features, found | layer_outputs(features, support)


def layer_outputs(features: Features, support: int) -> dict[str, Tensor]:
    """The trunk's maps by official name; the first `support` images are supports."""
    return {f"backbone/{side}_layer{layer}": features.maps[name][rows]
            for layer, name in ((2, "mid"), (3, "high"), (4, "top"))
            for side, rows in (("support", slice(support)), ("query", slice(support, None)))}
