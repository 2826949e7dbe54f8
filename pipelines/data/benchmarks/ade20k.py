"""ADE20K (SceneParsing, 150 classes), which SANSA uses to train its generalist model, not to test.

No class is in a fold. The validation photos can be scored with all classes at once (`--fold -1`).
"""

from __future__ import annotations

from pipelines.config.data import SourceConfig
from pipelines.data.benchmarks.protocol import Benchmark, LayoutPart
from pipelines.data.benchmarks.readers import LabelMapSource
from pipelines.data.classes import NO_FOLD

CLASSES = 150


class Ade20kSource(LabelMapSource):
    """Value v of a label map is class v - 1; 0 is everything else (background). objectInfo150.txt names the classes."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        base = self.prefix("annotations/")
        info = f"{base}objectInfo150.txt"
        self.classes = _names(self.store.read_bytes(info).decode()) if info in self.files else []
        self.classes += [f"class {i + 1}" for i in range(len(self.classes), CLASSES)]
        self.fold_table = [NO_FOLD] * CLASSES
        self.index_folders([(split, folder, f"{base}images/{folder}/", f"{base}annotations/{folder}/")
                            for folder, split in (("training", "train"), ("validation", "test"))])


def _names(text: str) -> list[str]:
    """The first synonym of each class, from the last column of objectInfo150.txt without its header line."""
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    return [row[-1].split(",")[0].strip() for row in rows[1 : CLASSES + 1]]


_GET = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
BENCHMARK = Benchmark(name="ade20k", title="ADE20K", source=Ade20kSource, homes=("ADEChallengeData2016",),
                      verified=False, note="training only; no published test list",
                      parts=(LayoutPart(what="training photos", folders=("images/training",), suffixes=(".jpg",),
                                        get=_GET, count=20210),
                             LayoutPart(what="training label maps", folders=("annotations/training",),
                                        suffixes=(".png",), get=_GET, count=20210),
                             LayoutPart(what="validation photos", folders=("images/validation",), suffixes=(".jpg",),
                                        get=_GET, count=2000, optional=True),
                             LayoutPart(what="validation label maps", folders=("annotations/validation",),
                                        suffixes=(".png",), get=_GET, count=2000, optional=True),
                             LayoutPart(what="class names", folders=("",), suffixes=("objectInfo150.txt",), get=_GET,
                                        count=1, optional=True),))
