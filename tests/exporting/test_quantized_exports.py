"""A run over a quantised base is exported with the numbers that it was trained over, or says that a base is needed."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from kit import planted
from kit.command import printed, rankwise
from kit.library import COMMON, FILES
from kit.quantized_models import wide_model
from rankwise.exporting import merge as merging
from rankwise.exporting import verification
from rankwise.exporting.reference import open_for_export
from rankwise.kernels.quantized.tensor import in_full, is_quantized
from rankwise.methods.artifact import open_artifact

IDS = torch.arange(48).reshape(2, 24) % 96


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory, hub_tokenizer):
    folder = tmp_path_factory.mktemp("quantized")
    wide_model(vocab=len(hub_tokenizer)).save_pretrained(folder / "tiny-llama")
    hub_tokenizer.save_pretrained(folder / "tiny-llama")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    with contextlib.chdir(folder):
        for format in ("nf4", "int8"):
            words = ("train", *COMMON, "--run", format, "--rank", 4, "--held-out", 4, "--quantize", format)
            result = rankwise(*words, "--targets", "q_proj,v_proj,down_proj", "--backend", "eager")
            assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def home(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr(verification, "ask", planted.ask_here)
    monkeypatch.setenv("RANKWISE_ENGINES", sys.executable)
    return tmp_path / "home"


@pytest.mark.parametrize("run", ["nf4", "int8"])
def test_a_merged_model_is_the_one_that_was_trained(home, run):
    facts = printed("export", run, "--to", "whole", "--format", "merged", "--dtype", "float32")
    assert facts["base_quantized"] == run and facts["engines"]["transformers"]["status"] == "right"
    assert facts["logits_difference"] < 1e-4 < facts["logits_change"]
    expected = logits(open_for_export(open_artifact(run)).model.module)
    merged = AutoModelForCausalLM.from_pretrained("whole", dtype=torch.float32).eval()
    scale = expected.abs().max()
    assert (logits(merged) - expected).abs().max() <= 1e-5 * scale
    assert rankwise("merge", run, "--to", "streamed", "--dtype", "float32").exit_code == 0
    streamed = AutoModelForCausalLM.from_pretrained("streamed", dtype=torch.float32).eval()
    assert (logits(streamed) - logits(merged)).abs().max() <= 1e-5 * scale
    assert rankwise("export", run, "--to", "half", "--format", "merged", "--dtype", "bfloat16").exit_code == 0


def test_a_weight_that_stays_packed_or_comes_from_the_full_base_is_seen(home, monkeypatch):
    monkeypatch.setattr(merging, "unpack_weights", lambda module: _from_full_base(module))
    result = rankwise("export", "nf4", "--to", "whole", "--format", "merged")
    assert result.exit_code == 2 and "would differ from the trained model" in result.stderr, result.output
    assert not (home / "whole").exists()


def _from_full_base(module):
    """Planted: the weights without an adapter are taken from the folder."""
    full = AutoModelForCausalLM.from_pretrained("tiny-llama", dtype=torch.float32)
    for name, weight in list(module.named_parameters()):
        if is_quantized(weight):
            owner, _, own = name.rpartition(".")
            setattr(module.get_submodule(owner), own, full.get_parameter(name))


@pytest.mark.parametrize("format", ["peft", "portable"])
def test_an_adapter_says_how_its_base_was_stored_and_what_the_full_one_changes(home, format):
    result = rankwise("export", "nf4", "--to", "out", "--format", format, "--json")
    assert result.exit_code == 0, result.output
    assert "trained over nf4 weights" in result.stderr and "--format merged" in result.stderr
    facts = json.loads(result.stdout)
    assert facts["base_quantized"] == "nf4" and facts["engines"]["peft"]["status"] == "right"
    assert facts["max_log_probability_difference"] < 1e-3, "it is compared over the full weights, which PEFT loads"
    shift = facts["base_shift"]
    assert shift["stored_as"] == "nf4" and 1e-4 < shift["mean_difference"] <= shift["max_difference"]
    assert json.loads((home / "out/base_model.json").read_text())["quantization"] == "nf4"
    card = (home / "out/README.md").read_text()
    assert (
        "| linear layers of the base model | stored as nf4 |" in card and "its answers are somewhat different" in card
    )
    shutil.rmtree("out")
    spoken = rankwise("export", "nf4", "--to", "out", "--format", format)
    assert "compared over the full ones, where its own log-probabilities differ by" in spoken.stdout
    # the folder by itself is the trained model again, over the same quantised base
    same = open_for_export(open_artifact("out"))
    assert any(is_quantized(weight) for weight in same.model.module.parameters())
    assert torch.equal(logits(same.model.module), logits(open_for_export(open_artifact("nf4")).model.module))


def test_a_gguf_file_has_the_weights_that_were_trained_over(home):
    result = rankwise("export", "int8", "--to", "whole.gguf", "--format", "gguf", "--dtype", "float32", "--no-verify")
    assert result.exit_code == 0 and "int8 weights of the base unpacked" in result.stdout, result.output
    tensors = {one.name: np.array(one.data) for one in GGUFReader("whole.gguf").tensors}
    trained = open_for_export(open_artifact("int8")).model.module
    mlp = trained.model.layers[1].mlp
    up = in_full(mlp.up_proj.weight)
    assert is_quantized(mlp.up_proj.weight) and torch.equal(torch.from_numpy(tensors["blk.1.ffn_up.weight"]), up)
    down = in_full(mlp.down_proj.base_layer.weight) + mlp.down_proj.adapter("default").delta()
    written = torch.from_numpy(tensors["blk.1.ffn_down.weight"])
    assert (written - down).abs().max() <= 1e-6 * down.abs().max()


def test_an_adapter_for_llama_cpp_says_that_it_was_trained_over_other_weights(home):
    result = rankwise("export", "nf4", "--to", "adapter.gguf", "--format", "gguf-lora")
    assert result.exit_code == 0 and "gguf-lora holds the adapter alone" in result.stderr, result.output
