"""`fss compare`: anybody's predictions beside ours, scored on the same photos."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fss_models.errors import FssError
from jobs.options import BundleOption, JsonOption, RecipeOption, ServiceOption, SetOption, WorkspaceOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", help="Score predictions of other models beside ours on the same photos, with paired "
                                "intervals.")(compare)


def compare(
    predictions: Annotated[list[str], typer.Option("--predictions", help="Masks of another model: results or "
                                                   "annotations in COCO's format, a YOLO folder, masks/CLASS/NAME.png, "
                                                   "or what else --existing reads. May be repeated.")],
    images: Annotated[str, typer.Option("--images", help="The photos: what --images of `fss label` may be.")],
    truth: Annotated[str, typer.Option("--truth", help="Annotations that are right, in a format as of --predictions.")],
    labels: Annotated[str, typer.Option("--labels", help="Our side: the --out of a finished `fss label`.")] = "",
    supports: Annotated[str, typer.Option("--supports", help="Our side, instead of --labels: marked photos, with which "
                                          "the photos are labelled first (to OUT/labels).")] = "",
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL for the page and figures.")] = "out/compare",
    class_name: Annotated[list[str] | None, typer.Option("--class", help="A class to score (default: all that truth "
                                                         "and predictions share). May be repeated.")] = None,
    rename: Annotated[list[str] | None, typer.Option("--rename", help="THEIRS=OURS: a class of the predictions that "
                                                     "has another name in the truth. May be repeated.")] = None,
    min_score: Annotated[float, typer.Option("--min-score", min=0, max=1, help="Results of a detector with a lower "
                                             "score are left out.")] = 0.5,
    workspace: WorkspaceOption = None,
    bundle: BundleOption = "",
    service: ServiceOption = "",
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print IoU of each class, mIoU and FB-IoU of every model, and what they differ by, with 95 % intervals."""
    read = load_recipe(recipe, overrides or [], out=workspace)
    if labels and supports:
        raise FssError("--labels and --supports both name our side", hint="leave one of them out")
    if (bundle or service or workspace or overrides) and not supports:
        raise FssError("settings of a labelling job have no effect without supports", hint="give --supports")
    pairs = [one.partition("=") for one in rename or []]
    if wrong := next((one for one, (_, eq, _) in zip(rename or [], pairs, strict=True) if not eq), ""):
        raise FssError(f"--rename {wrong!r} has no '='", hint="write --rename THEIRS=OURS")

    from pipelines.base.storage import join
    from pipelines.labelling.run import LabelRequest, run_label_job
    from pipelines.report.comparison import ComparisonRequest, comparison_lines, run_comparison

    if supports:
        labels = join(out, "labels")
        run_label_job(LabelRequest(recipe=read, images=images, supports=supports, out=labels, bundle=bundle,
                                   service=service))
    document = run_comparison(ComparisonRequest(
        images=images, truth=truth, predictions=tuple(predictions), labels=labels, out=out,
        classes=tuple(class_name or ()), rename={theirs: ours for theirs, _, ours in pairs}, min_score=min_score))
    if as_json:
        print(json.dumps(document))
        return
    print("\n".join(comparison_lines(document)))
    print(f"page: {document['page']}")
