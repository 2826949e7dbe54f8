"""Building SAM 3's detector for a preset, with the person's own copy of its weights. Nothing is downloaded here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fss_models.backbones.torchvision_cpu import allow_cpu_torchvision
from fss_models.errors import FssError
from fss_models.methods.sam3.convert import PREFIX, TRACKER, from_meta
from fss_models.methods.sam3.detector import Detector
from fss_models.methods.sam3.geometry import PointProjections
from fss_models.methods.sam3.words import CONTEXT, Vocabulary
from fss_models.presets import RANDOM
from fss_models.state_dict import load_state
from fss_models.weight_files import weight_file

FULL = "sam3"
VISUAL = 7195  # id of the word "visual" in CLIP's vocabulary
META_EPSILON = 1e-5  # of the layer norms in Meta's trunk; transformers' default is 1e-6
_VIDEO, _TRACKERS, _POINTS = "detector_model.", ("tracker_model.", "tracker_neck."), "geometry_encoder.points_"
_UNUSED_LEVEL = "vision_encoder.neck.fpn_layers.3."  # computed by the official code, read by nothing
_HINT = ("SAM 3's weights are gated and under the SAM License: accept it at huggingface.co/facebook/sam3, then give "
         "your own copy (folder, model.safetensors or sam3.pt) or hf://facebook/sam3 with HF_TOKEN; `random` draws "
         "values")


@dataclass(frozen=True, kw_only=True)
class Sam3Parts:
    """A detector, the ids of its vocabulary, its input side in pixels, and whether its values came from a file."""

    detector: Detector
    vocabulary: Vocabulary
    side: int
    checkpoint: bool = False


def build_parts(preset: str, weights: str | None) -> Sam3Parts:
    """The parts of a preset on the CPU, with the weight file `weights` loaded strictly.

    debug: a tiny model with random values; sam3: the released size. Raises `FssError` if transformers is missing, if
    the released size gets no file, and for a file with a missing, unknown or misshapen tensor.
    """
    require_transformers()
    if preset != FULL:
        if weights not in (None, "", RANDOM):
            raise FssError(f"preset {preset!r} of method 'sam3' is random and takes no weights",
                           hint=f"give preset: {FULL}")
        return make_parts(tiny_sizes(), visual=17)
    if weights == RANDOM:
        return make_parts({}, visual=VISUAL)
    if not weights:
        raise FssError("method 'sam3' has no weights", hint=_HINT)
    file = weight_file(weights)
    return make_parts(_sizes_beside(file), visual=VISUAL, file=file)


def require_transformers() -> None:
    """Raises `FssError` if the package `transformers` is not installed, or has no SAM 3. No network is tried."""
    allow_cpu_torchvision()
    try:
        from transformers import Sam3Model  # noqa: F401
    except ImportError as error:
        raise FssError("method 'sam3' needs the package transformers, version 5 or newer",
                       hint="pip install 'fss[sam3]'") from error


def make_parts(sizes: dict[str, Any], *, visual: int, file: Path | None = None) -> Sam3Parts:
    """Build the detector of a `Sam3Config` dictionary and load `file`, or draw random values."""
    require_transformers()
    from transformers import Sam3Config, Sam3Model
    from transformers.initialization import no_init_weights

    config = Sam3Config.from_dict(sizes)
    with no_init_weights():
        sam = Sam3Model(config)
    sam.vision_encoder.neck.fpn_layers = sam.vision_encoder.neck.fpn_layers[:3]
    points = PointProjections(config.detr_encoder_config.hidden_size)
    if file is None:
        for module in (sam, points):
            _draw(module)
        _let_some_pass(sam)
        detector = Detector(sam, points)
    else:
        detector = Detector(sam, points if load_weights(sam, points, file) else None)
    text = config.text_config
    words = Vocabulary(start=text.bos_token_id, end=text.eos_token_id, visual=visual)
    side = config.vision_config.backbone_config.image_size
    return Sam3Parts(detector=detector.requires_grad_(False).eval(), vocabulary=words, side=side,
                     checkpoint=file is not None)


def load_weights(sam: Any, points: PointProjections, file: Path) -> bool:
    """Load a file of transformers' (plain or of the video model) or Meta's. Returns whether it has the point prompts.

    Raises `FssError` naming the first missing, unknown or misshapen tensor.
    """
    state, want = _read(file), sam.state_dict()
    own_points = {_POINTS.removesuffix("points_") + k: v for k, v in points.state_dict().items()}
    if any(k.startswith(PREFIX) for k in state):
        has_points = any(k.startswith(PREFIX + _POINTS) for k in state)
        state = from_meta(state, want | (own_points if has_points else {}), where=str(file))
    else:
        state = {k.removeprefix(_VIDEO): v for k, v in state.items() if not k.startswith((*_TRACKERS, TRACKER))}
        state = {k: v for k, v in state.items() if not k.startswith(_UNUSED_LEVEL)}
    pointed = {k: state.pop(k) for k in own_points if k in state}
    load_state(sam, {k: v.float() for k, v in state.items()}, where=str(file), hint="is it a file of SAM 3?",
               assign=True)
    if pointed:
        load_state(points, {k.removeprefix("geometry_encoder."): v.float() for k, v in pointed.items()},
                   where=str(file), assign=True)
    return bool(pointed)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return dict(state.get("model", state))
    except Exception as error:  # torch and safetensors raise many kinds for a file that holds no weights
        raise FssError(f"is no weight file: {str(error).splitlines()[0][:200]}", where=str(file)) from error


def _sizes_beside(file: Path) -> dict[str, Any]:
    """The `Sam3Config` dictionary in config.json beside the weights, else the released size.

    Meta's checkpoint has another epsilon in the trunk than transformers' default.
    """
    beside = file.with_name("config.json")
    if beside.is_file():
        content: dict[str, Any] = json.loads(beside.read_text())
        return dict(content.get("detector_config") or content)
    return {} if file.suffix == ".safetensors" else {"vision_config": {"backbone_config": {
        "model_type": "sam3_vit_model", "layer_norm_eps": META_EPSILON}}}


def tiny_sizes() -> dict[str, Any]:
    """A `Sam3Config` dictionary of 0.3 M parameters: side 168, 12 x 12 tokens, 12 queries, 32 channels."""
    small = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    trunk = {"model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 4,
             "num_attention_heads": 2, "image_size": 168, "pretrain_image_size": 56, "window_size": 4,
             "global_attn_indexes": [1, 3]}
    words = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 2, "max_position_embeddings": CONTEXT, "bos_token_id": 62, "eos_token_id": 63}
    return {"vision_config": {"backbone_config": trunk, "fpn_hidden_size": 32,
                              "backbone_feature_sizes": [[48, 48], [24, 24], [12, 12]]},
            "text_config": words, "geometry_encoder_config": small, "detr_encoder_config": small,
            "detr_decoder_config": small | {"num_queries": 12},
            "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 4}}


def _draw(module: nn.Module) -> None:
    """Random values that neither vanish nor explode: 1 / sqrt(inputs), biases 0, norms that change nothing."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            if isinstance(part, nn.LayerNorm | nn.GroupNorm):
                nn.init.constant_(value, float(name == "weight"))
            elif value.dim() == 1:
                nn.init.zeros_(value)
            else:
                inputs = 1 if isinstance(part, nn.Embedding) else value[0].numel()
                nn.init.normal_(value, std=1 / math.sqrt(inputs))


def _let_some_pass(sam: Any) -> None:
    """Shift scores, so that some of the random queries pass the threshold (how many depends on the seed)."""
    nn.init.constant_(sam.detr_decoder.presence_head.layer3.bias, 6.0)
    for projection in (sam.dot_product_scoring.text_proj, sam.dot_product_scoring.query_proj):
        nn.init.constant_(projection.bias, 0.3)
