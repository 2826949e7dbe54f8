"""`fss gallery`: a page that shows test episodes of a bundle, some drawn at random and the worst."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jobs import evaluation as target
from jobs.options import JsonOption, SetOption

PagesOption = Annotated[str, typer.Option("--out", "-o", help="Folder or URL for the page and its pictures.")]
WorkspaceOption = Annotated[str | None, typer.Option("--workspace", "-w", help="Workspace that holds the shards "
                                                     "(default: the recipe's).")]
DrawOption = Annotated[int, typer.Option("--draw-seed", help="Seed that chooses the episodes shown at random.")]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("gallery")
    def gallery(
        bundle: target.BundleOption, recipe: target.RecipeOption = None, dataset: target.DatasetOption = "",
        root: target.RootOption = "", annotations: target.AnnotationsOption = "", lists: target.ListsOption = "",
        split: target.SplitOption = "", key: target.KeyOption = "", fold: target.FoldOption = 0,
        shot: target.ShotOption = None, episodes: target.EpisodesOption = None, seed: target.SeedOption = None,
        sets: SetOption = None, workspace: WorkspaceOption = None, out: PagesOption = "out/gallery",
        draw_seed: DrawOption = 0, as_json: JsonOption = False,
    ) -> None:
        """Score a bundle as `fss eval` does, and write a page with 24 random episodes and the 8 worst."""
        from fss_models.shipped.files import bundle_url
        from pipelines.bundles.bundle import load_bundle, read_bundle_info
        from pipelines.data.folds import FoldData
        from pipelines.evaluation.score import score_bundle
        from pipelines.report.episode_gallery import write_gallery

        url = bundle_url(bundle)
        read_bundle_info(url)
        found = target.prepare_target(recipe=recipe, sets=sets, out=workspace, dataset=dataset, fold=fold, root=root,
                                      lists=lists, annotations=annotations, split=split, key=key, shots=shot,
                                      episodes=episodes, seed=seed)
        result, table = score_bundle(found.recipe, found.shards, bundle=url, fold=found.fold)
        listed = FoldData.open(found.shards.url, found.fold).episodes(found.recipe.eval)
        document = write_gallery(load_bundle(url)[0], found.shards, listed, found.recipe.eval, result, table,
                                 name=found.name, out=out, seed=draw_seed)
        print(json.dumps(document) if as_json else document["page"])
