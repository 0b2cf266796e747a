"""A LoRA out of full fine-tuning: the nearest of its rank, and everything that it cannot hold is said."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from conftest import tiny_model
from kit.adapted_models import logits, save_base
from rankwise.adapters.formats.peft_reader import read_weights
from rankwise.cli.main import app
from rankwise.commands.extract import extract
from rankwise.errors import AdapterError, ConfigError


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
def test_every_layer_is_the_nearest_of_its_rank(tmp_path, architecture):
    base = save_base(tmp_path / "base", architecture)
    tuned = tiny_model(architecture)
    with torch.no_grad():
        for seed, parameter in enumerate(tuned.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.02)
    tuned.save_pretrained(tmp_path / "tuned")
    result = extract(tmp_path / "tuned", tmp_path / "out", base, rank=4)
    before, after = tiny_model(architecture).state_dict(), tuned.state_dict()
    assert result.layers and {one.kind for one in result.outside} >= {"embeddings", "norms"}
    for layer in result.layers:
        key = f"{layer.layer}.weight"
        values = torch.linalg.svdvals(after[key].double() - before[key].double())
        assert layer.error == pytest.approx(float(values[4:].norm() / values.norm()), rel=1e-6)
    for whole in ("out", "exact"):
        if whole == "exact":
            extract(tmp_path / "tuned", tmp_path / "exact", base, rank=48)
        ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / whole)
        assert torch.isfinite(logits(ours)).all()
    linear = {f"{one.layer}.weight" for one in result.layers}
    only = AutoModelForCausalLM.from_pretrained(base)
    for name, parameter in only.named_parameters():
        if name in linear:
            parameter.data = dict(tuned.named_parameters())[name].data
    difference = (logits(ours) - logits(only)).abs().max() / logits(only).abs().max()
    assert difference <= 1e-5


def test_the_smallest_ranks_for_an_error(tmp_path):
    base = save_base(tmp_path / "base", "llama")
    tuned = tiny_model("llama")
    with torch.no_grad():
        for seed, layer in enumerate(tuned.model.layers):
            generator = torch.Generator().manual_seed(seed)
            layer.mlp.up_proj.weight.add_(
                torch.randn(48, 2, generator=generator) @ torch.randn(2, 32, generator=generator)
            )
    tuned.save_pretrained(tmp_path / "tuned")
    result = extract(tmp_path / "tuned", tmp_path / "out", base, error=1e-3)
    assert [(one.layer, one.rank) for one in result.layers] == [
        ("model.layers.0.mlp.up_proj", 2), ("model.layers.1.mlp.up_proj", 2),
    ]  # fmt: skip
    assert result.error < 1e-5 and not result.outside
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    assert (logits(ours) - logits(tuned)).abs().max() <= 1e-5 * logits(tuned).abs().max()


def test_mistakes_are_named(tmp_path):
    base = save_base(tmp_path / "base", "llama")
    with pytest.raises(ConfigError, match="either --rank or --error"):
        extract(base, tmp_path / "out", base)
    with pytest.raises(AdapterError, match="nothing to extract"):
        extract(base, tmp_path / "out", base, rank=2)
    with pytest.raises(AdapterError, match="lacks"):
        extract(save_base(tmp_path / "other", "gpt2"), tmp_path / "out", base, rank=2)
    assert not (tmp_path / "out").exists()


def test_a_run_of_full_tuning_names_its_base_itself(library, tmp_path):
    home = library.lay_out(tmp_path / "home", "full", "lora")
    with contextlib.chdir(home):
        result = CliRunner().invoke(app, ["extract", "full", "--to", "out", "--rank", "8", "--json"])
        assert result.exit_code == 0, result.output
        facts = json.loads(result.stdout)
        assert {one["rank"] for one in facts["layers"]} == {8} and 0 < facts["error"] < 1
        assert read_weights(home / "out").rank == 8 and (home / "out" / "base_model.json").is_file()
        generated = CliRunner().invoke(app, ["generate", "out", "--prompt", "What is land 1?", "--max-new-tokens", "4"])
        assert generated.exit_code == 0, generated.output
        merged = CliRunner().invoke(app, ["merge", "out", "--to", "again"])
        assert merged.exit_code == 0, merged.output
        refused = CliRunner().invoke(app, ["extract", "lora", "--to", "no", "--rank", "2"])
        assert refused.exit_code == 2 and "trained an adapter" in refused.output
        refused = CliRunner().invoke(app, ["merge", "full", "--to", "no"])
        assert refused.exit_code == 2 and "rankwise extract" in refused.output
    shutil.rmtree(home)
