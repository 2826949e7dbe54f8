"""Every registered method keeps the contract, at `debug` size. A new method is tested by being registered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fss_models import registry
from fss_models.clip import Clip, Memory, Prompt, PromptKind
from fss_models.errors import FssError
from fss_models.prompts import collate, mask_prompt
from fss_models.segmenter import Segmenter
from tests.fss_models.methods_here import methods

HEIGHT, WIDTH = 50, 70
ALL = registry.list_methods()
TRAINED = [name for name in ALL if registry.method_class(name).trains]


def picture(seed: int) -> np.ndarray:
    """Noise with a bright box, so that predictions differ from image to image."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[10:30, 5 + seed : 35 + seed] = (220, 60, 30)
    return image


def box_mask(shift: int = 0) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:30, 5 + shift : 35 + shift] = True
    return mask


def fresh(name: str, seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    return registry.build(name, "debug").eval()


def clip_for(model: Segmenter, shots: int = 2, targets: int = 2) -> Clip:
    sizes = torch.tensor([[HEIGHT, WIDTH]] * (2 * shots))
    prompts = collate([[mask_prompt(box_mask(k)) for k in range(shots)] for _ in range(2)], sizes, model.side)
    masks = torch.zeros(2, targets, model.side, model.side)
    masks[:, :, 10:30, 10:40] = 1
    return Clip(
        references=model.prepare([picture(i) for i in range(2 * shots)]), prompts=prompts,
        targets=model.prepare([picture(9 + i) for i in range(2 * targets)]), target_masks=masks,
        ignore=torch.zeros_like(masks, dtype=torch.bool))


def test_the_three_methods_of_the_skeleton_are_registered() -> None:
    assert {"prior", "sam2_frozen", "sansa"} <= set(ALL)


@pytest.mark.parametrize("name", methods())
@torch.no_grad()
def test_a_batch_of_pairs_equals_pairs_one_by_one(name: str) -> None:
    """Support sets of 1 and 3 references, one image against both: no padding and no neighbour leaks in."""
    model = fresh(name)
    features = model.encode(model.prepare([picture(i) for i in range(6)]))
    sets = [[mask_prompt(box_mask(k)) for k in range(3)], [mask_prompt(box_mask(25))]]
    memory = model.memorise(features, model.collate(sets, features.sizes))
    pairs = torch.tensor([[0, 4], [1, 4], [1, 5], [0, 5]])
    together = model.segment(memory, features, pairs)
    assert together.logits.shape[0] == together.scores.shape[0] == 4
    assert bool(((together.scores >= 0) & (together.scores <= 1)).all())
    for row, (s, n) in enumerate(pairs.tolist()):
        alone = model.segment(memory.take(torch.tensor([s])), features.take(torch.tensor([n])), torch.tensor([[0, 0]]))
        torch.testing.assert_close(alone.logits[0], together.logits[row], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together.logits[0], together.logits[1]), "the support set does not matter"


@pytest.mark.parametrize("name", methods())
@torch.no_grad()
def test_supports_that_are_encoded_apart_have_the_same_memory(name: str) -> None:
    model = fresh(name)
    images = model.prepare([picture(i) for i in range(3)])
    prompts = model.collate([[mask_prompt(box_mask(k)) for k in range(2)], [mask_prompt(box_mask(25))]], images.sizes)
    want, found = (model.memorise(encode(images), prompts) for encode in (model.encode, model.encode_supports))
    assert found.counts.tolist() == want.counts.tolist()
    assert found.tensors.keys() == want.tensors.keys()
    for key, tensor in want.tensors.items():
        assert torch.equal(found.tensors[key], tensor), key


@pytest.mark.parametrize("name", methods())
@torch.no_grad()
def test_memories_of_different_sizes_stack(name: str) -> None:
    model = fresh(name)
    features = model.encode(model.prepare([picture(i) for i in range(4)]))
    one = model.memorise(features, model.collate([[mask_prompt(box_mask())]], features.sizes))
    two = model.memorise(features, model.collate([[mask_prompt(box_mask(k)) for k in (1, 2)]], features.sizes))
    both = Memory.stack([one, two])
    assert both.counts.tolist() == [1, 2]
    pair = torch.tensor([[0, 3]])
    stacked = model.segment(both, features, torch.tensor([[0, 3], [1, 3]])).logits
    for i, memory in enumerate((one, two)):
        torch.testing.assert_close(model.segment(memory, features, pair).logits[0], stacked[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_losses_fall_and_only_trainable_tensors_move(name: str) -> None:
    model = fresh(name).train()
    clip = clip_for(model)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0)
    history = []
    for _ in range(12):
        loss = torch.stack(list(model.losses(clip).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0], history
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


@pytest.mark.parametrize("kept", [False, True], ids=["photos", "kept features"])
@pytest.mark.parametrize("name", TRAINED)
@torch.no_grad()
def test_losses_are_means_over_clips(name: str, kept: bool) -> None:
    """Accumulation and several workers rest on it: the mean over equal parts of a batch is the batch's."""
    model = fresh(name)
    clip = clip_for(model)
    if kept:
        if not model.frozen_part():
            pytest.skip("it has no features to keep")
        clip = replace(clip, frozen=model.encode_frozen(clip.images))
    whole, parts = model.losses(clip), [model.losses(part) for part in clip.split(2)]
    for key, value in whole.items():
        torch.testing.assert_close(torch.stack([p[key] for p in parts]).mean(), value, rtol=1e-4, atol=1e-5)
    assert not torch.equal(*(torch.stack(list(p.values())).sum() for p in parts)), "both parts are the same clip"
    with pytest.raises(ValueError, match="2 clips cannot be split into 3"):
        clip.split(3)


@pytest.mark.parametrize("name", TRAINED)
@torch.no_grad()
def test_trainable_state_carries_the_whole_result(name: str) -> None:
    """A trained state loaded into an untrained copy makes it predict the same, to the last bit."""
    source = fresh(name, seed=1)
    for parameter in source.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    copy = fresh(name, seed=1)
    copy.load_trainable_state(source.trainable_state())
    features, other = (m.encode(m.prepare([picture(0), picture(1)])) for m in (source, copy))
    prompts = collate([[mask_prompt(box_mask())]], features.sizes, source.side)
    pair = torch.tensor([[0, 1]])
    expected = source.segment(source.memorise(features, prompts), features, pair).logits
    assert torch.equal(expected, copy.segment(copy.memorise(other, prompts), other, pair).logits)


@pytest.mark.parametrize("name", TRAINED)
def test_a_foreign_checkpoint_is_refused_by_name(name: str) -> None:
    model = fresh(name)
    state = model.trainable_state()
    first = sorted(state)[0]
    with pytest.raises(FssError, match="lacks"):
        model.load_trainable_state({k: v for k, v in state.items() if k != first})
    with pytest.raises(FssError, match=r"unknown 'other\.weight'"):
        model.load_trainable_state(state | {"other.weight": torch.zeros(1)})
    with pytest.raises(FssError, match=r"has shape \(1, 2, 3\), the model needs"):
        model.load_trainable_state(state | {first: torch.zeros(1, 2, 3)})


def test_unknown_names_are_one_clear_line() -> None:
    for call in (lambda: registry.build("sansaa", "debug"), lambda: registry.build("sansa", "huge"),
                 lambda: registry.build("sansa", "debug", {"factr": 0.3})):
        with pytest.raises(FssError) as caught:
            call()
        assert "known" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_prompts_must_fit_their_image() -> None:
    sizes = torch.tensor([[HEIGHT, WIDTH]])
    with pytest.raises(FssError, match="its image"):
        collate([[mask_prompt(np.ones((9, 9), bool))]], sizes, 64)
    with pytest.raises(FssError, match="empty"):
        mask_prompt(np.zeros((9, 9), bool))


@torch.no_grad()
def test_box_and_point_prompts_are_scaled_per_axis() -> None:
    sizes = torch.tensor([[HEIGHT, WIDTH]])
    box = Prompt(kind=PromptKind.BOX, box=torch.tensor([7.0, 5.0, 35.0, 25.0]))
    batch = collate([[box]], sizes, 70)
    assert batch.points[0, 0].tolist() == [[7, 7], [35, 35]]
    assert batch.labels[0, 0].tolist() == [2, 3]
    model = fresh("sam2_frozen")
    features = model.encode(model.prepare([picture(0), picture(1)]))
    point = Prompt(kind=PromptKind.POINTS, points=torch.tensor([[20.0, 20.0]]))
    mixed = collate([[box, point], [mask_prompt(box_mask())]], features.sizes[:1].expand(3, 2), model.side,
                    image=torch.tensor([[0, 1], [0, 0]]))
    out = model.segment(model.memorise(features, mixed), features, torch.tensor([[0, 1], [1, 1]]))
    assert bool(out.logits.isfinite().all())
