"""Layers of vision models by the names that they had before transformers 5: in targets, and in adapter files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from conftest import tiny_model
from kit.vision_models import images, save_folder, tiny
from rankwise.adapters.formats.peft import CONFIG, WEIGHTS, lay_peft, write_peft
from rankwise.adapters.targets import choose, notes_about
from rankwise.config.adapters import LoraConfig
from rankwise.config.expressions import new_names
from rankwise.errors import AdapterError, TargetError
from rankwise.methods.inject import inject

RENAMED = ("vit", "deit", "beit", "dinov2", "swin")
OLD = {
    "vit": "vit.encoder.layer.0.attention.attention.query", "deit": "deit.encoder.layer.0.attention.attention.query",
    "beit": "beit.encoder.layer.0.attention.attention.query",
    "dinov2": "dinov2.encoder.layer.0.attention.attention.query",
    "swin": "swin.encoder.layers.0.blocks.0.attention.self.query",
}  # fmt: skip


def linear_paths(family: str) -> list[str]:
    model, _ = tiny(family)
    return [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


@pytest.mark.parametrize("family", [*RENAMED, "convnext", "clip", "siglip"])
def test_the_old_names_are_those_that_transformers_writes_into_its_files(family: str, tmp_path: Path) -> None:
    """transformers saves weights by the names of old, so that older versions can read them."""
    written = load_file(save_folder(family, tmp_path) / "model.safetensors")
    prefix = "dinov2." if family == "dinov2" else ""  # the file of a body alone
    today = linear_paths(family)
    named = new_names(path for path, _ in tiny(family)[0].named_modules() if path)
    stored = {f"{prefix}{name.removesuffix('.weight')}" for name in written if name.endswith(".weight")}
    read = {named.get(path, path) for path in stored}
    assert {path for path in today if "classifier" not in path} <= read
    assert bool(stored & named.keys()) == (family in RENAMED)


@pytest.mark.parametrize("family", RENAMED)
def test_a_target_of_an_old_tutorial_means_the_layers_that_it_meant(family: str) -> None:
    model, _ = tiny(family)
    spec = LoraConfig(targets="query,value")
    chosen = [choice.path for choice in choose(model, spec)]
    assert chosen == [choice.path for choice in choose(model, LoraConfig(targets="q_proj,v_proj"))]
    assert len(chosen) == 4
    assert notes_about(model, spec) == [
        '"query" is called q_proj in transformers 5; using q_proj (2 layers)',
        '"value" is called v_proj in transformers 5; using v_proj (2 layers)',
    ]
    assert [choice.path for choice in choose(model, LoraConfig(targets=OLD[family]))] == [new_of(family)]


def new_of(family: str) -> str:
    return next(path for path in linear_paths(family) if path.endswith("q_proj"))


def test_old_names_are_matched_as_names_and_as_expressions_and_in_blocks() -> None:
    model, _ = tiny("vit")

    def leaves(**settings: object) -> list[str]:
        return [choice.path.removeprefix("vit.layers.") for choice in choose(model, LoraConfig(**settings))]

    assert leaves(targets="output.dense") == [
        "0.attention.o_proj", "0.mlp.fc2", "1.attention.o_proj", "1.mlp.fc2",
    ]  # fmt: skip
    assert leaves(targets="attention.output.dense") == ["0.attention.o_proj", "1.attention.o_proj"]
    assert leaves(targets="intermediate.dense", layers="1") == ["1.mlp.fc1"]
    assert leaves(targets=r"encoder\.layer\.1\..*\.(key|query)") == ["1.attention.q_proj", "1.attention.k_proj"]
    assert notes_about(model, LoraConfig(targets="dense", layers="1")) == [
        '"dense" is called o_proj, fc1, fc2 in transformers 5; using o_proj, fc1, fc2 (3 layers)'
    ]
    with pytest.raises(TargetError, match="matches no layer of this model"):
        leaves(targets="crossattention.query")
    with pytest.raises(TargetError) as caught:
        leaves(targets="q_proj,v_proj,mlp.fc1", rank_pattern={"query": 2})
    assert str(caught.value) == (
        'rank_pattern "query" matches none of the 6 adapted layers. In transformers 5 these layers are called q_proj.'
    )


def test_a_model_whose_layers_have_these_names_today_is_left_alone() -> None:
    assert new_names(path for path, _ in tiny_model("bert").named_modules()) == {}
    assert notes_about(tiny_model("bert"), LoraConfig(targets="query,value")) == []
    with pytest.raises(TargetError, match='"query" matches no layer'):
        choose(tiny_model("llama"), LoraConfig(targets="query"))


def once(family: str, path: str) -> str:
    """The name that transformers 4 had for the query or the first layer of the feed-forward network."""
    inner = "attention.self.query" if family == "swin" else "attention.attention.query"
    path = path.replace("attention.q_proj", inner)
    if family == "dinov2":
        return path
    path = path.replace("mlp.fc1", "intermediate.dense")
    return path if family == "swin" else path.replace(".layers.", ".encoder.layer.")


def written_of_old(family: str, folder: Path) -> torch.Tensor:
    """An adapter of peft's, with layers named as transformers 4 named them, and what it makes of four images."""
    torch.manual_seed(0)
    theirs = get_peft_model(
        tiny(family)[0],
        PeftLoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "fc1"], init_lora_weights=False,
                       rank_pattern={"fc1": 2}, modules_to_save=["classifier"]),
    ).eval()  # fmt: skip
    theirs.save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    renamed = {once(family, key): value for key, value in tensors.items()}
    assert len(renamed) == len(tensors) and renamed.keys() != tensors.keys()
    save_file(renamed, folder / WEIGHTS)
    settings = json.loads((folder / CONFIG).read_text())
    fc1 = "mlp.fc1" if family == "dinov2" else "intermediate.dense"
    settings |= {"target_modules": ["query", fc1], "rank_pattern": {fc1: 2}}
    (folder / CONFIG).write_text(json.dumps(settings))
    with torch.no_grad():
        return theirs(pixel_values=images(4)).logits


