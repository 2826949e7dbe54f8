"""Repositories of the hub, `hf://owner/repository[@revision][/path]`: their files, read and written with its client.

The token is that of HF_TOKEN and of nothing else; it is in no message. HF_ENDPOINT names another hub. Files that were
read are kept below FSS_CACHE.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fss_models.errors import FssError
from pipelines.base.cache import cache_dir

SCHEME = "hf://"
# What a repository of a bundle may hold: what fss reads, and what people read. No format that can run code.
SUFFIXES = (".safetensors", ".json", ".md", ".txt", ".png", ".jpg", ".jpeg")
AGAIN = "try again, or download the files by hand and give their path"
NAMES = (".gitattributes", ".gitignore", "LICENSE", "NOTICE")


@dataclass(frozen=True, kw_only=True)
class HubPlace:
    """A repository, or a file or folder in it. An empty revision is the newest; a slash in one is written %2F."""

    repository: str
    revision: str = ""
    path: str = ""

    @property
    def url(self) -> str:
        """The place as people write it."""
        at = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        return f"{SCHEME}{self.repository}{at}" + (f"/{self.path}" if self.path else "")


def on_hub(url: str) -> bool:
    """Whether a URL is one of the hub."""
    return url.startswith(SCHEME)


def hub_place(url: str) -> HubPlace:
    """The place that a URL names. Raises `FssError` for one that is not `hf://owner/repository[@revision][/path]`."""
    owner, name, path = [*url.removeprefix(SCHEME).split("/", 2), "", ""][:3]
    name, _, revision = name.partition("@")
    if not on_hub(url) or not owner or not name:
        raise FssError("this names no repository of the hub", where=url, hint="write hf://owner/repository[@revision]")
    return HubPlace(repository=f"{owner}/{name}", revision=unquote(revision), path=path.strip("/"))


def hub_file(place: HubPlace) -> Path:
    """The local copy of a file, fetched if the newest is not there. Raises `FssError` as `explained` does."""
    from huggingface_hub import hf_hub_download

    with explained(place):
        return Path(hf_hub_download(place.repository, place.path, revision=place.revision or None, token=_token(),
                                    cache_dir=_cache(), endpoint=_endpoint()))


def is_kept(place: HubPlace) -> bool:
    """Whether a copy of a file is on this machine. Nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(place.repository, place.path, revision=place.revision or None,
                                             cache_dir=_cache()), str)


def list_files(place: HubPlace) -> dict[str, str]:
    """The files below a place, their paths relative to it -> the sha256 of large ones, git's hash of the others.

    Raises `FssError` as `explained` does.
    """
    from huggingface_hub.hf_api import RepoFile

    with explained(place):
        found = [one for one in _api().list_repo_tree(place.repository, place.path or None, recursive=True,
                                                      revision=place.revision or None) if isinstance(one, RepoFile)]
    first = len(place.path) + 1 if place.path else 0
    return {one.path[first:]: one.lfs.sha256 if one.lfs else one.blob_id for one in found}


def check_files(place: HubPlace) -> None:
    """Raises `FssError` naming the first file below a place that is neither safetensors nor text nor a picture."""
    for name in sorted(list_files(place)):
        if not name.lower().endswith(SUFFIXES) and name.rpartition("/")[2] not in NAMES:
            raise FssError(f"this repository holds {name}, and fss takes only safetensors, JSON, texts and pictures "
                           "from the hub", where=place.url, hint="ask its owner to remove the file, or for the bundle "
                           "in a folder of its own")


def push_files(place: HubPlace, files: Mapping[str, bytes], *, gone: Collection[str] = (), private: bool = True,
               message: str) -> tuple[str, bool]:
    """Write `files` below a place, and remove those in `gone`, in one commit; the repository is made if there is none.

    What is there already is not sent, and where nothing changes there is no commit. `private` is for a new repository.

    Returns the newest commit, and whether it was made now. Raises `FssError` without HF_TOKEN and as `explained` does.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if not _token():
        raise FssError("writing to the hub needs a token", where=place.url,
                       hint="set HF_TOKEN to a token with the permission to write")
    api, revision = _api(), place.revision or None
    with explained(place):
        api.create_repo(place.repository, private=private, exist_ok=True)
        known = list_files(HubPlace(repository=place.repository, revision=place.revision))
        paths = {name: f"{place.path}/{name}" if place.path else name for name in (*files, *gone)}
        changes: list[Any] = [CommitOperationAdd(path_in_repo=paths[name], path_or_fileobj=data)
                              for name, data in files.items() if known.get(paths[name]) not in _hashes(data)]
        changes += [CommitOperationDelete(path_in_repo=paths[name]) for name in gone if paths[name] in known]
        if not changes:
            return str(api.repo_info(place.repository, revision=revision).sha), False
        return str(api.create_commit(place.repository, changes, revision=revision, commit_message=message).oid), True


def _hashes(data: bytes) -> tuple[str, str]:
    """What the hub knows a content by: its sha256 in large file storage, else git's hash."""
    return hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def explained(place: HubPlace) -> Iterator[None]:
    """Raise errors of the hub's client as `FssError`: no such repository, revision or file, no or a wrong token."""
    from huggingface_hub import errors  # HTTPError there is that of the client's HTTP library

    try:
        yield
    except errors.GatedRepoError as error:
        raise FssError("these files are given only to people who accepted their licence", where=place.url,
                       hint=f"accept it at huggingface.co/{place.repository} and set HF_TOKEN") from error
    except errors.LocalEntryNotFoundError as error:
        raise FssError("the hub cannot be reached, and this file is not on this machine", where=place.url,
                       hint=AGAIN) from error
    except errors.RepositoryNotFoundError as error:
        may = "HF_TOKEN may not see it" if _token() else "it is private and HF_TOKEN is not set"
        raise FssError(f"the hub has no such repository, or {may}", where=place.url,
                       hint="check hf://owner/repository") from error
    except errors.RevisionNotFoundError as error:
        raise FssError(f"this repository has no revision {place.revision or 'main'!r}", where=place.url,
                       hint="a revision is a branch, a tag or a commit") from error
    except errors.EntryNotFoundError as error:
        raise FssError("there is no such file in this repository", where=place.url,
                       hint="check hf://owner/repository/file") from error
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:  # type: ignore[attr-defined]
        if getattr(getattr(error, "response", None), "status_code", 0) in (401, 403):
            raise FssError("the hub does not allow this with this HF_TOKEN", where=place.url,
                           hint="use a token with the permission to read, or to write") from error
        raise FssError(f"the hub's client failed: {_line(error)}", where=place.url, hint=AGAIN) from error


def _line(error: Exception) -> str:
    """The first line of an error, without the token should it be in there."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.replace(os.environ.get("HF_TOKEN") or "\n", "...")


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint(), token=_token())


def _token() -> str | bool:
    """HF_TOKEN; False keeps the client from looking for a token that was stored on this machine."""
    return os.environ.get("HF_TOKEN") or False


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _cache() -> Path:
    return cache_dir("weights", "hub")
