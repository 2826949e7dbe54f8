"""Chest X-rays with lung masks as a cross-domain test set of one class. Unverified: no copy was available."""

from __future__ import annotations

from functools import partial

from pipelines.config.data import SourceConfig
from pipelines.data.benchmarks.isic import cycled_list
from pipelines.data.benchmarks.protocol import Benchmark, EpisodeFamily, LayoutPart
from pipelines.data.benchmarks.readers import MaskFileSource, by_stem
from pipelines.data.benchmarks.rules import ROOT
from pipelines.data.sources.base import SourceFailure


class LungSource(MaskFileSource):
    """CXR_png/NAME.png with masks/NAME.png or NAME_mask.png. Photos without a mask are listed as failures."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files, base = self.files, self.prefix("CXR_png/")
        self.classes, self.fold_table = ["lung"], [0]
        masks = by_stem(files, f"{base}masks/", (".png",))
        for stem, path in by_stem(files, f"{base}CXR_png/", (".png",)).items():
            mask = masks.get(f"{stem}_mask", masks.get(stem))
            if mask is None:
                self.failures.append(SourceFailure(f"{stem}.png", "split",
                                                   "the publishers give no mask for this photo"))
            else:
                self.take(f"{stem}.png", path, (0, mask), "test")
        self.finish()


_GET = "https://www.kaggle.com/datasets/nikhilpandey360/chest-xray-masks-and-labels"
BENCHMARK = Benchmark(
    name="lung", title="Chest X-ray", source=LungSource, homes=("LungSegmentation", "Lung Segmentation"),
    verified=False, note="masks exist for 704 of the 800 photos",
    parts=(
        LayoutPart(what="photos", folders=("CXR_png",), suffixes=(".png",), get=_GET, count=800),
        LayoutPart(what="masks", folders=("masks",), suffixes=(".png",), get=_GET, count=704),
    ),
    published={"patnet": EpisodeFamily(draw=partial(cycled_list, LungSource, "lung"), seed=0, episodes=600, uses=ROOT)},
)
