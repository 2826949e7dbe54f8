"""`fss eval`: score a bundle on a fold of a recipe's dataset, or directly on a VOC2012 or COCO directory."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from fss_models.errors import FssError
from fss_models.settings import InstanceSource
from jobs import evaluation as target
from jobs.options import BareInstances, OutOption, SetOption
from pipelines.base.text_table import text_table

if TYPE_CHECKING:
    from pipelines.evaluation.results import RunResult

JsonFileOption = Annotated[str, typer.Option("--json", help="File or URL for the result as JSON; -: standard output.")]

InstancesOption = Annotated[str, typer.Option("--instances", help="Also score one mask for each object by COCO's AP: "
                                              "the method's own (model; also --instances alone), connected pieces "
                                              "(pieces), or by SAM 2's decoder (prompts).")]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("eval", cls=BareInstances)
    def evaluate(
        bundle: target.BundleOption, recipe: target.RecipeOption = None, dataset: target.DatasetOption = "",
        root: target.RootOption = "", annotations: target.AnnotationsOption = "", lists: target.ListsOption = "",
        split: target.SplitOption = "", key: target.KeyOption = "", fold: target.FoldOption = 0,
        shot: target.ShotOption = None, episodes: target.EpisodesOption = None, seed: target.SeedOption = None,
        sets: SetOption = None, out: OutOption = None, as_json: JsonFileOption = "", instances: InstancesOption = "",
    ) -> None:
        """Score a bundle on a fold's fixed episode list: mIoU and FB-IoU, and with --instances COCO's AP.

        A bundle that was trained on one of the test photos is refused.
        """
        from fss_models.shipped.files import bundle_url
        from pipelines.bundles.bundle import read_bundle_info
        from pipelines.evaluation.score import score_bundle, score_bundle_instances

        url = bundle_url(bundle)
        info, source = read_bundle_info(url), _source(instances)
        if source != "none":
            from fss_models.instances import check_instances
            from fss_models.registry import method_class

            check_instances(method_class(info.method), source)
        found = target.prepare_target(recipe=recipe, sets=sets, out=out, dataset=dataset, fold=fold, root=root,
                                      lists=lists, annotations=annotations, split=split, key=key, shots=shot,
                                      episodes=episodes, seed=seed)
        result, _ = score_bundle(found.recipe, found.shards, bundle=url, fold=found.fold)
        if source != "none":
            measured = score_bundle_instances(found.recipe, found.shards, bundle=url, fold=found.fold, source=source)
            result = result.model_copy(update={"details": {**result.details, "instances": measured}})
        if as_json:  # before anything is printed: printing fails once the reader of a pipe has closed it
            _write(as_json, document(found, result))
        print(lines(result), file=sys.stderr if as_json == "-" else sys.stdout)


def _source(value: str) -> InstanceSource:
    """The value of --instances. Raises `FssError` for an unknown one."""
    for known in get_args(InstanceSource):
        if value in ("", known):
            return "none" if not value else known
    raise FssError(f"--instances is {value!r}", hint=f"known: {', '.join(get_args(InstanceSource))}")


def lines(result: RunResult) -> str:
    """The scores as text: one line for the whole list, then one line a class."""
    per_class = text_table([(f"  {name}", f"{iou * 100:.1f}") for name, iou in sorted(result.per_class.items())])
    found = result.details.get("instances")
    objects = "" if found is None else (
        f"instances ({found['source']}): AP {found['ap'] * 100:.1f}, AP50 {found['ap50'] * 100:.1f} on "
        f"{found['objects']} objects, {found['found']} found\n")
    return (f"mIoU {result.miou * 100:.1f} ({result.interval[0] * 100:.1f}-{result.interval[1] * 100:.1f}), "
            f"FB-IoU {result.fb_iou * 100:.1f} on {result.episodes} episodes of list {result.list_hash[:12]}, "
            f"{result.images_per_s:.1f} images/s{' (untrained model)' if result.untrained else ''}\n"
            f"{objects}{per_class}")


def document(found: target.EvaluationTarget, result: RunResult) -> dict[str, Any]:
    """The scores as a JSON object. With --dataset it also describes the test set; else it is the whole run result."""
    if found.test is None:
        return result.model_dump()
    keys = ("bundle", "bundle_id", "untrained", "episodes", "list_hash", "miou", "interval", "fb_iou", "per_class",
            "images_per_s", "precision", "trainable_params", "code")
    method = result.spec.method
    return {**found.facts, "method": method.name, "preset": method.preset, **result.model_dump(include=set(keys)),
            "seconds": result.details["seconds"],
            **{k: v for k, v in result.details.items() if k == "instances"}}


def _write(place: str, found: dict[str, Any]) -> None:
    if place == "-":
        print(json.dumps(found, indent=1))
        return
    from pipelines.base.storage import Store

    Store(place).write_json("", found)
