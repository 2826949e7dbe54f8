"""A finished pretraining becomes the weights that ship, and what it was made from is told whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fss_models import registry
from fss_models.errors import FssError
from fss_models.shipped.files import read_provenance
from pipelines.config import DataConfig
from pipelines.data.shardset import Shards
from pipelines.pretraining.config import PretrainConfig
from pipelines.pretraining.run import run_pretraining
from pipelines.pretraining.ship import ship_run
from pipelines.shipped import shipped_problems


@pytest.fixture(scope="module")
def run(ray_cluster: object, shapes_config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step at nano."""
    out = tmp_path_factory.mktemp("pretrain") / "run"
    run_pretraining(PretrainConfig(
        data=[shapes_config], preset="nano", out=str(out), steps=1, clips=2, ring=2, fresh=1, warmup=1, log_every=1,
        measure_every=1, checkpoint_every=1, precision="fp32"), lambda row: None)
    return out


def test_a_pretraining_ships(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ship_run(str(run), licences={"shapes": "drawn"}, terms="research use", quality={"miou": 0.25}, to=tmp_path)
    assert shipped_problems(tmp_path) == []
    assert made == read_provenance(tmp_path / "nano.json")
    assert made.quality["miou"] == 0.25
    assert len(made.quality) > 1, "what the run measured itself"
    (data,) = made.data
    rows = Shards(str(run / "shards" / "shapes")).rows.values()
    train = {r["sha256"][:16] for r in rows if r["split"] == "train"}
    assert set(data.photos) < train, "train photos, less those that measured"
    shipped, own = load_file(tmp_path / "nano.safetensors"), load_file(run / "model.safetensors")
    assert shipped.keys() == own.keys()
    assert all(torch.equal(shipped[k], own[k]) for k in own)
    monkeypatch.setenv("FSS_SHIPPED", str(tmp_path))
    assert not registry.build("fssam", "nano").untrained


def test_what_is_not_told_does_not_ship(run: Path, tmp_path: Path) -> None:
    about = run / "model.json"
    content = json.loads(about.read_text())
    for change, licences, line in (({}, {}, "dataset 'shapes' has no licence"),
                                   ({"photos": ["0" * 16]}, {"shapes": "drawn"}, "is of none of the datasets"),
                                   ({"preset": "debug"}, {"shapes": "drawn"}, "no weights ship for preset 'debug'"),
                                   ({"sha256": "0" * 64}, {"shapes": "drawn"}, "about another file")):
        about.write_text(json.dumps(content | change))
        with pytest.raises(FssError, match=line):
            ship_run(str(run), licences=licences, terms="research use", to=tmp_path / "out")
    about.write_text(json.dumps(content))
    with pytest.raises(FssError, match="no finished pretraining"):
        ship_run(str(tmp_path), licences={}, terms="", to=tmp_path / "out")
    assert not (tmp_path / "out").exists()
