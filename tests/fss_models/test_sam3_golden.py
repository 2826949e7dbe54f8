"""SAM 3 equals the official code, and would not if it were built a little differently."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor

from fss_models.methods.sam3 import boxes, geometry, instances, model, preprocess, words
from fss_models.methods.sam3.detector import Detections, Detector
from fss_models.verification import sam3, sam3_units
from fss_models.verification.frame import run_folder
from tests.fss_models.methods_here import needs_transformers
from tests.fss_models.sam3_case import GOLDEN as HERE
from tests.fss_models.shared_folder import GOLDEN, needs_golden

pytestmark = needs_transformers
Patch = pytest.MonkeyPatch


def aligned_rois(patch: Patch) -> None:
    real = geometry.roi_align
    patch.setattr(geometry, "roi_align", lambda maps, at, size: real(maps, at - 0.5, size))


def one_sample_a_cell(patch: Patch) -> None:
    def coarse(start: Tensor, extent: Tensor, size: int, cells: int) -> Tensor:
        at = start[..., None] + (torch.arange(size) + 0.5) * (extent / size)[..., None]
        return torch.nn.functional.one_hot(at.clamp(0, cells - 1).floor().long(), cells).to(start)

    patch.setattr(geometry, "_axis_weights", coarse)


def no_class_token(patch: Patch) -> None:
    real = geometry.prompt_tokens

    def without(*given: Any) -> tuple[Tensor, Tensor]:
        tokens, valid = real(*given)
        return tokens, valid & (torch.arange(valid.shape[1]) < valid.shape[1] - 1)

    patch.setattr("fss_models.methods.sam3.detector.prompt_tokens", without)


def boxes_that_do_not_meet(patch: Patch) -> None:
    """Each box is encoded on its own."""
    real = Detector.geometry

    def alone(self: Detector, coarse: Tensor, given: Tensor, valid: Tensor, *rest: Any, **more: Any) -> Any:
        if given.shape[1] < 2 or rest:
            return real(self, coarse, given, valid, *rest, **more)
        parts = [real(self, coarse, given[:, i:i + 1], valid[:, i:i + 1]) for i in range(given.shape[1])]
        return (torch.cat([*[t[:, :1] for t, _ in parts], parts[0][0][:, 1:]], dim=1),
                torch.cat([*[v[:, :1] for _, v in parts], parts[0][1][:, 1:]], dim=1))

    patch.setattr(Detector, "geometry", alone)


def points_in_the_order_of_boxes(patch: Patch) -> None:
    real = geometry.embed_points

    def swapped(encoder: Any, projections: Any, maps: Tensor, points: Tensor) -> Tensor:
        class Turned:
            @staticmethod
            def encode_1d_positions(x: Tensor, y: Tensor) -> Any:
                return tuple(reversed(encoder.position_encoding.encode_1d_positions(x, y)))

        class Encoder:
            position_encoding = Turned

        return real(Encoder, projections, maps, points)

    patch.setattr("fss_models.methods.sam3.detector.embed_points", swapped)


def scores_without_presence(patch: Patch) -> None:
    patch.setattr(Detections, "scores", property(lambda self: self.logits.sigmoid()))


def a_lower_threshold(patch: Patch) -> None:
    patch.setattr(sam3, "read_objects", lambda s, m, t, *rest: instances.read_objects(s, m, 0.3, *rest))


def inclusive_boxes(patch: Patch) -> None:
    real = boxes._edges
    patch.setattr(boxes, "_edges", lambda found: real(found) - np.array([0, 0, 1, 1]))


def pieces_of_four_neighbours(patch: Patch) -> None:
    real = ndimage.label
    patch.setattr(boxes.ndimage, "label", lambda found, structure: real(found))


def overlap_of_the_union(patch: Patch) -> None:
    def by_union(masks: Tensor, limit: float) -> Tensor:
        flat, kept = masks.flatten(1), list[int]()
        for row in range(len(flat)):
            over = [(flat[row] & flat[k]).sum() / (flat[row] | flat[k]).sum() > limit for k in kept]
            kept += [] if any(over) else [row]
        return torch.tensor(kept)

    patch.setattr(sam3_units, "suppress", by_union)


def imagenet_pixels(patch: Patch) -> None:
    real = Detector.vision
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    patch.setattr(Detector, "vision", lambda self, pixels, *rest: real(self, (pixels * 0.5 + 0.5 - mean) / std, *rest))


def another_resize(patch: Patch) -> None:
    patch.setattr(preprocess, "_stretch_pil", preprocess._stretch_fast)


def a_gap_between_cells(patch: Patch) -> None:
    real = model.place_boxes
    patch.setattr(model, "place_boxes", lambda shares, cells, side: real(shares, cells + 1, side))


def text_padding_counts(patch: Patch) -> None:
    real = words.Vocabulary.encode
    patch.setattr(words.Vocabulary, "encode", lambda self, *given: (real(self, *given)[0],
                                                                     torch.ones(len(given[0]), 32, dtype=torch.bool)))


def the_first_map_of_the_decoder(patch: Patch) -> None:
    """Masks come from the coarser maps alone."""
    real = Detector.detect
    patch.setattr(Detector, "detect", lambda self, maps, *rest: real(self, maps | {"fine": maps["fine"] * 0}, *rest))


MISTAKES: list[Callable[[Patch], None]] = [
    aligned_rois, one_sample_a_cell, no_class_token, boxes_that_do_not_meet, points_in_the_order_of_boxes,
    scores_without_presence, a_lower_threshold, inclusive_boxes, pieces_of_four_neighbours, overlap_of_the_union,
    imagenet_pixels, another_resize, a_gap_between_cells, text_padding_counts, the_first_map_of_the_decoder]


@needs_golden
def test_every_golden_case_passes() -> None:
    checks = list(run_folder(GOLDEN / "sam3"))
    assert [c for c in checks if not c.passed] == []
    assert len(checks) > 350


@pytest.fixture(scope="module")
def one_case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the repository with one canvas and the units."""
    folder = tmp_path_factory.mktemp("sam3")
    for file in HERE.iterdir():
        shutil.copyfile(file, folder / file.name)
    cases = json.loads((folder / "cases.json").read_text())
    (folder / "cases.json").write_text(json.dumps({"canvas_5_visual": cases["canvas_5_visual"]}))
    return folder


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.__name__)
def test_a_mistake_makes_a_case_fail(mistake: Callable[[Patch], None], one_case: Path, monkeypatch: Patch) -> None:
    mistake(monkeypatch)
    checks = list(run_folder(one_case))
    assert any(c.mistaken for c in checks)
    assert not any(c.quantity == "files" for c in checks), "an error is no difference"


@pytest.mark.parametrize("file", ["weights_t1.safetensors", "canvas_5_visual.safetensors", "config_t1.json",
                                  "unit_boxes_nms.safetensors", "unit_layouts.json"])
def test_a_damaged_file_is_a_failed_check(file: str, one_case: Path, tmp_path: Path) -> None:
    for each in one_case.iterdir():
        shutil.copyfile(each, tmp_path / each.name)
    content = bytearray((tmp_path / file).read_bytes())
    content[20] ^= 0xFF
    (tmp_path / file).write_bytes(bytes(content))
    failed = [c for c in run_folder(tmp_path) if not c.passed]
    assert [c.quantity for c in failed][:1] == ["files"]


def test_every_stored_tensor_is_used(one_case: Path, tmp_path: Path) -> None:
    for file in one_case.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    stored = load_file(tmp_path / "canvas_5_visual.safetensors")
    save_file(stored | {"another": torch.zeros(1)}, tmp_path / "canvas_5_visual.safetensors")
    failed = [c for c in run_folder(tmp_path) if not c.passed]
    assert [(c.quantity, c.note) for c in failed] == [("coverage", "not compared: another")]
