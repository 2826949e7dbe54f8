"""`fss review`: a person's look at a labelling job, the most doubtful labels first."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jobs.options import JsonOption, RecipeOption, SetOption
from jobs.recipes import load_recipe

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The --out of `fss label`.")]
FormatsOption = Annotated[list[str] | None, typer.Option("--format", help="As of `fss label`; may be repeated.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Look at a job's labels by doubt, decide on them, label again.", no_args_is_help=True)
    group.command("page", help="A gallery, the most doubtful labels first.")(page)
    group.command("decide", help="Accept, reject or correct labels; the last word counts.")(decide)
    group.command("apply", help="Write labels.json and other formats again, with the decisions in them.")(apply)
    group.command("again", help="Label doubtful photos again, corrections being supports too.")(again)
    app.add_typer(group, name="review")


def page(
    job: JobArgument,
    out: Annotated[str, typer.Option("--out", "-o", help="Where the pages go; default: JOB/review.")] = "",
    most: Annotated[int, typer.Option("--most", min=1, help="How many labels at most.")] = 2000,
    undecided: Annotated[bool, typer.Option("--undecided", help="Only labels that nobody decided on.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the gallery."""
    from pipelines.base.storage import join
    from pipelines.review.job import open_job
    from pipelines.review.page import write_review

    opened = open_job(job)
    place, pages = write_review(opened, out or join(opened.out.url, "review"), most=most, undecided=undecided)
    print(json.dumps({"page": place, "pages": pages}) if as_json else f"{pages} pages, the first: {place}")


def decide(
    job: JobArgument,
    source: Annotated[str, typer.Option("--from", help="decisions.jsonl as the gallery saves it.")] = "",
    accept: Annotated[list[str] | None, typer.Option("--accept", help="A photo's name; may be repeated.")] = None,
    reject: Annotated[list[str] | None, typer.Option("--reject", help="The class is not in this photo.")] = None,
    correct: Annotated[list[str] | None, typer.Option("--correct", help="NAME=MASK.png")] = None,
    undo: Annotated[list[str] | None, typer.Option("--undo", help="Nothing is decided any more.")] = None,
    class_name: Annotated[str, typer.Option("--class", help="Of a job with several classes.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Keep decisions beside the labels."""
    from fss_models.errors import FssError
    from pipelines.base.storage import split_url
    from pipelines.inference.marks import mask_from_picture
    from pipelines.labelling.decisions import count_decisions
    from pipelines.review.job import decide_by_name, import_decisions, open_job

    given: dict[str, tuple[str, dict[str, object] | None]] = {}
    for word, names in (("accept", accept), ("reject", reject), ("undo", undo)):
        given.update((name, (word, None)) for name in names or [])
    for pair in correct or []:
        name, _, mask = pair.rpartition("=")
        if not name:
            raise FssError(f"--correct {pair!r} has no '='", mend="write --correct NAME=MASK.png")
        store, file = split_url(mask)
        given[name] = ("correct", mask_from_picture(store.read_bytes(file), mask))
    if not given and not source:
        raise FssError("nothing to decide", mend="give --accept, --reject, --correct, --undo or --from")
    opened = open_job(job)
    count = (decide_by_name(opened, given, class_name) if given else 0) + (
        import_decisions(opened, source) if source else 0)
    counts = count_decisions(opened.decisions)
    told = ", ".join(f"{word} {n}" for word, n in counts.items())
    print(json.dumps({"now": count, "decisions": counts}) if as_json else f"{count} now; in all {told or 'none'}")


def apply(job: JobArgument, formats: FormatsOption = None, as_json: JsonOption = False) -> None:
    """Write the outputs again."""
    from pipelines.labelling.outputs import summary_line, write_outputs
    from pipelines.review.job import open_job

    config = load_recipe("demo", [f"label.formats={json.dumps(formats)}"] if formats else []).label
    opened = open_job(job)
    opened.check_complete()
    summary = write_outputs(opened.out, opened.manifest, config.formats)
    print(json.dumps(summary) if as_json else f"{summary_line(summary)}\nlabels: {summary['labels']}")


def again(
    job: JobArgument,
    out: Annotated[str, typer.Option("--out", "-o", help="Where the new job's parts and labels go.")],
    below: Annotated[float | None, typer.Option("--below", min=0, max=1, help="Labels less sure than this; default: "
                                                "the job's label.review_below.")] = None,
    workspace: Annotated[str | None, typer.Option("--workspace", "-w", help="Whose champion; default: recipe.")] = None,
    bundle: Annotated[str, typer.Option("--bundle", help="The bundle that the job was labelled with.")] = "",
    service: Annotated[str, typer.Option("--service", help="Address of a running service.")] = "",
    formats: FormatsOption = None,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label again what nobody decided on and is doubtful."""
    from pipelines.labelling.outputs import summary_line
    from pipelines.review.redo import RedoRequest, run_redo

    changes = [*(overrides or []), *([f"label.formats={json.dumps(formats)}"] if formats else [])]
    read = load_recipe(recipe, changes, out=workspace)
    summary = run_redo(RedoRequest(recipe=read, job=job, out=out, below=below, bundle=bundle, service=service))
    print(json.dumps(summary) if as_json else
          f"{summary['again']} labels made again; {summary_line(summary)}\nlabels: {summary['labels']}")
