"""The working directory that is sent with a job: a zip of code and small inputs, without data, results and secrets."""

from __future__ import annotations

import fnmatch
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fss_models.errors import FssError

TOP = ("out", "data", "build", "mlruns", "spool")  # left out at the top only: deeper folders of these names may be code
ANYWHERE = (".git", ".venv", "venv", "node_modules", "__pycache__", ".*_cache", ".ipynb_checkpoints", "*.egg-info",
            "*.pyc", "mlflow.db*", "*.log")
SECRETS = ("secrets", "*.env", ".env.*", ".netrc", ".pypirc", ".aws", ".ssh", ".kube", "*.pem", "*.key", "id_rsa*",
           "id_ed25519*", "*identities.json", "*_token", "*_password")
OURS = ("fss_models", "pipelines", "jobs", "infra")  # packages of fss
CHECKOUT = ("fss_models/__init__.py", "pipelines/base/cluster.py", "jobs/cli.py")  # a folder with these has fss's code
NOT_RUN = ("/tests", "/benchmarks")  # no command reads these of a checkout, and they are most of its bytes
EPOCH = (1980, 1, 1, 0, 0, 0)  # date of every entry: the same files make the same archive, which is sent only once


@dataclass(frozen=True)
class Package:
    """A written archive."""

    path: Path
    files: int  # number of files in it
    bytes: int  # size of these files before compression
    left_out: tuple[str, ...]  # names at the top of the folder that are not in it


def pack(folder: str | Path, target: Path, *, exclude: Sequence[str] = (), max_bytes: int) -> Package:
    """Zip `folder` to `target`. `exclude`: shell patterns of names, or of paths below the folder, or
    `/NAME` for what has this name at the top of the folder. A checkout of fss goes without its tests and benchmarks.

    Links that lead out of the folder are left out. Raises `FssError` if there is no such folder, or if its files have
    more than `max_bytes` bytes; the error names the largest.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise FssError("no such folder", where=str(folder), hint="give --working-dir a folder, or '' for none")
    exclude = (*exclude, *(NOT_RUN if _is_checkout(root) else ()))
    chosen = sorted(_files(root, exclude))
    sizes = {name: (root / name).stat().st_size for name in chosen}
    total = sum(sizes.values())
    if total > max_bytes:
        raise FssError(f"the folder has {_mb(total)} to send, the limit is {_mb(max_bytes)}; largest: "
                       f"{_largest(sizes)}", where=str(folder),
                       hint="--exclude some of them, give another --working-dir, or raise --max-mb")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in chosen:
            info = zipfile.ZipInfo(name, date_time=EPOCH)
            info.external_attr = ((root / name).stat().st_mode & 0o777) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, (root / name).read_bytes())
    out = tuple(sorted(p.name for p in root.iterdir() if _excluded(p.name, exclude)))
    return Package(path=target, files=len(chosen), bytes=total, left_out=out)


def hiding(folder: str | Path) -> tuple[str, ...]:
    """Python packages and modules of `folder` that on a cluster would be taken for those of fss.

    A checkout of fss has none: that its code is taken is what it is sent for.
    """
    root = Path(folder)
    if _is_checkout(root):
        return ()
    packages = [name for name in OURS if any((root / name).glob("*.py"))]
    return tuple(packages + [f"{name}.py" for name in OURS if (root / f"{name}.py").is_file()])


def _is_checkout(root: Path) -> bool:
    return all((root / file).is_file() for file in CHECKOUT)


def _files(root: Path, exclude: Sequence[str]) -> Iterator[str]:
    """The paths of the files to send, relative to `root`, with `/`."""
    for place, folders, names in os.walk(root):
        below_root = Path(place).relative_to(root).as_posix()
        base = "" if below_root == "." else below_root
        below = [(n, f"{base}/{n}" if base else n) for n in names]
        folders[:] = sorted(d for d in folders if not _excluded(f"{base}/{d}" if base else d, exclude))
        for name, path in below:
            if not _excluded(path, exclude) and _inside(root, Path(place) / name):
                yield path


def _excluded(path: str, exclude: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    if path in TOP or f"/{path}" in exclude or any(fnmatch.fnmatch(name, p) for p in (*ANYWHERE, *SECRETS)):
        return True
    return any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(path, p.rstrip("/")) for p in exclude)


def _inside(root: Path, path: Path) -> bool:
    """Whether `path`, after following links, is a regular file below `root`."""
    return path.is_file() and path.resolve().is_relative_to(root)


def _largest(sizes: dict[str, int]) -> str:
    tops: Counter[str] = Counter()
    for name, size in sizes.items():
        tops[name.partition("/")[0]] += size
    return ", ".join(f"{name} {_mb(size)}" for name, size in tops.most_common(3))


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
