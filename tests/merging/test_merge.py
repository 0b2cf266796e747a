"""A merge through files is the adapted model, in every number format, and says what it was made of."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from kit.adapted_models import TABLES, logits, save_adapter, save_base
from rankwise.cli.main import app
from rankwise.commands.merge import merge
from rankwise.config.adapters import AdaLoraConfig, LoraConfig
from rankwise.errors import AdapterError, ConfigError
from rankwise.kernels import row_pieces

SPECS = {
    "lora": LoraConfig(rank=3, alpha=5),
    "root": LoraConfig(rank=2, scaling="sqrt-rank"),
    "dora": LoraConfig(rank=3, dora=True),
    "adalora": AdaLoraConfig(budget=2),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny layers are cut too."""
    monkeypatch.setattr(row_pieces, "PIECE", 400)


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model.eval()


def near(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox", "gptj"])
@pytest.mark.parametrize("spec", SPECS)
def test_merged_is_adapted(tmp_path, architecture, spec):
    base = save_base(tmp_path / "base", architecture)
    live = save_adapter(tmp_path / "adapter", base, architecture, SPECS[spec])
    wanted = logits(live)
    result = merge(tmp_path / "adapter", tmp_path / "merged")
    assert result.changed > 0 and all(one.change > 1e-3 for one in result.roundings)
    assert near(logits(loaded(base)), wanted) > 1e-3
    assert near(logits(loaded(tmp_path / "merged")), wanted) <= 1e-5
    if spec == "lora":
        theirs = PeftModel.from_pretrained(loaded(base), tmp_path / "adapter").merge_and_unload()
        assert near(logits(loaded(tmp_path / "merged")), logits(theirs)) <= 1e-5


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("tables", [(), ("all-linear",)])
def test_a_table_that_was_the_head_too_is_stored_twice(tmp_path, architecture, tables):
    spec = LoraConfig(rank=2, targets=(*tables, TABLES[architecture]))
    model = None
    if architecture == "llama":
        from transformers import LlamaForCausalLM

        from conftest import tiny_model

        config = tiny_model("llama").config
        config.tie_word_embeddings = True
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        model.save_pretrained(tmp_path / "base")
    else:
        save_base(tmp_path / "base", architecture)
    wanted = logits(save_adapter(tmp_path / "adapter", tmp_path / "base", architecture, spec, model=model))
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = loaded(tmp_path / "merged")
    assert not merged.config.tie_word_embeddings
    assert near(logits(merged), wanted) <= 1e-5
    before, after = loaded(tmp_path / "base"), merged
    assert torch.equal(before.get_output_embeddings().weight, after.get_output_embeddings().weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_number_is_rounded_once_and_the_error_is_measured(tmp_path, dtype):
    base = save_base(tmp_path / "base", "llama", dtype)
    save_adapter(tmp_path / "adapter", base, "llama", SPECS["lora"])
    result = merge(tmp_path / "adapter", tmp_path / "merged")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    unit, path = torch.finfo(dtype).eps, "model.layers.0.mlp.gate_proj"
    A, B = (factors[f"base_model.model.{path}.lora_{part}.weight"].double() for part in "AB")
    exact = before[f"{path}.weight"].double() + 5 / 3 * B @ A
    stored = after[f"{path}.weight"]
    assert stored.dtype == dtype
    error = (stored.double() - exact).abs()
    sums = 1e-6 if dtype != torch.float64 else 4 * unit  # of the accumulation, before the one rounding
    assert bool((error <= 0.5001 * unit * exact.abs() + sums * exact.abs().max()).all())
    measured = next(one for one in result.roundings if one.name == f"{path}.weight")
    change = torch.linalg.vector_norm(exact - before[f"{path}.weight"].double())
    if dtype != torch.float64:
        assert measured.of_change == pytest.approx(float(torch.linalg.vector_norm(error) / change), rel=0.02)
        assert measured.largest <= 0.51 * unit + (dtype == torch.float16)
    assert torch.equal(before["model.norm.weight"].view(torch.uint8), after["model.norm.weight"].view(torch.uint8))


def test_shards_keep_their_names_and_tensors_and_what_does_not_change_its_bytes(tmp_path):
    base = save_base(tmp_path / "base", "llama", torch.bfloat16, shard="20KB")
    save_adapter(tmp_path / "adapter", base, "llama", LoraConfig(rank=2, targets=("q_proj",)))
    merge(tmp_path / "adapter", tmp_path / "merged")
    names = sorted(file.name for file in base.glob("*.safetensors"))
    assert len(names) > 2 and names == sorted(file.name for file in (tmp_path / "merged").glob("*.safetensors"))
    for name in names:
        before, after = load_file(base / name), load_file(tmp_path / "merged" / name)
        assert before.keys() == after.keys()
        for key in before:
            same = torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8))
            assert same != ("q_proj" in key)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]


