"""Bundles on a hub: pushed, fetched and used from there; mistakes are one line; what was cut is done again."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
import yaml

import fss_models
from fss_models import registry
from fss_models.bundle import BundleInfo
from fss_models.errors import FssError
from pipelines import load
from pipelines.base.storage import Store
from pipelines.bundles.bundle import read_bundle_files, read_bundle_info, save_bundle
from pipelines.bundles.push import for_hub, push_bundle
from pipelines.bundles.shipped import copy_bundle, find_bundle
from pipelines.config.choose import CalibrateConfig
from pipelines.data.shardset import Shards
from pipelines.selection.calibrate import calibrate_bundle
from pipelines.serving.client import Client
from tests.fixtures.command import Fss
from tests.fixtures.hub import TOKEN, LocalHub
from tests.jobs.test_cli import assert_one_line
from tests.serving.helpers import photo_folder, run_fss, running_service, supports_file

PLACE = "hf://owner/gear"


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[str, BundleInfo]:
    url = str(tmp_path / "bundle")
    about = {"dataset": "shapes", "classes": ["star", "ring"], "trained_on": ["0" * 16],
             "provenance": {"spec": {"shards": str(tmp_path / "private" / "shapes")}}}
    return url, save_bundle(url, registry.build("sansa", "debug", seed=3), **about)


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def test_what_was_pushed_is_what_is_used(hub: LocalHub, token: None, bundle: tuple[str, BundleInfo],
                                         tmp_path: Path) -> None:
    url, info = bundle
    pinned, changed = push_bundle(for_hub(url, PLACE, licence="apache-2.0"))
    assert changed
    repository = hub.repositories["owner/gear"]
    assert repository.private, "nothing is made public unasked"
    assert set(repository.commits[repository.heads["main"]]) == {".gitattributes", "README.md", "bundle.json",
                                                                 "model.safetensors"}
    assert pinned == f"{PLACE}@{repository.heads['main']}"
    for place in (PLACE, pinned, f"{PLACE}@main"):
        model = load(place)
        assert model.info.bundle_id == info.bundle_id
    assert all(torch.equal(model.model.state_dict()[k], v)
               for k, v in registry.build("sansa", "debug", seed=3).trainable_state().items())
    copied = copy_bundle(find_bundle(PLACE), str(tmp_path / "copy"))
    assert read_bundle_files(str(tmp_path / "copy")) == read_bundle_files(PLACE)
    assert copied.provenance == {"spec": {"shards": "shapes"}}, "paths of this machine are nobody's business"
    assert hub.tokens == {TOKEN}


def test_a_second_push_changes_nothing_and_a_new_bundle_is_one_commit(
        hub: LocalHub, token: None, bundle: tuple[str, BundleInfo], tmp_path: Path) -> None:
    first, _ = push_bundle(for_hub(bundle[0], PLACE))
    hub.asked.clear()
    assert push_bundle(for_hub(bundle[0], PLACE)) == (first, False)
    assert not [a for a in hub.asked if "commit" in a or "large" in a or "preupload" in a]
    other = save_bundle(str(tmp_path / "other"), registry.build("sansa", "debug", {"factor": 0.8}, seed=4))
    second, changed = push_bundle(for_hub(str(tmp_path / "other"), PLACE))
    assert changed
    assert (load(second).info.bundle_id, load(first).info.bundle_id) == (other.bundle_id, bundle[1].bundle_id)
    assert len(hub.repositories["owner/gear"].commits) == 3


def test_a_calibrator_that_is_gone_is_gone_there(hub: LocalHub, token: None, bundle: tuple[str, BundleInfo]) -> None:
    push_bundle(for_hub(bundle[0], PLACE))
    hub.repositories["owner/gear"].commit({"calibrator.safetensors": b"of an earlier bundle"})
    push_bundle(for_hub(bundle[0], PLACE))
    repository = hub.repositories["owner/gear"]
    assert "calibrator.safetensors" not in repository.commits[repository.heads["main"]]


@pytest.mark.parametrize("cut", ["preupload", "/large/", "/commit/main"])
def test_a_cut_push_is_pushed_again(hub: LocalHub, token: None, bundle: tuple[str, BundleInfo], cut: str,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """The client tries again by itself what may be tried again; what stays broken is one line and no bundle there."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits longer and longer between its attempts
    hub.drop += [cut] * 20
    with pytest.raises(FssError, match=rf"^{PLACE}: the hub's client failed: [^\n]*$"):
        push_bundle(for_hub(bundle[0], PLACE))
    assert len(hub.repositories["owner/gear"].commits) == 1, "the commit that made it"
    sent = len(hub.large)
    hub.drop.clear()
    hub.asked.clear()
    pinned, changed = push_bundle(for_hub(bundle[0], PLACE))
    assert changed
    assert load(pinned).info.bundle_id == bundle[1].bundle_id
    assert sent == (cut == "/commit/main")
    assert len([a for a in hub.asked if a.startswith("PUT /large/")]) == 1 - sent, "what is there is not sent again"


