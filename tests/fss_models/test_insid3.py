"""INSID3 beyond the contract: golden cases and mistakes in them, DINOv3's files, clustering, masks, settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.cluster import hierarchy
from torch import Tensor

from fss_models import registry
from fss_models.backbones.dino import SIZES
from fss_models.backbones.dinov3 import Dinov3, build_dinov3
from fss_models.errors import FssError
from fss_models.methods.insid3 import clusters, debias, matching, model
from fss_models.methods.insid3.config import Insid3Config
from fss_models.preprocess import FloorMasks, Preprocessor
from fss_models.prompts import mask_prompt
from fss_models.verification import insid3
from fss_models.verification.frame import GoldenCheck, run_folder
from tests.fss_models.shared_folder import GOLDEN, needs_golden
from tests.fss_models.test_contract import box_mask, picture

OWN = Path(__file__).parents[1] / "golden" / "insid3"
Mistake = Callable[[pytest.MonkeyPatch], None]


@needs_golden
def test_every_golden_case_passes() -> None:
    assert [c for c in run_folder(GOLDEN / "insid3") if not c.passed] == []


# ---- mistakes that the golden cases must show -----------------------------------------------------------------------


def periods_of_timm(patch: pytest.MonkeyPatch) -> None:
    load = Dinov3.load_hub_state

    def loads(self: Dinov3, state: dict[str, Tensor]) -> None:
        load(self, state)
        self.vit.rope.reset_parameters()

    patch.setattr(Dinov3, "load_hub_state", loads)


def bias_of_keys_used(patch: pytest.MonkeyPatch) -> None:
    load = Dinov3.load_hub_state

    def loads(self: Dinov3, state: dict[str, Tensor]) -> None:
        load(self, state)
        for i, block in enumerate(self.vit.blocks):
            block.attn.k_bias.copy_(state[f"blocks.{i}.attn.qkv.bias"].chunk(3)[1] + 0.3)
            block.attn.q_bias.data += 0.3  # a bias of all keys alone changes no attention

    patch.setattr(Dinov3, "load_hub_state", loads)


def final_norm_left_out(patch: pytest.MonkeyPatch) -> None:
    forward = Dinov3.forward

    def unnormalised(self: Dinov3, pixels: Tensor) -> Tensor:
        self.vit.norm = torch.nn.Identity()
        return forward(self, pixels)

    patch.setattr(Dinov3, "forward", unnormalised)


def basis_not_centred(patch: pytest.MonkeyPatch) -> None:
    def plain(features: Tensor, components: int) -> debias.PositionalBasis:
        u, s, _ = torch.linalg.svd(F.normalize(features, dim=0), full_matrices=False)
        kept = u[:, :components]
        return debias.PositionalBasis(singular_values=s, projector=kept @ kept.T)

    patch.setattr(model, "positional_basis", plain)


def a_direction_too_many(patch: pytest.MonkeyPatch) -> None:
    basis = debias.positional_basis
    patch.setattr(model, "positional_basis", lambda features, components: basis(features, components + 1))


def debiased_not_normalised(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model, "debias", lambda unit, projector: unit - projector @ unit)


def linkage_of(kind: str) -> Mistake:
    def change(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(clusters, "linkage", lambda condensed, _: hierarchy.linkage(condensed, kind))

    change.__name__ = f"{kind}_linkage"
    return change


def cut_at_the_cosine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model, "average_linkage", lambda features, cut: clusters.average_linkage(features, 1 - cut))


def prototype_weighted_by_size(patch: pytest.MonkeyPatch) -> None:
    def weighted(features: Tensor, masks: Tensor, counts: Tensor) -> Tensor:
        return F.normalize(torch.einsum("skcl,skl->sc", features, masks), dim=1)

    patch.setattr(model, "prototype", weighted)


def nearest_of_the_object_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model, "nearest_references", lambda references, query: matching.nearest_references(
        references.flip(3), query))


def one_vote_of_three(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(insid3, "Insid3Config", lambda **given: Insid3Config(**given, vote_share=0.3))


def seed_counts_its_candidates(patch: pytest.MonkeyPatch) -> None:
    masked = Tensor.masked_fill

    def fill(self: Tensor, mask: Tensor, value: float) -> Tensor:
        return self if value == 1.0 else masked(self, mask, value)

    patch.setattr(Tensor, "masked_fill", fill)


def intra_of_debiased(patch: pytest.MonkeyPatch) -> None:
    score = matching.score_clusters

    def scores(similarity: Tensor, candidates: Tensor, **given: Tensor) -> matching.ClusterScores:
        return score(similarity, candidates, **{**given, "clusters": given["clusters"].square()})

    patch.setattr(model, "score_clusters", scores)


def mask_enlarged_by_nearest(patch: pytest.MonkeyPatch) -> None:
    def blocks(patches: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(patches[:, None], size=size, mode="nearest")[:, 0] > 0.5

    patch.setattr(model, "enlarge", blocks)


def mask_of_pixel_centres(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FloorMasks, "mask", Preprocessor.mask)


def no_fallback(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(insid3, "forward_patches", lambda similarity, quantile: similarity > 0)


MISTAKES: list[Mistake] = [
    periods_of_timm, bias_of_keys_used, final_norm_left_out, basis_not_centred, a_direction_too_many,
    debiased_not_normalised, linkage_of("complete"), linkage_of("single"), cut_at_the_cosine,
    prototype_weighted_by_size, nearest_of_the_object_alone, one_vote_of_three, seed_counts_its_candidates,
    intra_of_debiased, mask_enlarged_by_nearest, mask_of_pixel_centres, no_fallback]


def golden_checks(name: str) -> list[GoldenCheck]:
    return list(insid3.run_case(OWN, name, json.loads((OWN / "cases.json").read_text())[name]))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.__name__)
def test_a_mistake_makes_a_golden_case_fail(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    name = "case_u_units" if mistake is no_fallback else "case_b_3shot"
    assert any(c.mistaken for c in golden_checks(name))


# ---- DINOv3 ---------------------------------------------------------------------------------------------------------


def test_published_size_of_dinov3() -> None:
    width, blocks, heads = SIZES["large"]
    with torch.device("meta"):
        one = Dinov3(width=width, blocks=1, heads=heads)
    whole, block = (sum(p.numel() for p in part.parameters()) for part in (one, one.vit.blocks[0]))
    assert round((whole + (blocks - 1) * block) / 1e6, 1) == 303.1


def test_dinov3_weights_are_loaded_strictly(tmp_path: Path) -> None:
    tiny = Dinov3(width=32, blocks=2, heads=2)
    good = {k: v.clone() for k, v in tiny.hub_state().items()}
    spare = {"mask_token": torch.zeros(1, 32), "blocks.1.attn.qkv.bias_mask": torch.ones(96)}
    tiny.load_hub_state(good | spare)
    assert all(torch.equal(v, good[k]) for k, v in tiny.hub_state().items())
    for wrong, line in ((good | {"register_tokens": torch.zeros(1)}, "unknown 'register_tokens'"),
                        (good | {"blocks.0.attn.qkv.bias": torch.zeros(3)}, "'blocks.0.attn.qkv.bias' has shape"),
                        ({k: v for k, v in good.items() if k != "rope_embed.periods"}, "lacks 'rope_embed.periods'")):
        with pytest.raises(FssError, match=line):
            tiny.load_hub_state(wrong)
    torch.save(good, tmp_path / "tiny.pth")
    with pytest.raises(FssError, match=r"tiny\.pth: DINOv3's file"):
        registry.build("insid3", "small", weights=str(tmp_path / "tiny.pth"))
    with pytest.raises(FssError, match="known: small, base, large"):
        build_dinov3("huge")


def test_a_file_is_recorded_and_the_model_counts_as_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fss_models.backbones.dino.SIZES", {"small": (32, 1, 2)})
    torch.save(build_dinov3("small").hub_state(), tmp_path / "s.pth")
    built = registry.build("insid3", "small", {"svd_components": 4}, weights=str(tmp_path / "s.pth"))
    assert (list(built.frozen_weights()), built.untrained) == (["dinov3_small"], False)
    assert registry.build("insid3", "small", {"svd_components": 4}).keeps_random_parts
    assert not registry.build("insid3", "nano").untrained


# ---- clustering -----------------------------------------------------------------------------------------------------


def same_partition(a: Tensor, b: Tensor) -> bool:
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize("cut", [0.15, 0.4, 0.8])
def test_merging_in_rounds_gives_the_clusters_of_scipy(cut: float) -> None:
    torch.manual_seed(0)
    smooth = F.interpolate(torch.randn(3, 24, 5, 5), size=(14, 14), mode="bilinear").flatten(2).mT
    features = F.normalize(smooth + 0.3 * torch.randn(3, 196, 24), dim=2)
    features[2, :60] = features[2, :1]  # equal patches, as in a blank part of a photo
    ours = clusters.merge_rounds(clusters.distances(features), cut)
    expected = clusters.average_linkage(features, cut)
    assert all(same_partition(a, b) for a, b in zip(ours, expected, strict=True))
    assert 1 < len(set(expected[0].tolist())) < 196


def test_equal_patches_need_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, merge = [], clusters._merge

    def counted(*given: Tensor) -> tuple[Tensor, Tensor]:
        rounds.append(len(given))
        return merge(*given)

    monkeypatch.setattr(clusters, "_merge", counted)
    labels = clusters.merge_rounds(torch.zeros(1, 256, 256, dtype=torch.float64), 0.4)
    assert len(set(labels[0].tolist())) == 1
    assert len(rounds) < 40


# ---- masks and settings ---------------------------------------------------------------------------------------------


def test_a_patch_counts_by_its_four_middle_pixels() -> None:
    """Bilinear resizing without antialias reads no others."""
    masks = torch.ones(3, 32, 32)
    masks[1] = 0
    masks[:, 7:9, 7:9] = torch.tensor([[[1.0, 0], [0, 1]], [[1, 1], [1, 0]], [[1, 1], [0, 0]]])
    assert matching.grid_masks(masks, 2)[:, 0].tolist() == [0, 1, 0]


def test_a_mask_that_the_patches_miss_marks_one_of_them() -> None:
    masks = torch.zeros(3, 64, 64)
    masks[0, 17:19, 33:36] = 1  # between the pixels that both resizes read
    masks[1, 16, 32] = 1  # the upper left pixel of a patch
    found = matching.grid_masks(masks, 4)
    assert found.nonzero().tolist() == [[0, 6], [1, 6]], "an empty mask marks nothing"


@torch.no_grad()
def test_more_pairs_than_a_chunk_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    built = registry.build("insid3", "debug")
    features = built.encode(built.prepare([picture(i) for i in range(4)]))
    memory = built.memorise(features, built.collate([[mask_prompt(box_mask(0))], [mask_prompt(box_mask(1))]],
                                                    features.sizes))
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(4))
    whole = built.segment(memory, features, pairs).logits
    monkeypatch.setattr(model, "CHUNK_BYTES", 4 * 64 * 64 * 3)
    assert torch.equal(built.segment(memory, features, pairs).logits, whole)
    assert bool((whole[:4] > 0).any()), "nothing is found"


def test_impossible_settings_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    for preset, settings, weights, word in (
            ("debug", {"side": 100}, None, "multiple of 16"),
            ("debug", {"svd_components": 32}, None, "nothing is left"),
            ("nano", {}, str(tmp_path / "w.pth"), "takes no weights"), ("tiny", {}, None, "known: debug, nano")):
        with pytest.raises(FssError, match=word):
            registry.build("insid3", preset, settings, weights=weights)
