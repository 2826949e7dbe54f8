"""`build_shards`: from a source to an image table and class blocks. A build may be killed at any moment and run again.

Pass 1 (Ray Data) reads and validates the photos, one fixed group per part. Pass 2 (Ray Data) writes the class blocks.
The manifest is written last. The driver has the index in memory, never image bytes. After a change of the source,
unchanged parts and classes are reused (`ledger`), and the content hash equals that of a build from scratch.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from fss_models.errors import FssError
from pipelines.base.cluster import cluster
from pipelines.base.progress import Bar
from pipelines.base.ray_stage import run_tasks
from pipelines.base.storage import Store
from pipelines.config.data import DataConfig
from pipelines.data.attempts import forget_attempts
from pipelines.data.blocks import BlockBuilder, BlockFile, block_index, plan_blocks
from pipelines.data.classes import choose_classes
from pipelines.data.failures import told
from pipelines.data.ledger import FormerBuild, delete_stale_files, plan_parts, reading_rules, versions_of
from pipelines.data.open import open_source
from pipelines.data.parquet import parquet_bytes, parquet_table
from pipelines.data.parts import Entry, PartBuilder, exif_name, failure_table, part_name
from pipelines.data.schema import BLOCK_INDEX, FAILURES, INDEX, LEDGER, SCHEMA_VERSION, ClassInfo, Manifest
from pipelines.data.shardset import read_manifest
from pipelines.data.sources.base import Source, SourceFailure, digest_of
from pipelines.data.split import NOT_NAMED, Splitter

# Everything a build may write below its folder; --force removes these and nothing else.
BUILD_OUTPUTS = ("manifest.json", "build.json", "build", "index.parquet", "failures.parquet", "ledger.parquet",
                 "images", "blocks", "episodes")


def build_shards(cfg: DataConfig, out: str, *, force: bool = False, update: bool = False) -> Manifest:
    """Build the shards of `cfg` in the folder `out`. Finished shards of the same source are returned at once.

    With `update`, shards of the same configuration follow changes of their source, and unchanged parts stay. Episode
    lists of the old state are deleted at the end. Its parts and blocks are deleted only by the next update, so that a
    running training can still read them. With `force` everything in the folder is built again.

    Raises `FssError` for an unusable source, a folder with other shards (unless `force`) or with an older state of the
    source (unless `update`), and a dataset in which no class has enough photos.
    """
    store, source, splitter = Store(out), open_source(cfg.source), Splitter(cfg)
    source_hash = digest_of(SCHEMA_VERSION, cfg.model_dump(), source.fingerprint, splitter.fingerprint,
                            *reading_rules(source))
    if force:
        for name in BUILD_OUTPUTS:
            store.delete(name)
    before = _existing_manifest(store, cfg, source_hash, update=update)
    if before and before.source_hash == source_hash:
        return before
    former, old_files = _begin_build(store, cfg, source_hash, before)
    with cluster() as ray:
        index, failures, ledger = _write_parts(ray, cfg, store, source, splitter, former)
        rows = index.to_pylist()
        classes, dropped = choose_classes(source.classes, rows, cfg, source.fold_table)
        if not classes:
            if not before:
                store.write_bytes("failures.parquet", parquet_bytes([failures], FAILURES))
            raise FssError(_no_class_reason(rows, dropped, failures), where=cfg.source.root or cfg.name,
                           hint=f"all are in {store.path('failures.parquet')}" if len(failures) and not before
                           else "lower data.min_images or data.min_area, or add photos")
        files = plan_blocks(rows, classes, cfg)
        _write_blocks(ray, cfg, store, files)
    ids = {name: source.classes.index(name) for name in dropped}
    manifest = _manifest(cfg, source_hash, rows, classes, (dropped, ids), files, len(failures))
    manifest = manifest.model_copy(update={"exif": _exif(ledger)})
    if before:
        store.delete("manifest.json")  # from here on the folder is unfinished
        if before.content_hash != manifest.content_hash:
            store.delete("episodes")
    store.write_bytes("index.parquet", parquet_bytes([index], INDEX))
    store.write_bytes("failures.parquet", parquet_bytes([failures], FAILURES))
    store.write_bytes("ledger.parquet", parquet_bytes([ledger], LEDGER))
    store.write_bytes("blocks/train/index.parquet", parquet_bytes([block_index(files)], BLOCK_INDEX))
    store.write_json("manifest.json", manifest.document())
    store.delete("build")
    if before or former.parts:
        delete_stale_files(store, set(ledger["part"].to_pylist()), {*manifest.files, *old_files})
    return manifest


def _existing_manifest(store: Store, cfg: DataConfig, source_hash: str, *, update: bool) -> Manifest | None:
    """The manifest of the existing shards, if any. Raises `FssError` for shards that this build must not change."""
    found = None
    for name in ("manifest.json", "build.json"):
        document = store.read_json(name) if store.exists(name) else {"source_hash": source_hash}
        if document.get("source_hash") != source_hash:
            if not _is_config(document.get("source"), cfg):
                raise FssError("the folder has shards of another source, split or configuration", where=store.url,
                               hint="choose another data.name or --out, or rebuild with --force")
            if not update:
                raise FssError("the source or its split changed since these shards were built", where=store.url,
                               hint="update them with `fss shards build`, or choose another data.name")
        if name == "manifest.json" and "schema_version" in document:
            found = read_manifest(store)
            if found.source_hash == source_hash:
                break
    return found


def _is_config(document: object, cfg: DataConfig) -> bool:
    try:
        return DataConfig.model_validate(document) == cfg
    except ValidationError:
        return False


def _begin_build(
    store: Store, cfg: DataConfig, source_hash: str, before: Manifest | None
) -> tuple[FormerBuild, list[str]]:
    """Begin a build: the former build, whose parts may be reused, and the files of the former state.

    Readers may have those files open. All others are deleted: files of the state before the former one, and the rest of
    an unfinished build for another state.
    """
    former = FormerBuild.read(store)
    document = store.read_json("build.json") if store.exists("build.json") else {}
    old_files = sorted(before.files) if before else document.get("old_files", [])
    if document.get("source_hash", source_hash) != source_hash:
        store.delete("build")
        delete_stale_files(store, {p["part"] for p in former.parts}, set(old_files))
    store.write_json("build.json", {"source_hash": source_hash, "source": cfg.model_dump(), "old_files": old_files})
    return former, old_files


# ---- pass 1 -------------------------------------------------------------------------------------------------------

def _write_parts(
    ray: Any, cfg: DataConfig, store: Store, source: Source, splitter: Splitter, former: FormerBuild
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Pass 1: (index of all photos in the source's order, failures, ledger)."""
    entries, failures = _split(source, splitter)
    versions = versions_of(entries, source, cfg)
    forget_attempts(store)
    plan = plan_parts(versions, former, cfg.images_per_part)
    parts = ((part, [entries[i] for i in places]) for part, places in plan.new_parts.items())
    found = [former.index.filter(pc.is_in(former.index["part"], pa.array(sorted(plan.kept_parts), pa.int32())))]
    with Bar("reading photos", sum(map(len, plan.new_parts.values())), unit="photos") as bar:
        for images, rows in run_tasks(ray, PartBuilder(source=source, cfg=cfg, out=store.url), parts):
            found.append(parquet_table(rows))
            bar.step(images)
    ledger = [p for p in former.parts if p["part"] in plan.kept_parts]
    for part, places in plan.new_parts.items():
        wrong = store.read_table(f"build/failures-{part:05d}.parquet").to_pylist()
        ledger.append({"part": part, "versions": [versions[i] for i in places], "failures": wrong,
                       **store.read_json(exif_name(part))})
    tables = [failure_table(failures), *(pa.Table.from_pylist(p["failures"], schema=FAILURES) for p in ledger)]
    index = _in_order(_concat(found, INDEX), entries)
    return index, _concat(tables, FAILURES), pa.Table.from_pylist(ledger, schema=LEDGER)


