"""The stages of `fss demo`. Each is timed; a second call does only what is left."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

from jobs.demo_first import champion_ships, draw_first_masks
from jobs.demo_inputs import choose_class, write_photos, write_supports
from pipelines.base.cluster import cluster
from pipelines.base.progress import say
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import read_bundle_info
from pipelines.bundles.shipped import champion_url
from pipelines.config.recipe import Recipe
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards
from pipelines.labelling.outputs import summary_line
from pipelines.labelling.run import LabelRequest, run_label_job
from pipelines.pages.pictures import png_bytes
from pipelines.report.collect import label_folder
from pipelines.report.page import write_report
from pipelines.selection.choose import format_leaderboard, make_leaderboard
from pipelines.selection.promote import promote
from pipelines.sweeps.sweep import run_sweep

FIRST = "first_masks.png"


@dataclass
class DemoChain:
    """Runs the stages of a demo and records the seconds each took."""

    recipe: Recipe
    stages: list[dict[str, Any]] = field(default_factory=list)

    def run(self, class_name: str = "") -> None:
        """Run all stages in one cluster, which starts once. `class_name`: the class to label, "" for the default."""
        Store(self.recipe.out).write_bytes("recipe.yaml", yaml.safe_dump(self.recipe.model_dump()).encode())
        with ExitStack() as held:
            with self._stage("start the cluster", ""):
                held.enter_context(cluster())
            self._chain(class_name)

    def _chain(self, class_name: str) -> None:
        workspace = Workspace(self.recipe.out)
        shards = workspace.shards(self.recipe.data.name)
        with self._stage("build shards", join(shards, "manifest.json")):
            manifest = build_shards(self.recipe.data, shards)
            say(f"  {sum(manifest.images.values())} photos, {len(manifest.classes)} classes in {manifest.folds} folds")
            for name, reason in manifest.dropped_classes.items():
                say(f"  class left out: {name} ({reason})")
        if champion_ships():
            self._show_first_masks(Shards(shards), class_name)
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

    def _show_first_masks(self, shards: Shards, class_name: str) -> None:
        store, chosen = Workspace(self.recipe.out).store, choose_class(shards, class_name)
        with self._stage(f"first masks ({chosen.name}), with the champion that ships", store.path(FIRST)):
            if not store.exists(FIRST):
                drawn, lines = draw_first_masks(shards, chosen)
                store.write_bytes(FIRST, png_bytes(drawn))
                say("\n".join(f"  {line}" for line in lines))
            say(f"  {store.path(FIRST)}: one marked photo, then masks in photos it was not marked in")

    def _label(self, shards_url: str, class_name: str, bundle_id: str) -> None:
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
