"""Readers of published list files: their published counts, and files that must not be executed."""

from __future__ import annotations

import collections
import gzip
import json
import os
import pickle
import pickletools
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fss_models.errors import FssError
from pipelines.data.lists.bam import bam_classes, bam_images
from pipelines.data.lists.hsnet import coco_images, fss_classes, pascal_pairs
from pipelines.data.lists.plain_pickle import read_plain
from tests.data.conftest import write

# numbers of images and pairs in the list files that HSNet and BAM publish
PASCAL_PAIRS = {"trn": [2286, 3425, 5883, 2086], "val": [346, 451, 725, 346]}
COCO_VAL = [(26052, 35783), (15305, 17912), (13138, 14563), (12640, 14315)]


def test_pascal_counts(shared: Path) -> None:
    lists = str(shared / "data/lists/pascal5i_hsnet")
    read = {s: [pascal_pairs(lists, s, f)[0] for f in range(4)] for s in PASCAL_PAIRS}
    assert {s: [len(p) for p in pairs] for s, pairs in read.items()} == PASCAL_PAIRS
    for pairs in read.values():
        assert [{c // 5 for _, c in p} for p in pairs] == [{0}, {1}, {2}, {3}]
    total = sum(PASCAL_PAIRS["trn"])
    assert [total - n for n in PASCAL_PAIRS["trn"]] == [11394, 10255, 7797, 11594]  # trained on fold f
    photos = {s: {n for p in pairs for n, _ in p} for s, pairs in read.items()}
    assert len(photos["trn"]) == 10092
    assert not photos["trn"] & photos["val"]


def test_coco_counts(shared: Path) -> None:
    for fold, counts in enumerate(COCO_VAL):
        pools, _ = coco_images(str(shared / "data/lists/coco20i_hsnet"), "val", fold)
        assert (len({n for v in pools.values() for n in v}), sum(map(len, pools.values()))) == counts
        assert {c for c, names in pools.items() if names} == set(range(fold, 80, 4))
    smallest = {c: len(coco_images(str(shared / "data/lists/coco20i_hsnet"), "val", c % 4)[0][c])
                for c in (12, 70, 78, 79)}
    assert smallest == {12: 172, 70: 38, 78: 37, 79: 94}  # parking meter, toaster, hair drier, toothbrush


def test_bam_counts_and_the_same_images_as_hsnet(shared: Path) -> None:
    lists = str(shared / "data/lists/coco20i_bam")
    for fold in (1, 2, 3):
        names, _ = bam_images(lists, "val", fold)
        pools, _ = bam_classes(lists, "val", fold)
        assert (len(set(names)), sum(map(len, pools.values()))) == COCO_VAL[fold]
        hsnet, _ = coco_images(str(shared / "data/lists/coco20i_hsnet"), "val", fold)
        same = {c: {Path(n).stem for n in hsnet[c]} == set(found) for c, found in pools.items()}
        assert set(same) == set(range(fold, 80, 4))
        assert all(same.values())
    with pytest.raises(FssError, match=r"no such list file.*data_list_0.txt|data_list_0.txt.*no such list file"):
        bam_images(lists, "val", 0)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_what_pickle_reads(protocol: int) -> None:
    shared_list = ["a", "ü", "b"]
    value = {0: shared_list, 1: shared_list, "k": [1, -5, 300, 70000, 2**40, -(2**70), 1.5, None, True, False],
             "n": {"t": (1,), "u": (1, 2), "v": (1, 2, 3), "w": (1, 2, 3, 4), "e": ([], {}, ())}, "long": "z" * 700}
    value["polygons"] = [[0.5 * i for i in range(n)] for n in (1, 2, 63, 64, 65, 200)] + [[1.0, 2, 3.0, "G", 71]]
    value |= {"raw": b"x"} if protocol > 2 else {}  # before, Python writes bytes as a call
    value["many"] = [f"val2014/{i}.jpg" for i in range(3000)]
    read = read_plain(pickle.dumps(value, protocol=protocol))
    assert read == value
    assert read[0] is read[1]


class _Evil:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_with_code_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    """Would catch a reader that unpickles a stranger's list file."""
    mark = tmp_path / "ran"
    data = pickle.dumps({0: ["a"], 1: _Evil(str(mark))}, protocol=protocol)
    write(tmp_path, "lists/val/fold0.pkl", data)
    with pytest.raises(FssError, match=r"GLOBAL.*save it as JSON"):
        coco_images(str(tmp_path / "lists"), "val", 0)
    assert not mark.exists()
    pickle.loads(data)
    assert mark.exists()  # the file was armed


@pytest.mark.parametrize("data", [
    b"", b"\x80\x04", b"\x80\x04]", pickle.dumps([1, 2])[:-1], pickle.dumps("x" * 300)[:50],
    pickle.dumps([1.0, 2.0])[:-6], b"\x80\x04u.",
    b"\x80\x04h\x07.", b"\x80\x04K\x01K\x02s.", b"hello", pickle.dumps(collections.OrderedDict(a=1)),
    b"\x80\x02ccopyreg\n_reconstructor\n.",
])  # fmt: skip
def test_broken_pickles_are_one_line(data: bytes) -> None:
    with pytest.raises(FssError, match=r"pickle"):
        read_plain(data, where="list.pkl")


def _peak(call: Callable[[], Any]) -> int:
    """The most bytes that Python held during a call, beyond those before it."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


_CODES = [op.code.encode("latin-1") for op in pickletools.opcodes]
_INSTRUCTION = st.one_of(st.sampled_from(_CODES), st.binary(max_size=9))


@settings(max_examples=1000, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.lists(_INSTRUCTION, max_size=60).map(b"".join)))
@example(data=b"\x80\x02Nr\xff\xff\xff\x0f.")  # LONG_BINPUT: `pickle` reads this, with 4 GB for its memo
@example(data=b"\x80\x04\x95\xff\xff\xff\xff\x0f\0\0\0N.")  # FRAME
@example(data=b"\x80\x04\x8e\xff\xff\xff\xff\x0f\0\0\0N.")  # BINBYTES8
@example(data=b"\x80\x04B\xff\xff\xff\x7fN.")  # BINBYTES
@example(data=b"\x80\x04\x8b\xff\xff\xff\x7fN.")  # LONG4
def test_hostile_bytes_are_a_value_or_one_line_and_no_memory(data: bytes) -> None:
    def read() -> None:
        with suppress(FssError):
            read_plain(data, where="list.pkl")
            return
        with pytest.raises(FssError, match=r"^list.pkl: this [^\n]*$"):
            read_plain(data, where="list.pkl")

    assert _peak(read) < 2_000_000


def test_the_bound_on_memory_can_be_passed() -> None:
    """A memo of a sixteenth of those gigabytes."""
    assert _peak(lambda: pickle.loads(b"\x80\x02Nr\xff\xff\x3f\x00.")) > 50_000_000


def test_tuples_inside_each_other_do_not_overflow_the_stack() -> None:
    """A key is hashed by recursion in C: `pickle` ends the whole process here."""
    with pytest.raises(FssError, match="400000 tuples of tuples"):
        read_plain(b"\x80\x02})" + 400_000 * b"\x85" + b"K\x01s.")
    many = [(f"photo {i}", i % 20) for i in range(20_000)] + [(1.0, 2.0, 3.0, 4.0)] * 6000
    assert read_plain(pickle.dumps(many)) == many


def test_hsnet_files_of_every_form(tmp_path: Path) -> None:
    value = {c: ([f"val2014/COCO_val2014_{c:012d}.jpg"] if c % 4 == 1 else []) for c in range(80)}
    write(tmp_path, "p/val/fold1.pkl", pickle.dumps(value))
    write(tmp_path, "j/val/fold1.json.gz", gzip.compress(json.dumps(value).encode()))
    assert coco_images(str(tmp_path / "p"), "val", 1)[0] == coco_images(str(tmp_path / "j"), "val", 1)[0] == value
    write(tmp_path, "bad/val/fold1.pkl", pickle.dumps({0: "no list"}))
    with pytest.raises(FssError, match="entry 0"):
        coco_images(str(tmp_path / "bad"), "val", 1)
    write(tmp_path, "t/val/fold0.txt", "2007_000033__01\n2007_000061__04\n")
    assert pascal_pairs(str(tmp_path / "t"), "val", 0)[0] == [("2007_000033", 0), ("2007_000061", 3)]
    write(tmp_path, "t/val/fold0.txt", "2007_000033__01\n2007_000061__44\n")
    with pytest.raises(FssError, match="line 2"):
        pascal_pairs(str(tmp_path / "t"), "val", 0)
    write(tmp_path, "test.txt", "b\na\n\n")
    assert fss_classes(str(tmp_path), "test")[0] == ["a", "b"]


def test_bam_files_are_literals(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    write(tmp_path, "val/sub_class_file_list_0.txt", f"__import__('os').mkdir({str(ran)!r})")
    with pytest.raises(FssError, match="not a dict"):
        bam_classes(str(tmp_path), "val", 0)
    assert not ran.exists()
    write(tmp_path, "val/sub_class_file_list_0.txt", "{1: [('/x/JPEGImages/2007_000001.jpg', '/y/2007_000001.png')]}")
    assert bam_classes(str(tmp_path), "val", 0)[0] == {0: ["2007_000001"]}
    write(tmp_path, "val/data_list_0.txt", "/x/2007_000001.jpg /y/2007_000001.png\n/x/one.jpg\n")
    with pytest.raises(FssError, match="line 2 has 1 words"):
        bam_images(str(tmp_path), "val", 0)