def _in_order(index: pa.Table, entries: list[Entry]) -> pa.Table:
    """The rows of the index in the order in which the source lists its photos."""
    place = {item.image_id: number for number, (item, _) in enumerate(entries)}
    order = sorted(range(len(index)), key=[place[i] for i in index["image_id"].to_pylist()].__getitem__)
    return index.take(order) if len(index) else index


def _split(source: Source, splitter: Splitter) -> tuple[list[Entry], list[SourceFailure]]:
    entries: list[Entry] = []
    failures = list(source.failures)
    for item in source.items:
        split = item.split or splitter(item.file_name)
        if split is None:
            failures.append(SourceFailure(item.file_name, "split", NOT_NAMED))
        else:
            entries.append((item, split))
    return entries, failures


def _concat(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *(t.cast(schema) for t in tables)]).combine_chunks()


# ---- pass 2 -------------------------------------------------------------------------------------------------------

def _write_blocks(ray: Any, cfg: DataConfig, store: Store, files: list[BlockFile]) -> None:
    with Bar("writing class blocks", sum(len(b) for f in files for b in f.blocks), unit="annotations") as bar:
        for annotations in run_tasks(ray, BlockBuilder(store.url), files):
            bar.step(annotations)


# ---- the result ---------------------------------------------------------------------------------------------------