@pytest.mark.parametrize("family", RENAMED)
def test_an_adapter_with_old_names_is_read_onto_the_new_ones_and_says_so(family: str, tmp_path: Path) -> None:
    expected = written_of_old(family, tmp_path)
    model, _ = tiny(family)
    with torch.no_grad():
        base = model(pixel_values=images(4)).logits
        heard: list[object] = []
        adapters = lay_peft(model, tmp_path, callback=heard.append)
        found = model(pixel_values=images(4)).logits
    assert (expected - base).abs().max() > 1e-2
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert list(adapters.adapters()) == [path for path in linear_paths(family) if path.endswith(("q_proj", "fc1"))]
    [note] = heard
    renamed = 2 if family == "dinov2" else 4
    assert str(note.text).startswith(f"The adapter has the names that {renamed} layers had before transformers 5; they")
    assert str(note.text).endswith(f"such as {new_of(family)} for {OLD[family]}")
    write_peft(adapters, tmp_path / "again", base_model=family)
    silent: list[object] = []
    lay_peft(tiny(family)[0], tmp_path / "again", callback=silent.append)
    assert not silent


def test_a_file_with_a_layer_by_both_names_is_refused(tmp_path: Path) -> None:
    adapters = inject(tiny("vit")[0], LoraConfig(rank=2, targets="q_proj"))
    with torch.no_grad():
        adapters.adapters()["vit.layers.0.attention.q_proj"].B.fill_(0.1)
    write_peft(adapters, tmp_path, base_model="vit")
    tensors = load_file(tmp_path / WEIGHTS)
    before, after = "vit.layers.0.attention.q_proj", "vit.encoder.layer.0.attention.attention.query"
    save_file(tensors | {key.replace(before, after): value + 0 for key, value in tensors.items()}, tmp_path / WEIGHTS)
    settings = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(settings | {"target_modules": ["q_proj", "query"]}))
    with pytest.raises(AdapterError, match=f'"{after}" and "{before}" are one layer'):
        lay_peft(tiny("vit")[0], tmp_path)
