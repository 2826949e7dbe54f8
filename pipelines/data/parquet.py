"""Writes and reads the Parquet files of shards: row groups as given, image bytes without compression and statistics.

Pages have checksums, so a flipped bit is an error when the file is read.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS = 8  # photos per row group of images/*; one photo is read with its group, not with the whole part


def parquet_table(data: bytes) -> pa.Table:
    """The table of a small Parquet file. Raises `pa.ArrowInvalid`.

    It is read in this thread alone: pyarrow's others would still hold `data` when the interpreter ends, and abort it.
    """
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)


def parquet_bytes(
    groups: Iterable[pa.Table], schema: pa.Schema, *, metadata: dict[str, str] | None = None
) -> bytes:
    """The bytes of a Parquet file with one row group per table, in order. Empty tables are left out."""
    full = schema.with_metadata(metadata) if metadata else schema
    small = [f.name for f in schema if f.name != "image"]
    sink = pa.BufferOutputStream()
    codecs = dict.fromkeys(_leaves(schema), "ZSTD") | ({"image": "NONE"} if "image" in schema.names else {})
    with pq.ParquetWriter(sink, full, compression=codecs, use_dictionary=False, write_statistics=small,
                          write_page_checksum=True) as writer:
        for table in groups:
            if len(table):
                writer.write_table(table.replace_schema_metadata(full.metadata), row_group_size=len(table))
    return memoryview(sink.getvalue()).tobytes()


def _leaves(schema: pa.Schema) -> list[str]:
    """The paths of all columns as Parquet names them, including those of nested fields."""
    return [path for field in schema for path in _paths(field, field.name)]


def _paths(field: pa.Field, path: str) -> list[str]:
    kind = field.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _paths(kind.value_field, f"{path}.list.element")
    if pa.types.is_struct(kind):
        return [p for i in range(kind.num_fields) for p in _paths(kind.field(i), f"{path}.{kind.field(i).name}")]
    return [path]
