"""How alike objects of one class are to SAM, and to the backbone: FCP's reason to use the features of both.

SAM tells objects from their surroundings without knowing classes, an ImageNet backbone knows classes. Compared are
what the methods compute from either: an object's prototype, the mean of the features under its mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import Features
from fss_models.prompts import mask_prompt
from fss_models.prototype_prompts.marks import grid_masks
from fss_models.prototype_prompts.parts import masked_mean, resize_aligned
from fss_models.segmenter import Segmenter
from pipelines.base.progress import Bar
from pipelines.config.recipe import Recipe
from pipelines.data.episodes import EpisodeList, load_episode
from pipelines.data.schema import Sample
from pipelines.evaluation.evaluate import FeatureCache
from pipelines.pages.pictures import SUPPORT, TRUTH, photo_url
from pipelines.papers.analysis.page import Analysis, AnalysisFile, PictureStrip, TextTable, write_page
from pipelines.papers.analysis.pca import ClassSimilarity, similarity
from pipelines.papers.analysis.pictures import LEGEND, histograms
from pipelines.papers.analysis.prompted import METHODS, cell_masks, heat_url, open_study, remarks
from pipelines.papers.analysis.scores import first_of_each_class
from pipelines.papers.analysis.study import Study, photos_of

PHOTOS_A_CLASS = 40
SHOWN = 6
SAM, MIDDLE, TOP, REDUCED = "SAM", "backbone, layers 2 and 3", "backbone, layer 4", "layers 2 and 3, reduced"


def kinds(features: Features) -> dict[str, Tensor]:
    """The features that the methods take prototypes of, on SAM's grid: name -> [N, C, G, G]."""
    maps, size = features.maps, features.maps["sam"].shape[-2:]
    middle = torch.cat([resize_aligned(maps[n], size) for n in ("high", "mid")], dim=1)
    return {SAM: maps["sam"], MIDDLE: middle, TOP: resize_aligned(maps["top"], size)}


@torch.inference_mode()
def prototypes(model: Segmenter, cache: FeatureCache, objects: Sequence[Sample]) -> dict[str, Tensor]:
    """Kind of features -> masked means [N, C] of N objects.

    `REDUCED` is what the encoder's trained reduction makes of the middle layers: the prototype that it works with;
    left out where its configuration has none.
    """
    features, row_of = cache(objects)
    rows = torch.tensor([row_of[o.image_id] for o in objects])
    prompts = model.collate([[mask_prompt(o.mask)] for o in objects], features.sizes.cpu(), rows[:, None])
    prompts = prompts.to(model.device)
    masks = grid_masks(prompts.masks[:, 0, None], features.maps["sam"].shape[-2:], fill=True)
    found = {k: masked_mean(v[rows.to(v.device)], masks.to(v)) for k, v in kinds(features).items()}
    held = model.memorise(features, prompts).tensors
    reduced = held.get("res", held.get("prototype"))
    return found if reduced is None else found | {REDUCED: reduced[:, 0]}


