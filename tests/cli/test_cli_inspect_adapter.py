"""`rankwise inspect ADAPTER` tells what is inside: scales by engine, the rank that is used, what stands out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from kit.command import printed, rankwise
from rankwise.adapters.formats.peft import rewrite
from rankwise.adapters.formats.peft_reader import WEIGHTS, read_weights
from rankwise.exporting.engine_rules import RULES


def text_of(*words):
    """Without the line breaks that fit it into 79 columns."""
    result = rankwise("inspect", *words)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def facts(*words):
    return printed("inspect", *words)["adapter"]


@pytest.fixture
def home(library, tmp_path, monkeypatch):
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "lora", "adalora", "full"))
    return tmp_path / "home"


def test_a_run_s_adapter_is_told_with_its_base_and_engines(home):
    found = facts("lora")
    assert found["declared"]["r"] == 4 and found["base"]["recorded"]["fingerprint"]
    assert set(found["engines"]) == set(RULES) and found["engines"]["vLLM"] is None
    assert "OpenVINO GenAI" in found["engine_factors"], "it reads no alpha"
    assert sum(found["kinds"].values()) == 14 == len(found["layers"]) and found["missing_blocks"] == {}
    for layer in found["layers"].values():
        assert len(layer["singular_values"]) == 4 and layer["used_rank"] <= 4
        assert layer["rank_at_error"]["0.05"] <= layer["rank_at_error"]["0.01"] <= layer["used_rank"]
    assert found["rank_at_error"]["0.05"] == sum(one["rank_at_error"]["0.05"] for one in found["layers"].values())
    assert facts("full") is None


def test_ranks_of_adalora_are_what_some_engines_cannot_read(home):
    found = facts("adalora")
    assert "in every layer" in found["engines"]["SGLang"] and found["engines"]["PEFT"] is None
    text = text_of("adalora")
    assert "these apply the trained change: PEFT, transformers, vLLM" in text and "SGLang needs rank" in text


def test_the_lines_say_what_is_known_of_the_base(home):
    assert "its weights are recorded" in text_of("lora")
    folder = home / "copy"
    rewrite(read_weights(home / "runs" / "lora" / "adapter"), folder, {})
    text = text_of("copy")
    assert "its weights are not recorded, so another model would not be noticed" in text
    assert facts("copy")["base"]["recorded"] is None


def test_a_planted_direction_and_an_unused_rank_are_seen(home):
    weights = read_weights(home / "runs" / "lora" / "adapter")
    wide = {path: replace(part, B=torch.randn(part.B.shape)) for path, part in weights.factors.items()}
    path = "model.layers.1.mlp.down_proj"
    B = wide[path].B
    B[:, 0] *= 60
    rewrite(replace(weights, factors=wide), home / "planted", {})
    assert [one["path"] for one in facts("planted")["planted"]][:1] == [path]
    assert f"{path}: " in text_of("planted") and "no proof" in text_of("planted")
    portable = replace(weights, factors=wide).portable((8,))
    rewrite(portable, home / "padded", {})
    found = facts("padded")
    assert (
        found["used_rank"] == 14 * 4 and sum(len(one["singular_values"]) for one in found["layers"].values()) == 14 * 8
    )


def test_a_pickle_is_refused_with_its_conversion(home):
    (home / "adapter_model.bin").write_bytes(b"\x80\x04x")
    for words in (["adapter_model.bin"], ["adapter_model.bin", "--json"]):
        result = rankwise("inspect", *words)
        assert result.exit_code == 2 and "is a pickle" in result.output and "save_file" in result.output
    asked = rankwise("generate", "adapter_model.bin", "--prompt", "x")
    assert asked.exit_code == 2 and "is a pickle" in asked.stderr


def test_odd_adapters_are_shown_with_a_warning(home):
    folder = home / "copy"
    rewrite(read_weights(home / "runs" / "lora" / "adapter"), folder, {})
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 100_000, "new_key": 1}))
    text = text_of("copy")
    assert "warning: adapter_config.json sets 'new_key'" in text and "unusual scale, such as 25000" in text


def test_an_adapter_of_rank_one_is_shown(home):
    folder = home / "one"
    weights = read_weights(home / "runs" / "lora" / "adapter")
    rewrite(weights, folder, {})
    stored = load_file(folder / WEIGHTS)
    save_file({key: (value[:1] if "lora_A" in key else value[:, :1]).contiguous() for key, value in stored.items()},
              folder / WEIGHTS)  # fmt: skip
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"r": 1}))
    assert facts("one")["planted"] == [] and rankwise("inspect", "one").exit_code == 0
