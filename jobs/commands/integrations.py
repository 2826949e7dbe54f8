"""`fss integrations`: bridges to other people's tools."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


class ShapeName(StrEnum):
    """How masks are drawn in Label Studio."""

    brush = "brush"
    polygon = "polygon"


StudioOption = Annotated[str, typer.Option("--studio", envvar="LABEL_STUDIO_URL", help="Address of Label Studio; the "
                                           "token is that in LABEL_STUDIO_API_KEY.")]
RunningOption = Annotated[str, typer.Option("--service", help="Address of the running service.")]
ShotsOption = Annotated[int, typer.Option("--shots", min=1, help="Largest number of supports of a class, the photos "
                                          "that were annotated last.")]
ShapeOption = Annotated[ShapeName | None, typer.Option("--shape", help="Draw masks as brush or polygon regions "
                                                       "(default: the first tag of the labelling interface that has "
                                                       "the class).")]
ThresholdOption = Annotated[float, typer.Option("--threshold", help="Pixels above this probability belong to the "
                                                "object.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Work inside other labelling tools.", no_args_is_help=True)
    group.command("label-studio", help="Serve predictions to Label Studio as its machine-learning backend, until "
                  "Ctrl-C.")(label_studio)
    group.command("label-studio-predict", help="Predict all tasks of a Label Studio project. A second call predicts "
                  "only what is left.")(label_studio_predict)
    app.add_typer(group, name="integrations")


def label_studio(
    service: RunningOption = "http://127.0.0.1:8000",
    studio: StudioOption = "http://127.0.0.1:8080",
    host: Annotated[str, typer.Option("--host", help="Address to listen on; any but loopback needs FSS_TOKEN.")
                    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", help="Port to listen on; 0: any free port.")] = 9090,
    shots: ShotsOption = 10,
    shape: ShapeOption = None,
    threshold: ThresholdOption = 0.5,
    as_json: JsonOption = False,
) -> None:
    """Serve Label Studio's protocol on top of a running service until Ctrl-C or SIGTERM."""
    from pipelines.integrations.label_studio.backend import BridgeOptions
    from pipelines.integrations.label_studio.serve import BackendRequest, serve_backend

    options = BridgeOptions(shots=shots, shape=shape.value if shape else None, threshold=threshold)
    serve_backend(BackendRequest(service=service, studio=studio, host=host, port=port, options=options),
                  as_json=as_json)


def label_studio_predict(
    project: Annotated[int, typer.Option("--project", min=1, help="Number of the project: it is in the address of its "
                                         "page.")],
    service: RunningOption = "http://127.0.0.1:8000",
    studio: StudioOption = "http://127.0.0.1:8080",
    restart: Annotated[bool, typer.Option("--restart", help="Begin with the present annotations, also if an earlier "
                                          "job of the project is not finished.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Predict only this many tasks; 0: all.")] = 0,
    shots: ShotsOption = 10,
    shape: ShapeOption = None,
    threshold: ThresholdOption = 0.5,
    out: OutOption = None,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store predictions for the tasks of a project and print how many."""
    read = load_recipe(recipe, overrides or [], out=out)

    from pipelines.integrations.label_studio.backend import BridgeOptions
    from pipelines.integrations.label_studio.whole_project import WholeProject, predict_project

    options = BridgeOptions(shots=shots, shape=shape.value if shape else None, threshold=threshold)
    summary = predict_project(WholeProject(service=service, studio=studio, project=project, workspace=read.out,
                                           options=options, restart=restart, limit=limit))
    if as_json:
        print(json.dumps(summary))
        return
    print(f"{summary['predictions']} predictions stored, {summary['failed']} tasks without one; model version "
          f"{summary['model_version']}")
    for reason in summary["reasons"]:
        print(f"no prediction: {reason}")
