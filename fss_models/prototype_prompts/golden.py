"""What the golden cases of FCP and VRP-SAM have in common: reading a case, building its tiny model, comparing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.backbones.resnet import DeepStemResNet
from fss_models.backbones.vgg import Vgg16
from fss_models.clip import Clip, Images, PromptBatch, PromptKind
from fss_models.golden import Check, relative_error
from fss_models.metrics import Counts, episode_counts, score
from fss_models.preprocess import Preprocessor
from fss_models.prototype_prompts.build import Parts
from fss_models.prototype_prompts.official import Rules, rename
from fss_models.prototype_prompts.sams import PromptedSam1
from fss_models.prototype_prompts.segmenter import PromptingSegmenter
from fss_models.sam1.build import Sam1Size, build_sam1
from fss_models.sam1.build import load_official as load_sam
from fss_models.verification.tolerances import EXACT, GOLDEN, SCORE, Bound

WEIGHT_DECAY = 1e-6
NEAR = 1e-4  # a logit so close to 0 may fall on either side
BOUNDS = GOLDEN["fcp"]  # VRP-SAM's are the same
GRADIENT, PARAMETER = BOUNDS["gradient"], BOUNDS["parameter"]
BATCH_KEYS = ("query_img", "query_mask", "query_ignore_idx", "support_imgs", "support_masks", "class_id")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case's files: settings, the method's and SAM's tensors by official name, inputs, outputs."""

    name: str
    config: dict[str, Any]
    model: dict[str, Tensor]
    sam: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @staticmethod
    def load(folder: Path, name: str) -> Case:
        """Read `folder/name`."""
        place = folder / name
        weights, inputs, outputs = (load_file(place / f"{n}.safetensors") for n in ("weights", "inputs", "outputs"))
        parts = [{k.removeprefix(p): v for k, v in weights.items() if k.startswith(p)} for p in ("model.", "sam.")]
        config = json.loads((place / "config.json").read_text())["config"]
        return Case(name=name, config=config, model=parts[0], sam=parts[1], inputs=inputs, outputs=outputs)

    @property
    def shots(self) -> int:
        """K of an inference case."""
        return int(self.inputs["support_imgs"].shape[1])

    def parts(self) -> Parts:
        """The case's SAM and backbone, holding their values."""
        about, grid = self.config, self.config["grid"]
        sam = about["sam"]
        size = Sam1Size(
            depth=sam["depth"], width=sam["embed_dim"], heads=sam["num_heads"], window=sam["window_size"],
            global_blocks=tuple(sam["global_attn_indexes"]), side=16 * grid, prompt_width=about["hidden_dim"],
            mask_channels=sam["mask_in_chans"], decoder_heads=sam["dec_heads"], decoder_mlp=sam["mlp_dim"],
            iou_hidden=sam["iou_hidden"])
        model = build_sam1(size)
        load_sam(model, self.sam, where=self.name)
        thinner = about["width_div"]
        backbone: ImagenetBackbone = (Vgg16(thinner=thinner) if about["backbone"].startswith("vgg") else
                                      DeepStemResNet(tuple(about["resnet_layers"]), thinner=thinner))
        backbone.load_state_dict({k: v for k, v in self.model.items() if k.startswith("layer")}, strict=True)
        return Parts(sam=PromptedSam1(model), backbone=backbone, preprocessor=Preprocessor(side=8 * grid),
                     checkpoint=True, frozen={})

    def load_encoder(self, model: PromptingSegmenter, rules: Rules) -> None:
        """Put the case's trained tensors into the model's encoder, strictly."""
        given = {rename(k, rules, forward=True): v for k, v in self.model.items() if not k.startswith("layer")}
        model.encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in given.items()}, strict=True)

    def clip(self, step: str = "") -> Clip:
        """B clips of K references and one target from the inputs below `step`."""
        query, truth, _, support, masks, _ = (self.inputs[step + k] for k in BATCH_KEYS)
        b, k, _, side, _ = support.shape
        return Clip(
            references=_images(support.flatten(0, 1)), targets=_images(query), target_masks=truth[:, None].float(),
            prompts=PromptBatch(
                image=torch.arange(b * k).view(b, k), kind=torch.full((b, k), int(PromptKind.MASK)),
                masks=masks.float(), points=torch.zeros(b, k, 1, 2),
                labels=torch.full((b, k, 1), -1, dtype=torch.int32)),
            ignore=torch.zeros(b, 1, side, side, dtype=torch.bool))


def _images(pixels: Tensor) -> Images:
    return Images(pixels=pixels, sizes=torch.tensor([list(pixels.shape[-2:])] * len(pixels)))


