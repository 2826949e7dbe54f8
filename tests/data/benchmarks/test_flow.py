"""Every benchmark from its raw layout to a score: check, shards, list, one evaluation at preset debug."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fss_models.errors import FssError
from fss_models.pretraining.views import LabelledPhoto, shrink
from infra.local.s3 import S3Server
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.config.data import BENCHMARKS
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.data.benchmarks.check import check_benchmark
from pipelines.data.benchmarks.make import make_list
from pipelines.data.benchmarks.protocol import ListRequest
from pipelines.data.classes import NO_FOLD
from pipelines.data.folds import FoldData
from pipelines.data.published import PublishedList, bind, read_list, write_list
from pipelines.data.shardset import ALL_FOLDS, Shards
from pipelines.data.stream import EpisodeStream
from pipelines.evaluation.drive import ScoringConfig, evaluate_run
from pipelines.evaluation.results import RunResult
from pipelines.pretraining.scenes import WORKING_SIDE, Photos
from pipelines.selection.choose import make_leaderboard
from pipelines.training.context import RunContext
from tests.data.benchmarks.conftest import benchmark_config
from tests.data.conftest import write

Raw, Built = Callable[[str], Path], Callable[[str], Shards]

# the family whose list is made, from what, and how many episodes its rule gives (None: as many as are requested)
MADE: dict[str, tuple[str, str, int | None]] = {
    "pascal5i": ("bam", "shards", None), "coco20i": ("hsnet", "shards", None), "lvis92i": ("matcher", "root", None),
    "fss1000": ("hsnet", "root", 20), "pascal_part": ("matcher", "root", 9), "paco_part": ("matcher", "root", None),
    "ade20k": ("drawn", "shards", None), "isic": ("patnet", "root", None), "lung": ("patnet", "root", None),
}


def _list(name: str, root: str, shards: str, *, episodes: int | None = 8) -> PublishedList:
    family, source, fixed = MADE[name]
    options = {"fold": ALL_FOLDS if name == "ade20k" else 0, "episodes": None if fixed else episodes}
    return make_list(name, family, ListRequest(**options, **{source: root if source == "root" else shards}))  # type: ignore[arg-type]


def score(shards: Shards, listed: str, out: str, fold: int | None) -> RunResult:
    spec = RunSpec(dataset="bench", shards=shards.url, data_hash=shards.manifest.content_hash, fold=fold,
                   method=MethodConfig(name="prior", preset="debug"))
    return evaluate_run(RunContext(spec=spec, runs=out), ScoringConfig(config=EvalConfig(list=listed, batch=4),
                                                                       resamples=20))


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_from_raw_layout_to_a_score(name: str, raw: Raw, built: Built, tmp_path: Path) -> None:
    """Would catch a reader, an id or a class order in which raw data, lists and shards do not agree."""
    assert check_benchmark(name, str(raw(name)), subset=True).complete
    shards = built(name)
    assert not [f for f in shards.failures.to_pylist() if f["stage"] in ("read", "decode")]
    listed = _list(name, str(raw(name)), shards.url)
    assert len(listed) == (MADE[name][2] or 8)
    assert listed.status == ("drawn" if name == "ade20k" else "unverified")
    url = str(tmp_path / "list.parquet")
    write_list(url, listed)
    assert read_list(url) == listed
    result = score(shards, url, str(tmp_path / "runs"), None if name == "ade20k" else 0)
    assert result.list_hash == listed.sha256
    assert result.episodes == len(listed)
    assert 0 <= result.miou <= 1
    assert set(result.classes.values()) == {e.class_name for e in listed}
    for episode in bind(shards, listed):
        sample = shards.sample(episode.query, episode.class_id)
        assert sample.mask.any()
        assert sample.mask.shape == sample.image.shape[:2] == sample.ignore.shape


@pytest.fixture(scope="module")
def bucket(raw: Raw, _s3_session: S3Server) -> str:
    """A prefix with all benchmarks, NAME/raw and NAME/shards, built in one process of its own.

    (the session's cluster was started without the bucket's credentials)
    """
    code = ("import json, sys\nfrom pipelines.base.cluster import cluster\n"
            "from pipelines.config.data import DataConfig\n"
            "from pipelines.data.shards import build_shards\nwith cluster():\n"
            "    for c, out in json.loads(sys.argv[1]): build_shards(DataConfig.model_validate(c), out)")
    place, work = join(_s3_session.url, "benchmarks"), []
    with pytest.MonkeyPatch.context() as patch:
        for key, value in _s3_session.env.items():
            patch.setenv(key, value)
        for name in BENCHMARKS:
            root = join(place, name, "raw")
            for file in (p for p in raw(name).rglob("*") if p.is_file()):
                Store(root).write_bytes(str(file.relative_to(raw(name))), file.read_bytes())
            work.append((benchmark_config(name, root).model_dump(), join(place, name, "shards")))
        done = subprocess.run([sys.executable, "-c", code, json.dumps(work)], capture_output=True, text=True,
                              timeout=600, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-2000:]
    return place


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_on_s3(name: str, raw: Raw, built: Built, bucket: str, s3_server: S3Server, tmp_path: Path) -> None:
    """The same from a bucket to a bucket: equal shards, equal lists, equal scores."""
    root, out = (join(bucket, name, part) for part in ("raw", "shards"))
    assert check_benchmark(name, root, subset=True).complete
    local = built(name)
    assert Shards(out).manifest.content_hash == local.manifest.content_hash
    listed = _list(name, root, out)
    assert listed.episodes == _list(name, str(raw(name)), local.url).episodes
    url = join(bucket, name, "lists", "fold{fold}.parquet")
    write_list(url.format(fold=0), listed)
    fold = None if name == "ade20k" else 0
    remote = score(Shards(out), url if fold == 0 else url.format(fold=0), join(bucket, name, "runs"), fold)
    write_list(str(tmp_path / "l.parquet"), listed)
    here = score(local, str(tmp_path / "l.parquet"), str(tmp_path / "runs"), fold)
    assert (remote.miou, remote.list_hash) == (here.miou, here.list_hash)


def test_the_leaderboard_tells_the_lists_shots_and_length(built: Built, tmp_path: Path) -> None:
    """Not the recipe's, which a list overrules; and the fold's list is found by its number."""
    shards, url = built("isic"), str(tmp_path / "fold{fold}.parquet")
    listed = make_list("isic", "drawn", ListRequest(shots=2, episodes=9, shards=shards.url))
    write_list(url.format(fold=0), listed)
    recipe = Recipe(out=str(tmp_path), data=benchmark_config("isic", "elsewhere"), eval=EvalConfig(list=url),
                    methods=[MethodConfig(name="prior", preset="debug")])
    board = make_leaderboard(recipe, [score(shards, url, Workspace(str(tmp_path)).runs, 0)])
    assert (board.episodes, board.shots, board.lists) == (9, 2, {"0": listed.sha256})


def test_pretraining_cuts_masks_as_its_photos(built: Built) -> None:
    shards = built("pascal_part")
    photos = Photos([shards])
    assert any(shards.photo(p.image_id).get("crop") for p in photos.places)
    for number, place in enumerate(photos.places):
        row = next(r for r in shards.images("train") if r["image_id"] == place.image_id)
        whole = np.any([shards.sample(place.image_id, c).mask for c in row["class_ids"]], axis=0)
        there = shrink(LabelledPhoto(pixels=shards.pixels(place.image_id), masks=whole[None]), WORKING_SIDE).masks[0]
        found = photos.read(number).masks.any(0)
        assert (found & there).sum() / (found | there).sum() > 0.95


def test_the_filter_counts_pixels(built: Built) -> None:
    """The car of 100 pixels is in the photos but counts in none, so it is no class of the shards."""
    shards = built("pascal5i")
    assert {c.name: (c.fold, c.train_images, c.test_images) for c in shards.classes.values()} == {
        "aeroplane": (0, 2, 2), "bus": (1, 2, 2)}
    assert "2048 pixels" in shards.manifest.dropped_classes["car"]
    both = next(r for r in shards.images("test") if r["file_name"] == "2007_000003.jpg")
    assert both["class_ids"] == [0, 5, 6]


def test_training_drops_photos_with_a_novel_class_or_keeps_them(built: Built) -> None:
    """BAM's rule and HSNet's: the photo with both classes is no training photo of the other fold, or is."""
    data = FoldData.open(built("pascal5i").url, 0)
    assert [c.name for c in data.base] == ["bus"]
    assert len(data.train_photos("keep")) == 2
    assert len(data.train_photos("drop")) == 1


def test_classes_that_are_never_tested_are_in_no_fold(built: Built) -> None:
    shards = built("fss1000")
    assert shards.folds == [0, 1]
    assert [c.name for c in shards.classes.values() if c.fold == NO_FOLD] == ["trn_a", "trn_b"]
    data = FoldData.open(shards.url, 0)
    assert [c.name for c in data.tested] == ["test_a", "test_b"]
    assert {r["split"] for i in shards.block_index.to_pylist() for r in (shards.rows[j] for j in i["image_ids"])} == {
        "train"}
    assert built("ade20k").folds == []


def test_parts_are_shown_as_crops(built: Built, raw: Raw) -> None:
    """Evaluation and training see the object's box, and nothing of the photo around it."""
    from fss_models.photo_files import decode_image

    shards = built("paco_part")
    photo = decode_image((raw("paco_part") / "PACO-Part/coco/val2017/000000000100.jpg").read_bytes())
    sample = shards.sample(100_000, 0)
    assert np.array_equal(sample.image, photo[6:47, 4:35])
    assert sample.mask[10 - 6 : 22 - 6, 8 - 4 : 20 - 4].all()
    assert sample.mask.sum() == 144 + 60
    with EpisodeStream(shards.url, classes=[0, 1], shots=1, batch=4, seed=0) as stream:
        for one in next(stream):
            for seen in (*one.references, *one.targets):
                again = shards.sample(seen.image_id, one.class_id)
                assert np.array_equal(seen.image, again.image)
                assert np.array_equal(seen.mask, again.mask)
                assert seen.image.shape[:2] in ((41, 31), (20, 20))


