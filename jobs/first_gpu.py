"""`fss reproduce first-gpu`: the authors' own checkpoints, each scored on one fold, beside the published figures.

For a machine with one GPU and the benchmarks' data. All files and figures are named in `KIT`. Below the workspace:
`first-gpu/files.json` has the sha256 of every file at its first use, and `first-gpu/NAME.json` a finished score.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fss_models.errors import FssError
from fss_models.registry import method_config
from fss_models.settings import weight_fields
from fss_models.weight_files import file_sha256
from jobs.evaluation import prepare_target
from jobs.recipes import load_recipe
from jobs.tables import Places, check_names, load_table
from pipelines.base.progress import say
from pipelines.base.storage import Store, join
from pipelines.base.text_table import text_table
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import import_bundle
from pipelines.bundles.weights import fetch, is_fetched
from pipelines.config.recipe import Recipe
from pipelines.data.shardset import Shards
from pipelines.evaluation.results import RunResult
from pipelines.evaluation.score import score_bundle
from pipelines.papers.tables.missing import MissingFile, missing_data

FOLD = 0


@dataclass(frozen=True, kw_only=True)
class KitFile:
    """A published file: its address, or for files that only a person can download: the page, and what to take there."""

    name: str
    address: str = ""
    page: str = ""


@dataclass(frozen=True, kw_only=True)
class KitRow:
    """An official checkpoint, the recipe of its published protocol, and where its published figures are.

    base: the file that the checkpoint was trained on, None if it is in the checkpoint; figures: names of the rows of
    the shipped `table` whose figure of `column` is shown, the first being that of the files which are linked today.
    """

    name: str
    title: str
    recipe: str
    checkpoint: KitFile
    base: KitFile | None
    table: str
    column: str
    figures: tuple[str, ...]

    @property
    def files(self) -> tuple[KitFile, ...]:
        """The row's files."""
        return (self.checkpoint, *([self.base] if self.base else []))


KIT = (
    KitRow(name="SANSA", title="COCO-20i", recipe="sansa_coco20i", table="sansa_folds", column="coco",
           figures=("SANSA", "SANSA, earlier adapters"),
           base=KitFile(name="sam2_hiera_large.pt", address="hf://facebook/sam2-hiera-large/sam2_hiera_large.pt"),
           checkpoint=KitFile(name="adapter_coco_fold0.pth", page="download COCO (4) from the table of strict few-shot "
                              "results at https://github.com/ClaudiaCuttano/SANSA, and take fold 0 of it")),
    KitRow(name="FSSAM", title="PASCAL-5i", recipe="fssam_pascal5i", table="fssam_main", column="pascal1",
           figures=("FSSAM",), base=None,
           checkpoint=KitFile(name="best_1shot.pth", page="download exp.zip from https://github.com/Sam1224/FSSAM, and "
                              "take exp/pascal/FSSAM/split0/small/snapshot/best_1shot.pth of it")),
)


@dataclass(frozen=True, kw_only=True)
class KitJob:
    """A row with its recipe and the places of its files, by name."""

    row: KitRow
    recipe: Recipe
    sets: tuple[str, ...]
    places: Places

    @property
    def store(self) -> Store:
        """The kit's folder below the workspace."""
        return Store(join(self.recipe.out, "first-gpu"))

    @property
    def key(self) -> str:
        """12 hex digits of a hash over the settings and places that decide the score."""
        known = self.recipe.model_dump(mode="json")
        content = [{k: known[k] for k in ("data", "methods", "eval")}, self.places, FOLD]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def read_record(self) -> dict[str, Any]:
        """The record of the score; empty if there is none, or one of other settings, files or shards."""
        name = f"{self.row.name}.json"
        found: dict[str, Any] = self.store.read_json(name) if self.store.exists(name) else {}
        shards = Workspace(self.recipe.out).shards(self.recipe.data.name)
        if not found or found["key"] != self.key:
            return {}
        if not Store(shards).exists("manifest.json"):
            return found
        return found if found["result"]["spec"]["data_hash"] == Shards(shards).manifest.content_hash else {}


def make_jobs(*, rows: Sequence[str], roots: Places, weights: Places, sets: Sequence[str], out: str,
              cpu: bool) -> list[KitJob]:
    """The rows to run, all or those of `rows`. Raises `FssError` for an unknown row, dataset, file or setting."""
    check_names("row", rows, [r.name for r in KIT])
    chosen = [r for r in KIT if not rows or r.name in rows]
    check_names("weight file", weights, [f.name for r in chosen for f in r.files])
    recipes = {r.name: load_recipe(r.recipe, [*sets, f"sweep.gpus_per_run={0 if cpu else 1}"], out=out) for r in chosen}
    check_names("dataset", roots, [r.data.name for r in recipes.values()])
    found = []
    for row in chosen:
        root = roots.get(recipes[row.name].data.name)
        own = (*sets, f"sweep.gpus_per_run={0 if cpu else 1}",
               *([f"data.source.root={json.dumps(root)}"] if root else []))
        places = {f.name: weights.get(f.name) or f.address or f"weights/{f.name}" for f in row.files}
        found.append(KitJob(row=row, recipe=load_recipe(row.recipe, list(own), out=out), sets=own, places=places))
    return found


