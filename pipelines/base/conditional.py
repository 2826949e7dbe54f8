"""Writes to a bucket that one of several writers wins: S3's conditional PUT.

`create` succeeds where there is no object (If-None-Match), `replace` where the object is still the one that was read
(If-Match on its ETag). A server that does not check these conditions is refused, not trusted: every writer would win.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from fss_models.errors import FssError
from pipelines.base.storage import Store

T = TypeVar("T")
_NOT_MET = ("PreconditionFailed", "412", "NoSuchKey")  # the last is the answer to If-Match where there is no file
_NOT_KNOWN = ("NotImplemented", "501")


def create(store: Store, relative: str, data: bytes) -> str | None:
    """Write a file that does not exist yet. Returns its ETag, None if there is one already."""
    return _own_tag(store, relative, data, _put(store, relative, data, IfNoneMatch="*"))


def replace(store: Store, relative: str, data: bytes, tag: str) -> str | None:
    """Write a file whose ETag is `tag`. Returns its new ETag, None if it has another one by now or is gone."""
    return _own_tag(store, relative, data, _put(store, relative, data, IfMatch=tag))


def etag(store: Store, relative: str) -> str | None:
    """ETag of a file, None if there is none. Content that is read afterwards is of this version or a later one."""
    about = _unless_missing(lambda: store._try("look at", relative, lambda: store.fs.info(store.path(relative))))
    return str(about["ETag"]) if about else None


def check_conditional_writes(store: Store, relative: str) -> None:
    """Raise `FssError` if the server does not check conditions, shown by a file beside `relative` for a moment."""
    probe = f"{relative}.{uuid.uuid4().hex}"
    try:
        if not create(store, probe, b"1") or _put(store, probe, b"2", IfNoneMatch="*") or _put(
                store, probe, b"2", IfMatch='"0"'):
            raise _refusal(store)
    finally:
        store.delete(probe)


def _refusal(store: Store) -> FssError:
    return FssError("this object store has no conditional writes (If-None-Match and If-Match of PUT), which keep two "
                    "owners apart", where=store.url,
                    hint="use AWS S3, a recent MinIO or SeaweedFS, or a local folder")


def _own_tag(store: Store, relative: str, data: bytes, tag: str | None) -> str | None:
    """The ETag; also where a repeated request found the file of an earlier one, whose answer was lost."""
    if tag is None and (found := etag(store, relative)):
        return found if _unless_missing(lambda: store.read_bytes(relative)) == data else None
    return tag


def _unless_missing(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except FssError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _put(store: Store, relative: str, data: bytes, **condition: str) -> str | None:
    if not store.is_s3:
        raise _refusal(store)
    bucket, key, _ = store.fs.split_path(store.path(relative))

    def put() -> str | None:
        try:
            return str(store.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)["ETag"])
        except OSError as error:
            answer: Any = getattr(error.__cause__, "response", {})
            code = str(answer.get("Error", {}).get("Code"))
            if code in _NOT_KNOWN:
                raise _refusal(store) from error
            if code in _NOT_MET:
                return None
            raise

    return store._try("write", relative, put)
