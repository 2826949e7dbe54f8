"""ISIC 2018 task 1 as a cross-domain test set: three kinds of skin lesion. Unverified: no copy was available.

Photos are in the folders 1, 2 and 3 (the kinds) below ISIC2018_Task1-2_Training_Input. Without these folders there is
one class.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from pipelines.config.data import SourceConfig
from pipelines.data.benchmarks.protocol import (
    ROOT,
    Benchmark,
    DrawnEpisodes,
    EpisodeFamily,
    LayoutPart,
    ListRequest,
    check_fold,
    draw_fresh,
    photo_number,
)
from pipelines.data.benchmarks.readers import MaskFileSource, base_of, by_stem, unique_ids
from pipelines.data.samplers.hsnet import class_cycled
from pipelines.data.sources.base import SourceFailure, SourceImage, digest_of, listing

PHOTOS, MASKS, KINDS = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", ("1", "2", "3")


class IsicSource(MaskFileSource):
    """For testing only: every class is in fold 0, and every photo is a test photo."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files = listing(self.store)
        base = base_of(files, f"{PHOTOS}/", self.store.url)
        sorted_in = any(f.startswith(f"{base}{PHOTOS}/{k}/") for f in files for k in KINDS)
        self.classes = [f"lesion {k}" for k in KINDS] if sorted_in else ["lesion"]
        self.fold_table = [0] * len(self.classes)
        masks = by_stem(files, f"{base}{MASKS}/", (".png",))
        for class_id, folder in enumerate([f"{k}/" for k in KINDS] if sorted_in else [""]):
            for stem, path in by_stem(files, f"{base}{PHOTOS}/{folder}", (".jpg",)).items():
                name, mask = f"{folder}{stem}.jpg", masks.get(f"{stem}_segmentation")
                if mask is None:
                    self.failures.append(SourceFailure(name, "index", f"no {stem}_segmentation.png"))
                else:
                    self.items.append(SourceImage(image_id=photo_number(name), file_name=name, path=path,
                                                  annotations=(class_id, mask), split="test"))
        self.items = unique_ids(self.items)
        self.fingerprint = digest_of([(i.path, files[i.path], i.annotations, files[i.annotations[1]])
                                      for i in self.items])


def cycled_list(request: ListRequest, source: MaskFileSource, episodes: int, seed: int) -> DrawnEpisodes:
    """Episode idx tests class idx mod n, over the photos in path order, as the cross-domain loaders draw.

    Raises `FssError` for a fold other than 0 and for a class with too few photos.
    """
    check_fold(request.fold, 1)
    pools: dict[int, list[str]] = {c: [] for c in range(len(source.classes))}
    for item in sorted(source.items, key=lambda i: (i.annotations[0], PurePosixPath(i.path).name)):
        pools[item.annotations[0]].append(item.file_name)
    draws = class_cycled(pools, sorted(pools), shots=request.shots, episodes=episodes, seed=seed)
    return DrawnEpisodes(draws=draws, classes=dict(enumerate(source.classes)),
                         origin=f"files {source.fingerprint[:16]}")


def _patnet(request: ListRequest, episodes: int, seed: int) -> DrawnEpisodes:
    return cycled_list(request, IsicSource(SourceConfig(format="isic", root=request.root)), episodes, seed)


_GET = "https://challenge.isic-archive.com/data/#2018 ({}.zip)"
BENCHMARK = Benchmark(
    name="isic", title="ISIC 2018", source=IsicSource, homes=("ISIC",), verified=False,
    note="the three kinds are sorted as in the cross-domain papers, not by the publisher",
    parts=(
        LayoutPart(what="photos", folders=(PHOTOS,), suffixes=(".jpg",), get=_GET.format(PHOTOS), count=2594),
        LayoutPart(what="masks", folders=(MASKS,), suffixes=("_segmentation.png",), get=_GET.format(MASKS), count=2594),
    ),
    families={
        "patnet": EpisodeFamily(draw=_patnet, seed=0, episodes=600, uses=ROOT),
        "drawn": EpisodeFamily(draw=draw_fresh, seed=0),
    },
)