def test_a_cut_fetch_is_fetched_again(hub: LocalHub, token: None, bundle: tuple[str, BundleInfo],
                                      tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    push_bundle(for_hub(bundle[0], PLACE))
    target = tmp_path / "copy"
    hub.drop += ["model.safetensors"] * 20
    with pytest.raises(FssError, match=PLACE):
        copy_bundle(find_bundle(PLACE), str(target))
    assert not target.exists()
    hub.drop.clear()
    assert copy_bundle(find_bundle(PLACE), str(target)).bundle_id == bundle[1].bundle_id


def test_a_folder_and_a_branch(hub: LocalHub, token: None, bundle: tuple[str, BundleInfo]) -> None:
    push_bundle(for_hub(bundle[0], f"{PLACE}/small"))
    hub.repositories["owner/gear"].heads["trial"] = hub.repositories["owner/gear"].heads["main"]
    pinned, _ = push_bundle(for_hub(bundle[0], f"{PLACE}@trial"))
    assert load(f"{PLACE}/small").info.bundle_id == load(pinned).info.bundle_id
    with pytest.raises(FssError, match=r"there is no such file in this repository"):
        load(PLACE)


def test_mistakes_are_one_line(hub: LocalHub, bundle: tuple[str, BundleInfo], fss: Fss, tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    push = ("bundles", "push", PLACE, "--bundle", bundle[0])
    fetch = ("bundles", "fetch", "--out", str(tmp_path / "out"))
    assert_one_line(fss(*push), "writing to the hub needs a token (set HF_TOKEN")
    assert not hub.asked, "without a token nothing is asked"
    assert_one_line(fss(*fetch, PLACE), "no such repository, or it is private and HF_TOKEN is not set")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_but_secret")
    for done in (fss(*push), fss(*fetch, PLACE)):
        assert "hf_wrong_but_secret" not in done.stdout + done.stderr
        assert_one_line(done, "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert_one_line(fss(*fetch, PLACE), "no such repository, or HF_TOKEN may not see it")
    assert "one line" not in fss(*push).stderr
    assert_one_line(fss(*fetch, f"{PLACE}@v9"), "this repository has no revision 'v9'")
    assert_one_line(fss(*fetch, "hf://gear"), "this names no repository of the hub (write hf://owner/repository")
    assert_one_line(fss(*fetch, PLACE, "--from", "x"), "a bundle on the hub is below no other place")
    hub.readers_only = True
    assert_one_line(fss("bundles", "push", "hf://owner/other", "--bundle", bundle[0]), "does not allow this")
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_others_cannot_build_is_not_pushed(hub: LocalHub, token: None, tmp_path: Path) -> None:
    url = str(tmp_path / "b")
    save_bundle(url, registry.build("sansa", "debug"), weights="/home/me/sam.pt")
    with pytest.raises(FssError, match=r"built on /home/me/sam\.pt, a file that others do not have.*--weights"):
        for_hub(url, PLACE)
    made = for_hub(url, PLACE, weights="hf://facebook/sam2-hiera-large/sam2_hiera_large.pt")
    assert made.info.weights.startswith("hf://facebook")
    assert made.info.bundle_id == read_bundle_info(url).bundle_id
    assert "hf://facebook/sam2-hiera-large" in made.card


def test_a_repository_with_other_files_is_refused(hub: LocalHub, token: None, bundle: tuple[str, BundleInfo],
                                                  tmp_path: Path) -> None:
    push_bundle(for_hub(bundle[0], PLACE))
    for name in ("pytorch_model.bin", "model.pkl", "gear/weights.pt", "setup.py"):
        hub.repositories["owner/gear"].commit({name: b"\x80\x04."})
        with pytest.raises(FssError, match=rf"holds {re.escape(name)}, and fss takes only safetensors"):
            find_bundle(PLACE)
        assert not list(tmp_path.rglob(Path(name).name))
        hub.repositories["owner/gear"].commit({name: None})
    hub.repositories["owner/gear"].commit({"model.pkl": b"\x80\x04."})
    assert load(PLACE).info.bundle_id == bundle[1].bundle_id, "its own files are all that loading reads"


def test_a_bundle_on_the_hub_is_not_changed_in_place(hub: LocalHub) -> None:
    with pytest.raises(FssError, match="is not changed in place"):
        calibrate_bundle(PLACE, Shards.__new__(Shards), CalibrateConfig())
    with pytest.raises(FssError, match=r"pipelines\.load reads bundles in buckets and on the hub"):
        fss_models.load(PLACE)
    assert not hub.asked


def test_a_wrong_hash_is_told(hub: LocalHub, token: None, bundle: tuple[str, BundleInfo], tmp_path: Path) -> None:
    push_bundle(for_hub(bundle[0], PLACE))
    other = registry.build("sansa", "debug", seed=9)
    save_bundle(str(tmp_path / "other"), other)
    tensors = Store(str(tmp_path / "other")).read_bytes("model.safetensors")
    hub.repositories["owner/gear"].commit({"model.safetensors": tensors})
    for call in (lambda: load(PLACE), lambda: copy_bundle(PLACE, str(tmp_path / "out"))):
        with pytest.raises(FssError, match=rf"^{PLACE}: model\.safetensors does not match bundle\.json"):
            call()
    assert not (tmp_path / "out").exists()


def test_the_token_is_in_no_line(hub: LocalHub, bundle: tuple[str, BundleInfo], fss: Fss, token: None,
                                 caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        done = fss("bundles", "push", PLACE, "--bundle", bundle[0], "--json")
        again = fss("bundles", "push", PLACE, "--bundle", bundle[0])
    assert done.returncode == again.returncode == 0, done.stderr
    assert again.stdout.startswith(f"bundle {bundle[1].bundle_id} is there: {PLACE}@")
    assert TOKEN not in caplog.text + done.stdout + done.stderr + again.stdout + again.stderr


def test_a_command_takes_its_bundle_from_the_hub(hub: LocalHub, token: None, bundle: tuple[str, BundleInfo], fss: Fss,
                                                 tmp_path: Path) -> None:
    push_bundle(for_hub(bundle[0], PLACE))
    done = fss("support", "check", "--supports", str(supports_file(tmp_path)), "--bundle", PLACE, "--page",
               str(tmp_path / "check.html"), "--workspace", str(tmp_path / "ws"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "check.html").is_file()
    assert any("/resolve/main/model.safetensors" in asked for asked in hub.asked)


def test_the_card_says_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FSS_SHIPPED")
    made = for_hub("shipped", f"{PLACE}@trial", licence="cc-by-nc-4.0", data_licence="for research")
    crossed, card = made.info.metrics["cross_validated"], made.card
    low, high = (f"{v * 100:.1f}" for v in crossed["interval"])
    assert f"mean IoU **{crossed['miou'] * 100:.1f} %**\n(95 % interval {low} to {high})" in card
    assert f"| mIoU, % | {' | '.join(f'{v * 100:.1f}' for v in crossed['folds'].values())} |" in card
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["license"], head["library_name"]) == ("cc-by-nc-4.0", "fss")
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == round(crossed["miou"], 4)
    assert f"Trained on {len(made.info.trained_on):,} photos of `voc`, `coco`, `voc_aug`, " in card
    for part in ('pipelines.load("hf://owner/gear")', "Terms of these photos and annotations: for research.",
                 "photos under Flickr's terms", made.info.tensors_sha256, made.info.calibrator, made.info.bundle_id,
                 "presence AUROC 0.", *made.info.frozen.values()):
        assert part in card
    assert card == for_hub("shipped", PLACE, licence="cc-by-nc-4.0", data_licence="for research").card


def test_the_card_of_a_bundle_without_figures_has_none(bundle: tuple[str, BundleInfo]) -> None:
    card = for_hub(bundle[0], PLACE).card
    for part in ("No cross-validated figure is kept", "no calibrator: scores order masks", "none was stated",
                 "photos and annotations were not stated", "star, ring"):
        assert part in card
    assert "mean IoU" not in card
    assert not {"license", "model-index"} & set(yaml.safe_load(card.split("---\n")[1]))


@pytest.mark.slow
def test_a_job_and_a_service_take_their_bundle_from_the_hub(hub: LocalHub, token: None,
                                                            bundle: tuple[str, BundleInfo], tmp_path: Path) -> None:
    """Their workers read it too, in processes of their own: fails if one of them takes the URL for a folder."""
    pinned, _ = push_bundle(for_hub(bundle[0], PLACE))
    photos, supports = photo_folder(tmp_path / "photos", 4), supports_file(tmp_path)
    variables = {"HF_HUB_DISABLE_XET": "1"}
    for engine, place in (("serve", PLACE), ("actors", pinned)):
        out = tmp_path / engine
        done = run_fss("label", "--images", str(photos), "--supports", str(supports), "--bundle", place, "--out",
                       str(out), "--workspace", str(tmp_path / "ws"), "--engine", engine, "--json", **variables)
        assert done.returncode == 0, done.stderr[-3000:]
        assert Store(str(out)).read_json("manifest.json")["bundle_id"] == bundle[1].bundle_id
        assert TOKEN not in done.stdout + done.stderr
    with running_service(PLACE, tmp_path / "served", "--set", "serve.threads=1", **variables) as service:
        client = Client(service.url, timeout_s=30)
        assert client.health()["bundle_id"] == bundle[1].bundle_id
        client.close()
