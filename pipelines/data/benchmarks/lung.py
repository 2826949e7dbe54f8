"""Chest X-rays with lung masks as a cross-domain test set of one class. Unverified: no copy was available."""

from __future__ import annotations

from pipelines.config.data import SourceConfig
from pipelines.data.benchmarks.isic import cycled_list
from pipelines.data.benchmarks.protocol import (
    ROOT,
    Benchmark,
    DrawnEpisodes,
    EpisodeFamily,
    LayoutPart,
    ListRequest,
    draw_fresh,
    photo_number,
)
from pipelines.data.benchmarks.readers import MaskFileSource, base_of, by_stem, unique_ids
from pipelines.data.sources.base import SourceFailure, SourceImage, digest_of, listing


class LungSource(MaskFileSource):
    """CXR_png/NAME.png with masks/NAME.png or NAME_mask.png. Photos without a mask are listed as failures."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files = listing(self.store)
        base = base_of(files, "CXR_png/", self.store.url)
        self.classes, self.fold_table = ["lung"], [0]
        masks = by_stem(files, f"{base}masks/", (".png",))
        for stem, path in by_stem(files, f"{base}CXR_png/", (".png",)).items():
            mask = masks.get(f"{stem}_mask", masks.get(stem))
            if mask is None:
                self.failures.append(SourceFailure(f"{stem}.png", "split",
                                                   "the publishers give no mask for this photo"))
            else:
                name = f"{stem}.png"
                self.items.append(SourceImage(image_id=photo_number(name), file_name=name, path=path,
                                              annotations=(0, mask), split="test"))
        self.items = unique_ids(self.items)
        self.fingerprint = digest_of([(i.path, files[i.path], i.annotations, files[i.annotations[1]])
                                      for i in self.items])


def _patnet(request: ListRequest, episodes: int, seed: int) -> DrawnEpisodes:
    return cycled_list(request, LungSource(SourceConfig(format="lung", root=request.root)), episodes, seed)


_GET = "https://www.kaggle.com/datasets/nikhilpandey360/chest-xray-masks-and-labels"
BENCHMARK = Benchmark(
    name="lung", title="Chest X-ray", source=LungSource, homes=("LungSegmentation", "Lung Segmentation"),
    verified=False, note="masks exist for 704 of the 800 photos",
    parts=(
        LayoutPart(what="photos", folders=("CXR_png",), suffixes=(".png",), get=_GET, count=800),
        LayoutPart(what="masks", folders=("masks",), suffixes=(".png",), get=_GET, count=704),
    ),
    families={
        "patnet": EpisodeFamily(draw=_patnet, seed=0, episodes=600, uses=ROOT),
        "drawn": EpisodeFamily(draw=draw_fresh, seed=0),
    },
)
