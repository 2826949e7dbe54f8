"""`fss doctor`: it reports what is there, how to fix what is missing, and its exit status tells whether fss can run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fss_models import registry
from infra.local.s3 import S3Server
from jobs.cli import make_app
from jobs.doctor import DoctorCheck, run_checks
from pipelines.base.limits import ContainerLimits
from pipelines.bundles.bundle import save_bundle
from tests.fss_models.shipped_case import ship_random
from tests.integrations.studio_stand_in import TOKEN, StandIn, running


def by_name(**where: str) -> dict[str, DoctorCheck]:
    return {c.name: c for c in run_checks(**where)}


def doctor(*args: str) -> tuple[int, str]:
    answer = CliRunner().invoke(make_app(), ["doctor", *args])
    return answer.exit_code, answer.output


@pytest.fixture(autouse=True)
def _no_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


def test_this_machine_is_ready(tmp_path: Path) -> None:
    status, text = doctor("--out", str(tmp_path / "not" / "yet"))
    assert status == 0, text
    assert "this machine is ready" in text
    assert not (tmp_path / "not").exists()  # it changes nothing


def test_label_studio_is_asked_where_its_address_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABEL_STUDIO_URL", raising=False)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    assert by_name()["label studio"].state == "optional"
    with running(StandIn()) as studio:
        monkeypatch.setenv("LABEL_STUDIO_URL", studio.url)
        assert by_name()["label studio"].state == "ok"
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", "another-token")
        check = by_name()["label studio"]
    assert (check.state, check.found) == ("missing", "Label Studio refuses the token")


def test_json(tmp_path: Path) -> None:
    status, text = doctor("--json", "--out", str(tmp_path))
    found = json.loads(text)
    assert (status, found["ready"]) == (0, True)
    assert {"python", "torch", "ray", "nano trunk weights", "memory", "s3"} <= {c["name"] for c in found["checks"]}


def test_weights_with_a_wrong_sha256_count_as_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"other")
    monkeypatch.setattr("fss_models.backbones.efficientnet.weights_path", lambda: tmp_path / "weights.pth")
    check = by_name()["nano trunk weights"]
    assert check.state == "missing"
    assert "reinstall" in check.hint
    status, text = doctor()
    assert status == 1
    assert "1 required things are missing" in text


def test_shipped_weights_and_bundles_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FSS_SHIPPED", str(tmp_path))
    assert by_name()["shipped weights"].state == "optional"
    ship_random(tmp_path)
    save_bundle(str(tmp_path / "champion"), registry.build("sam2_frozen", "nano"))
    found = by_name()
    assert "trained on photos (2 photos, research use)" in found["shipped weights"].found
    assert found["shipped bundle"].found.startswith("champion: sam2_frozen/nano, bundle ")
    assert doctor()[0] == 0
    (tmp_path / "nano.safetensors").write_bytes(b"torn")
    assert by_name()["shipped weights"].state == "missing"
    status, text = doctor()
    assert status == 1
    assert "reinstall the package" in text


def test_s3_is_reached_and_secrets_are_not_shown(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    status, text = doctor()
    assert status == 0
    assert f"{s3_server.endpoint} answers; buckets: " in text
    assert s3_server.secret not in text
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    status, text = doctor()
    assert status == 1
    assert "refuses the credentials" in text
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "cannot reach http://127.0.0.1:9" in doctor()[1]


def test_a_small_container_on_a_large_machine_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch `doctor` calling a container of 1 GB ready because its machine has more."""
    small = ContainerLimits(memory=1_000_000_000, used=400_000_000, cpus=0.5)
    monkeypatch.setattr("jobs.doctor.read_limits", lambda: small)
    found = by_name()
    assert (found["memory"].state, found["memory"].found) == ("missing", "1.0 GB in this container, 0.6 GB free")
    assert found["cores"].found.endswith("; this container gets the time of 0.5")