def test_another_number_format_is_a_choice(tmp_path):
    base = save_base(tmp_path / "base", "llama", torch.bfloat16)
    save_adapter(tmp_path / "adapter", base, "llama", SPECS["lora"])
    merge(tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"


def test_strength_turns_the_change(tmp_path):
    base = save_base(tmp_path / "base", "llama")
    for spec in ("lora", "dora"):
        save_adapter(tmp_path / spec, base, "llama", SPECS[spec])
        whole, half = (merge(tmp_path / spec, tmp_path / f"{spec}-{t}", strength=t).folder for t in (1.0, 0.5))
        before, full, part = (load_file(Path(one) / "model.safetensors") for one in (base, whole, half))
        for key in before:
            torch.testing.assert_close(part[key], (before[key] + full[key]) / 2, rtol=1e-5, atol=1e-6)


def test_the_record_has_the_hash_of_every_file_and_another_merge_has_the_same(tmp_path):
    base = save_base(tmp_path / "base", "llama", torch.bfloat16, shard="20KB")
    save_adapter(tmp_path / "adapter", base, "llama", SPECS["lora"])
    for name in ("merged", "again"):
        merge(tmp_path / "adapter", tmp_path / name)
    record, again = (json.loads((tmp_path / name / "merge.json").read_text()) for name in ("merged", "again"))
    assert record == again
    (adapter,) = record["adapters"]
    weights = {file.name for file in base.glob("*.safetensors")}
    assert adapter["files"].keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert record["base_files"].keys() == weights
    assert record["files"].keys() == weights | {"config.json", "model.safetensors.index.json"}
    for folder, files in ((base, record["base_files"]), (tmp_path / "adapter", adapter["files"]),
                          (tmp_path / "merged", record["files"])):  # fmt: skip
        assert all(sha256((folder / name).read_bytes()).hexdigest() == one for name, one in files.items())


def test_what_does_not_fit_is_refused_with_all_problems_and_nothing_is_written(tmp_path):
    base, other = save_base(tmp_path / "base", "llama"), save_base(tmp_path / "other", "gpt2")
    save_adapter(tmp_path / "one", base, "llama", SPECS["lora"])
    save_adapter(tmp_path / "two", other, "gpt2", LoraConfig(rank=2, targets=("c_attn",)))
    file = tmp_path / "one" / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"]
    save_file(tensors, file)
    with pytest.raises(AdapterError) as refused:
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "merged", weights=[1, 1])
    assert "up_proj" in str(refused.value) and "c_attn" in str(refused.value)
    with pytest.raises(ConfigError, match="2 adapters need a weight each"):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))


def test_a_value_that_the_format_cannot_hold_is_refused(tmp_path):
    base = save_base(tmp_path / "base", "llama", torch.float16)
    save_adapter(tmp_path / "adapter", base, "llama", SPECS["lora"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: value * 3000 for key, value in load_file(file).items()}, file)
    with pytest.raises(AdapterError, match=r"NaN or infinity.*65,504"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".merged*"))


def test_quantised_weights_are_refused_by_name(tmp_path):
    base = save_base(tmp_path / "base", "llama")
    save_adapter(tmp_path / "adapter", base, "llama", SPECS["lora"])
    tensors = load_file(base / "model.safetensors")
    path = "model.layers.0.mlp.up_proj.weight"
    tensors[path] = (tensors[path] * 100).to(torch.int8)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"8-bit integers \(int8\)"):
        merge(tmp_path / "adapter", tmp_path / "merged")


def test_the_command_plans_and_merges(tmp_path, monkeypatch):
    base = save_base(tmp_path / "base", "llama", torch.bfloat16)
    save_adapter(tmp_path / "adapter", base, "llama", SPECS["lora"])
    monkeypatch.chdir(tmp_path)

    def rankwise(*words: str):
        return CliRunner().invoke(app, ["merge", *words])

    plan = rankwise("adapter", "--plan", "--json")
    facts = json.loads(plan.stdout)
    assert plan.exit_code == 0 and facts["dtype"] == "bfloat16" and len(facts["changed"]) == 14
    assert facts["bytes"] == sum(value.nbytes for value in load_file(base / "model.safetensors").values())
    assert not Path("merged").exists()
    result = rankwise("adapter", "--to", "merged")
    assert result.exit_code == 0 and "rounding: numbers by at most" in result.stdout, result.output
    again = rankwise("adapter", "--to", "merged")
    assert again.exit_code == 2 and "already exists" in again.output
    assert rankwise("adapter").exit_code == 2


def test_what_is_only_converted_must_fit_the_format_too(tmp_path):
    base = save_base(tmp_path / "base", "llama")
    save_adapter(tmp_path / "adapter", base, "llama", LoraConfig(rank=2, targets=("q_proj",)))
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"model.norm.weight.*65,504"):
        merge(tmp_path / "adapter", tmp_path / "merged", dtype="float16")
    assert merge(tmp_path / "adapter", tmp_path / "merged").changed == 2
