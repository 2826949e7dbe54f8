"""ISIC 2018 task 1 as a cross-domain test set: three kinds of skin lesion. Unverified: no copy was available.

Photos are in the folders 1, 2 and 3 (the kinds) below ISIC2018_Task1-2_Training_Input. Without these folders there is
one class.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath

from pipelines.config.data import SourceConfig
from pipelines.data.benchmarks.protocol import Benchmark, DrawnEpisodes, EpisodeFamily, LayoutPart, ListRequest
from pipelines.data.benchmarks.readers import MaskFileSource, by_stem
from pipelines.data.benchmarks.rules import ROOT, check_fold, index_lists
from pipelines.data.samplers.hsnet import class_cycled

PHOTOS, MASKS, KINDS = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", ("1", "2", "3")


class IsicSource(MaskFileSource):
    """For testing only: every class is in fold 0, and every photo is a test photo."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files, base = self.files, self.prefix(f"{PHOTOS}/")
        sorted_in = any(f.startswith(f"{base}{PHOTOS}/{k}/") for f in files for k in KINDS)
        self.classes = [f"lesion {k}" for k in KINDS] if sorted_in else ["lesion"]
        self.fold_table = [0] * len(self.classes)
        masks = by_stem(files, f"{base}{MASKS}/", (".png",))
        for class_id, folder in enumerate([f"{k}/" for k in KINDS] if sorted_in else [""]):
            for stem, path in by_stem(files, f"{base}{PHOTOS}/{folder}", (".jpg",)).items():
                name, mask = f"{folder}{stem}.jpg", masks.get(f"{stem}_segmentation")
                if mask is None:
                    self.fail(name, f"no {stem}_segmentation.png")
                else:
                    self.take(name, path, (class_id, mask), "test")
        self.finish()


def cycled_list(
    make: Callable[[SourceConfig], MaskFileSource], name: str, request: ListRequest, episodes: int, seed: int
) -> DrawnEpisodes:
    """Episode idx tests class idx mod n, over the photos in path order, as the cross-domain loaders draw.

    Raises `FssError` for a fold other than 0 and for a class with too few photos.
    """
    source = make(SourceConfig(format=name, root=request.root))
    check_fold(request.fold, 1)
    pools: dict[int, list[str]] = {c: [] for c in range(len(source.classes))}
    for item in sorted(source.items, key=lambda i: (i.annotations[0], PurePosixPath(i.path).name)):
        pools[item.annotations[0]].append(item.file_name)
    draws = class_cycled(pools, sorted(pools), shots=request.shots, episodes=episodes, seed=seed)
    return index_lists(draws, source, "files")


_GET = "https://challenge.isic-archive.com/data/#2018 ({}.zip)"
BENCHMARK = Benchmark(
    name="isic", title="ISIC 2018", source=IsicSource, homes=("ISIC",), verified=False,
    note="the three kinds are sorted as in the cross-domain papers, not by the publisher",
    parts=(
        LayoutPart(what="photos", folders=(PHOTOS,), suffixes=(".jpg",), get=_GET.format(PHOTOS), count=2594),
        LayoutPart(what="masks", folders=(MASKS,), suffixes=("_segmentation.png",), get=_GET.format(MASKS), count=2594),
    ),
    published={"patnet": EpisodeFamily(draw=partial(cycled_list, IsicSource, "isic"), seed=0, episodes=600, uses=ROOT)},
)
