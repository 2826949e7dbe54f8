"""Decisions about one instance of a label, which are stored as corrections of the whole label."""

from __future__ import annotations

from fss_models.errors import FssError
from pipelines.data import rle
from pipelines.labelling.decisions import DecidedInstance, Decision, Row, apply_decision, instance_row


def numbered(row: Row) -> Row:
    """A part's row whose instances have a `number`, from 1; it survives decisions."""
    if row.get("instances") is None:
        return row
    return {**row, "instances": [{**one, "number": n} for n, one in enumerate(row["instances"], 1)]}


def follow_instance(row: Row, before: Decision | None, decision: Decision) -> Decision:
    """The decision about the whole label that a decision about one of its instances amounts to.

    `row` is the part's row, `before` the decision about the label so far. Raises `FssError` for an instance that the
    row does not have, and for an `accept`, which is about whole labels.
    """
    height, width, number = row["height"], row["width"], decision.instance or 0
    first = numbered(row)
    listed = first.get("instances") or []
    if not 1 <= number <= len(listed):
        raise FssError(f"the label of {row['class_name']!r} has {len(listed)} instances, none with the number {number}",
                       where=row["file_name"], hint="instances of jobs that have them are numbered from 1")
    if decision.decision == "accept":
        raise FssError("one instance cannot be accepted alone", where=row["file_name"],
                       hint="reject or correct instances, or accept the label")
    now = apply_decision(first, before)
    others = [one for one in now["instances"] if one.get("number") != number]
    gone = [one["rle"].encode() for one in now["instances"] if one.get("number") == number]
    kept = [*others]
    if decision.decision == "undo":
        kept.append(listed[number - 1])
    elif decision.mask is not None:
        kept.append({**instance_row(row, decision.mask["counts"].encode(), None), "number": number})
    kept = sorted((one for one in kept if one["area"]), key=lambda one: one.get("number") or len(listed) + 1)
    mask = rle.decode(now["rle"].encode(), height, width) & ~rle.union(gone, height, width)
    counts = rle.encode(mask | rle.union([one["rle"].encode() for one in kept], height, width)).decode()
    plain = decision.model_copy(update={"instance": None, "mask": None})
    if not kept and not rle.area(counts.encode(), height, width):
        return plain.model_copy(update={"decision": "reject"})
    if kept == listed and counts == row["rle"]:
        return plain.model_copy(update={"decision": "undo"})
    instances = tuple(DecidedInstance(number=one.get("number"), counts=one["rle"], score=one["score"]) for one in kept)
    return plain.model_copy(update={"decision": "correct", "instances": instances,
                                    "mask": {"size": [height, width], "counts": counts}})
