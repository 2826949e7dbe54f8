"""A model's execution: precisions, copies, and a compiled encoder gives what the plain one gives."""

from __future__ import annotations

import os

import pytest
import torch

from fss_models import registry
from fss_models.clip import Images
from fss_models.errors import FssError
from fss_models.execution import Execution, chosen_precision
from fss_models.segmenter import Segmenter

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return registry.build("prior", "nano").eval()


def photos(model: Segmenter, count: int = 2) -> Images:
    pixels = torch.randn(count, 3, model.side, model.side, generator=torch.Generator().manual_seed(0))
    return Images(pixels=pixels, sizes=torch.full((count, 2), model.side))


def test_auto_is_what_the_device_computes_in() -> None:
    assert chosen_precision("float32", "cpu") == "float32"
    assert chosen_precision("bfloat16", "cpu") == "bfloat16"
    able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert chosen_precision("auto", "cpu") == ("bfloat16" if able else "float32")
    with pytest.raises(FssError, match="float16 needs a GPU"):
        chosen_precision("float16", "cpu")


@torch.inference_mode()
def test_bfloat16_is_close_and_float32_is_the_plain_model(model: Segmenter) -> None:
    images = photos(model)
    plain = model.encode(images).maps
    exact, close = (Execution(model, p).encode(Execution(model).upload(images)).maps for p in ("float32", "bfloat16"))
    for name, wanted in plain.items():
        assert torch.equal(exact[name], wanted)
        found = torch.nn.functional.cosine_similarity(close[name].float().flatten(1), wanted.flatten(1))
        assert not torch.equal(close[name].float(), wanted)
        assert found.min() > 0.99


def test_a_download_gives_the_tensors_back(model: Segmenter) -> None:
    tensors = [torch.randn(3, 4, 5), torch.rand(3), torch.randn(3, 2).to(torch.bfloat16)]
    for wanted, found in zip(tensors, Execution(model).download(tensors).wait(), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted.float())


@pytest.mark.slow
def test_the_encoder_is_one_graph(model: Segmenter) -> None:
    """A break in the graph would be a place where the host waits for the device. Nothing is compiled to see it."""
    from torch._dynamo import explain

    for method in ("prior", "sansa"):
        built = registry.build(method, "nano" if method == "prior" else "debug").eval()
        with torch.inference_mode():
            found = explain(built.encode)(photos(built, 1))
        assert found.graph_break_count == 0, found.break_reasons
        assert found.graph_count == 1


@GPU
@pytest.mark.gpu
@torch.inference_mode()
def test_nothing_waits_for_the_gpu(model: Segmenter) -> None:
    """Torch's sync debug mode raises wherever the host would wait."""
    execution = Execution(model.to("cuda"), "auto")
    images = photos(model, 8)
    execution.encode(execution.upload(images))
    torch.cuda.set_sync_debug_mode("error")
    try:
        features = execution.encode(execution.upload(images))
        download = execution.download([next(iter(features.maps.values())), torch.zeros(8, device="cuda")])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert download.wait()[0].isfinite().all()
    model.to("cpu")


@pytest.mark.slow
@pytest.mark.skipif(os.system("command -v c++ >/dev/null") != 0, reason="needs a C++ compiler")
@torch.inference_mode()
def test_a_compiled_encoder_gives_the_same(model: Segmenter) -> None:
    images = photos(model)
    compiled = Execution(model, compiled=True)
    found = compiled.encode(compiled.upload(images)).maps
    for name, wanted in model.encode(images).maps.items():
        assert torch.allclose(found[name], wanted, atol=1e-3)
