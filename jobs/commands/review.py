"""`fss review`: check the labels of a labelling job by eye, the most doubtful ones first."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jobs.options import JsonOption, RecipeOption, ServiceOption, SetOption, WorkspaceOption
from jobs.recipes import load_recipe

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Folder or URL of the labelling job: the --out of `fss "
                                            "label`.")]
FormatsOption = Annotated[list[str] | None, typer.Option("--format", help="Output format besides COCO, as for `fss "
                                                         "label`. May be repeated.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Review the labels of a job, the most doubtful ones first, and correct them.",
                        no_args_is_help=True)
    group.command("page", help="Write pages that show the labels, the most doubtful ones first.")(page)
    group.command("decide", help="Accept, reject or correct labels. The last decision on a label counts.")(decide)
    group.command("apply", help="Write labels.json and other formats again, with the decisions applied.")(apply)
    group.command("again", help="Label doubtful photos again, with corrected masks as additional supports.")(again)
    app.add_typer(group, name="review")


def page(
    job: JobArgument,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL for the pages (default: JOB/review).")] = "",
    most: Annotated[int, typer.Option("--most", min=1, help="Maximum number of labels to show.")] = 2000,
    undecided: Annotated[bool, typer.Option("--undecided", help="Show only labels without a decision.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the review pages and print the first one's URL."""
    from pipelines.base.storage import join
    from pipelines.review.job import open_job
    from pipelines.review.page import write_review

    opened = open_job(job)
    place, pages = write_review(opened, out or join(opened.out.url, "review"), most=most, undecided=undecided)
    print(json.dumps({"page": place, "pages": pages}) if as_json else f"{pages} pages, the first: {place}")


def decide(
    job: JobArgument,
    source: Annotated[str, typer.Option("--from", help="File decisions.jsonl that a review page saved.")] = "",
    accept: Annotated[list[str] | None, typer.Option("--accept", help="Name of a photo whose label is right. May be "
                                                     "repeated.")] = None,
    reject: Annotated[list[str] | None, typer.Option("--reject", help="Name of a photo without the class; NAME#2: its "
                                                     "instance 2 alone. May be repeated.")] = None,
    correct: Annotated[list[str] | None, typer.Option("--correct", help="NAME=MASK.png: a photo's name and its right "
                                                      "mask; NAME#2=MASK.png: that of its instance 2. May be repeated.")
                       ] = None,
    undo: Annotated[list[str] | None, typer.Option("--undo", help="Name of a photo whose decision is removed. May be "
                                                   "repeated.")] = None,
    class_name: Annotated[str, typer.Option("--class", help="Class of the labels, for a job with several classes.")
                          ] = "",
    as_json: JsonOption = False,
) -> None:
    """Store decisions beside the labels and print their counts."""
    from fss_models.errors import FssError
    from fss_models.marks import mask_from_picture
    from pipelines.base.storage import Store
    from pipelines.labelling.decisions import count_decisions
    from pipelines.review.job import decide_by_name, import_decisions, open_job

    given: dict[str, tuple[str, dict[str, object] | None]] = {}
    for word, names in (("accept", accept), ("reject", reject), ("undo", undo)):
        given.update((name, (word, None)) for name in names or [])
    for pair in correct or []:
        name, _, mask = pair.rpartition("=")
        if not name:
            raise FssError(f"--correct {pair!r} has no '='", hint="write --correct NAME=MASK.png")
        given[name] = ("correct", mask_from_picture(Store(mask).read_bytes(), mask))
    if not given and not source:
        raise FssError("no decision is given", hint="give --accept, --reject, --correct, --undo or --from")
    opened = open_job(job)
    count = (decide_by_name(opened, given, class_name) if given else 0) + (
        import_decisions(opened, source) if source else 0)
    counts = count_decisions(opened.decisions)
    total = ", ".join(f"{word} {n}" for word, n in counts.items())
    print(json.dumps({"now": count, "decisions": counts}) if as_json else
          f"decisions: {count} stored now; in total: {total or 'none'}")


def apply(job: JobArgument, formats: FormatsOption = None, as_json: JsonOption = False) -> None:
    """Write the outputs again with the decisions applied, and print where they are."""
    config = load_recipe("demo", [f"label.formats={json.dumps(formats)}"] if formats else []).label

    from pipelines.labelling.outputs import summary_line, write_outputs
    from pipelines.review.job import open_job

    opened = open_job(job)
    opened.check_complete()
    summary = write_outputs(opened.out, opened.manifest, config.formats)
    print(json.dumps(summary) if as_json else f"{summary_line(summary)}\nlabels: {summary['labels']}")


def again(
    job: JobArgument,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL of the new job's parts and labels.")],
    below: Annotated[float | None, typer.Option("--below", min=0, max=1, help="Label again what is less certain than "
                                                "this (default: the job's label.review_below).")] = None,
    workspace: WorkspaceOption = None,
    bundle: Annotated[str, typer.Option("--bundle", help="Bundle that the job was labelled with, if it is not the "
                                        "workspace's champion.")] = "",
    service: ServiceOption = "",
    formats: FormatsOption = None,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label the doubtful labels without a decision again, as a new job."""
    changes = [*(overrides or []), *([f"label.formats={json.dumps(formats)}"] if formats else [])]
    read = load_recipe(recipe, changes, out=workspace)

    from pipelines.labelling.outputs import summary_line
    from pipelines.review.redo import RedoRequest, run_redo

    summary = run_redo(RedoRequest(recipe=read, job=job, out=out, below=below, bundle=bundle, service=service))
    print(json.dumps(summary) if as_json else
          f"{summary['again']} labels computed again; {summary_line(summary)}\nlabels: {summary['labels']}")
