"""`fss analyse`: the papers' analyses of SANSA and FCP, each ending in a page of pictures."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe

if TYPE_CHECKING:
    from pipelines.papers.analysis.page import AnalysisFile

BundleOption = Annotated[str, typer.Option("--bundle", "-b", help="URL of the bundle.")]
FoldOption = Annotated[int, typer.Option("--fold", "-f", help="The fold whose classes the bundle never saw.")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(no_args_is_help=True, help="The papers' analyses of a trained bundle, as pages with pictures.")
    _add_sansas(group)
    _add_fcps(group)
    app.add_typer(group, name="analyse")


def _add_sansas(group: typer.Typer) -> None:
    @group.command()
    def pca(
        bundle: BundleOption,
        images: Annotated[int, typer.Option("--images", "-n", min=1, help="How many test photos to show.")] = 8,
        recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """PCA maps of frozen and adapted features, and how alike they are within and between classes."""
        from pipelines.papers.analysis.pca import analyse_pca

        _tell(analyse_pca(load_recipe(recipe, sets, out=out), bundle=bundle, images=images), as_json)

    @group.command()
    def probe(
        bundle: BundleOption, fold: FoldOption = 0,
        photos: Annotated[int, typer.Option("--photos", min=1, help="At most so many train and test photos.")] = 500,
        recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """A linear probe of frozen and adapted features beside their few-shot score on the same classes."""
        from pipelines.papers.analysis.probe import analyse_probe

        _tell(analyse_probe(load_recipe(recipe, sets, out=out), bundle=bundle, fold=fold, photos=photos), as_json)

    @group.command()
    def negatives(
        bundle: BundleOption, fold: FoldOption = 0, recipe: RecipeOption = "demo", sets: SetOption = None,
        out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """mIoU with 0, 1, 3, 5 negative clicks on the target, and with one negative reference."""
        from pipelines.papers.analysis.negatives import analyse_negatives

        _tell(analyse_negatives(load_recipe(recipe, sets, out=out), bundle=bundle, fold=fold), as_json)

    @group.command()
    def domains(
        bundle: BundleOption, fold: FoldOption = 0, recipe: RecipeOption = "demo", sets: SetOption = None,
        out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """mIoU on classes the bundle was trained on and on novel ones, both on photos it never saw."""
        from pipelines.papers.analysis.domains import analyse_domains

        _tell(analyse_domains(load_recipe(recipe, sets, out=out), bundle=bundle, fold=fold), as_json)

    @group.command()
    def transfer(
        bundles: Annotated[str, typer.Option("--bundles", help="Of the COCO folds 0 to 3: B0,B1,B2,B3.")],
        recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """COCO-20i to PASCAL: each PASCAL class with the bundle whose fold held its counterpart out."""
        from pipelines.papers.analysis.transfer import analyse_transfer

        given = [b.strip() for b in bundles.split(",") if b.strip()]
        _tell(analyse_transfer(load_recipe(recipe, sets, out=out), bundles=given), as_json)


def _add_fcps(group: typer.Typer) -> None:
    @group.command()
    def matching(
        bundle: BundleOption,
        other: Annotated[str, typer.Option("--other", help="A second bundle, such as FCP's without matching.")] = "",
        fold: FoldOption = 0, recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Share of attention on the object: FCP's prototype to prototype, and prototype to pixel."""
        from pipelines.papers.analysis.matching import analyse_matching

        _tell(analyse_matching(load_recipe(recipe, sets, out=out), bundle=bundle, other=other, fold=fold), as_json)

    @group.command()
    def similarity(
        bundle: BundleOption, fold: FoldOption = 0, recipe: RecipeOption = "demo", sets: SetOption = None,
        out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """SAM's features beside the backbone's: how alike objects are within and between classes (FCP, VRP-SAM)."""
        from pipelines.papers.analysis.similarity import analyse_similarity

        _tell(analyse_similarity(load_recipe(recipe, sets, out=out), bundle=bundle, fold=fold), as_json)

    @group.command("pseudo-masks")
    def pseudo_masks(
        bundle: BundleOption, fold: FoldOption = 0, recipe: RecipeOption = "demo", sets: SetOption = None,
        out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """Quality of FCP's pseudo masks: conventional and attention-based, step by step."""
        from pipelines.papers.analysis.pseudo_masks import analyse_pseudo_masks

        _tell(analyse_pseudo_masks(load_recipe(recipe, sets, out=out), bundle=bundle, fold=fold), as_json)


def _tell(written: AnalysisFile, as_json: bool) -> None:
    """The table and the page's place; with --json they go to standard error."""
    found = written.analysis
    print("\n".join([found.findings[0], found.table.text(), f"page: {written.url}"]),
          file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(written.document, indent=1))
