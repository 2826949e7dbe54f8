"""`build_shards`: from a source to an image table and class blocks. Can be killed at any moment and run again.

Pass 1 (Ray Data) reads and validates the photos, one fixed group a part. Pass 2 (Ray Data) writes the class blocks.
The manifest is written last. The driver holds the index, never image bytes.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fss_models.errors import FssError
from pipelines.cluster import cluster
from pipelines.config import DataConfig
from pipelines.data.blocks import BlockBuilder, BlockFile, block_index, plan_blocks
from pipelines.data.classes import choose_classes
from pipelines.data.parquet import parquet_bytes
from pipelines.data.parts import Entry, PartBuilder, failure_table, part_name
from pipelines.data.schema import BLOCK_INDEX, FAILURES, INDEX, SCHEMA_VERSION, ClassInfo, Manifest
from pipelines.data.sources import open_source
from pipelines.data.sources.base import Failure, Source, digest_of
from pipelines.data.split import NOT_NAMED, Splitter
from pipelines.progress import Bar
from pipelines.storage import Store

# Everything a build may write below its folder; --force removes these and nothing else.
OWNED = ("manifest.json", "build.json", "build", "index.parquet", "failures.parquet", "images", "blocks", "episodes")


def build_shards(cfg: DataConfig, out: str, *, force: bool = False) -> Manifest:
    """Build the shards of `cfg` in the folder `out`; at once if they are there already.

    Raises `FssError` for an unusable source, a folder that holds other shards (unless `force`), and a dataset in
    which no class has enough photos.
    """
    store, source, splitter = Store(out), open_source(cfg.source), Splitter(cfg)
    source_hash = digest_of(SCHEMA_VERSION, cfg.model_dump(), source.fingerprint, splitter.fingerprint)
    if force:
        for name in OWNED:
            store.delete(name)
    finished = _finished(store, source_hash)
    if finished:
        return finished
    store.write_json("build.json", {"source_hash": source_hash})
    with cluster() as ray:
        index, failures = _write_parts(ray, cfg, store, source, splitter)
        rows = index.to_pylist()
        classes, dropped = choose_classes(source.classes, rows, cfg, source.fold_table)
        if not classes:
            raise FssError(_nothing_left(rows, dropped, failures, cfg), where=cfg.source.root or cfg.name,
                           mend="lower data.min_images or data.min_area, or add photos")
        files = plan_blocks(rows, classes, cfg)
        _write_blocks(ray, cfg, store, files)
    store.write_bytes("index.parquet", parquet_bytes([index], INDEX))
    store.write_bytes("failures.parquet", parquet_bytes([failures], FAILURES))
    store.write_bytes("blocks/train/index.parquet", parquet_bytes([block_index(files)], BLOCK_INDEX))
    manifest = _manifest(cfg, source_hash, rows, classes, dropped, files, len(failures))
    store.write_json("manifest.json", manifest.model_dump())
    store.delete("build")
    return manifest


def _finished(store: Store, source_hash: str) -> Manifest | None:
    """The manifest if this very build is done; None if there is something to do. Raises `FssError` for another's."""
    for name in ("manifest.json", "build.json"):
        if store.exists(name):
            document = store.read_json(name)
            if document.get("source_hash") != source_hash:
                raise FssError("holds shards of another source, split or configuration", where=store.url,
                               mend="choose another data.name or --out, or rebuild with --force")
            if name == "manifest.json":
                return Manifest.model_validate(document)
    return None


# ---- pass 1 -------------------------------------------------------------------------------------------------------

def _write_parts(
    ray: Any, cfg: DataConfig, store: Store, source: Source, splitter: Splitter
) -> tuple[pa.Table, pa.Table]:
    """The index and the failures of the whole source, in its order."""
    entries, failures = _split(source, splitter)
    size = cfg.images_per_part
    groups = [entries[i : i + size] for i in range(0, len(entries), size)]
    items = [{"part": i, "entries": pickle.dumps(g)} for i, g in enumerate(groups)]
    found: dict[int, pa.Table] = {}
    with Bar("reading photos", len(entries), unit="photos") as bar:
        for row in _mapped(ray, items, PartBuilder(source=source, cfg=cfg, out=store.url)):
            found[row["part"]] = pq.read_table(io.BytesIO(row["index"]))
            bar.step(row["images"])
    names = [f"build/failures-{i:05d}.parquet" for i in range(len(groups))]
    tables = [failure_table(failures), *(store.read_table(n) for n in names)]
    return _concat([found[i] for i in sorted(found)], INDEX), _concat(tables, FAILURES)


