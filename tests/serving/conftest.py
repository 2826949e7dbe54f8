"""One service for all tests of the room: starting it takes longer than all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fss_models import registry
from pipelines.bundles.bundle import save_bundle
from tests.serving.helpers import Running, running_service


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of `prior` at `nano` with a cross-validated figure."""
    url = str(tmp_path_factory.mktemp("bundle") / "champion")
    save_bundle(url, registry.build("prior", "nano"), dataset="balls",
                metrics={"cross_validated": {"miou": 0.41, "interval": [0.38, 0.44]}})
    return url


@pytest.fixture(scope="session")
def service(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A running service that takes requests of up to 2 MB."""
    with running_service(bundle, Path(tmp_path_factory.mktemp("workspace")), "--set",
                         "serve.max_request_bytes=2000000", "--set", "serve.threads=1") as running:
        yield running
