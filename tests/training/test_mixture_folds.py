"""A mixture with folds: what is novel in the recipe's data is hidden in the other datasets, whatever its name there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import pytest

from fss_models.errors import FssError
from jobs.recipes import load_recipe
from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import read_bundle_info
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.config.sweep import SweepConfig
from pipelines.config.train import TrainConfig
from pipelines.data.benchmarks.coco import PASCAL_IN_COCO
from pipelines.data.class_names import find_counterparts, meanings
from pipelines.data.folds import FoldData
from pipelines.data.shardset import Shards
from pipelines.sweeps.plan import plan_sweep
from pipelines.training.context import RunContext
from pipelines.training.loop import optimise
from pipelines.training.task import WorkerRank
from pipelines.training.worker import open_run
from tests.training.mixed_data import mixed_data

NOVEL = {0: {"airplane"}, 1: {"bus"}, 2: {"dog"}, 3: {"couch", "tv"}}  # as the COCO directory names them


@pytest.fixture(scope="module")
def recipe(ray_cluster: object, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """sansa at debug on the mixture; its shards are built by `plan_sweep`."""
    root = tmp_path_factory.mktemp("mixed")
    main, other = mixed_data(root)
    made = Recipe(
        name="mixed", out=str(root / "out"), data=main, mixture=[other],
        methods=[MethodConfig(name="sansa", preset="debug")],
        train=TrainConfig(steps=3, batch=2, log_every=1, pool_bytes=64_000_000), eval=EvalConfig(episodes=6),
        sweep=SweepConfig(cpus_per_run=0.9))
    plan_sweep(made)
    return made


def planned(recipe: Recipe, fold: int, novel_images: Literal["drop", "keep"] = "drop") -> RunSpec:
    train = recipe.train.model_copy(update={"novel_images": novel_images})
    return next(s for s in plan_sweep(recipe.model_copy(update={"train": train})) if s.fold == fold)


def drawn(spec: RunSpec, batches: int = 60) -> Iterator[Any]:
    data = FoldData.open(spec.shards, spec.fold)
    stream = data.stream(spec, position=None, rank=0, world=1)
    try:
        for batch in islice(stream, batches):
            yield from batch
    finally:
        stream.close()


def photos_by_sha(spec: RunSpec) -> dict[str, set[str]]:
    """sha256 (16 digits) -> the names of all classes in the photo, over both datasets, PASCAL's in COCO's words."""
    found: dict[str, set[str]] = {}
    for url in (spec.shards, *(m.shards for m in spec.mixture)):
        shards = Shards(url)
        for row in shards.rows.values():
            names = {shards.class_names[c] for c in row["class_ids"]}
            found[row["sha256"][:16]] = {PASCAL_IN_COCO.get(n, n) for n in names}
    return found


def test_pascal_and_coco_names_meet() -> None:
    for pascal, coco in PASCAL_IN_COCO.items():
        assert meanings(pascal) == meanings(coco), pascal
    assert len({frozenset(meanings(c)) for c in PASCAL_IN_COCO.values()}) == 20
    others = {0: "Dining_Table", 1: "car", 2: "sofa, couch, lounge", 3: "bus_(vehicle)", 4: "dog+HEAD", 5: "chair:leg",
              6: "carrot", 7: "hot dog"}
    found = find_counterparts(["diningtable", "sofa", "bus", "dog", "chair"], others)
    assert set(found) == {0, 2, 3, 4, 5}, "carrot is no car, a hot dog no dog"


@pytest.mark.parametrize("fold", sorted(NOVEL))
def test_no_novel_annotation_under_any_name(recipe: Recipe, fold: int) -> None:
    """Would catch a counterpart that is trained on: 'airplane' where aeroplanes are tested."""
    spec = planned(recipe, fold, "keep")
    classes = {PASCAL_IN_COCO.get(s.class_name, s.class_name) for s in drawn(spec)}
    assert not classes & NOVEL[fold]
    assert "zebra" in classes, "the other dataset's own classes are trained on"
    assert classes & set().union(*(NOVEL[f] for f in NOVEL if f != fold))


@pytest.mark.parametrize("fold", sorted(NOVEL))
def test_dropped_photos_show_nothing_novel(recipe: Recipe, fold: int) -> None:
    """Also where the other dataset dropped the class for too few photos (tv): its photos show it all the same."""
    shown = {}
    for way in ("drop", "keep"):
        spec = planned(recipe, fold, way)  # type: ignore[arg-type]
        parts, by_sha = FoldData.open(spec.shards, spec.fold).parts(spec), photos_by_sha(spec)
        said = {p for d in parts for p in d.train_photos(way)}
        opened = {(s.class_name, i.image_id) for s in drawn(spec) for i in (*s.references, *s.targets)}
        rows = {(c.name, i): row["sha256"][:16] for d in parts for c in d.base for i, row in d.shards.rows.items()}
        seen = {rows[one] for one in opened}
        assert seen <= said
        shown[way] = set().union(*(by_sha[p] for p in seen))
    assert not shown["drop"] & NOVEL[fold]
    assert shown["keep"] & NOVEL[fold]


def test_classes_held_out_to_choose_steps_are_hidden_under_any_name(recipe: Recipe) -> None:
    spec = planned(recipe, 0)
    held = next(c for c in FoldData.of(spec).base if c.name == "sofa")
    spec = spec.model_copy(update={"holdout": (held.class_id,)})
    own, other = FoldData.of(spec).parts(spec)
    assert other.hidden_names == ["airplane", "couch"]
    assert own.hidden_names == ["aeroplane", "sofa"]
    assert held.class_id not in {c.class_id for c in own.base}


def test_without_a_fold_nothing_is_hidden(recipe: Recipe) -> None:
    spec = planned(recipe, 0).model_copy(update={"fold": None})
    parts = FoldData.open(spec.shards, None).parts(spec)
    assert [d.hidden_names for d in parts] == [[], []]
    assert {"airplane", "zebra"} <= {c.name for c in parts[1].base}


def test_a_bundle_says_what_was_hidden(recipe: Recipe) -> None:
    run = RunContext(spec=planned(recipe, 3), runs=Workspace(recipe.out).runs)
    task = open_run(run, WorkerRank())
    task.finish(optimise(task, worker=WorkerRank(), resume=None, save=lambda step, write: None,
                         log_row=lambda step, row: None))
    info = read_bundle_info(run.bundle)
    assert info.provenance["hidden_classes"] == {"voc": ["sofa", "tvmonitor"], "coco": ["couch", "tv"]}
    assert not {"sofa", "couch", "tv", "tvmonitor"} & set(info.classes)
    assert {"airplane", "aeroplane", "zebra"} <= set(info.classes)
    by_sha = photos_by_sha(planned(recipe, 3))
    assert info.trained_on
    assert not any(by_sha[p] & NOVEL[3] for p in info.trained_on)
    assert any("zebra" in by_sha[p] for p in info.trained_on)


def test_shards_that_do_not_name_their_dropped_classes_are_refused(recipe: Recipe) -> None:
    """Shards of an older build: a photo of a dropped counterpart could not be told."""
    spec = planned(recipe, 3)
    store = Store(spec.mixture[0].shards)
    document = store.read_json("manifest.json")
    try:
        store.write_json("manifest.json", {k: v for k, v in document.items() if k != "dropped_ids"})
        with pytest.raises(FssError, match="do not record the ids of their dropped classes"):
            FoldData.open(spec.shards, 3).parts(spec)
    finally:
        store.write_json("manifest.json", document)


def test_the_shipped_nano_recipes_hide_by_fold() -> None:
    pascal, coco = load_recipe("nano_pascal5i"), load_recipe("nano_coco20i")
    assert (pascal.data.folds, pascal.data.fold_rule) == (4, "contiguous")
    assert (coco.data.folds, coco.data.fold_rule, coco.mixture) == (4, "interleaved", [])
    assert [m.weight for m in pascal.mixture] == [0.6]
    for one in (pascal, coco):
        assert [m.name for m in one.methods] == ["prior", "insid3", "gf_sam", "sam2_frozen", "sansa", "fssam", "fssam",
                                                 "fcp", "vrp_sam", "pfenet", "ssp", "cyctr", "bam",
                                                 "hdmnet"]
        assert {m.preset for m in one.methods} == {"nano"}
    changed = load_recipe("nano_pascal5i", ["data.split.file=a.json", "mixture.0.data.split.file=a.json",
                                            "mixture.0.data.source.root=b"])
    assert changed.data.split.file == changed.mixture[0].data.split.file == "a.json"


def test_a_class_is_hidden_with_what_the_recipe_says_it_means(recipe: Recipe) -> None:
    """Would catch a breed of dogs that is trained on where dogs are tested."""
    spec = planned(recipe, 0)
    share = spec.mixture[0]
    told = spec.model_copy(update={"mixture": (share.model_copy(update={"means": {"zebra": "horse, aeroplane"}}),)})
    assert FoldData.of(told).parts(told)[1].hidden_names == ["airplane", "zebra"]
    assert told.digest != spec.digest
    wrong = spec.model_copy(update={"mixture": (share.model_copy(update={"means": {"zebr": "horse"}}),)})
    with pytest.raises(FssError, match="means names the class 'zebr', which this dataset does not have"):
        FoldData.of(wrong).parts(wrong)


def test_a_dataset_of_which_nothing_is_left_is_left_out(recipe: Recipe) -> None:
    """Would catch a fold that cannot be trained because a further dataset shows novel classes only."""
    spec = planned(recipe, 0)
    share = spec.mixture[0]
    novel = dict.fromkeys(Shards(share.shards).class_names.values(), "aeroplane")
    alone = spec.model_copy(update={"mixture": (share.model_copy(update={"means": novel}),)})
    assert not FoldData.of(alone).parts(alone)[1].base
    own = {c.name for c in FoldData.of(alone).base}
    assert {s.class_name for s in drawn(alone, 20)} <= own
