"""SAM 3's weights in every layout; bundles that hold none of them; life without the extra."""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fss_models import registry
from fss_models.errors import FssError
from fss_models.methods.sam3.convert import meta_name
from pipelines.bundles.bundle import import_bundle, load_bundle, save_bundle
from pipelines.bundles.weights import build_model, fetch
from pipelines.config.method import MethodConfig
from tests.fss_models.methods_here import needs_transformers
from tests.fss_models.sam3_case import WEIGHTS, build, memory_of, released, save_all, tokenizer_file
from tests.web import Quiet, serving


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_all(tmp_path_factory.mktemp("sam3"))


@needs_transformers
@torch.no_grad()
def test_every_layout_of_the_weights_gives_the_same_masks(places: dict[str, str]) -> None:
    found = {}
    for kind, place in places.items():
        model = build("sam3", fetch(place), threshold=0.0)
        assert not model.untrained
        assert model.detector.points is not None, "the golden weights have point prompts"
        memory, features, pairs = memory_of(model, 2)
        found[kind] = model.segment(memory, features, pairs).logits
    assert all(torch.equal(logits, found["file"]) for logits in found.values())


META = {  # transformers' name -> Meta's, as its package names its modules
    "vision_encoder.backbone.embeddings.patch_embeddings.projection.weight":
        "backbone.vision_backbone.trunk.patch_embed.proj.weight",
    "vision_encoder.backbone.layer_norm.bias": "backbone.vision_backbone.trunk.ln_pre.bias",
    "vision_encoder.backbone.layers.7.attention.k_proj.bias": "backbone.vision_backbone.trunk.blocks.7.attn.qkv.bias",
    "vision_encoder.backbone.layers.7.layer_norm2.weight": "backbone.vision_backbone.trunk.blocks.7.norm2.weight",
    "vision_encoder.neck.fpn_layers.0.scale_layers.2.weight": "backbone.vision_backbone.convs.0.dconv_2x2_1.weight",
    "vision_encoder.neck.fpn_layers.1.scale_layers.0.bias": "backbone.vision_backbone.convs.1.dconv_2x2.bias",
    "vision_encoder.neck.fpn_layers.2.proj2.weight": "backbone.vision_backbone.convs.2.conv_3x3.weight",
    "text_encoder.text_model.encoder.layers.3.self_attn.v_proj.weight":
        "backbone.language_backbone.encoder.transformer.resblocks.3.attn.in_proj_weight",
    "text_encoder.text_model.encoder.layers.3.self_attn.out_proj.bias":
        "backbone.language_backbone.encoder.transformer.resblocks.3.attn.out_proj.bias",
    "text_encoder.text_model.embeddings.position_embedding.weight":
        "backbone.language_backbone.encoder.positional_embedding",
    "text_projection.weight": "backbone.language_backbone.resizer.weight",
    "geometry_encoder.layers.1.cross_attn.o_proj.weight": "geometry_encoder.encode.1.cross_attn_image.out_proj.weight",
    "geometry_encoder.prompt_layer_norm.weight": "geometry_encoder.norm.weight",
    "detr_encoder.layers.2.mlp.fc2.weight": "transformer.encoder.layers.2.linear2.weight",
    "detr_decoder.layers.5.text_cross_attn_layer_norm.bias": "transformer.decoder.layers.5.catext_norm.bias",
    "detr_decoder.layers.5.vision_cross_attn.q_proj.bias": "transformer.decoder.layers.5.cross_attn.in_proj_bias",
    "detr_decoder.box_rpb_embed_x.layer2.weight": "transformer.decoder.boxRPB_embed_x.layers.1.weight",
    "detr_decoder.presence_head.layer3.bias": "transformer.decoder.presence_token_head.layers.2.bias",
    "dot_product_scoring.text_mlp_out_norm.weight": "dot_prod_scoring.prompt_mlp.out_norm.weight",
    "dot_product_scoring.query_proj.bias": "dot_prod_scoring.hs_proj.bias",
    "mask_decoder.mask_embedder.layers.2.weight": "segmentation_head.mask_predictor.mask_embed.layers.2.weight",
    "mask_decoder.prompt_cross_attn_norm.bias": "segmentation_head.cross_attn_norm.bias",
}


@pytest.mark.parametrize("name", META)
def test_the_names_in_metas_checkpoint(name: str) -> None:
    assert meta_name(name) == META[name]


@needs_transformers
def test_every_tensor_of_the_released_size_has_its_own_place_in_metas_checkpoint() -> None:
    from fss_models.methods.sam3.build import require_transformers

    require_transformers()
    from transformers import Sam3Config, Sam3Model

    with torch.device("meta"):
        keys = [k for k in Sam3Model(Sam3Config()).state_dict() if not k.startswith("vision_encoder.neck.fpn_layers.3")]
    assert len(keys) > 1000
    thirds = [k for k in keys if any(f".{p}_proj." in k for p in "qkv")]
    names = {meta_name(k) for k in keys}
    assert len(names) == len(keys) - len(thirds) * 2 // 3


@needs_transformers
def test_a_wrong_file_is_named_with_its_first_wrong_tensor(places: dict[str, str], tmp_path: Path) -> None:
    state = released()[1]
    key, base = "detr_decoder.query_embed.weight", Path(places["folder"])
    wrong = {"lacks": {k: v for k, v in state.items() if k != key}, "unknown": state | {"another": torch.zeros(1)},
             "shape": state | {key: torch.zeros(3)}}
    for what, tensors in wrong.items():
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
        with pytest.raises(FssError, match=rf"{what}") as caught:
            build("sam3", str(tmp_path / "model.safetensors"))
        assert ("another" if what == "unknown" else key) in str(caught.value)
    meta = torch.load(places["meta"])
    (tmp_path / "sam3.pt").write_bytes(b"no weights")
    with pytest.raises(FssError, match="is no weight file"):
        build("sam3", str(tmp_path / "sam3.pt"))
    del meta["model"]["detector.transformer.decoder.query_embed.weight"]
    torch.save(meta, tmp_path / "sam3.pt")
    with pytest.raises(FssError, match=r"lacks 'detector\.transformer\.decoder\.query_embed\.weight'"):
        build("sam3", str(tmp_path / "sam3.pt"))


