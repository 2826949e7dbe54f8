"""One of three machines is lost during a job and replaced: the labels equal those of an undisturbed job. Slow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local import topology
from infra.local.topology import LocalCluster
from pipelines.base.storage import Store, join
from tests.infra.nodes import fss, running_nodes, until
from tests.labelling.commands import PARTS, QuietJob, below

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with running_nodes(tmp_path_factory.mktemp("nodes")) as found:
        yield found


@pytest.mark.parametrize(("engine", "process"), [("actors", "MapWorker"), ("serve", "ServeReplica")])
def test_a_machine_is_lost(engine: str, process: str, local: LocalCluster, quiet_job: QuietJob, tmp_path: Path) -> None:
    """Would catch state on a single machine, and a loss of more than the chunks that were being labelled."""
    place = f"{local.bucket}/{engine}"
    out = Store(join(place, "out"))
    words = quiet_job.copied_to(place).words(out.url, "--engine", engine, "--set", "serve.replicas=3")
    fss("submit", "--id", engine, "--no-follow", "--working-dir", "", *words, cwd=tmp_path)
    until(lambda: len(out.list("parts")) > 4, "a few parts")
    topology.kill_node(local.folder, _with_a_model(local, process))
    assert len(out.list("parts")) < PARTS, "it was ready before the machine was lost; raise PHOTOS"
    topology.add_node(local.folder)
    ended = fss("jobs", "logs", engine, "--follow", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout[-3000:]
    quiet_job.assert_same(out.url)


def _with_a_model(local: LocalCluster, process: str) -> str:
    """A worker node on which the job's model runs."""
    running = topology.read(local.folder)
    assert running is not None
    found = [n for n, server in running.nodes.items() if n != "head" and below(server.pid, process)]
    assert found, "no worker has a part of the job"
    return found[0]
