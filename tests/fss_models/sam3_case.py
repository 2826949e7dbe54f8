"""Tiny SAM 3 models for tests: photos, marks, weight files in every layout, a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fss_models import registry
from fss_models.methods.sam3.build import VISUAL
from fss_models.methods.sam3.convert import meta_name
from fss_models.methods.sam3.model import Sam3
from fss_models.prompts import mask_prompt

GOLDEN = Path(__file__).parents[1] / "golden" / "sam3"
CONFIG, WEIGHTS = GOLDEN / "config_t1.json", GOLDEN / "weights_t1.safetensors"


def build(preset: str = "debug", weights: str | None = None, **config: Any) -> Sam3:
    """A model in evaluation mode."""
    model = registry.build("sam3", preset, config, weights=weights).eval()
    assert isinstance(model, Sam3)
    return model


def photo(seed: int, height: int = 50, width: int = 70) -> np.ndarray:
    """Noise with a bright box."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
    image[10:30, 5 + seed:35 + seed] = (220, 60, 30)
    return image


def mask(seed: int, height: int = 50, width: int = 70) -> np.ndarray:
    """The bright box of `photo`."""
    found = np.zeros((height, width), bool)
    found[10:30, 5 + seed:35 + seed] = True
    return found


@torch.no_grad()
def memory_of(model: Sam3, shots: int, photos: int = 2, names: tuple[str, ...] = ()) -> tuple[Any, Any, Tensor]:
    """(memory of one set of `shots`, features of all photos, the pairs of the set with the last `photos`)."""
    features = model.encode(model.prepare([photo(i) for i in range(shots + photos)]))
    marks = [[mask_prompt(mask(k)) for k in range(shots)]]
    memory = model.memorise(features, model.collate(marks, features.sizes, names=names))
    return memory, features, torch.tensor([[0, shots + i] for i in range(photos)])


def released() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json of tiny weights, and these, with the word `visual` where the released vocabulary has it."""
    config, state = json.loads(CONFIG.read_text()), load_file(WEIGHTS)
    config["text_config"]["vocab_size"] = VISUAL + 1
    key = "text_encoder.text_model.embeddings.token_embedding.weight"
    state[key] = state[key].repeat(VISUAL // len(state[key]) + 1, 1)[:VISUAL + 1]
    return config, state


def video_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of the video model, with a tracker's beside them."""
    return {f"detector_model.{k}": v for k, v in state.items()} | {"tracker_model.x": torch.zeros(1),
                                                                    "tracker_neck.x": torch.zeros(1)}


def meta_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the layout of Meta's `sam3.pt`: q, k and v in one, and what transformers does not have."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        name = f"detector.{meta_name(key)}"
        part = next((p for p in "qkv" if f".{p}_proj." in key), "")
        if part:
            found.setdefault(name, {})[part] = value
        elif key.endswith(".position_embeddings"):
            found[name] = torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
        else:
            found[name] = value.T if key == "text_encoder.text_projection.weight" else value
    joined = {k: torch.cat([v["q"], v["k"], v["v"]]) if isinstance(v, dict) else v.contiguous()
              for k, v in found.items()}
    return joined | {"tracker.x": torch.zeros(1),
                     "detector.backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis": torch.zeros(1)}


def save_all(folder: Path) -> dict[str, str]:
    """The same tiny weights as a folder, a file, the video model's file and Meta's checkpoint: kind -> place."""
    config, state = released()
    for name in ("plain", "video", "meta"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "plain" / "model.safetensors")
    save_file(video_layout(state), folder / "video" / "model.safetensors")
    torch.save({"model": meta_layout(state)}, folder / "meta" / "sam3.pt")
    return {"folder": str(folder / "plain"), "file": str(folder / "plain" / "model.safetensors"),
            "video": str(folder / "video" / "model.safetensors"), "meta": str(folder / "meta" / "sam3.pt")}


def tokenizer_file(path: Path) -> str:
    """A tokenizer.json whose words are single ids below the tiny vocabulary's size."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["unknown", "cat", "dog", "traffic", "light", "visual"]
    reader = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="unknown"))
    reader.pre_tokenizer = Whitespace()
    reader.save(str(path))
    return str(path)
