"""The similarity of objects of one class in SAM's features and in the backbone's: why FCP uses both.

SAM separates objects from their surroundings without classes; an ImageNet backbone was trained on classes. The
analysis compares the prototypes that the methods compute from each: the mean of the features under an object's mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import Features
from fss_models.prior_guided.maps import masked_mean, resize_aligned
from fss_models.prior_guided.marks import grid_masks
from fss_models.prompts import mask_prompt
from fss_models.segmenter import Segmenter
from pipelines.base.progress import Bar
from pipelines.config.recipe import Recipe
from pipelines.data.episodes import EpisodeList, load_episode
from pipelines.data.schema import Sample
from pipelines.evaluation.evaluate import FeatureCache
from pipelines.papers.analysis.page import Analysis, AnalysisFile, PictureStrip, TextTable, write_page
from pipelines.papers.analysis.pca import ClassSimilarity, measure_similarity
from pipelines.papers.analysis.pictures import LEGEND, histograms, marked_photos
from pipelines.papers.analysis.prompted import METHODS, cell_masks, heat_url, open_study, remarks
from pipelines.papers.analysis.scores import first_of_each_class
from pipelines.papers.analysis.study import Study, draw_photos

PHOTOS_A_CLASS = 40
SHOWN = 6
SAM, MIDDLE, TOP, REDUCED = "SAM", "backbone, layers 2 and 3", "backbone, layer 4", "layers 2 and 3, reduced"


def prototype_features(features: Features) -> dict[str, Tensor]:
    """The features from which the methods compute prototypes, on SAM's grid: name -> [N, C, G, G]."""
    maps, size = features.maps, features.maps["sam"].shape[-2:]
    middle = torch.cat([resize_aligned(maps[n], size) for n in ("high", "mid")], dim=1)
    return {SAM: maps["sam"], MIDDLE: middle, TOP: resize_aligned(maps["top"], size)}


@torch.inference_mode()
def compute_prototypes(model: Segmenter, cache: FeatureCache, objects: Sequence[Sample]) -> dict[str, Tensor]:
    """Prototypes of N objects by kind of features: name -> means [N, C] of the features under the objects' masks.

    `REDUCED` is the prototype that the prompt encoder works with: the middle layers after its trained reduction. It is
    left out if the bundle's configuration has no reduction.
    """
    features, row_of = cache(objects)
    rows = torch.tensor([row_of[o.image_id] for o in objects])
    prompts = model.collate([[mask_prompt(o.mask)] for o in objects], features.sizes.cpu(), rows[:, None])
    prompts = prompts.to(model.device)
    masks = grid_masks(prompts.masks[:, 0, None], features.maps["sam"].shape[-2:], fill=True)
    found = {k: masked_mean(v[rows.to(v.device)], masks.to(v)) for k, v in prototype_features(features).items()}
    memory = model.memorise(features, prompts).tensors
    reduced = memory.get("res", memory.get("prototype"))
    return found if reduced is None else found | {REDUCED: reduced[:, 0]}