def test_lists_of_other_photos_classes_or_folds_are_refused(built: Built, tmp_path: Path) -> None:
    shards = built("coco20i")
    listed = _list("coco20i", "", shards.url)
    changed = replace(listed, episodes=tuple(replace(e, query=e.query + 10_000) for e in listed))
    distinct, images = len({e.query for e in listed}), len({i for e in listed for i in (e.query + 10_000, *e.supports)})
    first = listed.episodes[0]
    with pytest.raises(FssError, match=rf"{distinct} of the list's {images} images .*first: "
                       rf"{first.query_name}, id {first.query + 10_000}"):
        bind(shards, changed)
    renamed = replace(listed, episodes=tuple(replace(e, class_name=f"my {e.class_name}") for e in listed))
    with pytest.raises(FssError, match=r"class 0 of the list is 'my person'.*has 'person' there"):
        bind(shards, renamed)
    url = str(tmp_path / "l.parquet")
    write_list(url, listed)
    with pytest.raises(FssError, match="list of fold 0, not 1"):
        FoldData.open(shards.url, 1).episodes(EvalConfig(list=url))
    write_list(url, replace(listed, fold=1))
    with pytest.raises(FssError, match=r"tests 2 classes that are not in fold 1 .*first: person"):
        FoldData.open(shards.url, 1).episodes(EvalConfig(list=url))
    with pytest.raises(ValueError, match=r"eval\.shots would be ignored"):
        EvalConfig(list=url, shots=5)


