"""FCP's analyses: attention, prototypes of SAM and backbone, pseudo masks; on constructed values, then on a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from fss_models import registry
from fss_models.clip import Prediction
from fss_models.errors import FssError
from fss_models.prompts import mask_prompt
from fss_models.prototype_prompts.analysis import FcpAnalysis, TokenReading, VrpAnalysis
from fss_models.segmenter import Segmenter
from jobs.cli import make_app
from pipelines.bundles.bundle import save_bundle
from pipelines.config.choose import ChooseConfig
from pipelines.config.recipe import Recipe
from pipelines.data.episodes import load_episode
from pipelines.data.folds import FoldData
from pipelines.data.shardset import Shards
from pipelines.evaluation.evaluate import FeatureCache
from pipelines.papers.analysis import matching, pseudo_masks
from pipelines.papers.analysis import similarity as prototype_similarity
from pipelines.papers.analysis.matching import (
    analyse_matching,
    attention_layers,
    mean_interval,
    measure_shares,
    share_inside,
    token_likeness,
)
from pipelines.papers.analysis.prompted import EpisodeBatch, analyse_batch, cell_masks
from pipelines.papers.analysis.pseudo_masks import analyse_pseudo_masks
from pipelines.papers.analysis.similarity import MIDDLE, REDUCED, SAM, TOP, analyse_similarity

NOTHING = Prediction(logits=torch.zeros(1, 1, 1), scores=torch.zeros(1))


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return registry.build("fcp", "debug").eval()


def fcp(query: list[Tensor], matching: Tensor, masks: list[Tensor] | None = None, **shape: Any) -> FcpAnalysis:
    """An analysis whose rows have the query attention `query`; each row is an episode unless `shape` says otherwise."""
    rows, cells = query[0].shape[0], query[0].shape[2]
    side = int(cells**0.5)
    given = {"pair": torch.arange(rows), "shot": torch.zeros(rows, dtype=torch.int64)} | shape
    return FcpAnalysis(
        support_attention=[q.clone() for q in query], query_attention=query, matching=matching,
        conventional=torch.zeros(rows, 1, side, side), attention_masks=masks or [], prompts=torch.zeros(rows, 1, 1),
        shot_logits=torch.zeros(rows, 1, 1), prediction=NOTHING, **given)


def test_share_of_attention_on_the_object() -> None:
    inside = torch.zeros(1, 4, 4, dtype=torch.bool)
    inside[0, :1] = True
    on = inside.flatten(1) / 4.0
    assert share_inside(on, inside).item() == 1.0
    assert share_inside(1 - inside.flatten(1).float(), inside).item() == 0.0
    assert share_inside(torch.full((1, 16), 1 / 16), inside).item() == 0.25  # spread evenly: the object's area
    assert share_inside(0.5 * on + 0.5 / 16, inside).item() == pytest.approx(0.5 + 0.125)


def test_tokens_that_look_alike() -> None:
    same, apart = torch.full((3, 4), 0.25), torch.eye(3, 4)
    half = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert token_likeness(torch.stack([same, apart, half])).tolist() == pytest.approx([1.0, 0.0, 1 / 3], abs=1e-6)


@pytest.mark.parametrize(("chosen", "share"), [([1.0, 0.0], 1.0), ([0.0, 1.0], 0.0), ([0.25, 0.75], 0.25)])
def test_prompts_look_through_the_matching(chosen: list[float], share: float) -> None:
    inside = torch.tensor([[[True, False], [False, False]]])
    query = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.2, 0.3, 0.5]]])  # one prototype on the object, one off it
    through = torch.tensor([[chosen, chosen, chosen]])  # three prompts
    listed = attention_layers(fcp([query, query], through))
    assert [r.side for r in listed] == ["support", "query", "query", "query"]
    assert share_inside(listed[-2].weights, inside).item() == 0.5  # the query prototypes themselves
    assert share_inside(listed[-1].weights, inside).item() == pytest.approx(share)
    assert listed[-1].name.endswith("through the matching")


def test_without_matching_the_prompts_attend_pixels() -> None:
    inside = torch.tensor([[[True, False], [False, False]]])
    query = torch.tensor([[[0.6, 0.4, 0.0, 0.0], [0.2, 0.2, 0.3, 0.3]]])
    last = attention_layers(fcp([query.flip(2), query], torch.zeros(1, 0, 0)))[-1]
    assert last.name == "support prototypes on the query, step 2"
    assert share_inside(last.weights, inside).item() == pytest.approx(0.4)
    seen = TokenReading(tokens=torch.zeros(1, 2, 3), cross=query, own=torch.zeros(1, 2, 2))
    row = torch.zeros(1, dtype=torch.int64)
    vrp = VrpAnalysis(pair=row, shot=row, support=seen, query=replace(seen, cross=query.flip(2)),
                      prior=torch.zeros(1, 1, 2, 2), prediction=NOTHING)
    shares = {r.side: share_inside(r.weights, inside).item() for r in attention_layers(vrp)}
    assert shares == pytest.approx({"support": 0.4, "query": 0.15})


def test_shots_are_averaged_before_episodes(shards: Shards, recipe: Recipe, model: Segmenter) -> None:
    episodes = FoldData.open(shards.url, 0).episodes(recipe.eval.model_copy(update={"shots": 2, "episodes": 1}))
    sample = load_episode(shards, episodes.episodes[0])
    inside = cell_masks(model, [sample.targets[0].mask], (4, 4)).flatten(1).float()
    on, off = inside / inside.sum(), (1 - inside) / (1 - inside).sum()
    query = torch.stack([on, off])  # the first shot looks at the object, the second beside it
    found = fcp([query], torch.zeros(2, 0, 0), pair=torch.tensor([0, 0]), shot=torch.tensor([0, 1]))
    batch = EpisodeBatch(episodes=episodes.episodes, samples=[sample], analysis=found)
    shares, classes = measure_shares([batch], model)
    assert classes == [episodes.episodes[0].class_id]
    assert shares[-1].share == pytest.approx([0.5])
    assert shares[-1].even == pytest.approx([float(inside.mean())])


def test_interval_of_a_mean() -> None:
    choose = ChooseConfig(resamples=400)
    values = np.random.default_rng(0).random(200)
    low, high = mean_interval(values, choose)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 200**0.5, rel=0.2)
    assert mean_interval(np.full(9, 0.25), choose) == (0.25, 0.25)


def test_matching_beside_pixels(recipe: Recipe, shards: Shards, make_bundle: Callable[..., str]) -> None:
    other = make_bundle("vrp_sam", "other")
    written = analyse_matching(recipe, bundle=make_bundle("fcp"), other=other, fold=0)
    found = json.loads(Path(written.url).with_suffix(".json").read_text())
    ours, theirs = (found["attention"][k] for k in ("fcp (prototype to prototype)", "vrp_sam (prototype to pixel)"))
    assert ours["support prototypes on the support"]["share"] == pytest.approx(1.0, abs=1e-6)  # masked to the object
    assert 0 < theirs["prompts on the support"]["share"] < 0.99
    assert len(ours) == 5
    page = Path(written.url).read_text()
    assert "prototype to pixel" in page
    assert page.count("<img") == 8 * min(matching.SHOWN, len({c.class_id for c in FoldData.open(shards.url, 0).tested}))
    assert "does not record the classes" in page  # a bundle made without a word on its training
    with pytest.raises(FssError, match="the same bundle is given twice"):
        analyse_matching(recipe, bundle=other, other=other, fold=0)


def test_the_share_of_an_episode_computed_by_hand(shards: Shards, recipe: Recipe, model: Segmenter) -> None:
    episode = FoldData.open(shards.url, 0).episodes(recipe.eval).episodes[0]
    shares, _ = measure_shares(analyse_batch(model, shards, [episode], recipe.eval, "one"), model)
    sample = load_episode(shards, episode)
    reference, target = sample.references[0], sample.targets[0]
    with torch.no_grad():
        features = model.encode(model.prepare([reference.image, target.image]))
        prompts = model.collate([[mask_prompt(reference.mask)]], features.sizes)
        found: FcpAnalysis = model.analyse(features, prompts, torch.tensor([[0, 1]]))  # type: ignore[operator]
    side = found.conventional.shape[-1]
    rows = (np.arange(side) * model.side) // side
    truth = model.preprocessor.target(target.mask).numpy()[np.ix_(rows, rows)].astype(bool)
    maps = found.query_attention[-1][0].numpy().reshape(-1, side, side)
    weights = np.einsum("sq,qhw->shw", found.matching[0].numpy(), maps)
    by_hand = np.mean([w[truth].sum() / w.sum() for w in weights])
    assert truth.any()
    assert shares[-1].share[0] == pytest.approx(by_hand, abs=1e-5)
    assert shares[-1].even[0] == pytest.approx(truth.mean())


def test_prototypes_are_masked_means(shards: Shards, model: Segmenter) -> None:
    class_id = FoldData.open(shards.url, 0).tested[0].class_id
    objects = shards.samples(shards.photos_of(class_id, "test")[:3], class_id)
    found = prototype_similarity.compute_prototypes(model, FeatureCache(model), objects)
    assert set(found) == {SAM, MIDDLE, TOP, REDUCED}
    with torch.no_grad():
        maps = model.encode(model.prepare([o.image for o in objects])).maps["sam"]
    for row, one in enumerate(objects):
        inside = cell_masks(model, [one.mask], (maps.shape[-2], maps.shape[-1]))[0]
        torch.testing.assert_close(found[SAM][row], maps[row][:, inside].mean(dim=1), rtol=1e-3, atol=1e-5)


def test_similarity_by_kind_of_features(recipe: Recipe, shards: Shards, tmp_path: Path) -> None:
    save_bundle(str(tmp_path / "sam_only"), registry.build("fcp", "debug", {"features": "sam"}))
    written = analyse_similarity(recipe, bundle=str(tmp_path / "sam_only"), fold=0)
    found = written.document
    assert set(found["similarity"]) == {SAM, MIDDLE, TOP}  # no reduction is trained
    novel = [c.class_id for c in FoldData.open(shards.url, 0).tested]
    photos = {c: set(shards.photos_of(c, "test")) for c in novel}
    assert found["objects"] == sum(map(len, photos.values()))
    assert found["photos"] == len(set.union(*photos.values()))
    for values in found["similarity"].values():
        assert -1 <= values["between"] <= 1
        assert values["gap"] == pytest.approx(values["within"] - values["between"])
    assert Path(written.url).read_text().count("<svg") == 3


def test_quality_of_constructed_pseudo_masks(shards: Shards, recipe: Recipe, model: Segmenter) -> None:
    episodes = FoldData.open(shards.url, 0).episodes(recipe.eval)
    chosen = list(episodes.episodes)
    samples = [load_episode(shards, e) for e in chosen]
    truth = cell_masks(model, [s.targets[0].mask for s in samples], (8, 8), fill=False)[:, None].float()
    uniform = torch.full((len(chosen), 1, 64), 1 / 64)
    found = fcp([uniform] * 4, torch.zeros(len(chosen), 0, 0), masks=[truth, 0.4 * truth, torch.ones_like(truth)])
    made = pseudo_masks.threshold_masks([EpisodeBatch(episodes=chosen, samples=samples, analysis=found)], model)
    exact, faint, everywhere = (made.quality(f"attention, step {t}", episodes.class_ids) for t in (1, 2, 3))
    assert (exact.miou, exact.precision, exact.recall) == (1.0, 1.0, 1.0)
    assert (faint.miou, faint.recall) == (0.0, 0.0)  # nothing reaches one half
    assert everywhere.recall == 1.0
    areas = [float(truth[[i for i, e in enumerate(chosen) if e.class_id == c]].mean()) for c in episodes.class_ids]
    assert everywhere.precision == pytest.approx(np.mean(areas))


def test_pseudo_masks_of_a_bundle(recipe: Recipe, make_bundle: Callable[..., str]) -> None:
    two = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"shots": 2})})
    written = analyse_pseudo_masks(two, bundle=make_bundle("fcp"), fold=0)
    assert list(written.document["quality"]) == ["conventional", "attention, step 1", "attention, step 2"]
    for values in written.document["quality"].values():
        assert 0 <= values["miou"] <= min(values["precision"], values["recall"]) <= 1
    assert "each shot has its own masks" in Path(written.url).read_text()
    assert "2-shot" in written.url


@pytest.mark.parametrize(("command", "method", "hint"), [
    ("matching", "sansa", "fcp or vrp_sam"), ("similarity", "sansa", "fcp or vrp_sam"),
    ("pseudo-masks", "vrp_sam", "give a bundle of fcp")])
def test_a_method_without_the_analysis(command: str, method: str, hint: str, make_bundle: Callable[..., str],
                                       tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(method)
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(make_app(), ["analyse", command, "--bundle", bundle])
    assert isinstance(answer.exception, FssError)
    assert f"method {method!r} has no" in str(answer.exception)
    assert hint in str(answer.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]  # no shards were built for it


def test_a_bundle_that_knows_the_classes(recipe: Recipe, shards: Shards, make_bundle: Callable[..., str]) -> None:
    known = FoldData.open(shards.url, 0).tested[0].name
    bundle = make_bundle("fcp", classes=[known])
    for analyse in (analyse_matching, analyse_similarity, analyse_pseudo_masks):
        with pytest.raises(FssError, match=f"was trained on '{known}', which fold 0 tests"):
            analyse(recipe, bundle=bundle, fold=0)
