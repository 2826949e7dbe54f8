"""`fss sweep`: train and score every method on every fold; show the progress, cancel and resume."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fss_models.errors import FssError
from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe
from pipelines.config.recipe import Recipe

if TYPE_CHECKING:
    from pipelines.sweeps.watch import SweepState

PlaceOption = Annotated[str,
                        typer.Option("--out", "-o",
                                     help="Workspace of the sweep: a local folder or s3://bucket/prefix.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Train and compare methods in many runs.")

    @group.command("run")
    def run(recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None,
            as_json: JsonOption = False) -> None:
        """Train and score every run of the recipe in parallel, then write and print the leaderboard.

        Missing shards are built first. A second call does only what is left. Runs on all classes (`sweep.folds: [-1]`)
        have no leaderboard; their bundles are named.
        """
        _run(load_recipe(recipe, sets, out=out), as_json)

    @group.command("resume")
    def resume(out: PlaceOption, as_json: JsonOption = False) -> None:
        """Continue the workspace's last sweep with the recipe it was started with."""
        from pipelines.sweeps.sweep import read_sweep_recipe

        _run(read_sweep_recipe(out), as_json)

    @group.command("status")
    def status(out: PlaceOption, as_json: JsonOption = False) -> None:
        """Print the state of a workspace's sweep: each run's stage, step, loss, mIoU, episodes/s and time left."""
        from pipelines.sweeps.watch import format_state, read_state

        state = read_state(out)
        why = f" ({state.why})" if state.why else ""
        table = f"{format_state(state)}\n{state.status}{why}" + ("" if state.status == "running"
                                                                 else _resume_hint(state, out))
        print(table if not as_json else state.model_dump_json(indent=1))

    @group.command("cancel")
    def cancel(out: PlaceOption) -> None:
        """Stop a workspace's sweep, wherever it runs.

        Finished runs stay. `fss sweep resume` continues the others from their checkpoints.
        """
        from pipelines.sweeps import owner
        from pipelines.sweeps.watch import read_state

        owner.cancel(out)
        state = read_state(out)
        print(f"cancelled; {state.line}{_resume_hint(state, out)}")

    app.add_typer(group, name="sweep")


def _resume_hint(state: SweepState, out: str) -> str:
    if state.status != "stopped":
        return ""
    return f"; `{'fss search` with its recipe' if state.search else f'fss sweep resume --out {out}`'} continues it"


def _run(recipe: Recipe, as_json: bool) -> None:
    from pipelines.selection.choose import NO_FOLDS, format_leaderboard, holds_out, make_leaderboard
    from pipelines.sweeps.sweep import run_cells

    boards, runs = [], []
    text = sys.stderr if as_json else sys.stdout
    for cell, results in run_cells(recipe):
        runs += results
        print(f"\n{cell.label}" if cell.label else "", file=text)
        done = [r for r in results if not r.error]
        if done and not holds_out(cell.recipe):
            print(f"bundles: {', '.join(r.bundle for r in done)}; no leaderboard: {NO_FOLDS}", file=text)
            continue
        try:
            board = make_leaderboard(cell.recipe, results, cell.suffix)
        except FssError as error:
            if not cell.label:
                raise
            print(f"no leaderboard: {error}", file=sys.stderr)
            continue
        boards.append((cell.label, board))
        print(format_leaderboard(board), file=text)
    if as_json:
        tables = {label: board.model_dump() for label, board in boards if label}
        one = {"leaderboard": boards[0][1].model_dump()} if boards and not tables else {"leaderboards": tables}
        print(json.dumps({"runs": [r.model_dump() for r in runs], **one}, indent=1))
    if any(r.error for r in runs):
        raise typer.Exit(1)
