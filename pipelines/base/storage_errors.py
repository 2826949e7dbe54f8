"""Errors of filesystems: which are worth another try, and the one line that a person reads."""

from __future__ import annotations

import pyarrow as pa

from fss_models.errors import FssError
from pipelines.base.filesystems import profile_of, s3_place

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError, FssError,
          NotImplementedError)
_SPACE = (28, 122)  # ENOSPC, EDQUOT
_DAMAGE = ("page integrity", "deserialize thrift", "end of stream", "decompress", "corrupt",
           "could not open parquet")  # in pyarrow's words
_REFUSED = ("accesskey", "signature", "forbidden", "403", "authenticationfailed", "unauthorized", "401")
_UNREACHABLE = ("connect", "endpoint", "timeout", "timed out")
# scheme -> (name of the store, what to set for its credentials)
_STORES = {"gs": ("Google Cloud Storage", "GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default "
                  "login`"),
           **dict.fromkeys(("az", "abfs", "abfss"), (
               "Azure Blob Storage", "AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_CONNECTION_STRING or a role"))}


def is_transient(error: BaseException) -> bool:
    """Whether another try may succeed."""
    if isinstance(error, _FINAL) or (isinstance(error, OSError) and error.errno in _SPACE):
        return False
    text = str(error).lower()
    final = ("credentials", "authenticationfailed", "parameter validation")
    return not (is_damage(error) or any(words in text for words in final))


def is_damage(error: BaseException) -> bool:
    """Whether pyarrow reports damaged content, which another try would not change."""
    text = str(error).lower()
    return isinstance(error, pa.ArrowInvalid) or any(w in text for w in _DAMAGE)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def explain(error: Exception, verb: str, path: str) -> FssError:
    """The `FssError` for an error of a filesystem, with the cause and what to do."""
    text = first_line(error)
    low = f"{type(error).__name__} {text}".lower()
    if "://" in path:
        store, keys = _store_of(path)
        if isinstance(error, PermissionError) or any(w in low for w in _REFUSED):
            return FssError(f"{store} refuses the credentials", where=path, hint=f"check {keys}")
        if "credentials" in low or "connection_string" in low:
            return FssError("there are no credentials", where=path, hint=f"set {keys}")
        if any(w in low for w in _UNREACHABLE) and not isinstance(error, FileNotFoundError):
            variable = "AWS_ENDPOINT_URL, and " if path.startswith("s3://") else ""
            return FssError(f"cannot reach {store}", where=path, hint=f"check {variable}that the server runs")
    if isinstance(error, FileNotFoundError):
        return FssError("does not exist", where=path, hint="check the path or URL")
    if isinstance(error, OSError) and error.errno in _SPACE:
        return FssError("no space left on the device", where=path, hint="free some space and run the command again")
    return FssError(f"cannot {verb}: {text}", where=path)


def _store_of(path: str) -> tuple[str, str]:
    scheme = path.partition("://")[0]
    if scheme != "s3":
        return _STORES.get(scheme, (scheme, "its credentials"))
    endpoint = s3_place(path)["endpoint"] or "the AWS endpoint"
    if profile := profile_of(path):
        return endpoint, f"the AWS profile {profile}"
    return endpoint, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
