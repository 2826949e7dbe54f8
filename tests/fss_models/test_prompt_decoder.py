"""The decoder for many prompts of few photos equals the package's, prompt by prompt."""

from __future__ import annotations

import pytest
import torch

from fss_models.point_prompts.decoder import PromptDecoder
from fss_models.prototype_prompts.sams import PromptedSam, PromptedSam1, PromptedSam2
from fss_models.sam1.build import Sam1Size, build_sam1
from fss_models.sam2_core.build import build_sam2
from fss_models.sam2_core.core import Sam2Core

PHOTO = torch.tensor([0, 0, 0, 1, 1, 1, 1])


def build(version: int, *, object_scores: bool = False) -> PromptedSam:
    torch.manual_seed(0)
    if version == 2:
        made: PromptedSam = PromptedSam2(Sam2Core(build_sam2("debug", weights="random", object_scores=object_scores)))
    else:
        made = PromptedSam1(build_sam1(Sam1Size(depth=1, width=16, heads=2, global_blocks=(0,), side=64,
                                                prompt_width=32, decoder_heads=4, decoder_mlp=24, iou_hidden=8)))
    for module in made.modules():  # values that no two places share, so that none can be left out
        for value in module.parameters(recurse=False):
            value.data += 0.2 * torch.randn_like(value)
    made.eval()
    return made


def maps_of(sam: PromptedSam) -> dict[str, torch.Tensor]:
    return sam.embed(sam.look(torch.randn(2, 3, sam.side, sam.side)))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("version", "scores"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("rows", [slice(0, 3), slice(0, 7)], ids=["one photo", "two photos"])
@torch.inference_mode()
def test_it_equals_the_packages_decoder(version: int, scores: bool, several: bool, rows: slice) -> None:
    sam = build(version, object_scores=scores)
    maps, photo = maps_of(sam), PHOTO[rows]
    prompts = sam.point_prompts(torch.rand(7, 2, 2) * sam.side)[rows]
    logits, ious = sam.candidates({k: v[photo] for k, v in maps.items()}, prompts, several=several)
    decoder = PromptDecoder(sam, maps)
    found = decoder.decode(photo, prompts, several=several)
    some = torch.tensor([2, 1])
    torch.testing.assert_close(found.ious, ious, rtol=1e-4, atol=1e-4)
    for made, want in ((decoder.masks(found), logits), (decoder.masks(found, some), logits[some])):
        assert float((made - want).abs().max()) < 1e-5 * float(want.abs().max())


@torch.inference_mode()
def test_chunks_hold_every_prompt_once_and_one_photo_each() -> None:
    sam = build(2)
    decoder, photo = PromptDecoder(sam, maps_of(sam)), PHOTO[torch.randperm(7)]
    chunks = list(decoder.chunks(photo, 3))
    assert torch.cat(chunks).sort().values.tolist() == list(range(7))
    assert all(len(set(photo[c].tolist())) == 1 and 1 <= len(c) <= 3 for c in chunks)
    assert list(decoder.chunks(photo[:0], 3)) == []
