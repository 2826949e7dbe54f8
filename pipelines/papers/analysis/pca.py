"""The features before and after training: PCA maps of photos (SANSA, figures 2 and 5), similarity within classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.errors import FssError
from fss_models.segmenter import Segmenter
from pipelines.config.recipe import Recipe
from pipelines.pages.pictures import photo_url
from pipelines.papers.analysis.page import Analysis, AnalysisFile, PictureStrip, TextTable, write_page
from pipelines.papers.analysis.pictures import histograms, map_url
from pipelines.papers.analysis.study import Study, cautions, draw_photos, encode_stride16

PHOTOS_A_CLASS = 16  # photos of a class whose foreground cells are compared
CELLS_A_PHOTO = 16  # cells of an object, the same number for large and small ones
COVER = 0.5  # share of a cell that the object must cover
BINS = 60
LOW, HIGH = 0.01, 0.99  # quantiles of a component that are drawn as black and as full colour


@dataclass(frozen=True)
class Pca:
    """Principal axes of features with C channels: mean [C], axes [3, C], share [3] of the variance on each axis."""

    mean: Tensor
    axes: Tensor
    share: Tensor

    @staticmethod
    def fit(features: Tensor, components: int = 3) -> Pca:
        """Compute the axes exactly from rows [N, C]. The largest entry of an axis is made positive."""
        rows = features.double()
        mean = rows.mean(dim=0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        axes = vectors.T.flip(0)[:components]
        axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
        values = values.flip(0).clamp(min=0)
        return Pca(mean, axes, values[:components] / values.sum().clamp(min=1e-12))

    def __call__(self, features: Tensor) -> Tensor:
        """Project features [N, C] on the axes: [N, 3]."""
        return (features.double() - self.mean) @ self.axes.T


@dataclass(frozen=True, kw_only=True)
class ClassSimilarity:
    """Cosine similarity of foreground cells of different photos, for pairs within a class and between classes.

    `auc` is the chance that a pair within a class is more similar than a pair between classes. At 0.5 the features do
    not separate the classes, whatever mean they share.
    """

    within: float
    between: float
    auc: float
    edges: list[float]
    within_share: list[float]  # share of the pairs in each bin between two edges
    between_share: list[float]


def colour_maps(maps: Tensor) -> tuple[np.ndarray, Tensor]:
    """Colour maps [N, C, h, w] by one PCA over all of them: pictures [N, h, w, 3] uint8, variance shares [3]."""
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
    pca = Pca.fit(rows)
    values = pca(rows)
    low, high = torch.quantile(values, LOW, dim=0), torch.quantile(values, HIGH, dim=0)
    scaled = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    pictures = (scaled * 255).round().to(torch.uint8).view(len(maps), *maps.shape[2:], 3)
    return pictures.cpu().numpy(), pca.share


def measure_similarity(cells: Tensor, classes: Tensor, photos: Tensor) -> ClassSimilarity:
    """Compare cells [N, C] with their classes [N] and photos [N].

    Pairs of cells of one photo are left out, because they are always similar. Raises `FssError` if there is no pair
    within a class or none between classes.
    """
    unit = F.normalize(cells.float(), dim=1)
    cosine = unit @ unit.T
    upper = torch.ones_like(cosine, dtype=torch.bool).triu(1) & (photos[:, None] != photos[None])
    same = classes[:, None] == classes[None]
    within, between = cosine[upper & same], cosine[upper & ~same]
    if not len(within) or not len(between):
        raise FssError("the similarity needs two classes with two test photos each",
                       hint="hold out more classes or photos")
    ordered = between.sort().values
    below, upto = (torch.searchsorted(ordered, within, right=r).double().mean() for r in (False, True))
    edges = torch.linspace(float(torch.minimum(within.min(), ordered[0])), 1.0, BINS + 1)
    shares = [torch.histogram(v.cpu(), edges).hist / len(v) for v in (within, between)]
    return ClassSimilarity(within=float(within.mean()), between=float(between.mean()),
                           auc=float((below + upto) / 2 / len(ordered)), edges=edges.tolist(),
                           within_share=shares[0].tolist(), between_share=shares[1].tolist())


@dataclass(frozen=True, kw_only=True)
class FeatureComparison:
    """One model's features: maps [n, C, g, g] of the first photos; cells [N, C] that objects cover, with their
    classes [N] and photos [N]."""

    maps: Tensor
    cells: Tensor
    classes: Tensor
    photos: Tensor


def compare_features(study: Study, model: Segmenter, class_ids: Sequence[int], photos: Sequence[int], shown: int,
                     title: str) -> FeatureComparison:
    """Encode the photos once and collect the cells that objects cover; the first `shown` photos keep their maps.

    The same cells are taken for every model. Raises `FssError` if no object covers a cell.
    """
    maps: list[Tensor] = []
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for ids, batch in encode_stride16(model, study.shards, photos, study.recipe.eval.batch, title):
        maps += list(batch.cpu())[:shown - len(maps)]
        found += [f for i, one in zip(ids, batch, strict=True) for f in _covered(study, i, one, class_ids)]
    if not found:
        raise FssError("no object of the classes covers a cell of a test photo", where=study.shards.url)
    cells, classes, images = (torch.cat(x) for x in zip(*found, strict=True))
    return FeatureComparison(maps=torch.stack(maps), cells=cells, classes=classes, photos=images)


def _covered(study: Study, image_id: int, one: Tensor,
             class_ids: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Up to `CELLS_A_PHOTO` cells of `one` [C, g, g] for each class in the photo, drawn with the evaluation's seed.

    Yields (cells [n, C], their class [n], their photo [n]).
    """
    for class_id in sorted(set(class_ids).intersection(study.shards.rows[image_id]["class_ids"])):
        mask = torch.from_numpy(study.shards.sample(image_id, class_id).mask)[None].float()
        inside = (F.adaptive_avg_pool2d(mask, (one.shape[1], one.shape[2]))[0] >= COVER).flatten().nonzero()[:, 0]
        rng = np.random.default_rng([study.recipe.eval.seed, image_id, class_id])
        chosen = inside[torch.from_numpy(rng.permutation(len(inside))[:CELLS_A_PHOTO])]
        cells = one.flatten(1).T[chosen.to(one.device)].cpu()
        yield cells, torch.full((len(cells),), class_id), torch.full((len(cells),), image_id)