def find_missing(jobs: Sequence[KitJob]) -> list[MissingFile]:
    """The datasets and files that a person has to provide. Nothing is fetched."""
    found = [m for j in jobs if (m := missing_data(j.recipe.data, j.recipe.out))]
    return found + [MissingFile(kind="weights", name=f.name, place=j.places[f.name], instructions=(f.page,))
                    for j in jobs for f in j.row.files
                    if "://" not in j.places[f.name] and not is_fetched(j.places[f.name])]


def check_device(cpu: bool) -> None:
    """Raise `FssError` if there is no GPU, unless `cpu`."""
    if not cpu and not torch.cuda.is_available():
        raise FssError("there is no GPU here: with these models 1000 episodes on a CPU take hours to days",
                       hint="give --cpu to go on without one")


def run_job(job: KitJob) -> None:
    """Fetch, import and score a row's checkpoint, and write its record."""
    row, method = job.row, job.recipe.methods[0]
    say(f"{row.name}: fetching and checking {', '.join(job.places)}")
    digests = {f.name: _checked(job, f, method.sha256 if f is row.base else "") for f in row.files}
    name = hashlib.sha256(json.dumps([job.key, digests], sort_keys=True).encode()).hexdigest()[:12]
    bundle = join(job.store.url, f"{row.name}-{name}")
    if not Store(bundle).exists("bundle.json"):
        files = weight_fields(method_config(method.name))
        import_bundle(bundle, file=job.places[row.checkpoint.name], method=method.name, preset=method.preset,
                      weights=job.places[row.base.name] if row.base else "",
                      settings={k: v for k, v in method.config.items() if k not in files})
    target = prepare_target(recipe=row.recipe, sets=list(job.sets), out=job.recipe.out, dataset="", fold=FOLD)
    result, _ = score_bundle(target.recipe, target.shards, bundle=bundle, fold=FOLD)
    gpu = job.recipe.sweep.gpus_per_run > 0
    job.store.write_json(f"{row.name}.json", {
        "key": job.key, "sha256": digests, "device": torch.cuda.get_device_name() if gpu else "CPU",
        "result": result.model_dump(mode="json")})


def _checked(job: KitJob, file: KitFile, sha256: str) -> str:
    """Fetch a file and return its sha256, which is recorded at its first use.

    Raises `FssError` if it differs from the recipe's or from that of the first use.
    """
    place, listed = job.places[file.name], "files.json"
    found = file_sha256(fetch(place, sha256))
    known: dict[str, Any] = job.store.read_json(listed) if job.store.exists(listed) else {}
    first = known.get(file.name, {}).get("sha256", found)
    if first != found:
        raise FssError(f"{file.name} is another file than at its first use: its sha256 is {found}, not {first}",
                       where=place, hint=f"give the former file, or remove its entry in {job.store.path(listed)}")
    if file.name not in known:
        job.store.write_json(listed, known | {file.name: {"place": place, "sha256": found}})
    return found


def document(jobs: Sequence[KitJob], sets: Sequence[str]) -> dict[str, Any]:
    """Our scores so far in percent, the published ones, and what they rest on."""
    return {"changes": list(sets), "rows": [_row(j) for j in jobs]}


def _row(job: KitJob) -> dict[str, Any]:
    table = load_table(job.row.table)[1]
    by_name = {r.name: r for r in table.all_rows}
    published: list[dict[str, Any]] = [
        {"value": table.figure(by_name[n], job.row.column, FOLD), "of": n,
         "source": getattr(by_name[n], "source", table.source)} for n in job.row.figures]
    record = job.read_record()
    made: dict[str, Any] = {"row": job.row.name, "benchmark": job.row.title, "fold": FOLD, "published": published}
    if record:
        r = RunResult.model_validate(record["result"])
        ours = 100 * r.miou
        made |= {"ours": ours, "interval": [100 * v for v in r.interval], "photos_per_s": r.images_per_s,
                 "episodes": r.episodes, "list_hash": r.list_hash, "bundle": r.bundle, "bundle_id": r.bundle_id,
                 "precision": r.precision, "code": r.code, "device": record["device"], "sha256": record["sha256"]}
        for p in published:
            p["difference"] = ours - p["value"]
    return made


def render_text(found: dict[str, Any]) -> str:
    """The document as a table for a terminal."""
    lines, notes = [], []
    for row in found["rows"]:
        done = "ours" in row
        ours = ([f"{row['ours']:.1f}", "{:.1f} to {:.1f}".format(*row["interval"]), f"{row['photos_per_s']:.1f}"]
                if done else ["–"] * 3)
        for i, p in enumerate(row["published"]):
            first = [row["row"], f"{row['benchmark']}, fold {row['fold']}", *ours]
            lines.append([*(first if i == 0 else [p["of"], "", "", "", ""]), f"{p['value']:.1f}",
                          f"{p['difference']:+.1f}" if done else "–"])
            notes.append(f"{p['of']}, published: {p['source']}.")
        if done:
            notes.append(f"{row['row']}: {row['episodes']} episodes of list {row['list_hash'][:12]}, "
                         f"{row['precision']}, on {row['device']}.")
    if found["changes"]:
        notes.append(f"Our runs changed {', '.join(found['changes'])}, so they do not follow the published protocol.")
    head = ["", "", "ours", "95% interval", "photos/s", "published", "difference"]
    return "\n\n".join(["Official checkpoints, 1-shot, mIoU in %", text_table(lines, head=head, left=(0, 1)),
                        "\n".join(notes)])
