"""Builds: announced, bounded, shared, resumed, appended to."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from fss_models.errors import FssError
from pipelines.config.data import DataConfig, SourceConfig
from pipelines.config.recipe import Recipe
from pipelines.data.folds import FoldData
from pipelines.data.shards import build_shards
from pipelines.data.stream import EpisodeStream
from pipelines.features.build import ensure_features, features_url, format_bytes
from pipelines.features.folder import FeatureFolder
from pipelines.features.info import describe_features
from tests.data.benchmarks import layouts
from tests.features.conftest import MakeRecipe, copied, recipe_at, specs_of


def files_of(folder: Path) -> dict[str, int]:
    """Name -> time of writing."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*.*")}


def test_one_folder_for_both_methods(kept: dict[str, Any], shapes_shards: str) -> None:
    """All photos of the fold, plain and mirrored, in several parts; nothing else is written."""
    photos = len(FoldData.open(shapes_shards, 0).train_photos("drop"))
    assert kept["methods"] == ["fcp-debug", "vrp_sam-debug"]
    assert (kept["photos"], kept["records"], kept["written"]) == (photos, 2 * photos, 2 * photos)
    assert kept["bytes"] == 2 * photos * kept["record_bytes"]
    (facts,) = describe_features(str(Path(kept["features"]).parent), verify=True)
    assert facts["records"] == kept["records"]
    assert facts["bytes"] == kept["bytes"]
    assert facts["parts"] == facts["verified_parts"] > 2


def test_the_size_is_told_and_bounded_before_anything_is_written(
    ray_cluster: object, kept: dict[str, Any], shapes_shards: str, make_recipe: MakeRecipe,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = make_recipe("fcp")
    limited = recipe.features.model_copy(update={"max_bytes": kept["bytes"] - 1})
    line = (f"features of {kept['photos']} photos x 2 (mirrored) x {format_bytes(kept['record_bytes'])} = "
            f"{format_bytes(kept['bytes'])} -> {features_url(recipe)}/{Path(kept['features']).name} (float32)")
    with pytest.raises(FssError, match=r"over features.max_bytes") as error:
        ensure_features(recipe.model_copy(update={"features": limited}), specs_of(recipe, shapes_shards), ray_cluster)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path(features_url(recipe)).exists()
    copied(kept, recipe)
    ensure_features(recipe, specs_of(recipe, shapes_shards), ray_cluster)
    assert f"{line}: there already" in capsys.readouterr().err


def test_only_what_is_missing_is_made(
    ray_cluster: object, kept: dict[str, Any], shapes_shards: str, make_recipe: MakeRecipe
) -> None:
    """A part is lost, and the photos of another fold are new: what was there is not written again."""
    recipe = make_recipe("fcp")
    folder = copied(kept, recipe)
    before, lost = files_of(folder), sorted((folder / "parts").iterdir())[0]
    lost.unlink()
    specs = specs_of(recipe, shapes_shards) + specs_of(recipe, shapes_shards, fold=1)
    wanted = {row["sha256"] for f in (0, 1) for row in FoldData.open(shapes_shards, f).train_rows("drop")}
    (facts,) = ensure_features(recipe, specs, ray_cluster)
    lost_bytes = kept["bytes"] - sum(p.stat().st_size for p in _old(folder, before))
    assert facts["photos"] == len(wanted) > kept["photos"]
    assert facts["written"] == 2 * len(wanted) - kept["records"] + lost_bytes // kept["record_bytes"]
    after = files_of(folder)
    assert {n for n, at in before.items() if after.get(n) != at} <= {
        "about.json", f"parts/{lost.name}", f"index/{lost.stem}.parquet"}
    held = FeatureFolder.open(features_url(recipe), folder.name).locations
    assert {p.sha256 for p in held} == wanted
    assert len(held) == 2 * len(wanted)


def _old(folder: Path, before: dict[str, int]) -> list[Path]:
    """The parts that were there and have not been written since."""
    found = [folder / n for n in before if n.startswith("parts/")]
    return [p for p in found if p.exists() and p.stat().st_mtime_ns == before[f"parts/{p.name}"]]


def test_methods_that_train_their_encoder_are_refused(
    ray_cluster: object, shapes_shards: str, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe("fcp", "sansa")
    with pytest.raises(FssError, match="'sansa' at 'debug' has no frozen features to keep"):
        ensure_features(recipe, specs_of(recipe, shapes_shards), ray_cluster)
    assert not Path(features_url(recipe)).exists()
    off = make_recipe("fcp", features="off")
    with pytest.raises(FssError, match=r"train.features is off"):
        ensure_features(off, specs_of(off, shapes_shards), ray_cluster)


def test_crops_of_part_benchmarks_are_refused(ray_cluster: object, tmp_path: Path) -> None:
    """By the build before anything is written, and by the stream."""
    layouts.pascal_part(tmp_path / "raw")
    config = DataConfig(name="pascal_part", source=SourceConfig(format="pascal_part", root=str(tmp_path / "raw")))
    recipe: Recipe = recipe_at(str(tmp_path / "out"), config, "fcp")
    shards = str(tmp_path / "out" / "shards" / "pascal_part")
    manifest = build_shards(config, shards)
    with pytest.raises(FssError, match=r"samples are crops of photos.*train.features=off"):
        ensure_features(recipe, specs_of(recipe, shards), ray_cluster)
    assert not Path(features_url(recipe)).exists()
    classes = [c.class_id for c in manifest.classes]
    with EpisodeStream(shards, classes=classes, batch=4, seed=0, decode=False) as stream, \
            pytest.raises(FssError, match="this sample is a crop"):
        list(islice(stream, 8))
