"""The model of a replica: requests of several people share a batch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fss_models import FssError, registry
from pipelines.bundles.bundle import save_bundle
from pipelines.config.label import ServiceSettings
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.supports import build_support_set
from pipelines.serving.spec import ModelSpec
from tests.serving.helpers import ball, encoded


def test_a_wrong_request_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two requests at the same time one asks for automatic tiles with a point, which tells no size of an object."""
    from pipelines.serving.model import Model

    replica = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=100))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: replica)  # batches ask for it; no replica runs here
    bundle, photo = str(tmp_path / "bundle"), encoded(ball(7)[0])
    save_bundle(bundle, registry.build("sansa", "debug"))
    model = Model(ModelSpec(bundle_url=bundle, supports_url=str(tmp_path / "supports"),
                            serve=ServiceSettings(threads=1)))

    async def ask_both() -> list[Any]:
        requests = []
        for mark, tile in (({"box": [40, 40, 90, 90]}, 0), ({"points": [[60, 60]]}, "auto")):
            supports = build_support_set("ball", [(photo, mark)])
            supports.save(model.spec.supports_url)
            requests.append(MaskRequest(support_ids=(await model.add_support(supports),), tile=tile))
        return await asyncio.gather(*(model.segment([photo], one) for one in requests), return_exceptions=True)

    right, wrong = asyncio.run(ask_both())
    assert isinstance(wrong, FssError)
    assert "auto needs a mask or a box" in str(wrong)
    assert not isinstance(right, BaseException), right
    assert len(right[1]) == 1
