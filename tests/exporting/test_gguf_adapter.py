"""A GGUF LoRA file holds the adapter's change: by llama.cpp's rule for the scale, in the order of rows of the base."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest

from kit.command import printed, rankwise
from kit.gguf_models import KINDS, adapter_in, layers_of, model_in
from rankwise.adapters.formats.peft_reader import read_weights


def exported(*words):
    return printed("export", *words)


def tensors_in(file):
    return {one.name: np.array(one.data) for one in gguf.GGUFReader(file).tensors}


def field(file, key):
    return gguf.GGUFReader(file).fields[key].contents()


def change_by_llama_cpp(file):
    """What llama.cpp adds to each weight: alpha / rank of this tensor's pair, and 1 where alpha is 0."""
    alpha, tensors = field(file, "adapter.lora.alpha"), tensors_in(file)
    change = {}
    for name in {key.removesuffix(".lora_a").removesuffix(".lora_b") for key in tensors}:
        A, B = tensors[f"{name}.lora_a"].astype(float), tensors[f"{name}.lora_b"].astype(float)
        scale = alpha / B.shape[1] if alpha else 1.0
        change[name] = scale * (A @ B.T if name == "token_embd.weight" else B @ A)
    return change


def whole(folder, base, adapter):
    """The merged model's tensors, which the tests of merged files compare with transformers."""
    file = folder / "whole.gguf"
    exported(adapter, "--to", file, "--format", "gguf", "--dtype", "float32", "--base-model", base)
    return tensors_in(file)


@pytest.mark.parametrize("kind", KINDS)
def test_base_and_adapter_are_the_merged_model(kind, tmp_path):
    base = model_in(tmp_path / "base", kind)
    adapter = adapter_in(tmp_path / "adapter", base, layers_of(kind))
    facts = exported(adapter, "--to", tmp_path / "a.gguf", "--format", "gguf-lora")
    zero = adapter_in(tmp_path / "zero", base, layers_of(kind), size=0.0)
    (tmp_path / "zeros").mkdir()
    before, after = whole(tmp_path / "zeros", base, zero), whole(tmp_path, base, adapter)
    change = change_by_llama_cpp(tmp_path / "a.gguf")
    assert facts["rank"] == 5 and len(change) == len(read_weights(adapter).factors)
    for name in before:
        wanted = after[name].astype(float) - before[name]
        assert np.allclose(change.get(name, 0), wanted, atol=1e-6 + 1e-5 * np.abs(wanted).max()), name
        assert (np.abs(wanted).max() > 0) == (name in change)


@pytest.mark.parametrize("settings", [{"scaling": "sqrt-rank"}, {"rank_pattern": {}, "alpha_pattern": {}}])
@pytest.mark.parametrize("strength", [1, 0.25])
def test_scales_of_layers_go_into_b_and_no_more_than_needed(tmp_path, settings, strength):
    base = model_in(tmp_path / "base", "llama")
    adapter = adapter_in(tmp_path / "adapter", base, layers_of("llama"), **settings)
    words = (adapter, "--to", tmp_path / "a.gguf", "--format", "gguf-lora", "--strength", strength)
    exported(*words)
    change, factors = change_by_llama_cpp(tmp_path / "a.gguf"), read_weights(adapter).factors
    names = {"down_proj": "ffn_down", "v_proj": "attn_v"}
    for path, part in factors.items():
        leaf = path.rpartition(".")[2]
        if leaf in names:
            name = f"blk.{path.split('.')[2]}.{names[leaf]}.weight"
            wanted = part.scale * strength * part.B.double().numpy() @ part.A.double().numpy()
            assert np.allclose(change[name], wanted, atol=1e-6 * np.abs(wanted).max())
    if not settings.get("rank_pattern", True):  # one rank and one scale: alpha says it all
        assert field(tmp_path / "a.gguf", "adapter.lora.alpha") == pytest.approx(6.0 * strength)
        B = tensors_in(tmp_path / "a.gguf")["blk.0.attn_v.weight.lora_b"]
        assert np.array_equal(B, factors["model.layers.0.self_attn.v_proj"].B.numpy())


