"""Photos of a source that are not below its root, but at URLs of buckets."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from fss_models.errors import FssError
from pipelines.base.storage import Store
from tests.data import exports
from tests.data.exports import HEIGHT, WIDTH
from tests.data.test_own_data import _item, _open, _table


def test_table_names_photos_in_buckets(tmp_path: Path, s3_server: object) -> None:
    """A URL of the web is not read: a dataset from elsewhere must not make this machine ask for anything."""
    Store("s3://fss/table-photos").write_bytes("a.jpg", exports.photo(0))
    kind, value = exports.MASK_TYPES["rle"]
    row = {"class": "bottle", "mask": value(exports.objects(0)[0])}
    names = ["s3://fss/table-photos/a.jpg", "s3://fss/table-photos/gone.jpg", "https://host/b.jpg"]
    _table(tmp_path, [row | {"file_name": n} for n in names],
           **{"file_name": pa.string(), "class": pa.string(), "mask": kind})
    source = _open("table", tmp_path)
    assert [i.path for i in source.items] == names[:2]
    item = _item(source, "a")
    assert source.fetch(item).data == exports.photo(0)
    assert len(source.rasterise(item, source.fetch(item), HEIGHT, WIDTH).instances) == 1
    with pytest.raises(FssError, match="does not exist"):
        source.fetch(source.items[1])
    assert [f.file_name for f in source.failures] == [names[2]]
