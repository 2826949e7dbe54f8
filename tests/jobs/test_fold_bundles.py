"""The bundles of the best nano method on the folds of PASCAL-5i, which are in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import fss_models.shipped
from jobs.cli import make_app
from pipelines.bundles.bundle import load_bundle, read_bundle_info
from pipelines.data.benchmarks.pascal import NAMES, fold_classes
from pipelines.data.class_names import find_counterparts

PLACE = Path(__file__).parents[2] / "benchmarks" / "bundles"


@pytest.fixture(autouse=True)
def real_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSS_SHIPPED", str(Path(fss_models.shipped.__file__).parent))


def test_the_bundles_are_listed_and_can_be_fetched(tmp_path: Path) -> None:
    listed = CliRunner().invoke(make_app(), ["bundles", "list", "--from", str(PLACE)]).stdout.splitlines()
    assert [line.split(":")[0] for line in listed] == [f"nano_pascal5i/fold-{f}" for f in range(4)]
    name, target = "nano_pascal5i/fold-0", str(tmp_path / "mine")
    done = CliRunner().invoke(make_app(), ["bundles", "fetch", name, "--from", str(PLACE), "--out", target])
    assert done.exit_code == 0, done.output
    assert load_bundle(target)[1] == read_bundle_info(str(PLACE / name))


@pytest.mark.parametrize("fold", range(4))
def test_no_bundle_was_trained_on_a_class_of_its_fold_under_any_name(fold: int) -> None:
    info = read_bundle_info(str(PLACE / f"nano_pascal5i/fold-{fold}"))
    novel = [NAMES[c] for c in fold_classes(fold)]
    assert len(novel) == 5
    assert not find_counterparts(novel, dict(enumerate(info.classes)))
    assert set(novel) == set(info.provenance["hidden_classes"]["voc"])
    assert {n for n in NAMES.values() if n not in novel} <= set(info.classes)
    assert info.trained_on
    assert info.pretrained_on
