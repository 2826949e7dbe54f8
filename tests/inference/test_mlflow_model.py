"""A bundle as a model of MLflow's own kind: logged once, loaded by MLflow alone, served by `mlflow models serve`."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from pycocotools import mask as coco

from fss_models import registry
from fss_models.errors import FssError
from fss_models.predictor import load
from infra.local.mlflow_server import QUIET, start_mlflow, wait_for_mlflow
from infra.local.processes import free_port
from pipelines.base.mlflow_sender import write_pyfunc
from pipelines.base.tracking import Tracker
from pipelines.bundles.bundle import save_bundle
from pipelines.inference.mlflow_model import mlflow_model
from tests.serving.helpers import ball, clean_env, encoded

NAME = "fss-balls-pyfunc"
URI = f"models:/{NAME}@champion"


def supports(seed: int = 1000) -> str:
    photo, mask = ball(seed)
    row = {"image": _text(encoded(photo, "PNG")), "mask": _text(encoded(mask.astype(np.uint8) * 255, "PNG"))}
    return json.dumps({"class_name": "ball", "supports": [row]})


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def log(uri: str, spool: Path, bundle_id: str, places: list[str]) -> None:
    """Log it as a promotion does."""
    tracker = Tracker(uri, "balls", str(spool))
    tracker.run("promote")
    tracker.model(NAME, key="promote", alias="champion", tags={"fss.bundle": bundle_id},
                  **mlflow_model(bundle_id, places))
    assert tracker.close(120) == ""
    assert tracker.notes() == []


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    url = str(tmp_path_factory.mktemp("bundle") / "b")
    return url, save_bundle(url, registry.build("prior", "debug")).bundle_id


def test_mlflow_loads_it_and_predicts(bundle: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`promote` and a store are in tests/integration/test_chain_s3.py."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from pandas import DataFrame

    folder = tmp_path / "model"
    write_pyfunc(folder, mlflow_model(bundle[1], [str(tmp_path / "gone"), bundle[0]]))
    loaded = mlflow.pyfunc.load_model(str(folder))
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 20_000, "the weights are not stored again"
    assert not [p for p in files if p.suffix in (".pkl", ".safetensors")]
    photos = [encoded(ball(seed)[0], "PNG") for seed in (1, 2)]
    table = DataFrame({"photo": [*photos, b"no photo"], "supports": [supports(), None, None]})
    found = loaded.predict(table)
    assert list(found["error"]) == ["", "", found["error"][2]]
    assert found["error"][2]
    assert found["labels"][2] == []
    model = load(bundle[0])
    photo, mask = ball(1000)
    memory = model.memorise([{"image": photo, "mask": mask}])
    for seed, labels in zip((1, 2), found["labels"], strict=False):
        (one,) = labels
        own = model.predict(memory, ball(seed)[0])
        assert np.array_equal(coco.decode({"size": one["size"], "counts": one["counts"]}).astype(bool), own.mask)
        assert one["score"] == pytest.approx(own.score)
        assert (one["class_name"], one["status"], one["presence"]) == ("ball", "uncalibrated", None)
    low = loaded.predict(table.iloc[:1], params={"threshold": 0.01})["labels"][0][0]
    assert low["area"] > found["labels"][0][0]["area"]
    with pytest.raises(Exception, match="the first row has no supports"):
        loaded.predict(DataFrame({"photo": photos}))
    with pytest.raises(Exception, match=r"row 0, supports.*class_name is missing"):
        loaded.predict(DataFrame({"photo": photos[:1], "supports": ['{"supports": []}']}))


def test_another_bundle_in_its_place_is_refused(bundle: tuple[str, str], tmp_path: Path) -> None:
    from pipelines.inference.mlflow_model import _load_pyfunc

    place = tmp_path / "bundle.json"
    place.write_text(json.dumps(mlflow_model("0" * 16, [bundle[0], str(tmp_path / "none")])["data"]))
    with pytest.raises(FssError, match=rf"bundle 0+ is not where it was: {bundle[0]} has bundle {bundle[1]}; .*none"):
        _load_pyfunc(str(place))


@pytest.mark.slow
def test_mlflow_serves_it(bundle: tuple[str, str], tmp_path: Path) -> None:
    """From a real tracking server, in a process of its own; fails if the logged signature does not decode base64."""
    from mlflow.tracking import MlflowClient

    (tmp_path / "files").mkdir()
    server, uri = start_mlflow(tmp_path, str(tmp_path / "files"), clean_env())
    port, serving = free_port(), None
    try:
        wait_for_mlflow(server, uri, tmp_path, wait_s=120)
        for _ in range(2):  # a promotion that is repeated
            log(uri, tmp_path / "spool", bundle[1], [bundle[0]])
        client = MlflowClient(uri)
        assert len(client.search_model_versions(f"name = '{NAME}'")) == 1
        assert len(client.search_logged_models([client.get_experiment_by_name("balls").experiment_id])) == 1
        command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", URI, "--env-manager",
                   "local", "--host", "127.0.0.1", "--port", str(port)]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow starts uvicorn by its name
        serving = subprocess.Popen(command, env=clean_env(MLFLOW_TRACKING_URI=uri, PATH=path, **QUIET), cwd=tmp_path,
                                   stdout=(tmp_path / "serving.log").open("w"), stderr=subprocess.STDOUT,
                                   start_new_session=True)
        body = {"dataframe_records": [{"photo": _text(encoded(ball(1)[0], "PNG")), "supports": supports()},
                                      {"photo": _text(encoded(ball(2)[0], "PNG")), "supports": ""}],
                "params": {"threshold": 0.4}}
        _wait(f"http://127.0.0.1:{port}/ping", serving, tmp_path / "serving.log")
        answer = httpx.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        rows = answer.json()["predictions"]
        assert [r["error"] for r in rows] == ["", ""]
        assert all(r["labels"][0]["area"] > 0 for r in rows)
        assert [tuple(r["labels"][0]["size"]) for r in rows] == [ball(s)[0].shape[:2] for s in (1, 2)]
    finally:
        if serving:
            os.killpg(serving.pid, signal.SIGTERM)
            serving.wait(30)
        server.stop()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 150
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])
