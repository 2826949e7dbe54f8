"""Samplers against golden episodes, and that they leave the global generators alone."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fss_models.errors import FssError
from pipelines.data.benchmarks.make import make_list
from pipelines.data.benchmarks.protocol import ListRequest
from pipelines.data.samplers import bam, hsnet, parts
from pipelines.data.samplers.draws import NamedEpisode

FAMILIES = {"coco20i_hsnet_lists": ("coco20i", "hsnet", "coco20i_hsnet"),
            "coco20i_bam_lists_as_in_vrp_fcp": ("coco20i", "bam", "coco20i_bam"),
            "pascal5i_hsnet_lists": ("pascal5i", "hsnet", "pascal5i_hsnet")}


@pytest.mark.parametrize("golden", FAMILIES)
def test_published_episodes_id_for_id(shared: Path, golden: str) -> None:
    """Every fold, seed and shot of the golden file: 36 lists of 20 episodes over the three families."""
    dataset, family, folder = FAMILIES[golden]
    cases: dict[str, Any] = json.loads((shared / "golden/episodes/episodes.json").read_text())[golden]
    assert len(cases) in (8, 12, 16)
    for case, wanted in cases.items():
        fold, seed, shots = (int(v) for v in re.findall(r"\d+", case))
        request = ListRequest(fold=fold, shots=shots, seed=seed, episodes=len(wanted),
                              lists=str(shared / "data/lists" / folder))
        listed = make_list(dataset, family, request)
        assert [(e.class_id, e.query_name, list(e.support_names)) for e in listed] == [
            (e["class_id"], e["query"], e["support"]) for e in wanted], case
        assert listed.status == "reproduced"


@pytest.mark.parametrize(("shots", "workers"), [(1, 2), (1, 3), (3, 2)])
def test_fssam_episodes_depend_on_the_number_of_workers(shared: Path, shots: int, workers: int) -> None:
    toy = np.load(shared / "golden/fssam/episodes.npz")
    pools = {c - 1: [str(i) for i in toy[f"class{c}_files"]] for c in range(1, 6)}
    listed = [(str(i), [int(v) - 1 for v in np.unique(label) if 1 <= v <= 5]) for i, label in enumerate(toy["labels"])]
    wanted = toy[f"episodes_shot{shots}_workers{workers}"]
    drawn = bam.by_worker(listed, pools, shots=shots, episodes=len(wanted), seed=321, workers=workers)
    rows = [[i // 18, int(d.query), d.class_id, *map(int, d.supports)] for i, d in enumerate(drawn)]
    assert np.array_equal(rows, wanted)


POOLS = {c: [f"{c}-{i}" for i in range(6)] for c in range(3)}
LISTED = [(name, [c] if i % 2 else sorted({c, (c + 1) % 3}))
          for c, pool in POOLS.items() for i, name in enumerate(pool)]
OBJECTS = {(c, n): [parts.PartObject(f"{n}#0"), parts.PartObject(f"{n}#1", has_part=False),
                    parts.PartObject(f"{n}#2", shown=False)] for c, pool in POOLS.items() for n in pool}
WISH: dict[str, Any] = {"shots": 2, "episodes": 40}


def _all(seed: int) -> dict[str, list[NamedEpisode]]:
    pairs = [(n, c) for c, pool in POOLS.items() for n in pool]
    return {
        "listed_pairs": hsnet.listed_pairs(pairs, seed=seed, **WISH),
        "class_uniform": hsnet.class_uniform(POOLS, [0, 2], seed=seed, **WISH),
        "class_cycled": hsnet.class_cycled(POOLS, [0, 2], seed=seed, **WISH),
        "every_image": hsnet.every_image(POOLS, shots=2, seed=seed),
        "two_generators": bam.two_generators(LISTED, POOLS, seed=seed, **WISH),
        "by_worker": bam.by_worker(LISTED, POOLS, seed=seed, workers=4, **WISH),
        "paco": parts.paco(POOLS, [0, 2], {k: [o for o in v if o.has_part] for k, v in OBJECTS.items()}, seed=seed,
                           **WISH),
        "pascal_part": parts.pascal_part(POOLS, [0, 2], OBJECTS, seed=seed, **WISH),
    }


def test_samplers_are_pure_functions_of_list_and_seed() -> None:
    """Would catch a sampler that seeds or advances a global generator, or depends on one."""
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]
    first = _all(7)
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]
    assert states == after
    random.random(), np.random.rand(), torch.rand(1)
    assert _all(7) == first
    other = _all(8)
    assert all(other[k] != first[k] for k in first)


def test_draws_are_of_the_class_and_supports_are_not_the_query() -> None:
    for name, draws in _all(3).items():
        assert len(draws) == (18 if name == "every_image" else 40)
        for d in draws:
            images = [n.partition("#")[0] for n in (d.query, *d.supports)]
            assert len(d.supports) == 2
            assert images[0] not in images[1:], name
            assert all(n in POOLS[d.class_id] for n in images[1:])


def test_the_rules_of_each_family() -> None:
    drawn = _all(0)
    assert [d.class_id for d in drawn["class_cycled"]] == [0, 2] * 20
    assert [d.class_id for d in drawn["pascal_part"]] == [0, 2] * 20
    assert [d.query for d in drawn["every_image"]] == sorted(n for p in POOLS.values() for n in p)
    assert [d.query for d in drawn["two_generators"]][:18] == [n for n, _ in LISTED]
    assert {d.class_id for d in drawn["class_uniform"]} == {0, 2}
    # repeats among supports: HSNet and VRP-SAM allow them, FSSAM and Pascal-Part do not
    repeats = {k: any(len({n.partition("#")[0] for n in d.supports}) < 2 for d in v) for k, v in drawn.items()}
    assert repeats == {"listed_pairs": True, "class_uniform": True, "class_cycled": True, "every_image": True,
                       "two_generators": True, "by_worker": False, "paco": True, "pascal_part": False}
    assert not any(n.endswith(("#1", "#2")) for d in drawn["pascal_part"] for n in (d.query, *d.supports))
    assert not any(n.endswith("#2") for d in drawn["paco"] for n in (d.query, *d.supports))


def test_two_generators_are_pythons_and_numpys() -> None:
    """The published loop over the global generators, seeded as its scripts do, in so many words."""
    before = random.getstate(), np.random.get_state()
    random.seed(321)
    np.random.seed(321)
    wanted = []
    for number in range(40):
        name, present = LISTED[number % len(LISTED)]
        class_id, supports = present[random.randint(1, len(present)) - 1], []
        while len(supports) < 2:
            drawn = str(np.random.choice(POOLS[class_id], 1, replace=False)[0])
            if drawn != name:
                supports.append(drawn)
        wanted.append(NamedEpisode(class_id, name, tuple(supports)))
    random.setstate(before[0])
    np.random.set_state(before[1])
    assert bam.two_generators(LISTED, POOLS, shots=2, episodes=40, seed=321) == wanted


def test_fss_queries_follow_path_order() -> None:
    pool = {0: [f"x/{i}.jpg" for i in range(1, 11)]}
    queries = [d.query for d in hsnet.every_image(pool, shots=1, seed=0)]
    assert queries[:3] == ["x/1.jpg", "x/10.jpg", "x/2.jpg"]


def test_pools_that_would_never_end_are_refused() -> None:
    with pytest.raises(FssError, match="class 1 has 1 images"):
        hsnet.class_uniform({0: ["a", "b"], 1: ["c", "c"]}, [0, 1], shots=1, episodes=3, seed=0)
    with pytest.raises(FssError, match="class 0 has 2 images"):
        bam.by_worker([("a", [0])], {0: ["a", "b"]}, shots=2, episodes=3, seed=0, workers=2)
    with pytest.raises(FssError, match="show no class"):
        bam.two_generators([("a", [])], {0: ["a", "b"]}, shots=1, episodes=3, seed=0)
