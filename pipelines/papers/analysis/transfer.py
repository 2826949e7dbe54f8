"""COCO-20i to PASCAL: each PASCAL class is tested with the bundle of the COCO fold that held its counterpart out.

This is the protocol of RePRI: the fold is the 0-based id of the COCO class modulo 4. Published mIoU of SANSA by fold:
67.1, 70.9, 73.5, 78.6, mean 72.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fss_models.errors import FssError
from pipelines.bundles.bundle import read_bundle_info
from pipelines.config.recipe import Recipe
from pipelines.data.benchmarks.coco import FOLDS, PASCAL_IN_COCO, transfer_fold
from pipelines.data.ensure import ensure_shards
from pipelines.data.episodes import EpisodeList
from pipelines.data.shardset import Shards
from pipelines.papers.analysis.domains import example_strips
from pipelines.papers.analysis.figures import interval_text, pct
from pipelines.papers.analysis.page import Analysis, AnalysisFile, PictureStrip, TextTable, write_page
from pipelines.papers.analysis.pictures import LEGEND
from pipelines.papers.analysis.scores import FewShotScores, draw_episodes_among, interval_plot, score_few_shot
from pipelines.papers.analysis.study import Study

SHOWN = 2  # episodes a fold


@dataclass(frozen=True, kw_only=True)
class TransferFold:
    """One fold of the protocol: its bundle, the PASCAL classes that it is tested on, and their episodes."""

    number: int
    study: Study
    names: list[str]
    episodes: EpisodeList

    @property
    def record(self) -> str:
        """What the bundle records about its training classes."""
        if not self.study.trained:
            return "trains nothing"
        return f"{len(self.study.info.classes)} classes" if self.study.info.classes else "not recorded"


def fold_classes(shards: Shards) -> dict[int, list[int]]:
    """COCO fold -> ids of the dataset's PASCAL classes that it held out. Raises `FssError` if a fold has none."""
    found: dict[int, list[int]] = {f: [] for f in range(FOLDS)}
    for c in shards.manifest.classes:
        if c.name in PASCAL_IN_COCO:
            found[transfer_fold(c.name)].append(c.class_id)
    for fold, classes in found.items():
        if not classes:
            names = ", ".join(n for n in PASCAL_IN_COCO if transfer_fold(n) == fold)
            raise FssError(f"the dataset has none of the PASCAL classes of fold {fold} ({names})", where=shards.url,
                           hint="give a recipe of PASCAL VOC, such as source format pascal5i or voc")
    return found


def open_folds(recipe: Recipe, bundles: Sequence[str]) -> list[TransferFold]:
    """Open the four folds; `bundles` are of the COCO folds 0 to 3.

    Raises `FssError` for another number of bundles, and for a bundle that was trained on a class or a photo of its
    fold.
    """
    if len(bundles) != FOLDS:
        raise FssError(f"{len(bundles)} bundle{'' if len(bundles) == 1 else 's'} given, but the protocol has {FOLDS} "
                       "folds", hint="write --bundles FOLD0,FOLD1,FOLD2,FOLD3")
    infos = [read_bundle_info(b) for b in bundles]
    shards = ensure_shards(recipe)
    return [_open_fold(Study(recipe, bundles[f], infos[f], shards), f, ids) for f, ids in fold_classes(shards).items()]


def _open_fold(study: Study, number: int, class_ids: list[int]) -> TransferFold:
    names = [study.shards.classes[c].name for c in class_ids]
    for name in names:
        study.refuse_training_classes([name, PASCAL_IN_COCO[name]], f"fold {number} tests as {name!r}")
    episodes = draw_episodes_among(study.shards, class_ids, study.recipe.eval)
    study.refuse_training_photos([i for e in episodes for i in (e.query, *e.supports)])
    return TransferFold(number=number, study=study, names=names, episodes=episodes)


def analyse_transfer(recipe: Recipe, *, bundles: Sequence[str]) -> AnalysisFile:
    """mIoU of every fold and their mean; `bundles` are of the COCO folds 0 to 3, `recipe` is a recipe of PASCAL VOC.

    Raises `FssError` for another number of bundles, for data without PASCAL's classes, and for a bundle trained on
    one of the photos or on the counterpart of a class that it is tested on.
    """
    folds = open_folds(recipe, bundles)
    scores = [score_few_shot(f.study.adapted, f.study.shards, f.episodes, recipe, f"fold {f.number}") for f in folds]
    strips = [s for f in folds for s in example_strips(f.study, f.episodes, f"fold {f.number}", SHOWN)]
    return write_page(_analysis(recipe, folds, scores, strips), *(f.study for f in folds))


def _analysis(recipe: Recipe, folds: list[TransferFold], scores: list[FewShotScores],
              strips: list[PictureStrip]) -> Analysis:
    mean = sum(s.miou for s in scores) / FOLDS
    rows = [[f"fold {f.number}", " ".join(f.names), f.record, pct(s.miou), interval_text(s.interval)]
            for f, s in zip(folds, scores, strict=True)]
    rows.append(["mean", "", "", pct(mean), ""])
    left_out = {n: why for f in folds for n, why in f.episodes.dropped.items()}
    absent = sorted(set(PASCAL_IN_COCO) - {n for f in folds for n in f.names})
    per_class = [[name, PASCAL_IN_COCO[name], str(f.number), pct(iou)] for f, s in zip(folds, scores, strict=True)
                 for name, iou in s.per_class.items()]
    notes = [f"Each fold has {recipe.eval.episodes} episodes of test photos; all its classes are equally likely. A "
             "PASCAL class is tested with the bundle of the COCO fold that held its counterpart out: the 0-based COCO "
             "id modulo 4."]
    if any(f.record == "not recorded" for f in folds):
        notes.append("A bundle whose training classes are not recorded (an imported checkpoint) could not be checked: "
                     "its training may have used the counterparts.")
    if absent or left_out:
        notes.append("Not all PASCAL classes were tested, so the mean cannot be compared with the published one. "
                     f"Missing: {', '.join(sorted({*absent, *left_out}))}.")
    return Analysis(name="transfer", title="From COCO to PASCAL", setting=f"{recipe.eval.shots}-shot",
                    findings=[f"The mean mIoU of the four folds is {pct(mean)}.",
                              "In the paper (SAM 2 Large, 1-shot): 67.1, 70.9, 73.5, 78.6, mean 72.5."],
                    table=TextTable(columns=["fold", "PASCAL classes", "trained on", "mIoU", "95 % interval"],
                                    rows=rows),
                    tables=[TextTable(title="IoU of every class", rows=per_class,
                                      columns=["PASCAL class", "COCO counterpart", "fold", "IoU"])],
                    figures={"miou": mean, "shots": recipe.eval.shots, "absent": absent, "not_scored": left_out,
                             "folds": [{"fold": f.number, "classes": f.names, "trained_on": f.record,
                                        **asdict(s)} for f, s in zip(folds, scores, strict=True)]},
                    plots=[interval_plot({f"fold {f.number}": s for f, s in zip(folds, scores, strict=True)})],
                    strips=strips, legend=LEGEND, notes=notes)
