"""COCO-20i: COCO 2014 with HSNet's label maps. The classes are split interleaved or contiguously."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fss_models.worker_episodes import WORKERS
from pipelines.config.data import SourceConfig
from pipelines.data.benchmarks.protocol import Benchmark, DrawnEpisodes, EpisodeFamily, LayoutPart, ListRequest
from pipelines.data.benchmarks.readers import LabelMapSource
from pipelines.data.benchmarks.rules import bam_photos, check_fold, content_digest, shown_classes
from pipelines.data.lists.bam import bam_classes
from pipelines.data.lists.files import ListFile
from pipelines.data.lists.hsnet import coco_images
from pipelines.data.samplers.bam import by_worker
from pipelines.data.samplers.hsnet import class_uniform

FOLDS = 4
CLASSES = (  # in category-id order
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
NAMES = dict(enumerate(CLASSES))
OPTIONS = frozenset({"lists", "shards", "split"})
CHECKED = {  # val lists of HSNet's folds 0 to 3 and BAM's 1 to 3
    "hsnet": frozenset({"694595014ffb6ca1", "093bfd3488c08e11", "f240177f18619a84", "701d526c9f954bec"}),
    "bam": frozenset({"e2030892482283fd", "48d713e9df7172ec", "76e33acb6bc02851"}),
}
# PASCAL class -> its COCO counterpart. RePRI's transfer protocol tests a PASCAL class on the fold that left it out.
PASCAL_IN_COCO = {
    "aeroplane": "airplane", "bicycle": "bicycle", "bird": "bird", "boat": "boat", "bottle": "bottle", "bus": "bus",
    "car": "car", "cat": "cat", "chair": "chair", "cow": "cow", "diningtable": "dining table", "dog": "dog",
    "horse": "horse", "motorbike": "motorcycle", "person": "person", "pottedplant": "potted plant", "sheep": "sheep",
    "sofa": "couch", "train": "train", "tvmonitor": "tv",
}


def fold_classes(fold: int, rule: str = "interleaved") -> list[int]:
    """The tested classes of fold f. Interleaved: {f, f + 4, ...}; contiguous (PANet): {20f, ..., 20f + 19}.

    Scores of the two splits are not comparable. Raises `FssError` for an unknown fold.
    """
    check_fold(fold, FOLDS)
    return list(range(fold, 80, FOLDS)) if rule == "interleaved" else list(range(20 * fold, 20 * fold + 20))


def transfer_fold(pascal_class: str) -> int:
    """The COCO fold whose training leaves out the counterpart of a PASCAL class (COCO-to-PASCAL transfer)."""
    return CLASSES.index(PASCAL_IN_COCO[pascal_class]) % FOLDS


class Coco20iSource(LabelMapSource):
    """train2014 is for training, val2014 for testing. Label maps have no void or crowd. The recipe sets the folds."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        self.classes = list(CLASSES)
        base = self.prefix("annotations/")
        self.index_folders([(split, folder, f"{base}{folder}/", f"{base}annotations/{folder}/")
                            for folder, split in (("train2014", "train"), ("val2014", "test"))])


# ---- lists of test episodes ---------------------------------------------------------------------------------------

def _classes(request: ListRequest) -> list[int]:
    """The classes of the fold: as the shards split them, or interleaved for a published list."""
    if request.shards and not request.lists:
        return request.opened_shards.fold_classes(request.fold)
    return fold_classes(request.fold)


def _uniform(
    read: Callable[[str, str, int], tuple[dict[int, list[str]], ListFile]], whose: str, request: ListRequest,
    episodes: int, seed: int,
) -> DrawnEpisodes:
    """HSNet's sampler over the lists that `read` reads. VRP-SAM and FCP give it BAM's.

    The val list of fold 0 in their repositories names train2014 photos. Without lists, `--split train` uses these.
    """
    classes = _classes(request)
    if request.lists:
        pools, file = read(request.lists, "val", request.fold)
        origin = f"{whose} list {file.sha256[:16]}"
        content = content_digest([(c, names) for c, names in sorted(pools.items()) if names])
    else:
        pools, origin, content = request.pools, request.origin, ""
    draws = class_uniform(pools, classes, shots=request.shots, episodes=episodes, seed=seed)
    return DrawnEpisodes(draws=draws, classes=NAMES, origin=origin, content=content)


def _fssam(request: ListRequest, episodes: int, seed: int) -> DrawnEpisodes:
    """FSSAM: queries in the order of the list, the class random among those of the fold that the photo shows."""
    classes = _classes(request)
    names, pools, origin = bam_photos(request, classes)
    shown = shown_classes(request)
    listed = [(n, sorted(c for c in shown.get(n, ()) if c in classes)) for n in names]
    workers = request.workers or WORKERS
    draws = by_worker(listed, pools, shots=request.shots, episodes=episodes, seed=seed, workers=workers)
    return DrawnEpisodes(draws=draws, classes=NAMES, origin=f"{origin}, {workers} workers")


_GET = "http://images.cocodataset.org/zips/{}.zip"
_PNG = "the label maps that HSNet's README links (Google Drive, {}.zip)"
BENCHMARK = Benchmark(name="coco20i", title="COCO-20i", source=Coco20iSource, homes=("COCO2014", "MSCOCO14"),
                      parts=(LayoutPart(what="train2014 photos", folders=("train2014",), suffixes=(".jpg",),
                                        get=_GET.format("train2014"), count=82783),
                             LayoutPart(what="val2014 photos", folders=("val2014",), suffixes=(".jpg",),
                                        get=_GET.format("val2014"), count=40504),
                             LayoutPart(what="train2014 label maps", folders=("annotations/train2014",),
                                        suffixes=(".png",), get=_PNG.format("train2014")),
                             LayoutPart(what="val2014 label maps", folders=("annotations/val2014",), suffixes=(".png",),
                                        get=_PNG.format("val2014")),),
                      published={"hsnet": EpisodeFamily(draw=partial(_uniform, coco_images, "HSNet"), seed=0,
                                                        checked=CHECKED["hsnet"], uses=OPTIONS),
                                 "bam": EpisodeFamily(draw=partial(_uniform, bam_classes, "BAM"), seed=321,
                                                      checked=CHECKED["bam"], uses=OPTIONS),
                                 "fssam": EpisodeFamily(draw=_fssam, seed=321, uses=OPTIONS | {"workers"})})
