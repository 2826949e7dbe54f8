"""People's decisions about labels: a file of JSON lines beside the parts, which only grows. Parts stay as they are.

    {"image_id": 12, "image": "a/b.jpg", "class_name": "gear", "decision": "reject", "time": "2026-05-04T10:20:30"}

accept   the label is right; a correction before it stays in force
reject   the class is not in the photo: the label becomes empty
correct  the label becomes the person's mask, "mask": {"size": [height, width], "counts": COCO's run lengths}
undo     removes the decision

The last line about a photo and class counts. All outputs that are written from the parts contain the decisions.

In a job with instances, a correction cuts each instance to its mask, and what it adds becomes one more instance without
a score. `instance` (numbers of the part's row, from 1) makes a decision one about that instance alone: `reject` removes
it, `correct` replaces it, `undo` restores it. `instance_decisions` turns it into a correction of the label that holds
all its "instances": [{"number": 2, "counts": ..., "score": 0.9}, ...], and only that is stored.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.data import rle

DECISIONS = "decisions.jsonl"
Verdict = Literal["accept", "reject", "correct", "undo"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
Key = tuple[int, str]  # image_id, class
Row = dict[str, Any]  # a row of a part


class DecidedInstance(BaseModel):
    """One instance of a corrected label; `number` is that of the part's row (from 1), None if a person added it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    number: int | None = None
    counts: str
    score: float | None = None


class Decision(BaseModel):
    """One line of the file. `mask` is not checked against the photo here: use `marks.check_mark` before."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    image_id: int
    image: str
    class_name: str
    decision: Verdict
    mask: dict[str, Any] | None = None
    time: str = ""
    instance: int | None = None
    instances: tuple[DecidedInstance, ...] | None = None

    @property
    def key(self) -> Key:
        """The photo's id and the class that the decision is about."""
        return self.image_id, self.class_name


Decisions = Mapping[Key, Decision]


def add_decisions(out: Store, decisions: Iterable[Decision]) -> None:
    """Append all decisions, or none. A local file may have several writers at a time, a file in a bucket only one."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [d if d.time else d.model_copy(update={"time": now}) for d in decisions]
    data = b"".join(json.dumps(r.model_dump(exclude_none=True)).encode() + b"\n" for r in rows)
    if not out.is_local:  # an object cannot grow, so it is replaced
        out.write_bytes(DECISIONS, (out.read_bytes(DECISIONS) if out.exists(DECISIONS) else b"") + data)
        return
    try:
        _append(Path(out.path(DECISIONS)), data)
    except OSError as error:
        raise FssError(f"the file cannot be written: {error.strerror}", where=out.path(DECISIONS)) from error


def _append(path: Path, data: bytes) -> None:
    """Append under a lock. Removes an unfinished line of a crash, and, if the disk is full, all that was appended."""
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        whole = file.readall()
        end = whole.rfind(b"\n") + 1
        file.truncate(end)
        try:
            while data:
                data = data[file.write(data):]  # a nearly full disk takes a part; the next write raises
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def read_decisions(out: Store, name: str = DECISIONS) -> dict[Key, Decision]:
    """The decisions in force, in the order in which labels first appear. Raises `FssError` for an invalid line."""
    return {key: one for key, one in last_decisions(out, name).items() if one.decision != "undo"}


def last_decisions(out: Store, name: str = DECISIONS) -> dict[Key, Decision]:
    """The last decision about each label, undo included. An accepted correction stays a correction with its mask."""
    if not out.exists(name):
        return {}
    found: dict[Key, Decision] = {}
    for number, line in enumerate(out.read_bytes(name).split(b"\n")[:-1], 1):
        add_last(found, parse_decision(line, f"{out.path(name)}, line {number}"))
    return found


def add_last(found: dict[Key, Decision], one: Decision) -> None:
    """Add a later decision to the last ones about each label."""
    before = found.get(one.key)
    if one.decision == "accept" and before is not None and before.decision == "correct":
        one = before.model_copy(update={"time": one.time})
    found[one.key] = one


def parse_decision(line: bytes | str, where: str) -> Decision:
    """The decision in one line of the file. Raises `FssError` for an invalid line."""
    try:
        return Decision.model_validate(json.loads(line))
    except (ValueError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        place = ".".join(str(p) for p in first["loc"])
        raise FssError(f"is not a decision: {place} {first['msg']}"[:200], where=where) from error


def decisions_hash(out: Store, name: str = DECISIONS) -> str:
    """16 hex digits: the hash of the file's content, which is empty where there is no file."""
    return hashlib.sha256(out.read_bytes(name) if out.exists(name) else b"").hexdigest()[:16]


