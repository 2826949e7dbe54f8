"""`fss eval` on a directory and on a recipe: the figures, the JSON file, and the bundles that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from fss_models import registry
from fss_models.errors import FssError
from fss_models.metrics import episode_counts
from jobs.cli import make_app
from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import load_bundle, save_bundle
from pipelines.config.data import DataConfig
from pipelines.config.evaluate import EvalConfig
from pipelines.config.recipe import Recipe
from pipelines.data.episodes import load_episode
from pipelines.data.published import bind, read_list
from pipelines.data.shardset import Shards
from pipelines.evaluation.predict import predict
from tests.fixtures.command import Fss
from tests.jobs.test_cli import assert_one_line, run
from tests.training.mixed_data import voc_directory

FIGURES = ("miou", "fb_iou", "interval", "per_class", "list_hash", "episodes", "images_per_s", "bundle_id", "shot",
           "fold", "dropped_classes", "seed", "photos", "dataset")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VOC directory whose photos 4 and 5 of each class are val, and an untrained bundle."""
    root = tmp_path_factory.mktemp("eval")
    voc_directory(root / "voc")
    names = [p.stem for p in (root / "voc" / "JPEGImages").iterdir()]
    listed = root / "voc" / "ImageSets" / "Segmentation" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("".join(f"{n}\n" for n in sorted(names) if int(n[-1]) >= 2))
    save_bundle(str(root / "bundle"), registry.build("prior", "debug", {}))
    return root


def evaluated(place: Path, *more: str, bundle: str = "bundle") -> Any:
    """Run the command in this process; errors are raised as they are."""
    args = ["eval", "--bundle", str(place / bundle), "--dataset", "pascal5i", "--root", str(place / "voc"), "--out",
            str(place / "out"), "--episodes", "12", *more]
    return CliRunner().invoke(make_app(), args, catch_exceptions=False)


def test_the_figures_equal_an_independent_count(ray_cluster: object, place: Path) -> None:
    """Compares every figure with intersections and unions that are counted here, mask by mask."""
    answer = evaluated(place, "--fold", "3", "--json", str(place / "result.json"))
    found = json.loads((place / "result.json").read_text())
    assert set(FIGURES) <= set(found)
    assert f"mIoU {found['miou'] * 100:.1f}" in answer.output
    assert (found["fold"], found["shot"], found["episodes"], found["photos"]) == (3, 1, 12, 20)
    assert set(found["dropped_classes"]) == {"pottedplant", "sheep", "train"}
    shards, model = Shards(str(Path(found["list"]["url"]).parents[1])), load_bundle(str(place / "bundle"))[0]
    counted: dict[str, list[int]] = {}
    listed = read_list(found["list"]["url"])
    assert listed.sha256 == found["list_hash"]
    for episode in bind(shards, listed):
        sample = load_episode(shards, episode)
        mask, _ = predict(model, sample)
        target = sample.targets[0]
        inter, union = episode_counts(*(torch.from_numpy(m.copy()) for m in (mask, target.mask, target.ignore)))
        one = counted.setdefault(sample.class_name, [0, 0])
        one[0], one[1] = one[0] + inter[1], one[1] + union[1]
    own = {name: a / max(b, 1) for name, (a, b) in counted.items()}
    assert set(own) == {"sofa", "tvmonitor"} == set(found["per_class"])
    for name, iou in own.items():
        assert found["per_class"][name] == pytest.approx(iou, abs=0.02), name
    assert found["miou"] == pytest.approx(sum(found["per_class"].values()) / 2)
    assert found["interval"][0] <= found["miou"] <= found["interval"][1] or found["interval"][0] == found["interval"][1]


def test_a_second_call_gives_the_same_result_on_standard_output(ray_cluster: object, place: Path) -> None:
    first = json.loads(evaluated(place, "--json", "-").stdout)
    second = json.loads(evaluated(place, "--json", "-").stdout)
    speed = {"images_per_s", "seconds"}
    assert {k: v for k, v in first.items() if k not in speed} == {k: v for k, v in second.items() if k not in speed}
    other = json.loads(evaluated(place, "--seed", "1", "--shot", "2", "--json", "-").stdout)
    assert other["list_hash"] != first["list_hash"]
    assert (other["seed"], other["shot"]) == (1, 2)


@pytest.mark.parametrize("field", ["trained_on", "pretrained_on"])
def test_a_bundle_that_saw_a_test_photo_is_refused(ray_cluster: object, place: Path, field: str) -> None:
    """Both training and pretraining count, and one photo of the list is enough."""
    found = json.loads(evaluated(place, "--json", "-").stdout)
    shards = Shards(str(Path(found["list"]["url"]).parents[1]))
    query = read_list(found["list"]["url"]).episodes[0].query
    about: dict[str, Any] = {field: [shards.rows[query]["sha256"][:16]]}
    save_bundle(str(place / field), registry.build("prior", "debug", {}), **about)
    with pytest.raises(FssError, match=r"was trained on 1 of the \d+ test photos \(first: 2007_"):
        evaluated(place, bundle=field)


@pytest.mark.parametrize(("args", "line"), [
    (("--dataset", "pascal5i", "--root", "nowhere"), "no such folder"),
    (("--dataset", "pascal5i"), "give --root"),
    (("--shot", "5"), "--shot works with --dataset only"),
    (("--dataset", "pascal5i", "--root", ".", "--recipe", "debug"), "both say what is tested"),
    (("--dataset", "pascal5i", "--root", ".", "--set", "data.folds=2"), "--set data.folds would be ignored"),
])
def test_mistakes_end_with_status_2_and_one_line(place: Path, fss: Fss, tmp_path: Path, args: tuple[str, ...],
                                                 line: str) -> None:
    assert_one_line(fss("eval", "--bundle", str(place / "bundle"), *args, cwd=tmp_path), line)
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_its_own_shows_nothing_else(place: Path, tmp_path: Path) -> None:
    args = ("--dataset", "pascal5i", "--root", ".", "--fold", "4")
    assert_one_line(run("eval", "--bundle", str(place / "bundle"), *args, cwd=tmp_path), "there is no fold 4")
    assert list(tmp_path.iterdir()) == []


def test_a_fold_of_a_recipe_is_scored(
    ray_cluster: object, shapes_config: DataConfig, shapes_shards: str, place: Path, tmp_path: Path
) -> None:
    target = Path(Workspace(str(tmp_path / "out")).shards(shapes_config.name))
    target.parent.mkdir(parents=True)
    target.symlink_to(shapes_shards)
    recipe = Recipe(out=str(tmp_path / "out"), data=shapes_config, eval=EvalConfig(episodes=10))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump()))
    args = ["eval", "--bundle", str(place / "bundle"), "--recipe", str(tmp_path / "recipe.yaml"), "--fold", "1"]
    CliRunner().invoke(make_app(), [*args, "--json", str(tmp_path / "deep" / "r.json")], catch_exceptions=False)
    found = Store(str(tmp_path / "deep")).read_json("r.json")
    assert found["spec"]["fold"] == 1
    assert found["episodes"] == 10
    assert found["bundle_id"] == load_bundle(str(place / "bundle"))[1].bundle_id