def _manifest(
    cfg: DataConfig, source_hash: str, rows: list[dict[str, Any]], classes: list[ClassInfo],
    dropped: tuple[dict[str, str], dict[str, int]], files: list[BlockFile], failures: int,
) -> Manifest:
    blocks = {c.class_id: sum(len(f.blocks) for f in files if f.class_id == c.class_id) for c in classes}
    classes = [c.model_copy(update={"blocks": blocks[c.class_id]}) for c in classes]
    parts: dict[int, list[str]] = {}
    for row in sorted(rows, key=lambda r: (r["part"], r["row"])):
        parts.setdefault(row["part"], []).append(row["digest"])
    hashes = {part_name(p): digest_of(d) for p, d in parts.items()} | {f.name: f.digest for f in files}
    facts = (SCHEMA_VERSION, cfg.seed, cfg.folds, cfg.fold_rule, [(c.class_id, c.name, c.fold) for c in classes],
             [r["digest"] for r in rows], [f.digest for f in files])
    return Manifest(
        schema_version=SCHEMA_VERSION, dataset=cfg.name, seed=cfg.seed, folds=cfg.folds, fold_rule=cfg.fold_rule,
        source=cfg.model_dump(), source_hash=source_hash, content_hash=digest_of(*facts),
        images={s: sum(r["split"] == s for r in rows) for s in ("train", "test")},
        annotations={"train": sum(c.train_images for c in classes), "test": sum(c.test_images for c in classes)},
        failures=failures, classes=classes, dropped_classes=dropped[0],
        dropped_ids=dropped[1], files=hashes,
    )


def _exif(ledger: pa.Table) -> dict[str, int] | None:
    counts = {name: pc.sum(ledger[name]).as_py() or 0 for name in ("turned", "as_stored")}
    return counts if any(counts.values()) else None


def _no_class_reason(rows: list[dict[str, Any]], dropped: dict[str, str], failures: pa.Table) -> str:
    """Why there is nothing to build: the first class, and the failures by kind."""
    reasons = told(failures.to_pylist(), limit=3)
    listed = f"; the problems: {'; '.join(reasons)}" if reasons else ""
    if not rows:
        return f"no photo could be used{listed}"
    name, reason = next(iter(dropped.items()), ("", "the source names no class"))
    return f"no class has enough of the {len(rows)} photos; {f'{name}: ' if name else ''}{reason}{listed}"