def _split(source: Source, splitter: Splitter) -> tuple[list[Entry], list[Failure]]:
    entries: list[Entry] = []
    failures = list(source.failures)
    for item in source.items:
        split = item.split or splitter(item.file_name)
        if split is None:
            failures.append(Failure(item.file_name, "split", NOT_NAMED))
        else:
            entries.append((item, split))
    return entries, failures


def _concat(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *(t.cast(schema) for t in tables)]).combine_chunks()


# ---- pass 2 -------------------------------------------------------------------------------------------------------

def _write_blocks(ray: Any, cfg: DataConfig, store: Store, files: list[BlockFile]) -> None:
    items = [{"file": pickle.dumps(f)} for f in files]
    with Bar("writing class blocks", sum(len(b) for f in files for b in f.blocks), unit="annotations") as bar:
        for row in _mapped(ray, items, BlockBuilder(store.url)):
            bar.step(row["rows"])


def _mapped(ray: Any, items: list[dict[str, Any]], build: Any) -> Iterator[dict[str, Any]]:
    """Run `build` over `items` in Ray's workers, one task each; results as they come."""
    if not items:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the screen is for our own progress
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset = dataset.map(_call, fn_kwargs={"build": build}, num_cpus=1)
    for row in dataset.iter_rows():
        if row["error"]:
            raise FssError(row["error"])
        yield pickle.loads(row["result"])


def _call(row: dict[str, Any], build: Any) -> dict[str, Any]:
    """A mistake the person can mend travels as a line: Ray would wrap it in its own traceback and lose the cause."""
    try:
        return {"result": pickle.dumps(build(row)), "error": ""}
    except FssError as error:
        return {"result": b"", "error": str(error)}


# ---- the result ---------------------------------------------------------------------------------------------------

def _manifest(
    cfg: DataConfig, source_hash: str, rows: list[dict[str, Any]], classes: list[ClassInfo], dropped: dict[str, str],
    files: list[BlockFile], failures: int,
) -> Manifest:
    blocks = {c.class_id: sum(len(f.blocks) for f in files if f.class_id == c.class_id) for c in classes}
    classes = [c.model_copy(update={"blocks": blocks[c.class_id]}) for c in classes]
    parts: dict[int, list[str]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row["digest"])
    hashes = {part_name(p): digest_of(d) for p, d in parts.items()} | {f.name: f.digest for f in files}
    facts = (SCHEMA_VERSION, cfg.seed, cfg.folds, cfg.fold_rule, [(c.class_id, c.name, c.fold) for c in classes],
             [r["digest"] for r in rows], [f.digest for f in files])
    return Manifest(
        schema_version=SCHEMA_VERSION, dataset=cfg.name, seed=cfg.seed, folds=cfg.folds, fold_rule=cfg.fold_rule,
        source=cfg.model_dump(), source_hash=source_hash, content_hash=digest_of(*facts),
        images={s: sum(r["split"] == s for r in rows) for s in ("train", "test")},
        annotations={"train": sum(c.train_images for c in classes), "test": sum(c.test_images for c in classes)},
        failures=failures, classes=classes, dropped_classes=dropped, files=hashes,
    )


def _nothing_left(rows: list[dict[str, Any]], dropped: dict[str, str], failures: pa.Table, cfg: DataConfig) -> str:
    if not rows:
        reasons = failures["reason"].to_pylist()
        return "no photo could be used" + (f"; the first reason: {reasons[0]}" if reasons else "")
    name, reason = next(iter(dropped.items()), ("", "the source names no class"))
    return f"no class has enough of the {len(rows)} photos" + (f"; {name}: {reason}" if name else f"; {reason}")