def analyse_pca(recipe: Recipe, *, bundle: str, images: int) -> AnalysisFile:
    """PCA maps of `images` test photos and similarity within and between classes, of the frozen and the adapted model.

    The photos show classes that the bundle was not trained on, if there are any. Raises `FssError` for a bundle
    without trained tensors, for a method without stride-16 features, and for a bundle trained on one of the photos.
    """
    study = Study.open(recipe, bundle)
    models, class_ids = study.models, [c.class_id for c in study.unknown_classes]
    pool = draw_photos(study.shards, class_ids, "test", max(images, PHOTOS_A_CLASS * len(class_ids)), recipe.eval.seed)
    shown = pool[:images]
    study.refuse_training_photos(pool)
    compared = {name: compare_features(study, model, class_ids, pool, len(shown), f"{name} features")
                for name, model in models.items()}
    panels = {i: [("photo", photo_url(study.shards.pixels(i)))] for i in shown}
    share = {}
    for name, one in compared.items():
        pictures, share[name] = colour_maps(one.maps)
        for i, picture in zip(shown, pictures, strict=True):
            panels[i].append((name, map_url(picture, study.shards.pixels(i).shape[:2])))
    similarities = {name: measure_similarity(one.cells, one.classes, one.photos) for name, one in compared.items()}
    return write_page(_analysis(study, class_ids, panels, share, similarities, len(pool)), study)


def _analysis(study: Study, class_ids: list[int], panels: dict[int, list[tuple[str, str]]], share: dict[str, Tensor],
              similarities: dict[str, ClassSimilarity], compared: int) -> Analysis:
    names = {c: study.shards.classes[c].name for c in class_ids}
    novel = not set(names.values()) & set(study.info.classes)
    frozen, adapted = similarities["frozen"], similarities["adapted"]
    verb = "separate the classes better" if adapted.auc > frozen.auc else "do not separate the classes better"
    rows = [[name, f"{s.within:.3f}", f"{s.between:.3f}", f"{s.within - s.between:+.3f}", f"{s.auc:.3f}",
             " ".join(f"{v * 100:.0f}" for v in share[name])] for name, s in similarities.items()]
    return Analysis(
        name="pca", title="Features before and after training", setting=f"{len(panels)} photos",
        findings=[f"Adapted features {verb} than frozen ones: a pair of cells within a class is more similar than a "
                  f"pair between classes in {adapted.auc:.1%} of the cases, with frozen features in {frozen.auc:.1%}.",
                  f"The objects are of {len(names)} classes that the bundle {'was not' if novel else 'was'} trained on "
                  f"({', '.join(names.values())}), in {compared} test photos."],
        table=TextTable(columns=["features", "within a class", "between classes", "gap", "AUC", "PCA variance, %"],
                    rows=rows),
        figures={"similarity": {n: {"within": s.within, "between": s.between, "auc": s.auc}
                                for n, s in similarities.items()},
                 "pca_variance": {n: s.tolist() for n, s in share.items()}, "photos": list(panels),
                 "classes": list(names.values()), "photos_compared": compared},
        plots=[histograms({"within a class": (s.edges, s.within_share), "between classes": (s.edges, s.between_share)},
                          f"{name} features", "cosine similarity of two foreground cells of different photos")
               for name, s in similarities.items()],
        strips=[PictureStrip(title=f"{study.shards.rows[i]['file_name']}: {_shows(study, i, names)}", panels=p)
                for i, p in panels.items()],
        notes=["Similarity: the cosine similarity of stride-16 cells that an object covers, over pairs of different "
               "photos. AUC: the chance that a pair within a class is more similar than a pair between classes; at 0.5 "
               "the features do not separate the classes.",
               "A map shows the first three principal components as red, green and blue. One PCA is computed over all "
               "photos shown, for frozen and adapted features separately. Equal colours in two photos mean equal "
               "features; colours of frozen and adapted maps cannot be compared.", *cautions(study)])


def _shows(study: Study, image_id: int, names: dict[int, str]) -> str:
    return ", ".join(names[c] for c in study.shards.rows[image_id]["class_ids"] if c in names)