def collect_prototypes(study: Study, class_ids: Sequence[int],
                       photos: Sequence[int]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Prototypes [N, C] of every object of the classes in the photos, with their classes [N] and photos [N]."""
    model, cache, batch = study.adapted, FeatureCache(study.adapted), study.recipe.eval.batch
    showing = {c: set(study.shards.photos_of(c, "test")) for c in class_ids}
    pairs = [(i, c) for i in photos for c in class_ids if i in showing[c]]
    found: dict[str, list[Tensor]] = {}
    with Bar("prototypes", len(pairs), unit="objects") as bar:
        for first in range(0, len(pairs), batch):
            chunk = pairs[first:first + batch]
            for kind, rows in compute_prototypes(model, cache, [study.shards.sample(i, c) for i, c in chunk]).items():
                found.setdefault(kind, []).append(rows.float().cpu())
            bar.step(len(chunk))
    ids = torch.tensor(pairs)
    return {k: torch.cat(v) for k, v in found.items()}, ids[:, 1], ids[:, 0]


def analyse_similarity(recipe: Recipe, *, bundle: str, fold: int) -> AnalysisFile:
    """Cosine similarity of prototypes within and between a fold's novel classes, by kind of features.

    The photos are test photos, up to `PHOTOS_A_CLASS` a class. Raises `FssError` for a bundle of a method that does
    not use both kinds of features, for a bundle trained on a class of the fold or on one of the photos, and for fewer
    than two classes with two photos each.
    """
    study = open_study(recipe, bundle, METHODS, "features of a backbone beside SAM's")
    episodes = study.draw_unseen(fold)
    class_ids = episodes.class_ids
    photos = draw_photos(study.shards, class_ids, "test", PHOTOS_A_CLASS * len(class_ids), recipe.eval.seed)
    study.refuse_training_photos(photos)
    found, classes, images = collect_prototypes(study, class_ids, photos)
    similarities = {kind: measure_similarity(rows, classes, images) for kind, rows in found.items()}
    counts = {"objects": len(classes), "photos": len(photos)}
    return write_page(_analysis(study, fold, class_ids, similarities, counts, _strips(study, episodes)), study)


@torch.inference_mode()
def _strips(study: Study, episodes: EpisodeList) -> list[PictureStrip]:
    """One episode of each class: the similarity of each cell of the query to the support's prototype."""
    model, cache, strips = study.adapted, FeatureCache(study.adapted), []
    for episode in first_of_each_class(episodes, SHOWN):
        sample = load_episode(study.shards, episode)
        reference, target = sample.references[0], sample.targets[0]
        features, row_of = cache([reference, target])
        panels = marked_photos(sample)
        for kind, maps in prototype_features(features).items():
            size = (maps.shape[-2], maps.shape[-1])
            own = maps[row_of[reference.image_id], None]
            prototype = masked_mean(own, cell_masks(model, [reference.mask], size)[:, None].to(own))
            cosine = F.cosine_similarity(maps[row_of[target.image_id]], prototype[0, :, None, None], dim=0)
            panels.append((f"{kind}: {float(cosine.min()):.2f} to {float(cosine.max()):.2f}",
                           heat_url(target.image, cosine)))
        strips.append(PictureStrip(title=sample.class_name, panels=panels))
    return strips


def _analysis(study: Study, fold: int, class_ids: Sequence[int], similarities: dict[str, ClassSimilarity],
              counts: dict[str, int], strips: list[PictureStrip]) -> Analysis:
    names = [study.shards.classes[c].name for c in class_ids]
    sam, middle = similarities[SAM], similarities[MIDDLE]
    verb = "separate the classes better" if middle.auc > sam.auc else "do not separate the classes better"
    rows = [[kind, f"{s.within:.3f}", f"{s.between:.3f}", f"{s.within - s.between:+.3f}", f"{s.auc:.3f}"]
            for kind, s in similarities.items()]
    return Analysis(
        name="similarity", title="Classes in the features of SAM and of the backbone", setting=f"fold {fold}",
        findings=[f"The backbone's layers 2 and 3 {verb} than SAM's features: two objects of one class are more "
                  f"similar than two objects of different classes in {middle.auc:.1%} of the cases, with SAM's "
                  f"features in {sam.auc:.1%}.",
                  f"The {counts['objects']} objects are of the {len(names)} novel classes of fold {fold} "
                  f"({', '.join(names)}), in {counts['photos']} test photos."],
        table=TextTable(columns=["prototypes of", "within a class", "between classes", "gap", "AUC"], rows=rows),
        figures={"fold": fold, "classes": names, **counts,
                 "similarity": {k: {"within": s.within, "between": s.between, "gap": s.within - s.between,
                                    "auc": s.auc} for k, s in similarities.items()}},
        plots=[histograms({"within a class": (s.edges, s.within_share), "between classes": (s.edges, s.between_share)},
                          kind, "cosine similarity of two objects' prototypes") for kind, s in similarities.items()],
        strips=strips, legend=LEGEND[:2],
        notes=["A prototype is the mean of the features under an object's mask. Similarity is the cosine of two "
               "prototypes, over pairs from different photos. AUC: the chance that a pair within a class is more "
               "similar than a pair between classes; at 0.5 the features do not separate the classes. Features of one "
               "kind may share a mean, so a high cosine alone says little. Reduced: the features after the trained "
               "reduction of the bundle's prompt encoder.",
               "A map shows the cosine similarity of the support's prototype with each cell of the query; its colours "
               "go from its own lowest to its own highest value.", *remarks(study)])
