"""Presence with a real model and a calibrator fitted on its masks: photos without the ball are recognised."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fss_models import registry
from fss_models.calibration import describe_support, look, measure
from fss_models.calibration_fit import Observation, fit_calibrator
from fss_models.clip import Prompt, PromptKind
from fss_models.errors import FssError
from fss_models.presence import status_of
from fss_models.prompts import mask_prompt
from fss_models.segmenter import Segmenter
from pipelines.base.storage import Store
from pipelines.bundles.bundle import bundle_calibrator, load_predictor, read_bundle_info, save_bundle, save_calibrator
from pipelines.bundles.shipped import copy_bundle
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Label, PhotoFailure, Presence
from pipelines.labelling.outputs import summary_line, write_outputs
from pipelines.labelling.parts import part_name
from pipelines.serving.client import _results, results_json
from tests.inference.test_classes import support_set
from tests.labelling.helpers import DirectEngine, make_job
from tests.serving.helpers import ball, encoded


def empty(seed: int) -> np.ndarray:
    """A photo without a ball."""
    return np.random.default_rng(seed).integers(40, 100, (150, 180, 3), dtype=np.uint8)


@torch.inference_mode()
def observations(model: Segmenter) -> tuple[list[Observation], torch.Tensor]:
    """Support sets of one photo each, on three photos with the ball and three without."""
    found, scenes = [], []
    for seed in range(2000, 2008):
        pictures = [ball(seed)[0], *(ball(seed + 100 * i)[0] for i in (1, 2, 3)), *(empty(seed + i) for i in range(3))]
        features = model.encode(model.prepare(pictures))
        one = features.take(torch.tensor([0]))
        prompt = mask_prompt(ball(seed)[1])
        memory = model.memorise(one, model.collate([[prompt]], one.sizes))
        pairs = torch.tensor([[0, i] for i in range(1, 7)])
        signature = describe_support(one, model.preprocessor.mask(ball(seed)[1])[None])
        present = torch.arange(6) < 3
        found.append(Observation(class_id=seed, present=present, iou=present * 0.8, measured=measure(
            model.segment(memory, features, pairs), features, signature, pairs)))
        scenes.append(torch.nn.functional.normalize(look(features).mean(dim=(2, 3)), dim=1))
    return found, torch.cat(scenes)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    url = str(tmp_path_factory.mktemp("calibrated") / "bundle")
    model = registry.build("prior", "nano")
    save_bundle(url, model)
    save_calibrator(url, fit_calibrator(*observations(model), {"dataset": "balls"}))
    yield url
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def labeler(calibrated: str) -> Labeler:
    return Labeler(calibrated)


def test_a_bundle_can_be_used_at_every_moment_of_a_recalibration(calibrated: str, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a bundle that a kill between two writes leaves with a calibrator that bundle.json does not name."""
    url, write, seen = str(shutil.copytree(calibrated, tmp_path / "bundle")), Store.write_bytes, []
    old = bundle_calibrator(url, read_bundle_info(url))
    assert old is not None

    def write_and_load(store: Store, relative: str, data: bytes) -> None:
        write(store, relative, data)
        found = load_predictor(url).calibrator
        seen.append(found.about["dataset"] if found else "")

    monkeypatch.setattr(Store, "write_bytes", write_and_load)
    save_calibrator(url, replace(old, about={"dataset": "others"}))
    assert seen == ["", "", "others"]


def labels_of(results: list[Label | PhotoFailure]) -> list[Label]:
    assert not any(isinstance(r, PhotoFailure) for r in results)
    return [r for r in results if isinstance(r, Label)]


def test_photos_without_the_object_are_empty(labeler: Labeler) -> None:
    """A photo with the ball gets a probability and a mask; one without gets no mask, whatever the model drew."""
    support = labeler.add_support(support_set("ball", 1000))
    shown = labels_of(labeler.label([encoded(ball(s)[0]) for s in range(6)], support))
    absent = labels_of(labeler.label([encoded(empty(s)) for s in range(6)], support))
    assert all(one.status in ("accepted", "review") and one.area > 0 for one in shown)
    assert all(one.status == "empty" and one.area == 0 for one in absent)
    assert min(one.presence or 0 for one in shown) > 0.5 > max(one.presence or 0 for one in absent)
    assert all((one.quality or 0) <= (one.presence or 0) for one in [*shown, *absent])


def test_thresholds_and_prevalence(labeler: Labeler) -> None:
    support = labeler.add_support(support_set("ball", 1000))
    photo = [encoded(ball(1)[0])]

    def ask(**changes: float) -> Label:
        (found,) = labeler.label_classes(photo, MaskRequest(support_ids=(support,), **changes))
        assert not isinstance(found, PhotoFailure)
        return found[0]

    usual, rare = ask(), ask(prevalence=0.001)
    assert (rare.presence or 0) < (usual.presence or 0)
    assert ask(empty_below=1.0).status == "empty"
    assert ask(empty_below=0.0, review_below=1.0).status == "review"
    assert ask(empty_below=0.0, review_below=0.0).status == "accepted"
    assert ask(empty_below=0.0).area == usual.area


