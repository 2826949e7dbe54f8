"""`fss bundles`, and the commands that use the shipped champion if a workspace has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fss_models.bundle import BundleInfo
from pipelines.bundles.bundle import load_bundle, read_bundle_info
from pipelines.serving.client import Client
from tests.fixtures.command import Fss
from tests.jobs.test_cli import assert_one_line
from tests.serving.helpers import Running, photo_folder, run_fss, supports_file


@pytest.fixture
def champion(shipped_champion: tuple[Path, BundleInfo], monkeypatch: pytest.MonkeyPatch) -> BundleInfo:
    """An installation that ships random nano weights and a SANSA bundle on them, for subprocesses too."""
    folder, info = shipped_champion
    monkeypatch.setenv("FSS_SHIPPED", str(folder))
    return info


def test_list_and_fetch(champion: BundleInfo, fss: Fss, tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        done = fss(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = told("bundles", "list")
    assert shown.startswith(f"champion: sansa/nano, bundle {champion.bundle_id}, trained on 2 classes of photos, "
                            "cross-validated mIoU 50.0, 0.")
    (facts,) = json.loads(told("bundles", "list", "--json"))["bundles"]
    assert (facts["name"], facts["bundle_id"], facts["classes"]) == ("champion", champion.bundle_id, 2)
    assert champion.bundle_id in told("bundles", "fetch", "champion", "--out", str(tmp_path / "mine" / "own"))
    assert load_bundle(str(tmp_path / "mine" / "own"))[1] == champion
    assert told("bundles", "list", "--from", str(tmp_path / "mine")).startswith("own: sansa/nano")
    told("bundles", "fetch", "own", "--from", str(tmp_path / "mine"), "--half", "--out", str(tmp_path / "again"))
    assert read_bundle_info(str(tmp_path / "again")).provenance["half_precision_of"] == champion.bundle_id


@pytest.mark.parametrize(("arguments", "line"), [
    (("fetch", "folds/nobody"), "no bundle 'folds/nobody' ships with this installation (shipped bundles: champion)"),
    (("fetch", "nobody", "--from", "{tmp}"), "there is no bundle 'nobody' here (known bundles: none)"),
])
def test_mistakes_are_one_line(champion: BundleInfo, tmp_path: Path, fss: Fss, arguments: tuple[str, ...],
                               line: str) -> None:
    (tmp_path / "none").mkdir()
    given = [a.replace("{tmp}", str(tmp_path / "none")) for a in arguments]
    assert_one_line(fss("bundles", *given, "--out", str(tmp_path / "out")), line)
    assert not (tmp_path / "out").exists()


def test_labels_come_from_the_shipped_champion_without_any_training(champion: BundleInfo, shipped_service: Running,
                                                                        fss: Fss, tmp_path: Path) -> None:
    """Without a promotion `fss label` and `fss serve` use the shipped champion, say so, and give the same parts."""
    photos, supports = photo_folder(tmp_path / "photos", 6), supports_file(tmp_path)
    arguments = ["label", "--images", str(photos), "--supports", str(supports), "--workspace", str(tmp_path / "ws"),
                 "--set", "label.chunk=8", "--set", "serve.threads=1", "--json"]
    own = run_fss(*arguments, "--out", str(tmp_path / "own"))
    assert own.returncode == 0, own.stderr
    assert f"using the one that ships with fss (sansa/nano, bundle {champion.bundle_id})" in own.stderr
    manifest = json.loads((tmp_path / "own" / "manifest.json").read_text())
    assert manifest["bundle_id"] == champion.bundle_id
    client = Client(shipped_service.url, timeout_s=10)
    assert client.health()["bundle_id"] == champion.bundle_id
    client.close()
    served = fss(*arguments, "--out", str(tmp_path / "served"), "--bundle", "shipped", "--workspace",
                 str(shipped_service.workspace))
    assert served.returncode == 0, served.stderr
    assert f"labelling through the service at {shipped_service.url}" in served.stderr
    part = "parts/chunk-000000.parquet"
    assert (tmp_path / "own" / part).read_bytes() == (tmp_path / "served" / part).read_bytes()


@pytest.mark.slow
def test_a_demo_without_a_winner_labels_with_the_shipped_champion(champion: BundleInfo, tmp_path: Path) -> None:
    settings = ["data.source.images=90", "data.source.side=96", "data.images_per_part=30", "sweep.folds=[0]",
                'methods=[{"name": "prior", "preset": "debug"}]', "eval.episodes=8", "label.chunk=8", "label.batch=4"]
    sets = [part for s in settings for part in ("--set", s)]
    done = run_fss("demo", "--out", str(tmp_path / "out"), "--json", *sets, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "No method can win" in done.stderr
    assert not (tmp_path / "out" / "champion").exists()
    (manifest,) = (tmp_path / "out" / "labels").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["bundle_id"] == champion.bundle_id
    assert (tmp_path / "out" / "report.html").exists()
