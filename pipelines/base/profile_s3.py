"""s3fs for URLs that name an AWS profile: `s3://PROFILE@bucket/key`."""

from __future__ import annotations

from typing import Any

from s3fs import S3FileSystem


class ProfileS3(S3FileSystem):  # type: ignore[misc]
    """s3fs, whose paths may have the profile in front of the bucket; no bucket's name has an `@`."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        stripped = super()._strip_protocol(path)
        if isinstance(stripped, list):
            return stripped
        first, slash, rest = stripped.partition("/")
        return first.rpartition("@")[2] + slash + rest
