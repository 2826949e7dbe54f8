"""`fss analyse`: the papers' analyses of SANSA and FCP. Each prints a table and writes a page with pictures."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe
from pipelines.config.recipe import Recipe

if TYPE_CHECKING:
    from pipelines.papers.analysis.page import AnalysisFile

BundleOption = Annotated[str, typer.Option("--bundle", "-b", help="Folder or URL of the bundle to analyse.")]
FoldOption = Annotated[int, typer.Option("--fold", "-f", help="Fold whose classes the bundle was not trained on.")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(no_args_is_help=True, help="Run the papers' analyses of a bundle; each writes a page.")
    _add_sansa_analyses(group)
    _add_fcp_analyses(group)
    app.add_typer(group, name="analyse")


def _add_sansa_analyses(group: typer.Typer) -> None:
    @group.command()
    def pca(
        bundle: BundleOption,
        images: Annotated[int, typer.Option("--images", "-n", min=1, help="Number of test photos to show.")] = 8,
        recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """Show PCA maps of frozen and adapted features, and measure their similarity within and between classes."""
        _analyse("pca", load_recipe(recipe, sets, out=out), as_json, bundle=bundle, images=images)

    @group.command()
    def probe(
        bundle: BundleOption, fold: FoldOption = 0,
        photos: Annotated[int, typer.Option("--photos", min=1, help="Maximum number of train photos, and of test "
                                            "photos.")] = 500,
        recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """Compare a linear probe of frozen and adapted features with their few-shot scores on the same classes."""
        _analyse("probe", load_recipe(recipe, sets, out=out), as_json, bundle=bundle, fold=fold, photos=photos)

    _add_of_a_fold(group, "negatives", (
        "Measure mIoU with 0, 1, 3 and 5 negative clicks on the target, and with one negative reference."))

    _add_of_a_fold(group, "domains", (
        "Compare mIoU on trained classes with mIoU on novel classes, both on photos outside the training set."))

    @group.command()
    def transfer(
        bundles: Annotated[str, typer.Option("--bundles", help="Bundles of the COCO-20i folds 0 to 3: B0,B1,B2,B3.")],
        recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """Score bundles of COCO-20i on PASCAL: each class with the bundle whose fold held out its COCO counterpart."""
        given = [b.strip() for b in bundles.split(",") if b.strip()]
        _analyse("transfer", load_recipe(recipe, sets, out=out), as_json, bundles=given)


def _add_fcp_analyses(group: typer.Typer) -> None:
    @group.command()
    def matching(
        bundle: BundleOption,
        other: Annotated[str, typer.Option("--other", help="Second bundle, such as FCP without matching.")] = "",
        fold: FoldOption = 0, recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Measure the share of FCP's attention on the object: prototype to prototype, and prototype to pixel."""
        _analyse("matching", load_recipe(recipe, sets, out=out), as_json, bundle=bundle, other=other, fold=fold)

    _add_of_a_fold(group, "similarity", (
        "Compare SAM's features with the backbone's: similarity within and between classes (FCP, VRP-SAM)."))

    _add_of_a_fold(group, "pseudo-masks", (
        "Measure the quality of FCP's pseudo masks, conventional and attention-based, step by step."))


def _add_of_a_fold(group: typer.Typer, name: str, about: str) -> None:
    """Add an analysis that needs a bundle and a fold alone."""

    @group.command(name, help=about)
    def command(
        bundle: BundleOption, fold: FoldOption = 0, recipe: RecipeOption = "demo", sets: SetOption = None,
        out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        _analyse(name.replace("-", "_"), load_recipe(recipe, sets, out=out), as_json, bundle=bundle, fold=fold)


def _analyse(name: str, recipe: Recipe, as_json: bool, **given: Any) -> None:
    """Call `analyse_NAME` of the module NAME, and print its table and the URL of its page.

    With --json these go to standard error.
    """
    module = import_module(f"pipelines.papers.analysis.{name}")
    written: AnalysisFile = getattr(module, f"analyse_{name}")(recipe, **given)
    found = written.analysis
    print("\n".join([found.findings[0], found.table.text(), f"page: {written.url}"]),
          file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(written.document, indent=1))
