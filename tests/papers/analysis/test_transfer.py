"""COCO to PASCAL: the published mapping, and that no bundle is tested on what it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_models.errors import FssError
from pipelines.base.workspace import Workspace
from pipelines.config.choose import ChooseConfig
from pipelines.config.data import DataConfig, SourceConfig, SplitConfig
from pipelines.config.evaluate import EvalConfig
from pipelines.config.recipe import Recipe
from pipelines.data.benchmarks.coco import CLASSES, PASCAL_IN_COCO, transfer_fold
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards
from pipelines.data.sources.voc import CLASSES as PASCAL
from pipelines.papers.analysis.transfer import analyse_transfer, fold_classes, open_folds

PUBLISHED = {  # RePRI's protocol
    0: "aeroplane boat chair diningtable dog person", 1: "bicycle bus horse sofa",
    2: "bird car pottedplant sheep train tvmonitor", 3: "bottle cat cow motorbike",
}
NAMES = ("dog", "horse", "car", "cat", "unicorn")  # one of each fold, and one that PASCAL does not have


@pytest.fixture(scope="session")
def pascal(ray_cluster: object, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe of four PASCAL classes and one other class, drawn as bright rectangles, ten photos each."""
    root, rng = tmp_path_factory.mktemp("pascal"), np.random.default_rng(0)
    for number, name in enumerate(n for n in NAMES for _ in range(10)):
        image = rng.integers(0, 80, (48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), dtype=np.uint8)
        x, y = rng.integers(4, 30), rng.integers(4, 24)
        mask[y:y + 20, x:x + 26] = 255
        image[mask > 0] += np.uint8(120)
        for folder, picture in ((f"masks/{name}", mask), ("images", image)):
            (root / "raw" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(root / "raw" / folder / f"{number:03d}.png")
    data = DataConfig(name="pascal", source=SourceConfig(format="pairs", root=str(root / "raw")),
                      split=SplitConfig(test_fraction=0.5), min_images=2)
    build_shards(data, Workspace(str(root / "out")).shards("pascal"))
    return Recipe(name="transfer", out=str(root / "out"), data=data, eval=EvalConfig(episodes=4, batch=4),
                  choose=ChooseConfig(resamples=20))


def test_the_mapping_is_the_published_one() -> None:
    assert set(PASCAL_IN_COCO) == set(PASCAL)
    assert set(PASCAL_IN_COCO.values()) <= set(CLASSES)
    for fold, names in PUBLISHED.items():
        assert [n for n in PASCAL if transfer_fold(n) == fold] == names.split()


def test_each_class_goes_to_the_fold_that_held_it_out(pascal: Recipe, make_bundle: Callable[..., str]) -> None:
    shards = Shards(Workspace(pascal.out).shards("pascal"))
    folds = {f: [shards.classes[c].name for c in ids] for f, ids in fold_classes(shards).items()}
    assert folds == {0: ["dog"], 1: ["horse"], 2: ["car"], 3: ["cat"]}
    bundles = [make_bundle("sam2_frozen", "0", classes=["cat"]), make_bundle("sansa", "1", classes=["dog", "cat"]),
               make_bundle("sansa", "2"), make_bundle("prior", "3")]
    written = analyse_transfer(pascal, bundles=bundles)
    found = written.document
    assert [f["classes"] for f in found["folds"]] == [["dog"], ["horse"], ["car"], ["cat"]]
    records = ["trains nothing", "2 classes", "not recorded", "trains nothing"]
    assert [f["trained_on"] for f in found["folds"]] == records
    assert found["miou"] == pytest.approx(np.mean([f["miou"] for f in found["folds"]]))
    assert len({f["list_hash"] for f in found["folds"]}) == 4
    assert len(found["absent"]) == 16  # and the page says that this is not the published figure
    assert "cannot be compared with the published one" in Path(written.url).read_text()
    assert "could not be checked" in Path(written.url).read_text()


def test_what_was_trained_on_is_not_tested(pascal: Recipe, recipe: Recipe, make_bundle: Callable[..., str]) -> None:
    fine = make_bundle("sansa", "fine", classes=["zebra"])
    knows = make_bundle("sansa", "knows", classes=["horse"])
    with pytest.raises(FssError, match="trained on 'horse', which fold 1 tests as 'horse'"):
        open_folds(pascal, [fine, knows, fine, fine])
    assert len(open_folds(pascal, [knows, fine, fine, fine])) == 4  # fold 0 tests no horse
    with pytest.raises(FssError, match="3 bundles given"):
        open_folds(pascal, [fine] * 3)
    with pytest.raises(FssError, match="none of the PASCAL classes of fold"):
        open_folds(recipe, [fine] * 4)  # drawn shapes
    tested = Shards(Workspace(pascal.out).shards("pascal")).images("test")
    seen = make_bundle("sansa", "seen", trained_on=[r["sha256"][:16] for r in tested])
    with pytest.raises(FssError, match="was trained on"):
        open_folds(pascal, [fine, fine, fine, seen])
