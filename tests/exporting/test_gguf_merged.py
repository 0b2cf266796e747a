"""A merged GGUF file is the adapted model, to transformers' own reader of GGUF and tensor by tensor."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from transformers import AutoConfig, AutoModelForCausalLM

from kit.command import printed, rankwise
from kit.gguf_models import KINDS, adapter_in, layers_of, model_in
from rankwise.adapters.formats.peft import read_peft
from rankwise.base.gguf import files as gguf_files
from rankwise.base.gguf.architectures import ARCHITECTURES
from rankwise.base.gguf.conversion import converted, name_of_content
from rankwise.base.gguf.files import TYPES
from rankwise.base.gguf.settings import window_note
from rankwise.exporting import gguf_target
from rankwise.kernels.quantized.formats import Int8
from rankwise.runs.records import silent

IDS = torch.arange(80).reshape(2, 40) + 5
READ_BY_TRANSFORMERS = [kind for kind in KINDS if kind != "smollm3"]


def exported(*words):
    return printed("export", *words)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def ours(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    read_peft(model, adapter)
    return logits(model)


def plain(base):
    return logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))


def theirs(file, base):
    """As transformers reads the tensors. It ignores some settings of the file, so it gets those of the base."""
    config = AutoConfig.from_pretrained(base)
    if config.model_type == "mistral":  # which GGUF calls llama
        config = AutoConfig.for_model("llama", **{k: v for k, v in config.to_dict().items() if k != "model_type"})
    return logits(
        AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, config=config, dtype=torch.float32)
    )


def tensors_in(file):
    return {one.name: dequantize(one.data, one.tensor_type) for one in gguf.GGUFReader(file).tensors}


def types_in(file):
    return {one.name: one.tensor_type.name for one in gguf.GGUFReader(file).tensors}


def text_in(file, key):
    field = gguf.GGUFReader(file).fields.get(key)
    return None if field is None else field.contents()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    base = model_in(folder / "base", "llama")
    return base, adapter_in(folder / "adapter", base, layers_of("llama"))


@pytest.fixture(scope="module")
def exact(llama, tmp_path_factory):
    """The tensors of the adapted model in a file that rounds nothing."""
    file = tmp_path_factory.mktemp("exact") / "b.gguf"
    exported(llama[1], "--to", file, "--format", "gguf", "--dtype", "float32")
    return tensors_in(file)


@pytest.mark.parametrize("kind", READ_BY_TRANSFORMERS)
def test_a_merged_file_is_the_adapted_model_to_transformers(kind, tmp_path):
    base = model_in(tmp_path / "base", kind)
    adapter = adapter_in(tmp_path / "adapter", base, layers_of(kind))
    facts = exported(adapter, "--to", tmp_path / "out" / "tiny.gguf", "--format", "gguf", "--dtype", "float32")
    wanted = ours(base, adapter)
    scale = wanted.abs().max()
    assert (wanted - plain(base)).abs().max() > 0.5 * scale
    assert (theirs(tmp_path / "out" / "tiny.gguf", base) - wanted).abs().max() <= 1e-5 * scale
    assert facts["rounding"] == 0 and facts["bytes"] == (tmp_path / "out" / "tiny.gguf").stat().st_size


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_is_written_within_its_rounding(llama, exact, tmp_path, dtype):
    _, adapter = llama
    facts = exported(adapter, "--to", tmp_path / "a.gguf", "--format", "gguf", "--dtype", dtype)
    rounded = tensors_in(tmp_path / "a.gguf")
    errors = [np.abs(exact[name] - rounded[name]).max() / np.abs(exact[name]).max() for name in exact]
    assert exact.keys() == rounded.keys() and max(errors) == pytest.approx(facts["rounding"], rel=1e-5)
    assert max(errors) <= TYPES[dtype][2]
    types = types_in(tmp_path / "a.gguf")
    assert {types[name] for name in types if "norm" in name} == {"F32"}
    assert {types[name] for name in types if "norm" not in name} == {TYPES[dtype][0]}


def test_rows_that_fill_no_blocks_are_stored_as_float16_and_that_is_reported(tmp_path):
    base = model_in(tmp_path / "base", "llama", intermediate_size=40)
    adapter = adapter_in(tmp_path / "adapter", base, ["up_proj"])
    result = rankwise("export", adapter, "--to", tmp_path / "a.gguf", "--format", "gguf", "--dtype", "q8_0")
    assert result.exit_code == 0 and "2 matrices, such as blk.0.ffn_down.weight, are stored as F16" in result.stderr
    types = types_in(tmp_path / "a.gguf")
    assert types["blk.0.ffn_down.weight"] == "F16" and types["blk.0.ffn_up.weight"] == "Q8_0"


@pytest.mark.parametrize("dora", [False, True])
def test_strength_is_a_part_of_the_change_in_the_weights(llama, tmp_path, dora):
    base, adapter = llama
    if dora:
        adapter = adapter_in(tmp_path / "adapter", base, layers_of("llama"), dora=True)
    for name, strength in (("whole", 1), ("half", 0.5)):
        words = (adapter, "--to", tmp_path / f"{name}.gguf", "--format", "gguf", "--dtype", "float32")
        exported(*words, "--strength", strength)
    zero = adapter_in(tmp_path / "zero", base, layers_of("llama"), size=0.0)
    exported(zero, "--to", tmp_path / "none.gguf", "--format", "gguf", "--dtype", "float32")
    none, half, whole = (tensors_in(tmp_path / f"{name}.gguf") for name in ("none", "half", "whole"))
    for name in none:
        assert np.allclose(half[name], (none[name] + whole[name]) / 2, atol=1e-5)


@pytest.mark.parametrize(("target", "tied"), [("embed_tokens", False), ("embed_tokens", True), ("lm_head", False)])
def test_an_adapted_embedding_or_head_is_parted_from_its_twin(tmp_path, tied, target):
    base = model_in(tmp_path / "base", "llama", tie_word_embeddings=tied)
    adapter = adapter_in(tmp_path / "adapter", base, [target, "q_proj"])
    exported(adapter, "--to", tmp_path / "out" / "a.gguf", "--format", "gguf", "--dtype", "float32")
    apart = model_in(tmp_path / "apart", "llama", tie_word_embeddings=False)
    wanted = ours(base, adapter)
    assert (theirs(tmp_path / "out" / "a.gguf", apart) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_without_dtype_the_type_is_that_of_the_base(tmp_path):
    base = model_in(tmp_path / "base", "llama")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    adapter = adapter_in(tmp_path / "adapter", base, ["q_proj"])
    assert exported(adapter, "--to", tmp_path / "a.gguf", "--format", "gguf")["dtype"] == "bfloat16"


def test_a_folder_gets_the_file_and_what_is_recorded(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "lora", "full"))
    for run in ("lora", "full"):
        facts = exported(run, "--to", f"out/{run}", "--format", "gguf")
        parity = facts["template_parity"]
        assert parity["same"] == parity["conversations"] > 20 and "different" not in parity
        assert {file.name for file in (tmp_path / "home" / "out" / run).iterdir()} >= {"model.gguf", "data_report.json"}
        file = tmp_path / "home" / "out" / run / "model.gguf"
        template = json.loads((tmp_path / "home" / "runs" / run / "data_report.json").read_text())["template"]
        assert text_in(file, "tokenizer.chat_template") == template["sources"]["default"]
        assert text_in(file, "general.architecture") == "llama" and text_in(file, "tokenizer.ggml.pre") == "gpt-2"


def test_a_full_run_is_its_own_weights(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "full"))
    exported("full", "--to", "out/a.gguf", "--format", "gguf")
    folder = tmp_path / "home" / "runs" / "full" / "model"
    wanted = plain(folder)
    assert (theirs(tmp_path / "home" / "out" / "a.gguf", folder) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    scaled = rankwise("export", "full", "--to", "half", "--format", "gguf", "--strength", "0.5")
    assert scaled.exit_code == 2 and "--format merged" in scaled.stderr and not Path("half").exists()


@pytest.mark.parametrize("name", [name for name in TYPES if name.startswith("q")])
def test_the_bound_of_a_type_allows_its_worst_block_and_little_more(name):
    type, _, bound = TYPES[name]
    row = np.random.default_rng(0).uniform(-1, 1, (500, 32)).astype(np.float32)
    row[:, 0], row[:, 1] = 1, -0.9999
    kind = gguf.GGMLQuantizationType[type]
    error = np.abs(dequantize(quantize(row, kind), kind) - row).max()
    assert error <= bound and bound < 2 * error


def of_file(file, base):
    """A GGUF file of a base, quantised, with a setting that transformers does not know."""
    zero = adapter_in(base.parent / "zero", base, ["q_proj"], size=0.0)
    exported(zero, "--to", file, "--format", "gguf", "--dtype", "q8_0")
    return file


def test_over_a_gguf_base_only_adapted_tensors_change_and_the_rest_stays_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    base = model_in(tmp_path / "base", "llama")
    file = of_file(tmp_path / "base.gguf", base)
    adapter = adapter_in(tmp_path / "adapter", base, ["q_proj", "down_proj"])
    words = ("export", adapter, "--to", tmp_path / "a.gguf", "--format", "gguf", "--base-model", file)
    result = rankwise(*words)
    assert result.exit_code == 0, result.output
    assert "they were Q8_0 and are decoded, changed and written as float16" in result.stderr
    before, after = ({one.name: one for one in gguf.GGUFReader(one).tensors} for one in (file, tmp_path / "a.gguf"))
    changed = {name for name in before if "attn_q." in name or "ffn_down" in name}
    assert list(before) == list(after)
    for name in before:
        same = np.array_equal(before[name].data, after[name].data)
        assert same == (name not in changed), name
        assert after[name].tensor_type.name == ("F16" if name in changed else before[name].tensor_type.name)
    for key, field in gguf.GGUFReader(file).fields.items():
        if not key.startswith("GGUF."):
            assert text_in(tmp_path / "a.gguf", key) == field.contents(), key
    exact = exported(*words[1:3], tmp_path / "b.gguf", *words[4:], "--dtype", "float32")
    assert exact["copied"] == len([name for name in before if "norm" in name])
    folder = converted(file, silent)
    wanted = ours(folder, adapter)
    (tmp_path / "alone").mkdir()
    (tmp_path / "b.gguf").rename(tmp_path / "alone" / "b.gguf")
    assert (theirs(tmp_path / "alone" / "b.gguf", folder) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_over_a_gguf_base_that_was_quantised_again_the_numbers_of_the_training_are_written(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    base = model_in(tmp_path / "base", "qwen2")
    file = of_file(tmp_path / "base.gguf", base)
    adapter = adapter_in(tmp_path / "adapter", base, ["q_proj"])
    facts = {"name": str(file), "source": "converted from GGUF", "fingerprint": name_of_content(file)}
    facts |= {"dtype": "float32", "device": "cpu", "quantization": "int8"}
    (adapter / "base_model.json").write_text(json.dumps(facts))
    exported(adapter, "--to", tmp_path / "a.gguf", "--format", "gguf", "--base-model", file, "--dtype", "float32")
    full = AutoModelForCausalLM.from_pretrained(converted(file, silent), dtype=torch.float32)
    numbers, scales = Int8().pack(full.model.layers[0].self_attn.v_proj.weight.detach())
    written = {one.name: one for one in gguf.GGUFReader(tmp_path / "a.gguf").tensors}["blk.0.attn_v.weight"]
    assert np.array_equal(written.data, (numbers * scales[:, None]).numpy())


@pytest.mark.parametrize("fault", ["scale", "type"])
def test_a_file_that_differs_from_the_model_never_gets_its_name(llama, tmp_path, monkeypatch, fault):
    if fault == "scale":  # the second computation is another one, as after a change of the files
        changed, calls = gguf_target.GgufChange.changed, []

        def other(self, name, weight):
            calls.append(name)
            return changed(self, name, weight) * (1 if calls.count(name) == 1 or "ffn_up" not in name else 2)

        monkeypatch.setattr(gguf_target.GgufChange, "changed", other)
    else:
        monkeypatch.setitem(gguf_files.TYPES, "float16", ("F16", 1, 1e-9))
    result = rankwise("export", llama[1], "--to", tmp_path / "a.gguf", "--format", "gguf", "--dtype", "float16")
    assert result.exit_code == 2 and "would differ from the trained model" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("smollm3", {"no_rope_layers": [1] * 5}, "without positions"),
        ("gemma2", {"query_pre_attn_scalar": 32}, "query_pre_attn_scalar is 32 instead of 16"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 7}, "looks at the whole text"),
        ("llama", {"hidden_act": "gelu"}, "its activation is"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "of the type"),
    ],
)
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused_with_the_way_out(tmp_path, kind, more, reason):
    base = model_in(tmp_path / "base", kind, **more)
    adapter = adapter_in(tmp_path / "adapter", base, ["q_proj"])
    result = rankwise("export", adapter, "--to", tmp_path / "a.gguf", "--format", "gguf")
    assert result.exit_code == 2 and reason in result.stderr and "--base-model FILE.gguf" in result.stderr
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize("format", ["gguf", "gguf-lora"])
def test_another_architecture_is_refused_by_name(tmp_path, format, tiny_folder):
    base = model_in(tmp_path / "base", "llama")
    adapter = adapter_in(tmp_path / "adapter", base, ["q_proj"])
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "olmo"}))
    result = rankwise("export", adapter, "--to", tmp_path / "a.gguf", "--format", format)
    assert result.exit_code == 2 and "which cannot be written as GGUF. Supported: llama," in result.stderr
    assert "olmo" in result.stderr


def test_a_base_with_other_weights_is_refused(library, tmp_path, monkeypatch):
    home = library.lay_out(tmp_path / "home", "lora")
    monkeypatch.chdir(home)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained("tiny-llama")).save_pretrained("tiny-llama")
    for format in ("gguf", "gguf-lora"):
        words = ("export", "lora", "--to", "a.gguf", "--format", format)
        assert rankwise(*words).exit_code == 2 and not (home / "a.gguf").exists()
    assert rankwise(*words, "--force-base").exit_code == 0


def test_a_window_that_llama_cpp_does_not_read_is_noted_where_a_text_may_be_longer():
    config = {"max_position_embeddings": 256}
    notes = [window_note(config | {"sliding_window": one}, ARCHITECTURES["mistral"]) for one in (None, 255, 256)]
    assert [note is not None for note in notes] == [False, True, False]


def test_an_existing_file_stays(llama, tmp_path):
    (tmp_path / "a.gguf").write_text("mine")
    result = rankwise("export", llama[1], "--to", tmp_path / "a.gguf", "--format", "gguf")
    assert result.exit_code == 2 and (tmp_path / "a.gguf").read_text() == "mine"


def test_the_longest_pairs_of_llama_3_are_slowed_by_its_factor():
    from rankwise.base.gguf.settings import computed_tensors

    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    (factors,) = computed_tensors({"rope_parameters": rope, "head_dim": 128}).values()
    for pair, factor in enumerate(factors.tolist()):
        length = 2 * math.pi * 500000 ** (2 * pair / 128)
        assert 1 - 1e-6 <= factor <= 8 + 1e-6
        assert (factor < 1 + 1e-6) == (length <= 2048) and (factor > 8 - 1e-5) == (length >= 8192)