def test_a_class_that_is_not_there_takes_no_pixel_from_others(labeler: Labeler) -> None:
    ids = tuple(labeler.add_support(support_set(n, s)) for n, s in (("ball", 1000), ("again", 1003)))
    request = MaskRequest(support_ids=ids, overlaps="resolve", empty_below=1.0)
    (found,) = labeler.label_classes([encoded(ball(1)[0])], request)
    assert not isinstance(found, PhotoFailure)
    assert [one.area for one in found] == [0, 0]


def test_large_sets_adjust_the_calibrator_and_far_ones_are_uncalibrated(labeler: Labeler) -> None:
    assert labeler.judge is not None
    statistics = labeler._memorise(support_set("ball", 1000, 1001, 1002), 0).statistics
    assert statistics is not None
    assert statistics.opinion is not None
    assert 0 < statistics.opinion.iou <= 1
    assert not statistics.far
    one = labeler._memorise(support_set("ball", 1000), 0).statistics
    assert one is not None
    assert one.opinion is None
    limit = labeler.judge.calibrator.limit.clone()
    try:
        labeler.judge.calibrator.limit.zero_()  # everything is far now
        support = labeler.add_support(support_set("ball", 1005))
        (label,) = labels_of(labeler.label([encoded(ball(1)[0])], support))
    finally:
        labeler.judge.calibrator.limit.copy_(limit)
    assert (label.presence, label.quality, label.status) == (None, None, "uncalibrated")
    assert label.area > 0


def test_jobs_write_it_down(labeler: Labeler, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for i in range(6):
        (tmp_path / "p" / f"{i}.jpg").write_bytes(encoded(ball(i)[0] if i % 2 else empty(i)))
    support = labeler.add_support(support_set("ball", 1000))
    job = make_job(tmp_path / "p", tmp_path / "out", support, labeler, calibrator=labeler.info.calibrator)
    job.run(DirectEngine(labeler), job.chunks_left(), 1)
    rows = pq.read_table(tmp_path / "out" / part_name(0)).to_pylist()
    assert [r["status"] == "empty" for r in rows] == [i % 2 == 0 for i in range(6)]
    assert all(0 <= r["quality"] <= r["presence"] <= 1 for r in rows)
    summary = write_outputs(job.out, job.manifest)
    assert summary["status"]["empty"] == summary["without_object"] == 3
    assert "to review" in summary_line(summary)


def test_bundles_without_a_calibrator_say_so(bundle: str, tmp_path: Path) -> None:
    labeler = Labeler(bundle)
    assert labeler.judge is None
    support = labeler.add_support(support_set("ball", 1000))
    (label,) = labels_of(labeler.label([encoded(ball(1)[0])], support))
    assert (label.presence, label.quality, label.status) == (None, None, "")
    assert "uncalibrated" in summary_line({"images": 1, "with_object": 1, "without_object": 0, "failed": 0,
                                           "class_name": "ball", "calibrator": ""})


def test_calibrators_travel_with_bundles(calibrated: str, tmp_path: Path) -> None:
    copied = copy_bundle(calibrated, str(tmp_path / "copy"))
    assert bundle_calibrator(str(tmp_path / "copy"), copied) is not None
    (tmp_path / "copy" / "calibrator.safetensors").write_bytes(b"spoilt")
    with pytest.raises(FssError, match=r"does not match bundle\.json"):
        bundle_calibrator(str(tmp_path / "copy"), read_bundle_info(str(tmp_path / "copy")))


def test_answers_keep_it() -> None:
    label = Label(height=2, width=2, counts="04", bbox=(0.0, 0.0, 2.0, 2.0), area=4, score=0.5, presence=0.75,
                  quality=0.5, status="review")
    assert _results(results_json((label,), many=False)) == (label,)
    assert _results(results_json((label, label), many=True)) == (label, label)
    assert isinstance(label, Presence)
    assert status_of(0.4, 0.3, MaskRequest(support_ids=("a",))) == "empty"
    assert status_of(0.6, 0.4, MaskRequest(support_ids=("a",))) == "review"
    assert status_of(0.6, 0.5, MaskRequest(support_ids=("a",))) == "accepted"


@torch.inference_mode()
def test_negative_supports_show_no_object_to_the_calibrator(labeler: Labeler) -> None:
    """The signature is that of the other supports; leave-one-out has a trial for each of these alone."""
    judge, model = labeler.judge, labeler.model
    assert judge is not None
    shown = [mask_prompt(ball(seed)[1]) for seed in (1, 2, 3)]
    photos = [empty(1), *(ball(seed)[0] for seed in (1, 2, 3))]
    whole = Prompt(kind=PromptKind.MASK, mask=torch.ones(150, 180, dtype=torch.bool), negative=True)
    found = []
    for prompts, seen in (([whole, *shown], photos), (shown, photos[1:])):
        features = model.encode(model.prepare(seen))
        memory = model.memorise(features, model.collate([prompts], features.sizes))
        found.append(judge.describe_supports(features, prompts, memory))
    with_negative, without = found
    torch.testing.assert_close(with_negative.signature.inside, without.signature.inside)
    torch.testing.assert_close(with_negative.signature.scene, without.signature.scene)
    assert with_negative.signature.counts.tolist() == [3]
    assert with_negative.opinion is not None
    assert without.opinion is not None
    assert with_negative.opinion != without.opinion, "the trials leave the negative support out"
