"""COCO's AP of instances: known values, and a real model on shards whose photos show several objects of a class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.datasets import write_coco
from fss_models import registry
from fss_models.errors import FssError
from fss_models.instances import check_instances
from jobs.cli import make_app
from pipelines.bundles.bundle import save_bundle
from pipelines.config.data import DataConfig, SourceConfig, SplitConfig
from pipelines.config.evaluate import EvalConfig
from pipelines.data.episodes import Episode, EpisodeList
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards
from pipelines.evaluation.instances import average_precision, coded, score_instances, true_instances


def squares(*corners: int) -> list[np.ndarray]:
    """Masks of 10 x 10 pixels in a photo of 40 x 100, at these columns."""
    found = []
    for x in corners:
        mask = np.zeros((40, 100), dtype=bool)
        mask[10:20, x:x + 10] = True
        found.append(mask)
    return found


def rows(masks: list[np.ndarray], image: int = 0, **more: float) -> list[dict[str, object]]:
    return [{**coded(m), "image_id": image, "category_id": 3, **more} for m in masks]


def test_average_precision_has_known_values() -> None:
    """Would catch episodes and objects numbered from 0, which pycocotools takes for unmatched ones."""
    truth = rows(squares(0, 20, 40), iscrowd=0)
    assert average_precision(truth, rows(squares(0, 20, 40), score=0.5)) == pytest.approx((1.0, 1.0))
    merged = np.logical_or.reduce(squares(0, 20, 40))
    assert average_precision(truth, rows([merged], score=0.9)) == (0.0, 0.0)
    ap, ap50 = average_precision(truth, rows(squares(0), score=0.9))
    assert (ap, ap50) == pytest.approx((34 / 101, 34 / 101))  # of 101 levels of recall those up to a third
    ap, ap50 = average_precision(truth, rows(squares(3, 23, 43), score=0.9))  # an IoU of 7 / 13
    assert (ap, ap50) == pytest.approx((0.1, 1.0))
    assert average_precision(truth, []) == (0.0, 0.0)


def test_what_is_found_in_a_crowd_does_not_count() -> None:
    truth = rows(squares(0), iscrowd=0) + rows(squares(60), iscrowd=1)
    assert average_precision(truth, rows(squares(60, 0), score=0.9)) == pytest.approx((1.0, 1.0))


@pytest.fixture(scope="module")
def scenes(ray_cluster: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Shards of generated photos with discs of two classes, and a bundle."""
    place = tmp_path_factory.mktemp("scenes")
    write_coco(place / "raw", 16, per_photo=4, size=(96, 96), classes=2)
    build_shards(DataConfig(name="discs", source=SourceConfig(format="coco", root=str(place / "raw")), min_images=1,
                            split=SplitConfig(test_fraction=0.5)), str(place / "shards"))
    save_bundle(str(place / "bundle"), registry.build("prior", "debug"))
    return str(place / "shards"), str(place / "bundle")


def test_a_model_is_scored_on_an_episode_list(scenes: tuple[str, str]) -> None:
    shards = Shards(scenes[0])
    test = shards.photos_of(0, "test")
    episodes = EpisodeList(fold=0, shots=1, seed=0, family="drawn", shards_hash="h", episodes=tuple(
        Episode(i, 0, 0, query, (test[i - 1],)) for i, query in enumerate(test)))
    model = registry.build("prior", "debug").eval()
    found = score_instances(model, shards, episodes, EvalConfig(batch=3), "pieces")
    assert found["objects"] == sum(len(true_instances(shards, e)) for e in episodes)
    assert found["objects"] > len(episodes)
    assert found["found"] > 0
    assert 0 <= found["ap"] <= found["ap50"] <= 1
    single = [e for e in episodes if len(true_instances(shards, e)) == 1]
    alone = EpisodeList(fold=0, shots=1, seed=0, family="drawn", shards_hash="h", episodes=tuple(single))
    with pytest.raises(FssError, match="no query of the list has several instances of its class"):
        score_instances(model, shards, alone, EvalConfig(), "pieces")
    with pytest.raises(FssError, match="has no instances from 'prompts'"):
        check_instances(type(model), "prompts")


@pytest.mark.parametrize(("words", "line"), [
    (["--instances"], "method 'prior' has no instances from 'model' (use one of: pieces)"),
    (["--instances", "boxes"], "--instances is 'boxes' (known: none, model, pieces, prompts)")])
def test_the_command_refuses_what_a_method_lacks(tmp_path: Path, words: list[str], line: str) -> None:
    save_bundle(str(tmp_path / "bundle"), registry.build("prior", "debug"))
    answer = CliRunner().invoke(make_app(), ["eval", "--bundle", str(tmp_path / "bundle"), *words, "--fold", "0"])
    assert line in str(answer.exception)
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["method"] == "prior"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
