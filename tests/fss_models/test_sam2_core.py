"""SAM 2's parts in batches: sizes, checkpoints, the order in which memories are read, golden cases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fss_models import registry
from fss_models.adapters.adaptformer import AdaptFormer
from fss_models.errors import FssError
from fss_models.sam2_core.build import OBJECT_SCORE_KEYS, build_sam2
from fss_models.sam2_core.core import spatial_order

SHARED = Path(os.environ.get("FSS_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def test_an_adapter_starts_as_the_identity() -> None:
    assert torch.equal(AdaptFormer(8, 3)(torch.randn(2, 5, 8)), torch.zeros(2, 5, 8))


@pytest.mark.parametrize(("t", "expected"), [
    (1, [(0, 6)]),
    (5, [(0, 6), (1, 3), (2, 2), (3, 1), (4, 0)]),  # entries 1..4 get codes 3, 2, 1, 0
    (9, [(0, 6), (3, 5), (4, 4), (5, 3), (6, 2), (7, 1), (8, 0)]),  # of more than seven the oldest are dropped
])
def test_memories_are_read_in_sam2s_order(t: int, expected: list[tuple[int, int]]) -> None:
    assert spatial_order(t, 7) == expected


def test_tiny_has_the_published_number_of_parameters() -> None:
    """The official code's counts: frozen part and adapters at factor 0.3 in stages 2 and 3."""
    model = registry.build("sansa", "tiny", {"rest": "frozen"})
    trained = [p for p in model.parameters() if p.requires_grad]
    assert (len(trained), sum(p.numel() for p in trained)) == (54, 1_117_380)
    assert sum(p.numel() for p in model.parameters()) - 1_117_380 == 38_813_633


def test_a_sam2_checkpoint_loads_and_spares_exactly_the_object_scores(tmp_path: Path) -> None:
    full = build_sam2("debug", object_scores=True).state_dict()
    torch.save({"model": full}, tmp_path / "good.pt")
    ours = build_sam2("debug", weights=str(tmp_path / "good.pt")).state_dict()
    assert full.keys() - ours.keys() == OBJECT_SCORE_KEYS
    assert all(torch.equal(ours[k], full[k]) for k in ours)


def test_a_wrong_checkpoint_names_its_first_wrong_key(tmp_path: Path) -> None:
    full = build_sam2("debug", object_scores=True).state_dict()
    torch.save({"model": full | {"extra": torch.zeros(1)}}, tmp_path / "extra.pt")
    torch.save({"model": {k: v for k, v in full.items() if k != "no_mem_embed"}}, tmp_path / "lacks.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for file, word in (("extra", "unknown 'extra'"), ("lacks", "lacks 'no_mem_embed'"), ("text", "no")):
        with pytest.raises(FssError, match=word):
            build_sam2("debug", weights=str(tmp_path / f"{file}.pt"))


def test_nano_uses_the_imagenet_trunk_and_keeps_it_frozen() -> None:
    model = registry.build("sansa", "nano", weights="random")  # what ships is tests/fss_models/test_shipped.py's
    assert model.frozen_weights()
    assert model.untrained
    trunk = [n for n, p in model.named_parameters() if p.requires_grad and "trunk" in n]
    assert trunk
    assert all(".adapter." in name for name in trunk)