def test_bams_lists_in_their_published_form(built: Built, tmp_path: Path) -> None:
    """Paths of another machine; queries in list order; the class from the label, where the list does not say it."""
    names = ["2007_000003", "2007_000001"]
    lines = [f"/data/VOC2012/JPEGImages/{n}.jpg /data/VOC2012/SegmentationClassAug/{n}.png" for n in names]
    write(tmp_path, "val/data_list_0.txt", "\n".join(lines) + "\n")
    write(tmp_path, "val/sub_class_file_list_0.txt", repr({1: [tuple(line.split()) for line in lines]}))
    for family in ("bam", "fssam"):
        listed = make_list("pascal5i", family, ListRequest(episodes=5, shards=built("pascal5i").url,
                                                           lists=str(tmp_path)))
        assert [e.query_name for e in listed] == [names[i % 2] for i in range(5)]
        assert all(e.support_names == (names[1 - i % 2],) for i, e in enumerate(listed))
        assert [e.query for e in listed][:2] == [2007000003, 2007000001]
        assert listed.origin.startswith("BAM lists ")
    write(tmp_path, "val/data_list_0.txt", lines[0] + "\n/data/2007_000777.jpg /data/2007_000777.png\n")
    with pytest.raises(FssError, match=r"lack 1 of the 2 listed photos \(first: 2007_000777\)"):
        make_list("pascal5i", "bam", ListRequest(shards=built("pascal5i").url, lists=str(tmp_path)))


def test_families_by_rule_over_shards(built: Built) -> None:
    """Where no list file is at hand: pools by area, in photo order, drawn by the family's loader."""
    shards = built("pascal5i")
    for family in ("hsnet", "bam", "fssam"):
        given: dict[str, Any] = {"fold": 0, "episodes": 6, "shards": shards.url}
        listed = make_list("pascal5i", family, ListRequest(**given))
        assert {e.query_name.removesuffix(".jpg") for e in listed} == {"2007_000001", "2007_000003"}
        assert (listed.status, listed.seed) == ("unverified", 0 if family == "hsnet" else 321)
        assert make_list("pascal5i", family, ListRequest(**given)) == listed
    train = make_list("coco20i", "bam", ListRequest(episodes=6, shards=built("coco20i").url, split="train"))
    assert all(e.query_name.startswith("train2014/") for e in train)  # as VRP-SAM's fold-0 list
    bind(built("coco20i"), train)
    with pytest.raises(FssError, match=r"ignores --workers"):
        make_list("coco20i", "hsnet", ListRequest(shards=shards.url, workers=4))
    with pytest.raises(FssError, match=r"no origin is given .*give --lists or --shards"):
        make_list("coco20i", "hsnet", ListRequest())
    with pytest.raises(FssError, match=r"no family 'hsnte'.*known: hsnet"):
        make_list("coco20i", "hsnte", ListRequest(shards=shards.url))
