"""A merge onto a quantised base adds the change to the numbers that were trained over."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from kit.adapted_models import save_adapter
from kit.command import rankwise
from kit.gguf_models import adapter_in, model_in
from kit.quantized_models import quantize, wide_model
from rankwise.adapters.formats.peft import read_peft
from rankwise.base.gguf.conversion import converted
from rankwise.base.inspection import fingerprint
from rankwise.config.adapters import LoraConfig
from rankwise.kernels.quantized.tensor import is_quantized
from rankwise.runs.records import silent

IDS = torch.arange(48).reshape(2, 24) % 96
SPECS = {
    "LoRA": {"rank": 3, "alpha": 5, "targets": ("q_proj", "o_proj", "down_proj")},
    "DoRA": {"rank": 3, "dora": True},
    "Conv1D": {"rank": 3},
}


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def laid_out(home, kind, dtype=torch.float32, quantized=None):
    """A base as a folder and an adapter over it, which says how the base was stored."""
    architecture = "gpt2" if kind == "Conv1D" else "llama"
    model = wide_model(architecture)
    model.to(dtype).save_pretrained(home / "base", max_shard_size="150KB")
    save_adapter(home / "adapter", home / "base", architecture, LoraConfig(**SPECS[kind]), model=model)
    facts = {"name": str(home / "base"), "source": "local", "fingerprint": fingerprint(home / "base"),
             "dtype": "float32", "device": "cpu", "quantization": quantized}  # fmt: skip
    (home / "adapter" / "base_model.json").write_text(json.dumps(facts))
    return model


def adapted(home, format):
    """The model that was trained: the adapter over the quantised base, in float32."""
    model = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32)
    return read_peft(quantize(model, format) if format else model, home / "adapter").model.eval()


@pytest.mark.parametrize("format", ["nf4", "int8"])
@pytest.mark.parametrize("kind", list(SPECS))
def test_a_merge_onto_a_quantised_base_is_the_adapted_model(home, kind, format):
    laid_out(home, kind, quantized=format)
    result = rankwise("merge", "adapter", "--to", "merged", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["base_quantized"] == format and facts["dtype"] == "float32"
    expected = logits(adapted(home, format))
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32).eval()
    scale = expected.abs().max()
    assert (logits(merged) - expected).abs().max() <= 1e-5 * scale
    assert (logits(adapted(home, None)) - expected).abs().max() > 1e-3 * scale, "the full weights are others"
    record = json.loads((home / "merged/merge.json").read_text())
    assert record["base_quantized"] == format and len(record["quantized_sha256"]) == 64
    assert not is_quantized(merged.get_input_embeddings().weight)
    assert "quantization_config" not in json.loads((home / "merged/config.json").read_text())


def test_a_change_goes_onto_the_full_weights_only_where_this_is_wished_for(home):
    laid_out(home, "LoRA", quantized="int8")
    result = rankwise("merge", "adapter", "--to", "merged", "--onto", "original")
    assert result.exit_code == 0 and "is not the model that was trained and measured" in result.stderr, result.output
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32).eval()
    expected = logits(adapted(home, None))
    assert (logits(merged) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_an_adapter_that_does_not_say_how_its_base_was_stored_is_told_so(home):
    laid_out(home, "LoRA")
    result = rankwise("merge", "adapter", "--to", "merged", "--onto", "int8")
    assert result.exit_code == 0 and "unpacked" in result.stdout, result.output
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32).eval()
    expected = logits(adapted(home, "int8"))
    assert (logits(merged) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_adapters_over_differently_stored_bases_are_not_added_in_silence(home):
    laid_out(home, "LoRA", quantized="nf4")
    shutil.copytree("adapter", "other")
    facts = json.loads((home / "other/base_model.json").read_text())
    (home / "other/base_model.json").write_text(json.dumps(facts | {"quantization": None}))
    words = ("merge", "adapter", "other", "--weights", "0.5,0.5", "--to", "merged")
    refused = rankwise(*words)
    assert refused.exit_code == 2 and "over nf4" in refused.stderr and "over full weights" in refused.stderr
    assert "--onto original" in refused.stderr and not (home / "merged").exists()
    assert rankwise(*words, "--onto", "nf4").exit_code == 0
    wrong = rankwise("merge", "adapter", "--to", "x", "--onto", "nf3")
    assert wrong.exit_code == 2 and "nf4" in wrong.stderr


def test_of_a_gguf_base_the_copy_in_full_is_merged_onto(home):
    model_in(home / "base", "llama")
    nothing = adapter_in(home / "nothing", home / "base", ["q_proj"], size=0.0)
    written = rankwise("export", nothing, "--to", "base.gguf", "--format", "gguf", "--dtype", "q8_0", "--no-verify")
    assert written.exit_code == 0, written.output
    adapter = adapter_in(home / "adapter", home / "base", ["q_proj", "down_proj"])
    result = rankwise("merge", adapter, "--to", "merged", "--base-model", "base.gguf")
    assert result.exit_code == 0, result.output
    full = AutoModelForCausalLM.from_pretrained(converted(home / "base.gguf", silent), dtype=torch.float32)
    expected = logits(read_peft(full, adapter).model.eval())
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32).eval()
    assert (logits(merged) - expected).abs().max() <= 1e-5 * expected.abs().max()
