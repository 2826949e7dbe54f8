"""A workspace as the whole chain writes it, made in this process with the code of the workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fss_models import registry
from jobs.demo_inputs import choose_class, write_photos, write_supports
from pipelines.base.storage import Store
from pipelines.base.version import package_version
from pipelines.base.workspace import Workspace
from pipelines.config.data import DataConfig
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.sweep import SweepConfig
from pipelines.config.train import TrainConfig
from pipelines.data.folds import FoldData
from pipelines.data.shardset import Shards
from pipelines.evaluation.drive import evaluate_run, scoring_config
from pipelines.evaluation.results import RunResult
from pipelines.inference.labeler import Labeler
from pipelines.inference.support_files import read_support_file
from pipelines.labelling.images import list_images
from pipelines.labelling.job import LabellingJob
from pipelines.labelling.manifest import JobManifest, claim_folder, describe_images
from pipelines.labelling.outputs import write_outputs
from pipelines.report.collect import label_folder
from pipelines.selection.choose import make_leaderboard
from pipelines.sweeps.matrix import sweep_specs
from pipelines.sweeps.plan import collect_results
from pipelines.training.context import RunContext
from pipelines.training.loop import fit
from pipelines.training.task import WorkerRank
from pipelines.training.worker import write_bundle
from tests.labelling.helpers import DirectEngine

BROKEN = "<broken> & photo.jpg"  # a name that an unescaped page would trip over


@dataclass(frozen=True)
class ReportWorkspace:
    """A workspace with its recipe, the results of its runs, its shards and the class that was labelled."""

    recipe: Recipe
    results: list[RunResult]
    shards: Shards
    class_name: str


@pytest.fixture(scope="session")
def workspace(shapes_shards: str, shapes_config: DataConfig,
              tmp_path_factory: pytest.TempPathFactory) -> ReportWorkspace:
    """Two folds of `prior` and of a SANSA trained for a few steps, a leaderboard, labels with one unreadable photo."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("report") / "out"
    (out / "shards").mkdir(parents=True)
    (out / "shards" / "shapes").symlink_to(shapes_shards)
    recipe = Recipe(
        name="tested", out=str(out), data=shapes_config, eval=EvalConfig(episodes=12, batch=6),
        methods=[MethodConfig(name="prior", preset="nano"), MethodConfig(name="sansa", preset="debug")],
        train=TrainConfig(steps=6, batch=2, log_every=2, checkpoint_every=6, pool_bytes=64_000_000),
        sweep=SweepConfig(folds=[0, 1]))
    shards = Shards(Workspace(recipe.out).shards("shapes"))
    for spec in sweep_specs(recipe, shards=shards.url, data_hash=shards.manifest.content_hash,
                            trains=dict.fromkeys([0, 1], recipe.train)):
        _run(RunContext(spec=spec, runs=Workspace(recipe.out).runs), recipe)
    results = collect_results(recipe)
    make_leaderboard(recipe, results)
    Store(recipe.out).write_bytes("recipe.yaml", yaml.safe_dump(recipe.model_dump()).encode())
    return ReportWorkspace(recipe, results, shards, _label(recipe, shards, results[0].bundle))


def _run(job: RunContext, recipe: Recipe) -> None:
    data = FoldData.open(job.spec.shards, job.spec.fold)
    if job.spec.trains:
        model = registry.build(job.spec.method.name, job.spec.method.preset)
        open_stream: Callable[..., Any] = lambda position: data.stream(  # noqa: E731
            job.spec, position=position, rank=0, world=1)
        history = fit(job.spec, model, worker=WorkerRank(), open_stream=open_stream, resume=None,
                      save=lambda step, write: None, log_row=lambda step, row: None)
        Store(job.folder).write_json("history.json", history.rows)
        write_bundle(job, model, data, train_s=history.seconds)
    evaluate_run(job, scoring_config(recipe))


def _label(recipe: Recipe, shards: Shards, bundle: str) -> str:
    workspace, chosen = Workspace(recipe.out), choose_class(shards)
    supports = read_support_file(write_supports(shards, chosen, workspace.store.path("demo_supports")))
    photos = workspace.store.path("demo_images")
    write_photos(shards, photos)
    Path(photos, BROKEN).write_bytes(b"not a photo")
    labeler, images = Labeler(bundle), list_images(photos)
    out = Store(label_folder(workspace, chosen.name))
    manifest = JobManifest(
        **describe_images(images), class_name=chosen.name, support_id=labeler.add_support(supports),  # type: ignore[arg-type]
        bundle_id=labeler.info.bundle_id, method="prior", preset="nano", chunk=16, batch=4, threshold=0.5, limit=0,
        max_pixels=50_000_000, max_bytes=64_000_000, code_version=package_version())
    claim_folder(out, manifest)
    job = LabellingJob(out, images, manifest)
    job.run(DirectEngine(labeler), job.chunks_left(), 2)
    write_outputs(out, manifest)
    return chosen.name
