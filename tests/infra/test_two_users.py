"""Two people on one cluster at the same time run the same commands; only prefix and project differ. Slow."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.topology import LocalCluster
from pipelines.base.storage import Store, join
from tests.infra.nodes import fss, running_nodes, submitted

pytestmark = pytest.mark.slow
PEOPLE = ("ann", "bob")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with running_nodes(tmp_path_factory.mktemp("two"), nodes=2) as found:
        yield found


def settings(person: str) -> list[str]:
    """The settings of a person. Only project and seed differ; by the seed a mix-up of results would show."""
    sets = {"methods": "[{name: prior, preset: debug}, {name: sansa, preset: debug}]", "calibrate.sets": "0",
            "project": person, "data.split.seed": str(PEOPLE.index(person))}
    return ["--recipe", "debug", *(word for k, v in sets.items() for word in ("--set", f"{k}={v}"))]


def test_two_people_at_once(local: LocalCluster, tmp_path: Path) -> None:
    """Would catch names that collide: experiments, models, actors, applications, storage, working directories."""
    with ThreadPoolExecutor(2) as pool:
        printed = "".join(pool.map(lambda person: _work(person, local, tmp_path / person), PEOPLE))
    rows = {p: Store(f"{local.bucket}/{p}").read_json("leaderboard.json") for p in PEOPLE}
    hashes = {p: _hashes(local, p) for p in PEOPLE}
    assert not set(hashes["ann"]) & set(hashes["bob"])
    assert rows["ann"] != rows["bob"]
    _tracked_apart(local)
    _no_secret(local, printed, tmp_path)


def _work(person: str, local: LocalCluster, folder: Path) -> str:
    """Run a sweep and promote its winner; returns what the commands printed."""
    folder.mkdir()
    (folder / "notes.txt").write_text(person)
    out, given = f"{local.bucket}/{person}", settings(person)
    chain = [("sweep", "run"), ("promote",)]
    return "".join(submitted(f"{person}-{words[0]}", *words, *given, "--out", out, cwd=folder) for words in chain)


def _hashes(local: LocalCluster, person: str) -> list[str]:
    store = Store(join(f"{local.bucket}/{person}", "runs"))
    found = [store.read_json(name) for name in store.list(suffix="/result.json") if "-fall-" not in name]
    assert len(found) == 4, [f["run"] for f in found]
    assert not any(f["error"] for f in found)
    return [f["list_hash"] for f in found]


def _tracked_apart(local: LocalCluster) -> None:
    """Each person has an experiment and a registered model; no parameter of a run names the other's prefix."""
    found = _mlflow(local, "experiments/search", {"max_results": 50})["experiments"]
    mine = {e["name"]: e for e in found}
    assert set(PEOPLE) <= set(mine)
    for person in PEOPLE:
        runs = _mlflow(local, "runs/search", {"experiment_ids": [mine[person]["experiment_id"]], "max_results": 50})
        params = [p["value"] for r in runs["runs"] for p in r["data"].get("params", [])]
        other = PEOPLE[1 - PEOPLE.index(person)]
        assert runs["runs"]
        assert not any(f"/{other}/" in value for value in params)
    answer = httpx.get(f"{local.mlflow}/api/2.0/mlflow/registered-models/search", timeout=30)
    models = {m["name"]: m for m in answer.json()["registered_models"]}
    assert {"fss-ann", "fss-bob"} <= set(models)
    assert all(m["aliases"][0]["alias"] == "champion" for m in models.values())


def _mlflow(local: LocalCluster, path: str, body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = httpx.post(f"{local.mlflow}/api/2.0/mlflow/{path}", json=body, timeout=30).json()
    return found


def _no_secret(local: LocalCluster, printed: str, folder: Path) -> None:
    """No secret is in the output of commands, in what Ray shows of submissions, or in Ray's logs."""
    hidden = [(Path(local.folder) / "token").read_text(), local.storage["AWS_SECRET_ACCESS_KEY"]]
    refused = fss("submit", "--id", "leak", "--working-dir", "", "--env", f"MY_SECRET_KEY={secrets.token_hex(8)}",
                  "bundles", "list", cwd=folder)
    assert (refused.returncode, "secret" in refused.stderr.lower()) == (2, True), refused.stderr
    header = {"Authorization": f"Bearer {hidden[0]}"}
    jobs = httpx.get(f"{local.dashboard}/api/jobs/", headers=header, timeout=30).text
    assert {r["submission_id"] for r in json.loads(jobs)} == {f"{p}-{c}" for p in PEOPLE for c in ("sweep", "promote")}
    logs = [p for p in Path(local.session).rglob("*") if p.is_file() and p.suffix in (".log", ".out", ".err", "")]
    assert logs
    texts = [printed, jobs, *(p.read_bytes().decode(errors="replace") for p in logs)]
    for secret in hidden:
        assert not any(secret in text for text in texts), [str(p) for p in logs if secret.encode() in p.read_bytes()]
