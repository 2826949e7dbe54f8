"""Scores on trained classes (in-domain) and on novel classes (out-of-domain), as in SANSA's table of tuning methods.

Published mIoU on COCO-20i, 1-shot, in-domain / out-of-domain: decoder 63.7 / 52.1, QKV 73.5 / 55.3, backbone
74.8 / 55.2, SANSA 72.0 / 60.2.
"""

from __future__ import annotations

from dataclasses import asdict

from fss_models.errors import FssError
from pipelines.config.recipe import Recipe
from pipelines.data.episodes import EpisodeList, load_episode
from pipelines.pages.pictures import PREDICTION, photo_url
from pipelines.papers.analysis.figures import interval_text, pct, signed_points
from pipelines.papers.analysis.page import Analysis, AnalysisFile, PictureStrip, TextTable, write_page
from pipelines.papers.analysis.pictures import LEGEND, marked_photos
from pipelines.papers.analysis.scores import (
    FewShotScores,
    draw_episodes_among,
    first_of_each_class,
    interval_plot,
    predict_masks,
    score_few_shot,
)
from pipelines.papers.analysis.study import Study, cautions

SHOWN = 3  # episodes of each domain
DOMAINS = {"in": "in-domain (base classes)", "out": "out-of-domain (novel classes)"}
Scores = dict[str, dict[str, FewShotScores]]  # domain -> model -> scores


def analyse_domains(recipe: Recipe, *, bundle: str, fold: int) -> AnalysisFile:
    """mIoU on the classes that the bundle was trained on and on the fold's novel classes, over test photos only.

    Raises `FssError` for a bundle that was trained on no class of the dataset, on a class of the fold, or on one of
    the photos.
    """
    study = Study.open(recipe, bundle)
    models, data = study.models, study.open_unseen_fold(fold)
    base = [c.class_id for c in data.base if c.name in study.info.classes]
    if not base:
        raise FssError(f"the bundle was trained on no class of {recipe.data.name!r} outside fold {fold}", where=bundle,
                       hint="give the recipe that it was trained with")
    lists = {"in": draw_episodes_among(study.shards, base, recipe.eval), "out": data.episodes(recipe.eval)}
    study.refuse_training_photos([i for listed in lists.values() for e in listed for i in (e.query, *e.supports)])
    scores: Scores = {domain: {name: score_few_shot(model, study.shards, listed, recipe, f"{name}, {domain}-domain")
                               for name, model in models.items()} for domain, listed in lists.items()}
    strips = [s for domain, listed in lists.items() for s in example_strips(study, listed, DOMAINS[domain], SHOWN)]
    return write_page(_analysis(study, fold, lists, scores, strips), study)


def example_strips(study: Study, episodes: EpisodeList, what: str, count: int) -> list[PictureStrip]:
    """Pictures of the first episodes of up to `count` classes, predicted by the frozen and the adapted model.

    `what` is added to the class's name in each title.
    """
    picks = first_of_each_class(episodes, count)
    samples = [load_episode(study.shards, e) for e in picks]
    panels = [marked_photos(s) for s in samples]
    models = study.models if study.trained else {study.info.method: study.adapted}
    for name, model in models.items():
        for shown, sample, (mask, iou) in zip(panels, samples,
                                              predict_masks(model, picks, samples, study.recipe.eval), strict=True):
            shown.append((f"{name}: {iou * 100:.0f}", photo_url(sample.targets[0].image, mask, PREDICTION)))
    return [PictureStrip(title=f"{s.class_name}, {what}", panels=p) for s, p in zip(samples, panels, strict=True)]


def _analysis(study: Study, fold: int, lists: dict[str, EpisodeList], scores: Scores,
              strips: list[PictureStrip]) -> Analysis:
    inside, outside = scores["in"]["adapted"], scores["out"]["adapted"]
    frozen_gap = scores["in"]["frozen"].miou - scores["out"]["frozen"].miou
    rows = [[DOMAINS[d], str(len(lists[d].class_ids)), pct(s["adapted"].miou), interval_text(s["adapted"].interval),
             pct(s["frozen"].miou), signed_points(s["adapted"].miou - s["frozen"].miou)] for d, s in scores.items()]
    bars = {f"{domain}-domain, {name}": s for domain, both in scores.items() for name, s in both.items()}
    per_class = [[name, f"{d}-domain", *(pct(both[k].per_class[name]) for k in ("adapted", "frozen"))]
                 for d, both in scores.items() for name in both["adapted"].per_class]
    left_out = {n: why for listed in lists.values() for n, why in listed.dropped.items()}
    return Analysis(
        name="domains", title="Trained classes and novel classes",
        setting=f"fold {fold}, {study.recipe.eval.shots}-shot",
        findings=[f"The adapted model reaches {pct(inside.miou)} mIoU in-domain and {pct(outside.miou)} out-of-domain: "
                  f"a difference of {signed_points(inside.miou - outside.miou)} points. On the same episodes the "
                  f"difference of the frozen model, which was trained on neither, is {signed_points(frozen_gap)}.",
                  "In the paper (COCO-20i, 1-shot): SANSA 72.0 and 60.2, full backbone 74.8 and 55.2."],
        table=TextTable(columns=["classes", "number", "adapted, mIoU", "95 % interval", "frozen, mIoU", "gain"],
                        rows=rows),
        tables=[TextTable(title="IoU of every class", columns=["class", "domain", "adapted", "frozen"],
                          rows=per_class)],
        figures={"fold": fold, "shots": study.recipe.eval.shots, "not_scored": left_out,
                 "scores": {d: {n: asdict(s) for n, s in both.items()} for d, both in scores.items()}},
        plots=[interval_plot(bars)], strips=strips, legend=LEGEND,
        notes=[f"{inside.episodes} in-domain and {outside.episodes} out-of-domain episodes were drawn by the same rule "
               "from test photos, which the bundle's training did not open. The out-of-domain episodes are those that "
               "fss eval scores.", *_left_out(left_out), *cautions(study)])


def _left_out(dropped: dict[str, str]) -> list[str]:
    """A note that lists the classes that could not be tested, with the reasons; empty if there are none."""
    if not dropped:
        return []
    return ["Classes that were not scored: "
            + "; ".join(f"{name} ({why})" for name, why in sorted(dropped.items())) + "."]
