"""The fsspec filesystem of a URL: S3 and what speaks its protocol, Google Cloud Storage, Azure, or fsspec's memory.

Credentials are found as the vendors' own tools find them: from variables, profiles, the machine's role or a web
identity. `s3://PROFILE@bucket/prefix` is read with an AWS profile of that name: its keys or role, region and
endpoint, whatever the variables say. So one command can use two stores.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs

from fss_models.errors import FssError

# scheme -> (package, extra of this project that installs it); "": always there
SCHEMES = {"s3": ("", ""), "memory": ("", ""), "gs": ("gcsfs", "gcs"), "az": ("adlfs", "azure"),
           "abfs": ("adlfs", "azure"), "abfss": ("adlfs", "azure")}
# A connection that hangs is worse than one that fails: botocore waits a minute by default.
_S3_CONFIG = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 1},
              "ignore_configured_endpoint_urls": True}
_KEYS = {"key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY", "token": "AWS_SESSION_TOKEN"}
_FOUND_BY = ("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ENDPOINT_URL_S3",
             "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID")


def scheme_of(url: str) -> str:
    """The scheme of a URL, "" for a local path or file:// URL. Raises `FssError` for one that is not known."""
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme in ("", "file"):
        return ""
    if scheme not in SCHEMES:
        hint = ("the hub holds bundles and weights only; `fss bundles fetch` copies one" if scheme == "hf" else
                "use a local path, s3://bucket/prefix, gs:// or az://")
        raise FssError(f"unsupported URL {url!r}", hint=hint)
    return scheme


def profile_of(url: str) -> str:
    """The AWS profile that an `s3://PROFILE@bucket` URL names, "" if it names none."""
    first = url.removeprefix("s3://").partition("/")[0]
    return first.rpartition("@")[0] if url.startswith("s3://") else ""


def open_filesystem(scheme: str, url: str) -> Any:
    """The filesystem of a URL. Listings are never cached: they would hide what another process has just written.

    Raises `FssError` for a package that is not installed, and for an AWS profile that does not exist.
    """
    if not scheme:
        return fsspec.filesystem("file")
    package, extra = SCHEMES[scheme]
    if package and find_spec(package) is None:
        raise FssError(f"{scheme}:// needs the package {package}", where=url, hint=f"pip install 'fss[{extra}]'")
    if scheme == "s3":
        return _s3(url)
    options = {"anon": False} if package == "adlfs" else {}
    return fsspec.filesystem(scheme, use_listings_cache=False, **options)


def _s3(url: str) -> Any:
    """fsspec reuses an instance for equal arguments: what variables say is an argument, so that a change counts."""
    from pipelines.base.profile_s3 import ProfileS3

    profile, place = profile_of(url), s3_place(url)
    keys = {} if profile else {k: os.environ.get(v) for k, v in _KEYS.items()}
    if profile := profile or ("" if keys.get("key") else os.environ.get("AWS_PROFILE", "")):
        keys["profile"] = profile
    return ProfileS3(use_listings_cache=False, config_kwargs=_S3_CONFIG, endpoint_url=place["endpoint"] or None,
                     client_kwargs={"region_name": place["region"]}, **keys)


def s3_place(url: str) -> dict[str, str]:
    """`endpoint` ("": AWS's own) and `region` of an s3:// URL. Raises `FssError` for an unknown profile."""
    return _s3_place(profile_of(url), tuple(os.environ.get(name, "") for name in _FOUND_BY))


@lru_cache(maxsize=32)
def _s3_place(profile: str, variables: tuple[str, ...]) -> dict[str, str]:
    import botocore.exceptions
    import botocore.session

    known: Mapping[str, str] = {} if profile else dict(zip(_FOUND_BY, variables, strict=True))
    session = botocore.session.Session(profile=profile or None)
    try:
        section = session.get_scoped_config()
    except botocore.exceptions.ProfileNotFound as error:
        raise FssError(f"there is no AWS profile {profile or known['AWS_PROFILE']!r}",
                       hint="name one of ~/.aws/config (AWS_CONFIG_FILE)") from error
    services = session.full_config.get("services", {}).get(section.get("services", ""), {})
    endpoint = (known.get("AWS_ENDPOINT_URL_S3") or known.get("AWS_ENDPOINT_URL")
                or services.get("s3", {}).get("endpoint_url") or section.get("endpoint_url", ""))
    region = known.get("AWS_REGION") or known.get("AWS_DEFAULT_REGION") or section.get("region") or "us-east-1"
    return {"endpoint": endpoint, "region": region}


def pyarrow_filesystem(scheme: str, url: str, fs: Any, attempts: int) -> pa.fs.FileSystem:
    """The filesystem for pyarrow and Ray: Arrow's own for local files and S3, else fsspec's."""
    if not scheme:
        return pa.fs.LocalFileSystem()
    if scheme != "s3" or profile_of(url):
        return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(fs))
    place = s3_place(url)
    kind, _, host = place["endpoint"].rpartition("://")
    options = {"endpoint_override": host, "scheme": kind or "https"} if host else {}
    return RetryingS3(attempts, {"region": place["region"], **options})


class RetryingS3(pa.fs.S3FileSystem):  # type: ignore[misc]
    """pyarrow's S3 filesystem with `attempts` tries; unlike pyarrow's own, it keeps that number when it is pickled."""

    def __init__(self, attempts: int, options: dict[str, str]) -> None:
        self._arguments = (attempts, options)
        super().__init__(retry_strategy=pa.fs.AwsStandardS3RetryStrategy(max_attempts=attempts), **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RetryingS3, self._arguments)
