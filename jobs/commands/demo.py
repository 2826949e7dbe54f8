"""`fss demo`: the whole chain, from photos to labels and a report. A second call does only what is left."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
import yaml

from fss_models.errors import FssError
from jobs.options import JsonOption, SetOption
from jobs.recipes import load_recipe
from pipelines.base.progress import say
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.config.recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", help="Run the whole chain on generated or your own images and write a report.")(demo)


def demo(data: Annotated[str, typer.Option("--data", help="COCO directory to use instead of generated images.")] = "",
         recipe: Annotated[str, typer.Option("--recipe", "-r",
                                             help="Name of a shipped recipe, or a YAML file (default: "
                                             "demo, or demo_coco with --data).")] = "", overrides: SetOption = None,
         out: Annotated[str | None, typer.Option("--out", "-o", help="Workspace: a local folder or s3://bucket/prefix "
                                                 "(default: out/demo, or out/NAME with --data).")] = None,
         class_name: Annotated[str,
                               typer.Option("--class", help="Class to label (default: the class with most held-out "
                                            "photos).")] = "", as_json: JsonOption = False,) -> None:
    """Build shards, run the sweep, promote the winner, label held-out photos, write the report."""
    read = demo_recipe(data, recipe, overrides or [], out)
    chain = DemoChain(read)
    chain.run(class_name)
    total = sum(s["seconds"] for s in chain.stages)
    say(f"done in {total:.0f} s")
    report = Workspace(read.out).report
    print(json.dumps({"report": report, "stages": chain.stages}) if as_json else f"report: {report}")


def demo_recipe(data: str, name: str, overrides: list[str], out: str | None) -> Recipe:
    """Load the recipe of a demo. `data`: a COCO directory to use; a `splits.json` beside it that names it is used too.

    Raises `FssError` if `data` does not exist.
    """
    if not data:
        return load_recipe(name or "demo", overrides, out=out or "out/demo")
    place = Store(data)
    if not place.exists():
        raise FssError("does not exist", where=data, hint="give a COCO directory (annotations/*.json and images)")
    title = re.sub(r"[^a-z0-9]+", "_", place.name.lower()).strip("_") or "photos"
    found = [f"data.source.root={place.url}", f"data.name={title}"]
    beside = place.parent
    if beside.exists("splits.json") and place.name in beside.read_json("splits.json"):
        found += [f"data.split.file={beside.path('splits.json')}", f"data.split.key={place.name}"]
    return load_recipe(name or "demo_coco", [*found, *overrides], out=out or f"out/{title}")


@dataclass
class DemoChain:
    """Runs the stages of a demo and records the seconds each took."""

    recipe: Recipe
    stages: list[dict[str, Any]] = field(default_factory=list)

    def run(self, class_name: str = "") -> None:
        """Run all stages in one cluster, which starts once. `class_name`: the class to label, "" for the default."""
        from pipelines.base.cluster import cluster

        Store(self.recipe.out).write_bytes("recipe.yaml", yaml.safe_dump(self.recipe.model_dump()).encode())
        with ExitStack() as held:
            with self._stage("start the cluster", ""):
                held.enter_context(cluster())
            self._chain(class_name)

    def _chain(self, class_name: str) -> None:
        from pipelines.bundles.bundle import read_bundle_info
        from pipelines.bundles.shipped import champion_url
        from pipelines.data.shards import build_shards
        from pipelines.report.page import write_report
        from pipelines.selection.choose import format_leaderboard, make_leaderboard
        from pipelines.selection.promote import promote
        from pipelines.sweeps.sweep import run_sweep

        workspace = Workspace(self.recipe.out)
        shards = workspace.shards(self.recipe.data.name)
        with self._stage("build shards", join(shards, "manifest.json")):
            manifest = build_shards(self.recipe.data, shards)
            say(f"  {sum(manifest.images.values())} photos, {len(manifest.classes)} classes in {manifest.folds} folds")
            for name, reason in manifest.dropped_classes.items():
                say(f"  class left out: {name} ({reason})")
        with self._stage("train and compare", workspace.leaderboard):
            board = make_leaderboard(self.recipe, run_sweep(self.recipe))
            say(format_leaderboard(board))
        with self._stage("refit and promote the winner", join(workspace.champion, "bundle.json")):
            spare = champion_url(workspace)
            if not board.winner and spare != workspace.champion:
                say(f"  {board.reason}")  # photos are labelled with the shipped champion instead
            else:
                promote(self.recipe)
            info = read_bundle_info(champion_url(workspace))
            say(f"  {info.method}/{info.preset}, bundle {info.bundle_id}")
        self._label(shards, class_name, info.bundle_id)
        self._save()  # the page shows the times of the stages before it
        with self._stage("report", ""):
            write_report(self.recipe)

    def _label(self, shards_url: str, class_name: str, bundle_id: str) -> None:
        from jobs.demo_inputs import choose_class, write_photos, write_supports
        from pipelines.data.shardset import Shards
        from pipelines.labelling.outputs import summary_line
        from pipelines.labelling.run import LabelRequest, run_label_job
        from pipelines.report.collect import label_folder

        workspace, shards = Workspace(self.recipe.out), Shards(shards_url)
        chosen = choose_class(shards, class_name)
        name = re.sub(r"[^A-Za-z0-9]+", "_", chosen.name)
        photos, out = workspace.store.path("demo_images"), label_folder(workspace, f"{name}-{bundle_id[:8]}")
        with self._stage(f"label held-out photos ({chosen.name})", join(out, "summary.json")):
            supports = write_supports(shards, chosen, workspace.store.path(f"demo_supports/{name}"))
            write_photos(shards, photos)
            summary = run_label_job(LabelRequest(recipe=self.recipe, images=photos, supports=supports, out=out))
            say(f"  {summary_line(summary)}")

    @contextmanager
    def _stage(self, name: str, result: str) -> Iterator[None]:
        """Time a stage. `result`: the last file it writes; if that does not change, the stage had been done before."""
        say(f"== {name}")
        before, began = _content(result), time.monotonic()
        yield
        seconds = time.monotonic() - began
        done_before = bool(before) and before == _content(result)
        old = next((s["seconds"] for s in self._earlier_stages() if s["name"] == name), None)
        say(f"== {name}: {seconds:.1f} s{' (already done)' if done_before else ''}")
        self.stages.append({"name": name, "seconds": old if done_before and old is not None else seconds})

    def _earlier_stages(self) -> list[dict[str, Any]]:
        store = Store(self.recipe.out)
        stages: list[dict[str, Any]] = store.read_json("stages.json") if store.exists("stages.json") else []
        return stages

    def _save(self) -> None:
        Store(self.recipe.out).write_json("stages.json", self.stages)


def _content(url: str) -> bytes:
    return Store(url).read_bytes() if url and Store(url).exists() else b""

