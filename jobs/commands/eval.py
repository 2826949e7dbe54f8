"""`fss eval`: score a bundle on a fold of a recipe's dataset, or directly on a VOC2012 or COCO directory."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.evaluation import (
    AnnotationsOption,
    BundleOption,
    DatasetOption,
    EpisodesOption,
    EvaluationTarget,
    FoldOption,
    KeyOption,
    ListsOption,
    RecipeOption,
    RootOption,
    SeedOption,
    ShotOption,
    SplitOption,
    prepare_target,
)
from jobs.options import OutOption, SetOption
from pipelines.base.text_table import text_table

if TYPE_CHECKING:
    from pipelines.evaluation.results import RunResult

JsonFileOption = Annotated[str, typer.Option("--json", help="File or URL for the result as JSON; -: standard output.")]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("eval")
    def evaluate(
        bundle: BundleOption, recipe: RecipeOption = None, dataset: DatasetOption = "", root: RootOption = "",
        annotations: AnnotationsOption = "", lists: ListsOption = "", split: SplitOption = "", key: KeyOption = "",
        fold: FoldOption = 0, shot: ShotOption = None, episodes: EpisodesOption = None, seed: SeedOption = None,
        sets: SetOption = None, out: OutOption = None, as_json: JsonFileOption = "",
    ) -> None:
        """Score a bundle on a fold's fixed episode list: mIoU and FB-IoU.

        A bundle that was trained on one of the test photos is refused.
        """
        from fss_models.shipped.files import bundle_url
        from pipelines.bundles.bundle import read_bundle_info
        from pipelines.evaluation.score import score_bundle

        url = bundle_url(bundle)
        read_bundle_info(url)
        found = prepare_target(recipe=recipe, sets=sets, out=out, dataset=dataset, fold=fold, root=root, lists=lists,
                               annotations=annotations, split=split, key=key, shots=shot, episodes=episodes, seed=seed)
        result, _ = score_bundle(found.recipe, found.shards, bundle=url, fold=found.fold)
        if as_json:  # before anything is printed: printing fails once the reader of a pipe has closed it
            _write(as_json, document(found, result))
        print(lines(result), file=sys.stderr if as_json == "-" else sys.stdout)


def lines(result: RunResult) -> str:
    """The scores as text: one line for the whole list, then one line a class."""
    per_class = text_table([(f"  {name}", f"{iou * 100:.1f}") for name, iou in sorted(result.per_class.items())])
    return (f"mIoU {result.miou * 100:.1f} ({result.interval[0] * 100:.1f}-{result.interval[1] * 100:.1f}), "
            f"FB-IoU {result.fb_iou * 100:.1f} on {result.episodes} episodes of list {result.list_hash[:12]}, "
            f"{result.images_per_s:.1f} images/s{' (untrained model)' if result.untrained else ''}\n{per_class}")


def document(found: EvaluationTarget, result: RunResult) -> dict[str, Any]:
    """The scores as a JSON object. With --dataset it also describes the test set; else it is the whole run result."""
    if found.test is None:
        return result.model_dump()
    keys = ("bundle", "bundle_id", "untrained", "episodes", "list_hash", "miou", "interval", "fb_iou", "per_class",
            "images_per_s", "trainable_params", "code")
    method = result.spec.method
    return {**found.facts, "method": method.name, "preset": method.preset, **result.model_dump(include=set(keys)),
            "seconds": result.details["seconds"]}


def _write(target: str, found: dict[str, Any]) -> None:
    if target == "-":
        print(json.dumps(found, indent=1))
        return
    from pipelines.base.storage import Store

    Store(target).write_json("", found)