def test_an_embedding_of_its_own_is_written_the_other_way_round(tmp_path):
    base = model_in(tmp_path / "base", "llama", tie_word_embeddings=False)
    adapter = adapter_in(tmp_path / "adapter", base, ["embed_tokens", "lm_head"])
    exported(adapter, "--to", tmp_path / "a.gguf", "--format", "gguf-lora")
    tensors = tensors_in(tmp_path / "a.gguf")
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    assert tensors["token_embd.weight.lora_a"].shape == (rows, 5) and tensors["token_embd.weight.lora_b"].shape == (
        64,
        5,
    )
    zero = adapter_in(tmp_path / "zero", base, ["q_proj"], size=0.0)
    (tmp_path / "zeros").mkdir()
    before, after = whole(tmp_path / "zeros", base, zero), whole(tmp_path, base, adapter)
    for name, change in change_by_llama_cpp(tmp_path / "a.gguf").items():
        assert np.allclose(change, after[name].astype(float) - before[name], atol=1e-5)


def test_the_file_says_what_it_is_and_of_which_base(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "adalora"))
    facts = exported("adalora", "--to", "out", "--format", "gguf-lora")
    file = tmp_path / "home" / "out" / "adapter.gguf"
    assert facts["to"] == "out/adapter.gguf" and facts["bytes"] == file.stat().st_size
    assert (field(file, "general.type"), field(file, "adapter.type")) == ("adapter", "lora")
    assert field(file, "general.architecture") == "llama" and field(file, "general.base_model.0.name")


@pytest.mark.parametrize(
    ("targets", "settings", "reason"),
    [
        (["q_proj"], {"dora": True}, "is DoRA"),
        (["embed_tokens"], {}, "the embedding and the output head at once"),
    ],
)
def test_what_llama_cpp_reads_in_no_adapter_is_refused_with_the_way_out(tmp_path, targets, settings, reason):
    base = model_in(tmp_path / "base", "llama", tie_word_embeddings=True)
    adapter = adapter_in(tmp_path / "adapter", base, targets, **settings)
    result = rankwise("export", adapter, "--to", tmp_path / "a.gguf", "--format", "gguf-lora")
    assert result.exit_code == 2 and reason in result.stderr and "Use --format gguf." in result.stderr
    assert not (tmp_path / "a.gguf").exists()
    assert rankwise("export", adapter, "--to", tmp_path / "b.gguf", "--format", "gguf").exit_code == 0


def test_a_full_run_has_no_adapter(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "full"))
    result = rankwise("export", "full", "--to", "a.gguf", "--format", "gguf-lora")
    assert result.exit_code == 2 and "Use --format merged or gguf" in result.stderr


def test_a_base_file_that_lacks_a_layer_is_refused_before_llama_cpp_does(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    base = model_in(tmp_path / "base", "llama")
    zero = adapter_in(tmp_path / "zero", base, ["q_proj"], size=0.0)
    exported(zero, "--to", tmp_path / "base.gguf", "--format", "gguf")
    exported(zero, "--to", tmp_path / "a.gguf", "--format", "gguf-lora", "--base-model", tmp_path / "base.gguf")
    wider = model_in(tmp_path / "wider", "llama", intermediate_size=128)
    adapter = adapter_in(tmp_path / "adapter", wider, ["up_proj"])
    words = ("--to", tmp_path / "b.gguf", "--format", "gguf-lora", "--base-model", tmp_path / "base.gguf")
    result = rankwise("export", adapter, *words)
    assert result.exit_code == 2 and "the adapter does not fit" in result.stderr and "ffn_up" in result.stderr


def test_dtype_is_for_merged_models(tmp_path):
    base = model_in(tmp_path / "base", "llama")
    adapter = adapter_in(tmp_path / "adapter", base, ["q_proj"])
    result = rankwise("export", adapter, "--to", tmp_path / "a.gguf", "--format", "gguf-lora", "--dtype", "float16")
    assert result.exit_code == 2 and "gguf-lora is written in float32" in result.stderr
