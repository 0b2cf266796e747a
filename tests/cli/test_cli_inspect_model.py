"""`rankwise inspect MODEL`: layers by kind and shape, and what the targets choose, without a weight."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification

from conftest import tiny_model
from kit.command import done, printed, rankwise
from kit.vision_models import LABELS, TIMM, save_folder
from rankwise.adapters.formats.peft import write_peft
from rankwise.adapters.set import AdapterSet
from rankwise.base.timm_models import head_modules
from rankwise.commands.models import means_model
from rankwise.config.adapters import LoraConfig
from rankwise.errors import TargetError
from rankwise.methods.inject import add_adapter, inject
from rankwise.planning.reading import catalogue

KINDS = ("deit", "dinov2", "swin", "convnext", "clip", "resnet", "efficientnet-same")
"""Two heads, none, stages, convolutions, two towers, and timm's two names of a head. The others are built as these."""


def facts(*words: object) -> dict:
    return printed("inspect", *words)


def test_a_language_model_is_told_by_kind_and_shape_and_all_linear_leaves_its_head_alone():
    found = facts("gpt2")
    assert (found["model"], found["family"], found["parameters"]) == ("gpt2", "gpt2", 124_439_808)
    assert sum(group["parameters"] for group in found["layers"]) == 124_439_808
    groups = {(group["kind"], group["inputs"], group["outputs"]): group for group in found["layers"]}
    assert groups["Conv1D", 768, 2304]["count"] == 12 and groups["Conv1D", 768, 2304]["names"] == ["c_attn"]
    assert groups["Linear", 768, 50257]["remark"] == "output head"
    assert groups["LayerNorm", 0, 0]["count"] == 25
    chosen = found["targets"]["all-linear"]
    assert chosen["layers"] == 48 and chosen["trainable"] == 12 * 16 * (768 + 2304 + 768 + 768 + 2 * (768 + 3072))
    assert chosen["share"] == chosen["trainable"] / 124_439_808
    assert "has no convolutions" in found["targets"]["all-conv"]["refusal"]
    assert found["default_target"] == "all-linear"


@pytest.mark.parametrize("family", KINDS)
def test_an_image_model_s_counts_are_those_of_the_classifier_and_of_what_is_injected(family: str, tmp_path) -> None:
    folder = save_folder(family, tmp_path / "model")
    found, model = facts(folder), AutoModelForImageClassification.from_pretrained(folder).eval()
    heads = head_modules(model, images=True)
    sizes = {path: sum(one.numel() for one in module.parameters(recurse=False))
             for path, module in model.named_modules()}  # fmt: skip
    body = {path: size for path, size in sizes.items() if size and path not in heads}
    groups = [group for group in found["layers"] if "head" not in group["remark"]]
    assert found["parameters"] == sum(body.values()) == sum(group["parameters"] for group in groups)
    assert sum(group["count"] for group in groups) == len(body)
    if family != "deit":  # the hub's are distilled, and a distilled model has two heads
        assert found["head_parameters"] == 2 * (sizes[heads[0]] // len(LABELS))
    for target, chosen in found["targets"].items():
        spec = LoraConfig(rank=16, targets=target)
        if chosen["refusal"] is not None:
            with pytest.raises(TargetError) as caught:
                inject(model, spec, heads=heads)
            assert str(caught.value) == chosen["refusal"]
            continue
        adapters = inject(model, spec, heads=heads)
        assert (chosen["layers"], chosen["notes"]) == (len(adapters.layers), adapters.notes)
        inside = [one for adapter in adapters.adapters().values() for one in adapter.parameters()]
        assert chosen["trainable"] == sum(one.numel() for one in inside)
        adapters.remove()
    assert found["default_target"] == ("all-conv" if family in TIMM else "all-linear")


def test_the_adapter_s_size_is_that_of_its_file(tmp_path: Path) -> None:
    folder = save_folder("convnext", tmp_path / "model")
    model = AutoModelForImageClassification.from_pretrained(folder)
    for target, chosen in facts(folder)["targets"].items():
        adapters = AdapterSet(model)
        adapters.add_heads(["classifier"], "head")
        add_adapter(adapters, LoraConfig(rank=16, targets=target))
        write_peft(adapters, tmp_path / target, base_model="convnext")
        assert chosen["file_bytes"] == (tmp_path / target / "adapter_model.safetensors").stat().st_size
        adapters.remove()


def test_convolutions_are_told_with_their_kernels_and_why_some_are_left_out(tmp_path: Path) -> None:
    folder = save_folder("convnext", tmp_path / "model")
    groups = {tuple(group["names"]): group for group in facts(folder)["layers"]}
    stem, inner, depthwise = groups["patch_embeddings",], groups["downsampling_layer.1",], groups["dwconv",]
    assert (stem["inputs"], stem["outputs"], stem["kernel"], stem["remark"]) == (3, 8, [4, 4], "reads the image")
    assert (inner["inputs"], inner["outputs"], inner["kernel"], inner["remark"]) == (8, 16, [2, 2], "")
    assert depthwise["count"] == 2 and "convolve in groups" in depthwise["problem"]
    result = done("inspect", folder)
    text = result.stdout
    assert "8 -> 16, 2 x 2" in text and re.search("dwconv +cannot be adapted", text) and "that reads the image" in text
    assert text.endswith("By default this model's adapters have the targets all-linear.\n")


def test_a_run_s_name_is_a_run_and_a_model_s_name_a_model(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "lora"))
    assert not means_model("lora") and not means_model("runs/lora/adapter") and not means_model("god")
    assert means_model("minilm") and means_model("gpt2") and means_model("organisation/model")
    (tmp_path / "home" / "runs" / "lora").rename(tmp_path / "home" / "runs" / "gpt2")
    assert not means_model("gpt2") and "ranks" in facts("gpt2")
    assert not means_model("no/such/folder/with/a/name") and not means_model("x" * 5000) and not means_model("")
    result = rankwise("inspect", "god", "--json")
    assert (result.exit_code, json.loads(result.stdout)["kind"]) == (2, "RunError")


def test_no_weight_is_read_and_a_catalogued_model_needs_no_torch(tmp_path):
    folder = save_folder("vit", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert facts(folder)["parameters"] > 0
    code = (
        "import sys; from typer.testing import CliRunner; from rankwise.cli.main import app; "
        f"print(CliRunner().invoke(app, ['inspect', {next(iter(catalogue()))!r}]).exit_code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "False"], done.stderr


def test_a_model_that_is_nowhere_is_a_sentence():
    result = rankwise("inspect", "organisation/no-such-model", "--json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert told["kind"] == "ModelError" and "organisation/no-such-model" in told["error"]


def test_the_whole_model_of_a_full_training_is_a_model_too(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "whole")
    found = facts(tmp_path / "whole")
    assert found["family"] == "llama" and found["targets"]["all-linear"]["layers"] == 14
    assert torch.is_grad_enabled()


def test_a_plan_says_what_a_training_would_say_of_its_targets(tmp_path: Path) -> None:
    folder = save_folder("convnext", tmp_path / "model")
    words = ("plan", "--model", folder, "--objective", "image-classification", "--targets", "all-conv")
    result, text = rankwise(*words, "--json"), rankwise(*words)
    assert result.exit_code == text.exit_code == 0, result.output
    notes = json.loads(result.stdout)["target_notes"]
    assert notes == facts(folder)["targets"]["all-conv"]["notes"] and len(notes) == 2
    assert all(note in text.stdout for note in notes)