@needs_transformers
def test_weights_without_points_fall_back_to_boxes(places: dict[str, str], tmp_path: Path,
                                                   caplog: pytest.LogCaptureFixture) -> None:
    state = {k: v for k, v in released()[1].items() if ".points_" not in k}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((Path(places["folder"]) / "config.json").read_bytes())
    build("sam3", str(tmp_path), mode="token", exemplar="point")
    assert "no point prompts" in caplog.text


@needs_transformers
def test_the_released_size_asks_for_the_persons_own_copy() -> None:
    with pytest.raises(FssError, match=r"no weights.*accept.*HF_TOKEN"):
        build("sam3")
    with pytest.raises(FssError, match="takes no weights"):
        build("debug", str(WEIGHTS))


@needs_transformers
def test_a_bundle_holds_no_tensor_of_sam3(places: dict[str, str], tmp_path: Path) -> None:
    file = places["file"]
    info, tensors = import_bundle(str(tmp_path / "b"), file=places["folder"], method="sam3", preset="sam3",
                                  settings={"mode": "token"})
    assert (tensors, info.config["mode"], info.untrained) == (400, "token", False)
    assert info.sha256 == hashlib.sha256(Path(file).read_bytes()).hexdigest()
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == b""
    loaded = load_bundle(str(tmp_path / "b"))[0]
    memory, features, pairs = memory_of(loaded, 2)  # type: ignore[arg-type]
    own = build("sam3", file, mode="token")
    assert torch.equal(loaded.segment(memory, features, pairs).logits, own.segment(memory, features, pairs).logits)
    changed = load_file(file) | {"detr_decoder.query_embed.weight": torch.zeros(12, 32)}
    other = tmp_path / "other"
    other.mkdir()
    save_file(changed, other / "model.safetensors")
    about = json.loads((tmp_path / "b" / "bundle.json").read_text()) | {"weights": str(other)}
    (tmp_path / "b" / "bundle.json").write_text(json.dumps(about))
    with pytest.raises(FssError, match="sha256"):
        load_bundle(str(tmp_path / "b"))


@needs_transformers
def test_a_bundle_records_the_tokenizer(places: dict[str, str], tmp_path: Path) -> None:
    file = tokenizer_file(tmp_path / "words.json")
    method = MethodConfig(name="sam3", preset="sam3", weights=places["file"],
                          config={"class_names": True, "tokenizer_weights": file})
    model = build_model(method)
    save_bundle(str(tmp_path / "b"), model, recipe_config=method.config, weights=method.weights)
    assert load_bundle(str(tmp_path / "b"))[0].config.class_names
    Path(file).write_text(Path(file).read_text().replace("dog", "hog"))
    with pytest.raises(FssError, match="'tokenizer' differ"):
        load_bundle(str(tmp_path / "b"))


class Gated(Quiet, http.server.BaseHTTPRequestHandler):
    """A hub that gives the file only to who sends the right token."""

    content = b"weights"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        if self._answer():
            self.wfile.write(self.content)

    def _answer(self) -> bool:
        allowed = self.headers.get("authorization") == "Bearer hf_right"
        known = self.path == "/owner/gated/resolve/main/model.safetensors"
        self.send_response(200 if allowed and known else 401)
        if allowed and known:
            self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(self.content)))
        else:
            self.send_header("X-Error-Code", "GatedRepo")
        self.end_headers()
        return allowed and known


def test_gated_weights_need_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(Gated) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(FssError, match=r"accept it at huggingface\.co/owner/gated and set HF_TOKEN"):
            fetch("hf://owner/gated")
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        assert Path(fetch("hf://owner/gated")).read_bytes() == Gated.content


def test_a_folder_is_its_one_weight_file(tmp_path: Path) -> None:
    (tmp_path / "sam3.pt").write_bytes(b"1")
    assert fetch(str(tmp_path)) == str(tmp_path / "sam3.pt")
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert fetch(str(tmp_path)) == str(tmp_path / "model.safetensors"), "safetensors come before pickled files"
    (tmp_path / "another.safetensors").write_bytes(b"3")
    with pytest.raises(FssError, match="2 weight files"):
        fetch(str(tmp_path))


def test_without_the_extra_everything_else_works_and_no_network_is_tried() -> None:
    code = """
import socket, sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "tokenizers"):
            raise ImportError(name)
sys.meta_path.insert(0, Wall())
def refuse(*_, **__): raise AssertionError("the network was tried")
socket.socket.connect = refuse
from fss_models import registry
from fss_models.errors import FssError
assert "sam3" in registry.list_methods()
registry.make_config("sam3", {"mode": "token"})
registry.build("prior", "debug")
for preset in ("debug", "sam3"):
    try:
        registry.build("sam3", preset)
    except FssError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 2
    assert all("transformers" in line and "pip install 'fss[sam3]'" in line for line in lines)


def test_the_registry_knows_sam3_as_a_foundation_model() -> None:
    held = {name: registry.method_class(name).classes_held_out for name in registry.list_methods()}
    assert [name for name, out in held.items() if not out] == ["sam3"]