@dataclass
class Comparison:
    """Collects the worst relative error of each group of outputs; every output must be asked for once."""

    case: str
    want: Mapping[str, Tensor]
    worst: dict[tuple[str, Bound], float] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def add(self, found: Mapping[str, Tensor], *, prefix: str = "", bound: Bound | None = None) -> None:
        """Compare the tensors that the case has, others are passed over; without `bound` a name says its kind."""
        for key, value in found.items():
            if prefix + key in self.want:
                self.record(prefix + key, relative_error(value, self.want[prefix + key]), bound or _bound_of(key))

    def record(self, key: str, error: float, bound: Bound) -> None:
        """An error found elsewhere, for output `key`."""
        parts = key.split("/")
        group = parts[1] if parts[0].startswith("step") or parts[0] in ("official", "per_shot") else parts[0]
        self.seen.add(key)
        self.worst[group, bound] = max(self.worst.get((group, bound), 0.0), error)

    def checks(self) -> Iterator[Check]:
        """One check a group, and one that nothing was left out."""
        for (group, bound), error in self.worst.items():
            yield Check(case=self.case, quantity=group, error=error, bound=bound)
        missed = sorted(self.want.keys() - self.seen)
        note = f"not compared: {', '.join(missed[:3])}{' ...' if len(missed) > 3 else ''}" if missed else ""
        yield Check(case=self.case, quantity="coverage", error=float(len(missed)), bound=EXACT, note=note)


def _bound_of(key: str) -> Bound:
    kind = key.split("/")[0]
    return BOUNDS[kind if kind in ("loss", "digest") else "forward"]


class Recorder:
    """Keeps what every sub-module got and gave, call by call, with gradients, until `close`."""

    def __init__(self, **roots: nn.Module) -> None:
        self.given: dict[str, list[tuple[Any, ...]]] = {}
        self.got: dict[str, list[Any]] = {}
        self._handles = [module.register_forward_hook(self._hook(f"{root}.{name}" if name else root))
                         for root, top in roots.items() for name, module in top.named_modules()]

    def _hook(self, name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, given: tuple[Any, ...], got: Any) -> None:
            self.given.setdefault(name, []).append(given)
            self.got.setdefault(name, []).append(got)

        return keep

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