def count_decisions(decisions: Decisions) -> dict[str, int]:
    """Verdict -> number of decisions, for those that occur."""
    return dict(sorted(Counter(d.decision for d in decisions.values()).items()))


def apply_decisions(rows: Sequence[Row], decisions: Decisions, *, resolve: bool) -> list[Row]:
    """A photo's rows with the decisions applied. With `resolve` no pixel has two classes.

    An overlap then belongs to the latest correction, else to an accepted mask, else to the mask of the part.
    """
    own = [decisions.get((row["image_id"], row["class_name"])) for row in rows]
    found = [apply_decision(row, one) for row, one in zip(rows, own, strict=True)]
    if resolve and any(own):
        ranked = [(_rank(one, number), row) for number, (row, one) in enumerate(zip(found, own, strict=True))]
        found = [without(row, [r["rle"].encode() for above, r in ranked if above > rank and r["area"]])
                 for rank, row in ranked]
    return found


def _rank(decision: Decision | None, number: int) -> tuple[int, str, int]:
    """The rank of a mask: of two masks that overlap, the higher one gets the pixels. Masks of the model do not."""
    if decision is None:
        return 0, "", 0
    return (1, "", 0) if decision.mask is None else (2, decision.time, number)


def apply_decision(row: Row, decision: Decision | None) -> Row:
    """A row with the decision about it applied."""
    if decision is None or row["error"] is not None:
        return row
    if decision.decision == "reject":
        return {**_masked(row, b""), "presence": 0.0, "quality": 0.0, "status": "empty", **_by_person(row)}
    if decision.mask is not None:
        counts = decision.mask["counts"].encode()
        row = {**_masked(row, counts, added=True), "score": 1.0, **_by_person(row)}
        if decision.instances is not None and row.get("instances") is not None:
            row["instances"] = [{**instance_row(row, i.counts.encode(), i.score), "number": i.number}
                                for i in decision.instances]
    there = 1.0 if row["area"] else 0.0
    return {**row, "presence": there, "quality": 1.0, "status": "accepted" if row["area"] else "empty"}


def _by_person(row: Row) -> Row:
    return {"origin": "person"} if "origin" in row else {}


def _masked(row: Row, counts: bytes, *, added: bool = False) -> Row:
    """The row with another mask; `counts` b"" is the empty mask. Its instances are cut to the mask.

    With `added` the pixels that the old mask lacked and no instance has are one more instance without a score.
    """
    height, width = row["height"], row["width"]
    counts = counts or rle.encode(rle.union([], height, width))
    new = {**row, **_coded(counts, height, width)}
    if row.get("instances") is not None:
        new["instances"] = _cut(row, counts, added=added)
    return with_agreement(new)


def with_agreement(row: Row) -> Row:
    """The row of a job that compares, with the IoU of its mask and that of the annotations."""
    if row.get("existing_rle") is None:
        return row
    size, own, theirs = (row["height"], row["width"]), row["rle"].encode(), row["existing_rle"].encode()
    return {**row, "existing_iou": rle.iou(own, theirs, *size)}


def without(row: Row, others: Sequence[bytes]) -> Row:
    """The row without the pixels of other masks (counts)."""
    if not row["area"] or not others:
        return row
    height, width = row["height"], row["width"]
    left = rle.decode(row["rle"].encode(), height, width) & ~rle.union(others, height, width)
    return _masked(row, rle.encode(left))


def _cut(row: Row, counts: bytes, *, added: bool) -> list[Row]:
    """The row's instances, cut to a mask; those without a pixel are gone."""
    height, width = row["height"], row["width"]
    mask, old = rle.decode(counts, height, width), [one["rle"].encode() for one in row["instances"]]
    found = [{**one, **_coded(rle.encode(rle.decode(i, height, width) & mask), height, width)}
             for one, i in zip(row["instances"], old, strict=True)]
    more = mask & ~rle.union([*old, row["rle"].encode()], height, width)
    if added and more.any():
        found.append(instance_row(row, rle.encode(more), None))
    return [one for one in found if one["area"]]


def instance_row(row: Row, counts: bytes, score: float | None) -> Row:
    """An instance of a part's row, of which the size of the photo is taken."""
    return {**_coded(counts, row["height"], row["width"]), "score": score}


def _coded(counts: bytes, height: int, width: int) -> Row:
    return {"rle": counts.decode(), "bbox": rle.bbox(counts, height, width), "area": rle.area(counts, height, width)}
