"""SANSA equals the official implementation, and would not if it were built a little differently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fss_models.adapters import hooks
from fss_models.adapters.adaptformer import AdaptFormer
from fss_models.preprocess import Preprocessor
from fss_models.sam2_core.core import MASK_BIAS, MASK_SCALE, MemoryEntries, MemoryRules, Sam2Core
from fss_models.verification.frame import run_folder
from fss_models.verification.sansa import run_case
from tests.fss_models.debug_outputs import deviation
from tests.fss_models.shared_folder import GOLDEN, needs_golden
from tests.fss_models.stored_outputs import excessive, mistaken

FOLDER = GOLDEN / "sansa"


@needs_golden
def test_every_golden_case_passes() -> None:
    checks = list(run_folder(FOLDER))
    assert [c for c in checks if not c.passed] == []
    assert {"infer", "train", "train_released"} == {c["kind"] for c in _cases().values()}
    assert len({c.case for c in checks}) == 9 + 5 + 6 + 12  # clips, units, key manifests, parameter counts


def test_the_stored_outputs_are_reproduced() -> None:
    assert excessive(deviation("sansa")) == {}


Mutation = Callable[[pytest.MonkeyPatch], None]
FIRST = ["case_A", "case_B", "case_C", "case_D_point"]


def _exact_mask_in_memory(patch: pytest.MonkeyPatch) -> None:
    _rule(patch, exact_masks=True)


def _all_references_conditioning(patch: pytest.MonkeyPatch) -> None:
    _rule(patch, all_conditioning=True)


def _rule(patch: pytest.MonkeyPatch, **rule: bool) -> None:
    build = Sam2Core.__init__
    patch.setattr(Sam2Core, "__init__", lambda self, sam, rules=None: build(self, sam, MemoryRules(**rule)))


def _no_memory_embedding_for_masks(patch: pytest.MonkeyPatch) -> None:
    decode = Sam2Core.decode

    def wrong(self: Sam2Core, maps: Any, embedding: Any, *, mask: Any = None, **given: Any) -> Any:
        if mask is not None:
            embedding = embedding + self.sam.no_mem_embed.view(1, -1, 1, 1)
        return decode(self, maps, embedding, mask=mask, **given)

    patch.setattr(Sam2Core, "decode", wrong)


def _no_object_pointers(patch: pytest.MonkeyPatch) -> None:
    tokens = Sam2Core._pointer_tokens
    patch.setattr(Sam2Core, "_pointer_tokens", lambda *args: tuple(t[:0] for t in tokens(*args)))


def _adapter_fed_with_the_norm(patch: pytest.MonkeyPatch) -> None:
    def wrong(block: Any, apply: hooks.Apply) -> None:
        seen: list[Any] = []
        block.norm2.register_forward_hook(lambda _module, _args, output: seen.append(output))
        block.register_forward_hook(lambda _module, _args, output: output + apply(seen.pop()))

    patch.setattr(hooks, "beside", wrong)


def _scale_of_one(patch: pytest.MonkeyPatch) -> None:
    forward = AdaptFormer.forward
    patch.setattr(AdaptFormer, "forward", lambda self, x: forward(self, x) / self.scale if self.scale else 0 * x)


def _gelu(patch: pytest.MonkeyPatch) -> None:
    def forward(self: AdaptFormer, x: Any) -> Any:
        return self.up_proj(F.gelu(self.down_proj(self.adapter_layer_norm_before(x)))) * self.scale

    patch.setattr(AdaptFormer, "forward", forward)


def _one_candidate(patch: pytest.MonkeyPatch) -> None:
    decode = Sam2Core.decode
    patch.setattr(Sam2Core, "decode", lambda *args, candidates=False, **given: decode(*args, **given))


def _binary_pseudo_references(patch: pytest.MonkeyPatch) -> None:
    remember = Sam2Core.remember_prediction

    def wrong(self: Sam2Core, maps: Any, logits: Any, token: Any) -> MemoryEntries:
        return remember(self, maps, (logits > 0).float() * MASK_SCALE + MASK_BIAS, token)

    patch.setattr(Sam2Core, "remember_prediction", wrong)


def _mask_threshold_of_a_half(patch: pytest.MonkeyPatch) -> None:
    build = Preprocessor.__init__
    patch.setattr(Preprocessor, "__init__", lambda self, **given: build(self, **{**given, "mask_threshold": 0.5}))


def _detached_memories(patch: pytest.MonkeyPatch) -> None:
    entries = Sam2Core._entries

    def wrong(*args: Any) -> MemoryEntries:
        made = entries(*args)
        return MemoryEntries(features=made.features.detach(), pointers=made.pointers.detach())

    patch.setattr(Sam2Core, "_entries", wrong)


# mistake, whether the outputs at debug size see it too (no reference there goes through another side)
MUTATIONS = [
    (_exact_mask_in_memory, True), (_all_references_conditioning, True), (_no_memory_embedding_for_masks, True),
    (_no_object_pointers, True), (_adapter_fed_with_the_norm, True), (_scale_of_one, True), (_gelu, True),
    (_one_candidate, True), (_binary_pseudo_references, True), (_mask_threshold_of_a_half, False),
    (_detached_memories, True),
]


@needs_golden
@pytest.mark.parametrize("mutate", [m for m, _ in MUTATIONS], ids=lambda m: m.__name__.strip("_"))
def test_a_mistake_makes_a_golden_case_fail(mutate: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    checks = (c for name in FIRST for c in run_case(FOLDER, name, _cases()[name]))
    assert any(c.mistaken for c in checks)


@pytest.mark.parametrize("mutate", [m for m, seen in MUTATIONS if seen], ids=lambda m: m.__name__.strip("_"))
def test_a_mistake_moves_the_stored_outputs(mutate: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    assert mistaken(deviation("sansa"))


@needs_golden
def test_an_unseen_folder_runs(tmp_path: Path) -> None:
    """Other names, another order of prompts, K = 2, no gradients stored: all is read from the files."""
    from safetensors.torch import load_file, save_file

    given, case = load_file(FOLDER / "case_D_mixed.safetensors"), dict(_cases()["case_D_mixed"])
    kept = {k: v for k, v in given.items() if k.startswith("inputs.")}
    kept["inputs.samples"], kept["inputs.masks"] = (kept[f"inputs.{k}"][:, 1:] for k in ("samples", "masks"))
    points = {k: given[k] for k in given if ".point_" in k and k.endswith("0.1") and k.startswith("inputs.")}
    kept = {k: v for k, v in kept.items() if ".point_" not in k} | {k[:-1] + "0": v for k, v in points.items()}
    save_file({k: v.contiguous() for k, v in kept.items()}, tmp_path / "mine.safetensors")
    case |= {"shots": 2, "prompts": ["box", "mask"], "config": str(FOLDER / case["config"]),
             "weights": str(FOLDER / case["weights"])}
    (tmp_path / "cases.json").write_text(json.dumps({"mine": case}))
    assert list(run_folder(tmp_path)) == []  # it ran, and there was nothing to compare
    kept["pred_masks"] = torch.zeros(3, 96, 96)
    save_file({k: v.contiguous() for k, v in kept.items()}, tmp_path / "mine.safetensors")
    checks = list(run_folder(tmp_path))
    assert [c.quantity for c in checks] == ["logits"]
    assert not checks[0].passed


def _cases() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "cases.json").read_text())
    return found


