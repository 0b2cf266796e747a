"""`rankwise export`: another folder, the same adapter; or nothing at all."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import tiny_model
from kit.command import done, rankwise
from rankwise.adapters.formats.peft import read_peft, rewrite, write_peft
from rankwise.adapters.formats.peft_reader import WEIGHTS, read_weights
from rankwise.adapters.weights import AdapterWeights, Factors, check_same
from rankwise.commands.export import FORMATS
from rankwise.config.adapters import LoraConfig
from rankwise.errors import AdapterError
from rankwise.exporting.engines.table import ENGINES
from rankwise.methods.inject import inject

IDS = torch.arange(48).reshape(2, 24) % 96


@pytest.fixture
def home(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "lora", "adalora"))
    return tmp_path / "home"


@pytest.mark.parametrize(("run", "format"), [("lora", "peft"), ("adalora", "portable")])
def test_an_export_is_the_same_adapter_to_us_and_to_peft(home, tiny_folder, run, format):
    result = rankwise("export", run, "--to", "out/new", "--format", format, "--json")
    assert result.exit_code == 0 and result.stderr == "" and result.stdout.count("\n") == 1, result.output
    told = json.loads(result.stdout)
    file = home / "out" / "new" / "adapter_model.safetensors"
    facts = {"run": f"runs/{run}", "to": "out/new", "format": format, "bytes": file.stat().st_size}
    assert facts.items() <= told.items()
    ranks = {tensor.shape[0] for key, tensor in load_file(file).items() if "lora_A" in key}
    assert max(ranks) == told["rank"] and (format == "peft" or len(ranks) == 1)

    def host() -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()

    def logits(model):
        with torch.no_grad():
            return model(input_ids=IDS).logits

    wanted = host()
    read_peft(wanted, home / "runs" / run / "adapter")
    ours = host()
    read_peft(ours, home / "out" / "new")
    scale = logits(wanted).abs().max()
    assert (logits(wanted) - logits(host())).abs().max() > 1e-3 * scale
    for model in (ours, PeftModel.from_pretrained(host(), home / "out" / "new").eval()):
        assert (logits(model) - logits(wanted)).abs().max() <= 1e-5 * scale


def test_a_portable_adapter_says_one_rank_and_one_alpha_and_no_pattern(home):
    words = ("--to", "out", "--format", "portable", "--force-result")  # the settings were changed above
    assert rankwise("export", "adalora", *words).exit_code == 0
    config = json.loads((home / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] and not config["use_rslora"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    # an engine that divides alpha by the rank it finds in each tensor, and one that divides by r, come to the same
    tensors = load_file(home / "out" / "adapter_model.safetensors")
    assert {tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key} == {config["r"]}


def test_what_peft_reads_is_what_the_run_holds_to_the_byte(home):
    assert rankwise("export", "adalora", "--to", "out").exit_code == 0
    for name in ("adapter_model.safetensors", "adapter_config.json", "data_report.json"):
        assert (home / "out" / name).read_bytes() == (home / "runs" / "adalora" / "adapter" / name).read_bytes()


def test_an_exported_adapter_names_the_base_that_it_is_given(home):
    words = ("export", "lora", "--to", "out", "--base-model", "organisation/model")
    assert rankwise(*words).exit_code == 0
    config = json.loads((home / "out" / "adapter_config.json").read_text())
    own = json.loads((home / "runs" / "lora" / "adapter" / "adapter_config.json").read_text())
    assert config == own | {"base_model_name_or_path": "organisation/model"}
    ours, theirs = (home / folder / "base_model.json" for folder in ("runs/lora/adapter", "out"))
    before, after = json.loads(ours.read_text()), json.loads(theirs.read_text())
    assert after["name"] == "organisation/model" and after["fingerprint"] == before["fingerprint"]
    card = (home / "out" / "README.md").read_text()
    assert "\nbase_model: organisation/model\n" in card and before["name"] not in card + theirs.read_text()


def test_no_base_model_is_needed(home):
    file = home / "runs" / "adalora" / "config.json"
    asked = json.loads(file.read_text())
    file.write_text(json.dumps(asked | {"model": asked["model"] | {"name": "./nowhere"}}))
    words = ("--to", "out", "--format", "portable", "--force-result")  # the settings were changed above
    assert rankwise("export", "adalora", *words).exit_code == 0


@pytest.mark.parametrize(("architecture", "rslora"), [("llama", False), ("gpt2", True)])
def test_files_of_any_lora_are_made_portable(architecture, rslora, tmp_path):
    leaves = ("q_proj", "down_proj", "embed_tokens") if architecture == "llama" else ("c_attn", "mlp.c_proj", "wte")
    spec = LoraConfig(rank=3, alpha=7, targets=leaves, rank_pattern={leaves[0]: 5}, alpha_pattern={leaves[1]: 0.3})
    adapters = inject(tiny_model(architecture), spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    write_peft(adapters, tmp_path / "held", base_model="tiny")
    if rslora:
        file = tmp_path / "held" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"use_rslora": True}))
    rewrite(read_weights(tmp_path / "held").portable(), tmp_path / "made", {})
    held = read_peft(tiny_model(architecture), tmp_path / "held").adapters()
    made = read_peft(tiny_model(architecture), tmp_path / "made").adapters()
    for path, adapter in held.items():
        assert made[path].rank == 5
        torch.testing.assert_close(made[path].delta(), adapter.delta(), rtol=1e-5, atol=1e-5)


def test_filters_of_a_convolution_are_padded_as_filters(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    adapters = inject(model, LoraConfig(rank=2, alpha=3, targets=("0", "1"), rank_pattern={"1": 4}))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
    write_peft(adapters, tmp_path / "held", base_model="tiny")
    rewrite(read_weights(tmp_path / "held").portable(), tmp_path / "made", {})
    made = read_peft(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), tmp_path / "made").adapters()
    for path, adapter in adapters.adapters().items():
        torch.testing.assert_close(made[path].delta(), adapter.delta(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", ["a value", "the scale", "a layer gone", "another width"])
def test_an_adapter_that_is_another_is_told_from_this_one(home, tmp_path, what):
    held = read_weights(home / "runs" / "adalora" / "adapter")
    path, part = next(iter(held.factors.items()))
    value = part.A.clone()
    value[part.B.norm(dim=0).argmax(), 0] += 1e-4 * part.A.abs().max()
    wrong = {
        "a value": Factors(value, part.B, part.scale),
        "the scale": Factors(part.A, part.B, part.scale * 1.00001),
        "another width": Factors(part.A[:, :-1], part.B, part.scale),
    }.get(what)
    factors = {key: value for key, value in held.factors.items() if key != path} | ({path: wrong} if wrong else {})
    with pytest.raises(AdapterError, match="would differ from the adapter"):
        check_same(AdapterWeights(held.settings, factors), held, tmp_path)


def test_an_adapter_of_zeros_is_like_itself(home, tmp_path):
    held = read_weights(home / "runs" / "lora" / "adapter")
    zeros = {path: Factors(part.A, part.B * 0, part.scale) for path, part in held.factors.items()}
    untrained = AdapterWeights(held.settings, zeros)
    check_same(untrained.portable(), untrained, tmp_path)


def test_what_was_written_is_read_back_before_it_takes_its_name(home):
    # factors of one scale and a config that says another
    held = read_weights(home / "runs" / "lora" / "adapter")
    wrong = AdapterWeights(held.settings | {"lora_alpha": 33}, held.factors)
    before = sorted(home.rglob("*"))
    with pytest.raises(AdapterError, match="would differ from the adapter"):
        rewrite(wrong, home / "out", {})
    assert sorted(home.rglob("*")) == before


def test_a_peft_adalora_is_rewritten_as_lora_without_its_model(home):
    file = home / "runs" / "lora" / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "ADALORA", "init_r": read_weights(file.parent).rank, "lora_alpha": 8}))
    tensors = {key.removesuffix(".weight"): value for key, value in load_file(file.parent / WEIGHTS).items()}
    values = {key[:-1] + "E": torch.ones(len(value), 1) for key, value in tensors.items() if key.endswith("A")}
    save_file(tensors | values, file.parent / WEIGHTS)
    stored = read_weights(file.parent)
    for format in ("peft", "portable"):
        done("export", "lora", "--to", f"out-{format}", "--format", format, "--force-result")
        written = read_weights(home / f"out-{format}")
        assert written.settings["peft_type"] == "LORA" and written.settings["lora_alpha"] == written.settings["r"]
        check_same(written, stored, home)


def test_a_portable_rank_is_rounded_to_one_that_vllm_has_room_for(home):
    result = rankwise("export", "lora", "--to", "out", "--format", "portable", "--round-rank")
    assert result.exit_code == 0 and "rank 8" in result.output
    written = read_weights(home / "out")
    assert set(written.ranks.values()) == {8} and written.settings["lora_alpha"] == 8
    check_same(written, read_weights(home / "runs" / "lora" / "adapter"), home)
    refused = rankwise("export", "lora", "--to", "other", "--round-rank")
    assert refused.exit_code == 2 and "round-rank is for the format portable" in refused.stderr


@pytest.fixture(scope="module")
def half(tmp_path_factory, tiny_folder):
    """A run on a base whose files are bfloat16, in two shards, without a word of it in config.json."""
    folder = tmp_path_factory.mktemp("half")
    shutil.copytree(tiny_folder, folder / "base")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    (folder / "base" / "model.safetensors").unlink()
    model.save_pretrained(folder / "base", max_shard_size="20KB")
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "dtype" not in k}))
    (folder / "base" / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}')
    with contextlib.chdir(folder):
        (folder / "rows.jsonl").write_text('{"prompt": "What is it?", "completion": "It is a town."}\n' * 4)
        words = ("train", "--model", "base", "--data", "rows.jsonl", "--steps", 30, "--batch-size", 2, "--run", "half")
        done(*words, "--rank", 4, "--learning-rate", 0.01)
    return folder


@pytest.mark.parametrize(
    ("run", "dtype"),
    [("lora", "bfloat16"), ("lora", "float16"), ("adalora", None), ("half", None)],
)
def test_a_merged_model_is_the_trained_one_with_no_adapter(home, half, tiny_folder, monkeypatch, run, dtype):
    base = half / "base" if run == "half" else tiny_folder
    if run == "half":
        shutil.copytree(half, home / "half")
        monkeypatch.chdir(home / "half")
    words = () if dtype is None else ("--dtype", dtype)
    result = done("export", run, "--to", "out/whole", "--format", "merged", *words, "--json")
    told = json.loads(result.stdout)
    assert told.keys() == {
        "run", "to", "format", "strength", "bytes", "dtype", "logits_difference", "logits_change", "rounding", "files",
        "max_log_probability_difference", "max_logit_difference", "template_parity", "engines", "verified_with", "use",
        "not_verified",
    }  # fmt: skip
    assert told["dtype"] == (dtype or ("bfloat16" if run == "half" else "float32"))
    wanted = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    read_peft(wanted, Path("runs") / run / "adapter")
    whole = Path("out") / "whole"
    found = AutoModelForCausalLM.from_pretrained(whole)
    assert str(found.dtype) == f"torch.{told['dtype']}"
    assert rankwise("export", run, "--to", "out/exact", "--format", "merged", "--dtype", "float32").exit_code == 0
    exact = AutoModelForCausalLM.from_pretrained(Path("out") / "exact")
    for (name, ours), theirs in zip(found.state_dict().items(), exact.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs.to(ours.dtype)), f"{name} is rounded otherwise than once, at the end"
    with torch.no_grad():
        ours, theirs = (model(input_ids=IDS).logits for model in (exact, wanted))
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert 0.1 < told["logits_change"] and told["logits_difference"] < told["logits_change"] / 4  # by processor
    assert told["rounding"] == torch.finfo(found.dtype).eps / 2 and "rounding" not in result.stderr
    assert told["bytes"] == sum(file.stat().st_size for file in whole.glob("*.safetensors"))
    settings = json.loads((whole / "generation_config.json").read_text())
    own = json.loads((base / "generation_config.json").read_text())
    assert settings == own | {"eos_token_id": settings["eos_token_id"]}
    tokenizer = AutoTokenizer.from_pretrained(whole)
    assert tokenizer.eos_token_id in [settings["eos_token_id"]] or tokenizer.eos_token_id in settings["eos_token_id"]
    done("train", "--model", whole, "--data", "rows.jsonl", "--steps", 1, "--run", "again")


def test_a_weight_that_is_not_on_the_disk_as_it_was_merged_leaves_nothing(home, monkeypatch):
    from rankwise.exporting import merge as merging

    def damaged(model, folder, dtype):
        save(model, folder, dtype)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        key = next(key for key in tensors if "down_proj" in key)
        tensors[key][0, 0] += 1e-4
        save_file(tensors, file, metadata={"format": "pt"})

    save = merging.save
    monkeypatch.setattr(merging, "save", damaged)
    result = rankwise("export", "lora", "--to", "whole", "--format", "merged")
    assert result.exit_code == 2 and "differ from the merged ones" in result.stderr, result.output
    assert not any("whole" in path.name for path in home.iterdir())


def test_a_merged_model_that_is_another_is_not_left_behind(home, monkeypatch):
    from rankwise.methods import adapter as adapter_method

    def half(adapters, *name):
        for adapter in adapters.adapters().values():
            adapter.scale /= 2
        return merge(adapters, *name)

    merge = adapter_method.merge
    monkeypatch.setattr(adapter_method, "merge", half)
    result = rankwise("export", "lora", "--to", "whole", "--format", "merged")
    assert result.exit_code == 2 and "would differ from the trained model" in result.stderr, result.output
    assert not any("whole" in path.name for path in home.iterdir())


def test_a_change_that_rounding_hides_is_warned_of(home):
    words = ("export", "lora", "--to", "whole", "--format", "merged", "--strength", 0.001, "--quiet", "--dtype")
    coarse, fine = rankwise(*words, "bfloat16"), rankwise(*words[:3], "exact", *words[4:], "float32")
    assert coarse.exit_code == fine.exit_code == 0, coarse.output + fine.output
    assert "rounding to bfloat16" in coarse.stderr and "--dtype float32" in coarse.stderr and fine.stderr == ""
    assert "bfloat16 rounds weights by up to 0.0039" in coarse.stdout


def test_a_place_that_no_system_has_is_told(home):
    result = rankwise("export", "lora", "--to", "p/" * 2500 + "x")
    assert result.exit_code == 2 and "cannot be written (File name too long)" in result.stderr


@pytest.mark.parametrize("format", ["peft", "portable", "merged", "ollama"])
def test_an_export_ends_by_saying_how_it_is_loaded(home, format):
    result = done("export", "lora", "--to", "out", "--format", format)
    last = result.stdout.splitlines()[-1]
    call = {
        "peft": "PeftModel", "portable": "vllm serve", "merged": 'AutoModelForCausalLM.from_pretrained("out")',
        "ollama": "ollama create mine -f out/Modelfile",
    }  # fmt: skip
    assert last.startswith("load it with") and call[format] in last and "FOLDER" not in last


def test_the_documentation_lists_the_engines_that_a_refusal_points_to():
    rows = (Path(__file__).parents[2] / "docs" / "export.md").read_text().replace("`", "").splitlines()
    for engine in ENGINES:
        for format, use in engine.uses.items():
            assert f"| {engine.name} | {format} | {use} |" in rows
        assert {*engine.aliases.values()} <= engine.uses.keys()
    assert {format for engine in ENGINES for format in engine.uses} == set(FORMATS)
