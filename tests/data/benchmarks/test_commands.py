"""`fss data check` and `fss episodes`, as a person meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from fss_models.errors import FssError
from jobs.cli import make_app
from pipelines.data.published import read_list
from tests.fixtures.command import Fss


def _fss(*args: str) -> Result:
    return CliRunner().invoke(make_app(), list(args))


@pytest.fixture
def lists(tmp_path: Path) -> tuple[str, str]:
    """HSNet's COCO list of fold 1, as a person has it: three images a class."""
    pools = {c: [f"val2014/COCO_val2014_{100 * c + i:012d}.jpg" for i in range(3)] if c % 4 == 1 else []
             for c in range(80)}
    (tmp_path / "lists/val").mkdir(parents=True)
    (tmp_path / "lists/val/fold1.json").write_text(json.dumps(pools))
    return str(tmp_path / "lists"), str(tmp_path / "l.parquet")


def test_check_ends_with_status_2_and_says_where_to_get_it(raw: Callable[[str], Path], fss: Fss,
                                                              tmp_path: Path) -> None:
    done = fss("data", "check", "-d", "lung", "--root", str(tmp_path))
    assert done.returncode == 2
    assert "https://www.kaggle.com" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}: incomplete: photos: 0 of 800 files")
    assert done.stdout == ""
    good = _fss("data", "check", "-d", "lung", "--root", str(raw("lung")), "--subset", "--json")
    assert good.exit_code == 0, good.output
    report = json.loads(good.stdout)
    assert report["complete"]
    assert report["photos"] == {"test": 3}
    assert not report["verified"]
    short = _fss("data", "check", "-d", "lung", "--root", str(raw("lung")))
    assert isinstance(short.exception, FssError)
    assert "4 of 800" in str(short.exception)


def test_make_show_and_compare(lists: tuple[str, str], tmp_path: Path) -> None:
    folder, out = lists
    command = ("episodes", "make", "-d", "coco20i", "--family", "hsnet", "-f", "1", "-n", "20", "--lists", folder, "-o")
    made = _fss(*command, out, "--json")
    assert made.exit_code == 0, made.output
    facts = json.loads(made.stdout)
    assert {k: facts[k] for k in ("dataset", "family", "status", "fold", "shots", "seed", "episodes")} == {
        "dataset": "coco20i", "family": "hsnet", "status": "unverified", "fold": 1, "shots": 1, "seed": 0,
        "episodes": 20}
    metadata = {k.decode(): v.decode() for k, v in pq.read_schema(out).metadata.items()}
    assert metadata["sha256"] == facts["sha256"] == read_list(out).sha256
    assert metadata["schema_version"]
    shown = _fss("episodes", "show", out, "--first", "2")
    assert shown.stdout.splitlines()[0].startswith("0: ")
    assert len(shown.stdout.splitlines()) == 2
    assert _fss(*command, str(tmp_path / "same.parquet")).exit_code == 0
    assert _fss(*command, str(tmp_path / "other.parquet"), "--seed", "5").exit_code == 0
    same, other = (_fss("episodes", "compare", out, str(tmp_path / f"{n}.parquet")) for n in ("same", "other"))
    assert (same.exit_code, same.stdout.strip()) == (0, "equal")
    assert other.exit_code == 1
    assert other.stdout.startswith("episode ")


@pytest.mark.parametrize(("args", "message"), [
    (("-d", "coco21i", "--family", "hsnet"), "no benchmark 'coco21i'"),
    (("-d", "coco20i", "--family", "hsnet", "-f", "7"), "no fold 7"),
    (("-d", "coco20i", "--family", "hsnet", "-f", "0"), "no such list file"),
    (("-d", "coco20i", "--family", "drawn"), "give --shards"),
    (("-d", "coco20i", "--family", "hsnet", "-f", "1", "-k", "2", "--split", "train"), "lists have test photos only"),
    (("-d", "lvis92i", "--family", "matcher"), "give --root"),
])
def test_mistakes(args: tuple[str, ...], message: str, lists: tuple[str, str]) -> None:
    done = _fss("episodes", "make", *args, "--lists", lists[0], "-o", lists[1])
    assert isinstance(done.exception, FssError)
    assert message in str(done.exception)
    assert not Path(lists[1]).exists()


def test_a_list_that_is_none_or_was_changed(lists: tuple[str, str], tmp_path: Path) -> None:
    out = lists[1]
    made = _fss("episodes", "make", "-d", "coco20i", "--family", "hsnet", "-f", "1", "-n", "5", "--lists", lists[0],
                "-o", out)
    assert made.exit_code == 0
    table = pq.read_table(out)
    pq.write_table(table.slice(0, 4), out)
    with pytest.raises(FssError, match="does not match its content hash"):
        read_list(out)
    (tmp_path / "x.parquet").write_bytes(b"hello")
    with pytest.raises(FssError, match="not a Parquet file"):
        read_list(str(tmp_path / "x.parquet"))
    pq.write_table(table.replace_schema_metadata({}), out)
    with pytest.raises(FssError, match="not a published episode list"):
        read_list(out)
    with pytest.raises(FssError, match=r"is a \.parquet file"):
        read_list("list.txt")