def train_case(
    to: Comparison, case: Case, model: PromptingSegmenter, rules: Rules,
    seen: Callable[[Recorder, Clip, dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    """AdamW under a cosine that is stepped every iteration; `seen` gives the step's outputs by official name."""
    to.seen |= {key for key in case.outputs if key.startswith("dropout/")}
    about = case.config
    optimiser = torch.optim.AdamW(model.encoder.parameters(), lr=about["lr"], weight_decay=WEIGHT_DECAY)
    for step in range(1, about["steps"] + 1):
        prefix, clip = f"step{step}/", case.clip(f"step{step}/")
        lr = about["lr"] * (1 + math.cos(math.pi * (step - 1) / about["t_max"])) / 2
        optimiser.param_groups[0]["lr"] = lr
        record = Recorder(encoder=model.encoder, sam=model.sam)
        named = model.losses(clip)
        record.close()
        found = seen(record, clip, named)
        to.add({"lr": torch.tensor(lr)} | found, prefix=prefix)
        loss = total(named)
        to.add({"grad/prompt_vrp": torch.autograd.grad(loss, found["prompt/vrp"], retain_graph=True)[0]},
               prefix=prefix, bound=GRADIENT)
        compare_gradients(to, gradients(loss, model, rules), prefix)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        compare_parameters(to, model, rules, prefix, lr)


def total(named: Mapping[str, Tensor]) -> Tensor:
    """The sum that is minimised."""
    return torch.stack(list(named.values())).sum()


class RecordedDropout(nn.Module):
    """Dropout by recorded keep-masks, one a call: x * mask / (1 - p). Without masks nothing is dropped."""

    def __init__(self, masks: list[tuple[Tensor, float]]) -> None:
        super().__init__()
        self._masks, self._drops = list(masks), bool(masks)

    def forward(self, x: Tensor) -> Tensor:
        """x of the mask's shape, or with its batch of heads split in two, or with cells where the mask has one."""
        if not self._drops:
            return x
        mask, p = self._masks.pop(0)
        return x * (mask if mask.numel() < x.numel() else mask.view_as(x)) / (1 - p)


def dropout_masks(outputs: Mapping[str, Tensor]) -> list[tuple[Tensor, float]]:
    """`dropout/{i}_p{p}` in call order."""
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


def gradients(loss: Tensor, model: PromptingSegmenter, rules: Rules) -> dict[str, Tensor]:
    """d loss / d parameter by official name."""
    parameters = dict(model.encoder.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
    return {rename(f"encoder.{k}", rules, forward=False): g for k, g in zip(parameters, found, strict=True)}


def compare_gradients(to: Comparison, found: Mapping[str, Tensor], prefix: str = "") -> None:
    """Norms, and where stored full gradients; of an `in_proj_bias` the key third is rounding noise and left out."""
    for key, value in found.items():
        norm, full = f"{prefix}grad_norm/{key}", f"{prefix}grad/{key}"
        if norm in to.want:
            to.record(norm, relative_error(value.norm(), to.want[norm]), GRADIENT)
        if full in to.want:
            to.record(full, relative_error(known_rows(key, value), known_rows(key, to.want[full])), GRADIENT)


def known_rows(key: str, value: Tensor) -> Tensor:
    """The tensor without the key third of an `in_proj_bias`, whose true gradient is 0."""
    if not key.endswith("in_proj_bias"):
        return value
    third = len(value) // 3
    return torch.cat([value[:third], value[2 * third :]])


def compare_parameters(to: Comparison, model: PromptingSegmenter, rules: Rules, prefix: str, lr: float) -> None:
    """Parameters after a step, where the gradient is not noise: |difference| / lr."""
    for name, value in model.encoder.named_parameters():
        key = rename(f"encoder.{name}", rules, forward=False)
        if not {f"{prefix}param_after/{key}", f"{prefix}grad/{key}"} <= to.want.keys():
            continue
        want, grad = (known_rows(key, to.want[f"{prefix}{kind}/{key}"]) for kind in ("param_after", "grad"))
        off = (known_rows(key, value.detach()) - want).abs()[grad.abs() > 1e-2 * grad.abs().max()]
        to.record(f"{prefix}param_after/{key}", float(off.max()) / lr if off.numel() else 0.0, PARAMETER)


def compare_evaluation(to: Comparison, case: Case, logits: Tensor, key: str = "eval/pred_mask") -> None:
    """Our hard masks, and the counts and scores of the stored ones (void pixels left out)."""
    if key not in to.want:
        return
    truth, ignore, ids = (case.inputs[k] for k in ("query_mask", "query_ignore_idx", "class_id"))
    stored = to.want[key]
    void = (stored == 255) & (ignore > 0)
    ours = torch.where(void, 255, (logits >= 0).to(torch.uint8)).to(torch.uint8)
    clear = logits.abs() >= NEAR
    to.record(key, float((ours[clear] != stored[clear]).sum()), EXACT)
    if "eval/area_inter" not in to.want or not key.startswith("eval/"):
        return
    fold = case.config["fold"]
    compare_scores(to, "eval/", pred=stored == 1, truth=truth > 0, ignore=ignore > 0, ids=ids,
                   classes=range(5 * fold, 5 * fold + 5))


def compare_scores(
    to: Comparison, prefix: str, *, pred: Tensor, truth: Tensor, ignore: Tensor | None, ids: Tensor, classes: Any
) -> None:
    """Areas, per-class sums, mIoU and FB-IoU of E hard masks [E, H, W] against the stored figures, exactly."""
    each = [episode_counts(p, t, None if ignore is None else ignore[i]) for i, (p, t) in
            enumerate(zip(pred, truth, strict=True))]
    inter, union = (np.array([e[n] for e in each], dtype=np.int64) for n in (0, 1))
    counts = Counts(class_ids=ids.numpy(), inter=inter, union=union)
    found = score(counts, [int(c) for c in classes])
    figures = {"area_inter": inter.T, "area_union": union.T, "miou_percent": found.miou * 100,
               "fb_iou_percent": found.fb_iou * 100}
    for name, values in (("class_intersection", inter), ("class_union", union)):
        if prefix + name in to.want:
            sums = np.zeros(to.want[prefix + name].shape)
            np.add.at(sums.T, ids.numpy(), values)
            figures[name] = sums
    to.add({k: torch.as_tensor(v, dtype=torch.float64) for k, v in figures.items()}, prefix=prefix, bound=SCORE)


def metric_cases(folder: Path, name: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The benchmarks of a metrics case: prefix and its tensors."""
    stored = load_file(folder / name / "metrics.safetensors")
    for bench in sorted({key.split("/")[0] for key in stored}):
        yield f"{bench}/", {k.removeprefix(f"{bench}/"): v for k, v in stored.items() if k.startswith(f"{bench}/")}


def drawn_weights(shapes: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """The weights of a full-size case, by the README's rule: one normal draw a tensor, in sorted order of names."""
    stream, found = np.random.RandomState(seed), {}
    for key in sorted(shapes):
        z = torch.from_numpy(stream.standard_normal(tuple(shapes[key])).astype(np.float32))
        if key.endswith("norm.weight"):
            found[key] = 1 + 0.1 * z
        elif key.endswith("bias"):
            found[key] = 0.1 * z
        else:
            found[key] = z if key.endswith(("_protos.weight", "supp_q_feat.weight")) else 0.06 * z
    return found


def digest(x: Tensor) -> Tensor:
    """(mean, standard deviation, max |x|, sum x * linspace(-1, 1)) of a tensor, as the full-size cases store it."""
    flat = x.detach().double().flatten()
    ramp = torch.linspace(-1, 1, len(flat), dtype=torch.float64)
    return torch.stack([flat.mean(), flat.std(), flat.abs().max(), (flat * ramp).sum()])