def collect(study: Study, class_ids: Sequence[int], photos: Sequence[int]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Prototypes [N, C] of every object of the classes in the photos, their classes [N] and photos [N]."""
    model, cache, batch = study.adapted, FeatureCache(study.adapted), study.recipe.eval.batch
    wanted = {c: set(study.shards.photos_of(c, "test")) for c in class_ids}
    pairs = [(i, c) for i in photos for c in class_ids if i in wanted[c]]
    found: dict[str, list[Tensor]] = {}
    with Bar("prototypes", len(pairs), unit="objects") as bar:
        for first in range(0, len(pairs), batch):
            chunk = pairs[first:first + batch]
            for kind, rows in prototypes(model, cache, [study.shards.sample(i, c) for i, c in chunk]).items():
                found.setdefault(kind, []).append(rows.float().cpu())
            bar.step(len(chunk))
    ids = torch.tensor(pairs)
    return {k: torch.cat(v) for k, v in found.items()}, ids[:, 1], ids[:, 0]


def analyse_similarity(recipe: Recipe, *, bundle: str, fold: int) -> AnalysisFile:
    """Cosine similarity of prototypes within and between a fold's novel classes, by kind of features.

    Test photos, up to `PHOTOS_A_CLASS` a class. Raises `FssError` for a bundle of a method without both features, one
    trained on a class of the fold or one of the photos, and fewer than two classes with two photos.
    """
    study = open_study(recipe, bundle, METHODS, "features of a backbone beside SAM's")
    data = study.unseen(fold)
    episodes = data.episodes(recipe.eval)
    class_ids = episodes.class_ids
    photos = photos_of(study.shards, class_ids, "test", PHOTOS_A_CLASS * len(class_ids), recipe.eval.seed)
    study.refuse_seen([*photos, *(i for e in episodes for i in (e.query, *e.supports))])
    found, classes, images = collect(study, class_ids, photos)
    alike = {kind: similarity(rows, classes, images) for kind, rows in found.items()}
    counts = {"objects": len(classes), "photos": len(photos)}
    return write_page(_analysis(study, fold, class_ids, alike, counts, _strips(study, episodes)), recipe, study.shards,
                      [(bundle, study.info)])


@torch.inference_mode()
def _strips(study: Study, episodes: EpisodeList) -> list[PictureStrip]:
    """One episode of each class: how alike each cell of the query is to the support's prototype."""
    model, cache, strips = study.adapted, FeatureCache(study.adapted), []
    for episode in first_of_each_class(episodes, SHOWN):
        sample = load_episode(study.shards, episode)
        reference, target = sample.references[0], sample.targets[0]
        features, row_of = cache([reference, target])
        panels = [("support", photo_url(reference.image, reference.mask, SUPPORT)),
                  ("query, truth", photo_url(target.image, target.mask, TRUTH))]
        for kind, maps in kinds(features).items():
            size = (maps.shape[-2], maps.shape[-1])
            own = maps[row_of[reference.image_id], None]
            prototype = masked_mean(own, cell_masks(model, [reference.mask], size)[:, None].to(own))
            cosine = F.cosine_similarity(maps[row_of[target.image_id]], prototype[0, :, None, None], dim=0)
            panels.append((f"{kind}: {float(cosine.min()):.2f} to {float(cosine.max()):.2f}",
                           heat_url(target.image, cosine)))
        strips.append(PictureStrip(title=sample.class_name, panels=panels))
    return strips


def _analysis(study: Study, fold: int, class_ids: Sequence[int], alike: dict[str, ClassSimilarity],
              counts: dict[str, int], strips: list[PictureStrip]) -> Analysis:
    names = [study.shards.classes[c].name for c in class_ids]
    sam, middle = alike[SAM], alike[MIDDLE]
    verb = "tell classes apart better" if middle.auc > sam.auc else "do not tell classes apart better"
    rows = [[kind, f"{s.within:.3f}", f"{s.between:.3f}", f"{s.within - s.between:+.3f}", f"{s.auc:.3f}"]
            for kind, s in alike.items()]
    return Analysis(
        name="similarity", title="Classes in the features of SAM and of the backbone", setting=f"fold {fold}",
        said=[f"The backbone's layers 2 and 3 {verb} than SAM's features: two objects of one class are more alike than "
              f"two of different classes in {middle.auc:.1%} of the cases, to SAM in {sam.auc:.1%}.",
              f"{counts['objects']} objects of {len(names)} classes that training held out ({', '.join(names)}), in "
              f"{counts['photos']} test photos."],
        table=TextTable(columns=["prototypes of", "within a class", "between classes", "gap", "AUC"], rows=rows),
        figures={"fold": fold, "classes": names, **counts,
                 "similarity": {k: {"within": s.within, "between": s.between, "gap": s.within - s.between,
                                    "auc": s.auc} for k, s in alike.items()}},
        plots=[histograms({"within a class": (s.edges, s.within_share), "between classes": (s.edges, s.between_share)},
                          kind, "cosine similarity of two objects' prototypes") for kind, s in alike.items()],
        strips=strips, legend=LEGEND[:2],
        notes=["A prototype is the mean of the features under an object's mask; similarity is their cosine, over pairs "
               "from different photos. AUC: the chance that a pair within a class is more alike than one between "
               "classes; 0.5 is none. Features of one kind may share a mean, so a high cosine alone says little. "
               "Reduced: by the encoder that was trained with the bundle.",
               "Maps: cosine of the support's prototype with each cell of the query, each from its own lowest to its "
               "own highest value.", *remarks(study)])
